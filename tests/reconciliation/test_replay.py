"""Recorded histories of remedies: one that is under way survives a change of the code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from domain.operations.resolutions import RemedyRequest, TakenRemedy
from tests.reconciliation.record_histories import HISTORIES, PATHS
from workflows.naming import RESOLVE_FINDING
from workflows.resolve_finding import ResolveFinding


def _read(name: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(name, (HISTORIES / f"{name}.json").read_text())


def test_every_path_has_its_recorded_history_and_no_other_is_kept() -> None:
    assert {file.stem for file in HISTORIES.glob("*.json")} == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
async def test_a_recorded_history_replays_with_the_code_as_it_is(name: str) -> None:
    replayer = Replayer(workflows=[ResolveFinding], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(_read(name))


@pytest.mark.parametrize("name", PATHS)
def test_a_recorded_history_reveals_nothing_about_the_machine(name: str) -> None:
    content = (HISTORIES / f"{name}.json").read_text()
    for tell_tale in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert tell_tale not in content


@workflow.defn(name=RESOLVE_FINDING)
class _WithoutBonus(ResolveFinding):
    """The bonus is forgotten."""

    @workflow.run
    async def run(self, request: RemedyRequest) -> TakenRemedy:
        return await self._take_remedy(request)


async def test_replay_notices_a_bonus_that_is_left_out() -> None:
    replayer = Replayer(
        workflows=[_WithoutBonus],
        data_converter=pydantic_data_converter,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(_read("credit"))
