"""Recorded histories of the watcher's workflows: a watch that runs survives a change of the code."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import ActivityTaskScheduledEventAttributes
from temporalio.client import WorkflowHistory
from temporalio.common import RetryPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from activities.transfers.watch_chain import HEARTBEAT_SECONDS
from tests.watcher.record_histories import HISTORIES, PATHS
from tests.workflow.paths import RECORDER
from workflows.jobs.rescan_chain import RescanChain
from workflows.policies import (
    FOLLOW_GRACE,
    FOLLOW_HEARTBEAT,
    FOLLOW_RETRY,
    RESCAN_HEARTBEAT,
    RESCAN_RETRY,
    RESCAN_SCHEDULE_TO_CLOSE,
)
from workflows.watch_chain import WatchChain

RECORDED = sorted(HISTORIES.glob("*.json"))


def _read(file: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(file.stem, file.read_text())


def _activity_of(name: str) -> ActivityTaskScheduledEventAttributes:
    (scheduled,) = (
        event.activity_task_scheduled_event_attributes
        for event in _read(HISTORIES / f"{name}.json").events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    )
    return scheduled


def _duration(length: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def test_every_path_has_its_recorded_history_and_no_other_is_kept() -> None:
    assert {file.stem for file in RECORDED} == set(PATHS), "record it: python -m tests.watcher.record_histories"


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
async def test_a_recorded_history_replays_with_the_code_as_it_is(file: Path) -> None:
    replayer = Replayer(workflows=[WatchChain, RescanChain], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(_read(file))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_a_recorded_history_reveals_nothing_about_the_machine(file: Path) -> None:
    content = file.read_text()
    for tell_tale in (socket.gethostname(), str(Path.home()), str(Path.cwd()), "site-packages", ".py", "stackTrace"):
        assert tell_tale not in content
    identities = {line.strip().rstrip(",") for line in content.splitlines() if '"identity"' in line}
    assert identities == {f'"identity": "{RECORDER}"'}


def test_the_recorded_activities_carry_the_timeouts_and_policies_that_were_reasoned_about() -> None:
    follow = _activity_of("watch_begins_anew")
    assert follow.heartbeat_timeout == _duration(FOLLOW_HEARTBEAT) == _duration(timedelta(seconds=20))
    assert follow.start_to_close_timeout == _duration(FOLLOW_GRACE + timedelta(seconds=1))
    assert timedelta(seconds=3 * HEARTBEAT_SECONDS) < FOLLOW_HEARTBEAT
    assert follow.retry_policy.maximum_attempts == 0
    again = _activity_of("rescan")
    assert again.heartbeat_timeout == _duration(RESCAN_HEARTBEAT)
    assert again.schedule_to_close_timeout == _duration(RESCAN_SCHEDULE_TO_CLOSE)
    assert timedelta(minutes=5) > RESCAN_SCHEDULE_TO_CLOSE, "it is over before the next one is due"
    for policy in (FOLLOW_RETRY, RESCAN_RETRY):
        assert policy == RetryPolicy(
            initial_interval=policy.initial_interval,
            backoff_coefficient=2.0,
            maximum_interval=timedelta(seconds=30),
            maximum_attempts=0,
        )
