"""Recorded histories of deliveries: one that has waited for two days survives a change of the code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from activities.messages import WebhookDelivery
from activities.webhooks.signatures import DeliveryEnd
from tests.webhooks.record_histories import HISTORIES, PATHS
from workflows.deliver_webhook import DeliverWebhook
from workflows.naming import DELIVER_WEBHOOK


def _read(name: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(name, (HISTORIES / f"{name}.json").read_text())


def test_every_path_has_its_recorded_history_and_no_other_is_kept() -> None:
    assert {file.stem for file in HISTORIES.glob("*.json")} == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
async def test_a_recorded_history_replays_with_the_code_as_it_is(name: str) -> None:
    replayer = Replayer(workflows=[DeliverWebhook], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(_read(name))


@pytest.mark.parametrize("name", PATHS)
def test_a_recorded_history_names_nothing_of_the_machine(name: str) -> None:
    content = (HISTORIES / f"{name}.json").read_text()
    for words in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert words not in content


@workflow.defn(name=DELIVER_WEBHOOK)
class _WithoutSending(DeliverWebhook):
    """The event is not sent."""

    @workflow.run
    async def run(self, delivery: WebhookDelivery) -> DeliveryEnd:
        return DeliveryEnd(state="delivered")


async def test_replay_notices_an_event_that_is_not_sent() -> None:
    replayer = Replayer(
        workflows=[_WithoutSending], data_converter=pydantic_data_converter, workflow_runner=UnsandboxedWorkflowRunner()
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(_read("accepted"))
