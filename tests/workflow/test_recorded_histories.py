"""Recorded histories of every workflow: one that is under way survives a change of the code."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

import pytest
from temporalio.client import WorkflowHistory

from tests.billing.record_histories import RECORDED as HOLDS
from tests.deposits.record_histories import RECORDED as SWEEPS
from tests.finality.record_histories import RECORDED as REVERSALS
from tests.reconciliation.record_histories import RECORDED as REMEDIES
from tests.schedules.record_histories import RECORDED as JOB_RUNS
from tests.support.histories import RECORDER, Recorded, replay
from tests.watcher.record_histories import RECORDED as WATCHES
from tests.webhooks.record_histories import RECORDED as DELIVERIES
from tests.workflow.record_histories import RECORDED as PAYMENTS

ALL: Final = {
    each.folder.parent.name: each
    for each in (PAYMENTS, REVERSALS, REMEDIES, HOLDS, WATCHES, SWEEPS, DELIVERIES, JOB_RUNS)
}
FILES: Final = [
    pytest.param(recorded, file, id=str(file.relative_to(recorded.folder.parent.parent).with_suffix("")))
    for recorded in ALL.values()
    for file in recorded.files + recorded.former
]


def test_every_recording_is_checked_here() -> None:
    folders = {path.parent.name for path in Path(__file__).parents[1].glob("*/record_histories.py")}
    assert set(ALL) == folders == {path.parent.name for path in Path(__file__).parents[1].glob("*/histories")}


@pytest.mark.parametrize("name", ALL)
def test_every_path_has_its_recorded_history_and_no_other_is_kept(name: str) -> None:
    assert {file.stem for file in ALL[name].files} == set(ALL[name].paths), "record it: make histories"


@pytest.mark.parametrize(("recorded", "file"), FILES)
async def test_a_recorded_history_replays_with_the_code_as_it_is_and_reveals_nothing_about_the_machine(
    recorded: Recorded, file: Path
) -> None:
    content = file.read_text()
    await replay(WorkflowHistory.from_json(file.stem, content), recorded.workflow_of(file.stem))
    reveals_nothing_about_the_machine(content)


def reveals_nothing_about_the_machine(content: str) -> None:
    for trace in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert trace not in content
    identities = {line.strip().rstrip(",") for line in content.splitlines() if '"identity"' in line}
    assert identities == {f'"identity": "{RECORDER}"'}
