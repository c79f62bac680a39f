"""Every job has a recorded history, and replay notices a job that takes other steps."""

from __future__ import annotations

import pytest
from temporalio.workflow import NondeterminismError

from tests.schedules.record_histories import PATHS, RECORDED
from tests.support.histories import replay
from workflows.jobs import governance_heartbeat
from workflows.registry import JOBS


def test_every_job_has_its_path() -> None:
    assert set(PATHS.values()) == set(JOBS)


async def test_replay_notices_an_event_that_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr(governance_heartbeat, "publish", say_nothing)
    with pytest.raises(NondeterminismError):
        await replay(RECORDED.read("GovernanceHeartbeat"), JOBS["GovernanceHeartbeat"].workflow, in_sandbox=False)
