"""Activities of the watcher's workflows carry the timeouts and policies that were reasoned about."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import ActivityTaskScheduledEventAttributes
from temporalio.common import RetryPolicy

from activities.transfers.watch_chain import HEARTBEAT_SECONDS
from tests.watcher.record_histories import RECORDED
from workflows.policies import (
    FOLLOW_GRACE,
    FOLLOW_HEARTBEAT,
    FOLLOW_RETRY,
    RESCAN_HEARTBEAT,
    RESCAN_RETRY,
    RESCAN_SCHEDULE_TO_CLOSE,
)


def _activity_of(name: str) -> ActivityTaskScheduledEventAttributes:
    (scheduled,) = (
        event.activity_task_scheduled_event_attributes
        for event in RECORDED.read(name).events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    )
    return scheduled


def _duration(length: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


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
