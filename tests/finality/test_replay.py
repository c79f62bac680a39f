"""Recorded histories of reversals: one that is under way survives a change of the code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from activities.messages import ReversalResult, TrackedPayment
from domain.payments.attempt import AttemptStatus, Purpose
from tests.finality.record_histories import HISTORIES, PATHS, walk
from tests.support.servers import Namespace
from workflows import finality
from workflows.naming import REVERSE_PAYMENT
from workflows.reverse_payment import ReversePayment

EVENTS_MAX = 40


def _read(name: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(name, (HISTORIES / f"{name}.json").read_text())


def test_every_path_has_its_recorded_history_and_no_other_is_kept() -> None:
    assert {file.stem for file in HISTORIES.glob("*.json")} == set(PATHS), "record it: make histories"


@pytest.mark.parametrize("name", PATHS)
async def test_a_recorded_history_replays_with_the_code_as_it_is(name: str) -> None:
    replayer = Replayer(workflows=[ReversePayment], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(_read(name))


@pytest.mark.parametrize("name", PATHS)
def test_a_recorded_history_is_short_and_names_nothing_of_the_machine(name: str) -> None:
    assert len(_read(name).events) < EVENTS_MAX
    content = (HISTORIES / f"{name}.json").read_text()
    for words in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert words not in content


@pytest.mark.parametrize("name", PATHS)
async def test_a_path_takes_its_steps_in_order(namespace: Namespace, name: str) -> None:
    purpose, status = PATHS[name]
    _, script = await walk(namespace.client, name)
    steps = [called for called, _ in script.calls if called != "await_finality"]
    if status is AttemptStatus.CREDITED:
        assert steps == []
    else:
        bonus = ["reverse_bonus"] if purpose is Purpose.SELF else []
        assert steps == ["reverse_payment", *bonus, "announce"]


@workflow.defn(name=REVERSE_PAYMENT)
class _Unchanged(ReversePayment):
    @workflow.init
    def __init__(self, payment: TrackedPayment) -> None:
        super().__init__(payment)

    @workflow.run
    async def run(self, payment: TrackedPayment) -> ReversalResult:
        return await ReversePayment.run(self, payment)


@pytest.mark.parametrize("is_changed", [False, True])
async def test_replay_notices_a_bonus_that_is_not_reversed(is_changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep_the_bonus(_: TrackedPayment) -> int:
        return 0

    if is_changed:
        monkeypatch.setattr(finality, "_reverse_bonus", keep_the_bonus)
    replayer = Replayer(
        workflows=[_Unchanged], data_converter=pydantic_data_converter, workflow_runner=UnsandboxedWorkflowRunner()
    )
    if is_changed:
        with pytest.raises(NondeterminismError):
            await replayer.replay_workflow(_read("purchase_reversed"))
    else:
        await replayer.replay_workflow(_read("purchase_reversed"))
