"""Recorded histories of resolutions: one that is under way survives a change of the code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from activities.billing.signatures import CallRecord, ResolvedHold
from activities.messages import HoldRef
from tests.billing.record_histories import HISTORIES, PATHS
from workflows.naming import RESOLVE_HOLD
from workflows.resolve_hold import ResolveHold


def _read(name: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(name, (HISTORIES / f"{name}.json").read_text())


def test_every_path_has_its_recorded_history_and_no_other_is_kept() -> None:
    assert {file.stem for file in HISTORIES.glob("*.json")} == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
async def test_a_recorded_history_replays_with_the_code_as_it_is(name: str) -> None:
    replayer = Replayer(workflows=[ResolveHold], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(_read(name))


@pytest.mark.parametrize("name", PATHS)
def test_a_recorded_history_names_nothing_of_the_machine(name: str) -> None:
    content = (HISTORIES / f"{name}.json").read_text()
    for words in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert words not in content


@workflow.defn(name=RESOLVE_HOLD)
class _WithoutAsking(ResolveHold):
    """The provider is not asked."""

    @workflow.run
    async def run(self, hold: HoldRef) -> ResolvedHold:
        return await self._charge(hold, CallRecord())


async def test_replay_notices_a_provider_that_is_not_asked() -> None:
    replayer = Replayer(
        workflows=[_WithoutAsking], data_converter=pydantic_data_converter, workflow_runner=UnsandboxedWorkflowRunner()
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(_read("by_record"))
