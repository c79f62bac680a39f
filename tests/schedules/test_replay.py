"""Recorded histories of the jobs: one that a new worker goes on with replays."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from tests.schedules.record_histories import HISTORIES, PATHS
from tests.workflow.paths import RECORDER
from workflows.jobs import governance_heartbeat
from workflows.registry import JOBS

FORMER = sorted(HISTORIES.glob("*/*.json"))
"""Of earlier versions, by what they lack: runs that were under way when a newer one came."""


def _read(path: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(path, (HISTORIES / f"{path}.json").read_text())


def test_every_path_has_its_recorded_history_and_every_job_its_path() -> None:
    assert {file.stem for file in HISTORIES.glob("*.json")} == set(PATHS), "record it: make histories"
    assert set(PATHS.values()) == set(JOBS)


@pytest.mark.parametrize("path", PATHS)
async def test_a_recorded_history_replays_with_the_code_as_it_is(path: str) -> None:
    replayer = Replayer(workflows=[JOBS[PATHS[path]].workflow], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(_read(path))


@pytest.mark.parametrize("file", FORMER, ids=lambda file: f"{file.parent.name}-{file.stem}")
async def test_a_history_of_an_earlier_version_replays_with_the_code_as_it_is(file: Path) -> None:
    replayer = Replayer(workflows=[JOBS[PATHS[file.stem]].workflow], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(WorkflowHistory.from_json(file.stem, file.read_text()))


@pytest.mark.parametrize("path", PATHS)
def test_a_recorded_history_reveals_nothing_about_the_machine(path: str) -> None:
    content = (HISTORIES / f"{path}.json").read_text()
    for tell_tale in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert tell_tale not in content
    identities = {line.strip().rstrip(",") for line in content.splitlines() if '"identity"' in line}
    assert identities == {f'"identity": "{RECORDER}"'}


async def test_replay_notices_an_event_that_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr(governance_heartbeat, "publish", say_nothing)
    replayer = Replayer(
        workflows=[JOBS["GovernanceHeartbeat"].workflow],
        data_converter=pydantic_data_converter,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(_read("GovernanceHeartbeat"))
