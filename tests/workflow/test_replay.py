"""Replay notices a payment's workflow that takes other steps; its activities carry what was reasoned about."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import ActivityTaskScheduledEventAttributes, HistoryEvent
from temporalio.common import RetryPolicy
from temporalio.workflow import NondeterminismError

from activities.messages import AttemptOutcomeMessage, Settlement, SettlementResult
from domain.payments.verification import Verified
from tests.support.histories import replay
from tests.workflow.paths import PATHS
from tests.workflow.reads_the_clock import ReadsTheClock
from tests.workflow.record_histories import RECORDED
from workflows.naming import VERIFY_AND_SETTLE
from workflows.policies import (
    ANNOUNCE_SCHEDULE_TO_CLOSE,
    ANNOUNCE_START_TO_CLOSE,
    LEDGER_RETRY,
    LEDGER_START_TO_CLOSE,
    POLL_RETRY,
    POLL_START_TO_CLOSE,
)
from workflows.verify_and_settle import VerifyAndSettle


class _Changed(VerifyAndSettle):
    """Base of the changed workflows: the same name, the same story until a step is overridden."""

    async def _story(self, payment: Settlement) -> SettlementResult:
        return await VerifyAndSettle.run(self, payment)


@workflow.defn(name=VERIFY_AND_SETTLE)
class _AnotherStep(_Changed):
    """A step of the same kind, in the worker as the first: its marker names it."""

    @workflow.init
    def __init__(self, payment: Settlement) -> None:
        super().__init__(payment)

    @workflow.run
    async def run(self, payment: Settlement) -> SettlementResult:
        return await self._story(payment)

    async def _credit_buyer(self, verdict: Verified) -> AttemptOutcomeMessage:
        return await self._credit_donation(verdict)


@workflow.defn(name=VERIFY_AND_SETTLE)
class _WithoutBonus(_Changed):
    @workflow.init
    def __init__(self, payment: Settlement) -> None:
        super().__init__(payment)

    @workflow.run
    async def run(self, payment: Settlement) -> SettlementResult:
        return await self._story(payment)

    async def _mint_bonus(self) -> int:
        return 0


@workflow.defn(name=VERIFY_AND_SETTLE)
class _Unchanged(_Changed):
    @workflow.init
    def __init__(self, payment: Settlement) -> None:
        super().__init__(payment)

    @workflow.run
    async def run(self, payment: Settlement) -> SettlementResult:
        return await self._story(payment)


async def test_the_sandbox_of_tests_and_replay_refuses_what_the_worker_would_not_notice() -> None:
    with pytest.raises(RuntimeError, match=r"datetime\.datetime\.now"):
        await replay(RECORDED.read("purchase"), ReadsTheClock)
    await replay(RECORDED.read("purchase"), ReadsTheClock, in_sandbox=False)


@pytest.mark.parametrize("changed", [_AnotherStep, _WithoutBonus])
async def test_replay_notices_a_workflow_whose_steps_are_others(changed: type[Any]) -> None:
    with pytest.raises(NondeterminismError):
        await replay(RECORDED.read("purchase"), changed, in_sandbox=False)


async def test_replay_accepts_the_same_steps_in_another_class() -> None:
    # Without this the test above could fail for a reason of its own.
    await replay(RECORDED.read("purchase"), _Unchanged, in_sandbox=False)


# Replay does not notice a changed timeout, retry policy or queue. The values are here a second time on purpose.

LEDGER = {
    "record_submission", "credit_buyer", "credit_donation", "mint_bonus", "end_without_credits", "reverse_payment",
    "reverse_bonus",
}  # fmt: skip
POLLS = {"await_confirmation", "await_finality"}


def test_the_timeouts_and_retry_policies_are_the_ones_that_were_reasoned_about() -> None:
    assert timedelta(seconds=10) == LEDGER_START_TO_CLOSE
    assert (
        RetryPolicy(
            initial_interval=timedelta(milliseconds=500),
            backoff_coefficient=2.0,
            maximum_interval=timedelta(seconds=30),
            maximum_attempts=0,
        )
        == LEDGER_RETRY
    )
    assert timedelta(seconds=30) == POLL_START_TO_CLOSE
    assert timedelta(seconds=15) == ANNOUNCE_START_TO_CLOSE
    assert timedelta(hours=1) == ANNOUNCE_SCHEDULE_TO_CLOSE
    assert (
        RetryPolicy(
            initial_interval=timedelta(seconds=1),
            backoff_coefficient=2.0,
            maximum_interval=timedelta(seconds=30),
            maximum_attempts=0,
        )
        == POLL_RETRY
    )


def _scheduled(path: str) -> Iterator[tuple[HistoryEvent, ActivityTaskScheduledEventAttributes]]:
    for event in RECORDED.read(path).events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            yield event, event.activity_task_scheduled_event_attributes


def _duration(length: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


@pytest.mark.parametrize("path", PATHS)
def test_every_recorded_activity_carries_its_timeouts_policy_queue_and_summary(path: str) -> None:
    own_queue = RECORDED.read(path).events[0].workflow_execution_started_event_attributes.task_queue.name
    for event, scheduled in _scheduled(path):
        name = scheduled.activity_type.name
        looks = name in POLLS
        assert looks or name in LEDGER or name == "announce"
        retry = POLL_RETRY if looks else LEDGER_RETRY
        start_to_close = POLL_START_TO_CLOSE if looks else LEDGER_START_TO_CLOSE
        if name == "announce":
            start_to_close = ANNOUNCE_START_TO_CLOSE
            assert scheduled.schedule_to_close_timeout == _duration(ANNOUNCE_SCHEDULE_TO_CLOSE)
        whole = scheduled.schedule_to_close_timeout.ToTimedelta() or start_to_close
        assert scheduled.start_to_close_timeout == _duration(min(start_to_close, whole))
        assert scheduled.retry_policy.initial_interval == _duration(retry.initial_interval)
        assert scheduled.retry_policy.maximum_interval == _duration(retry.maximum_interval or timedelta(0))
        assert scheduled.retry_policy.backoff_coefficient == retry.backoff_coefficient
        assert scheduled.retry_policy.maximum_attempts == 0
        assert scheduled.task_queue.name == own_queue
        assert event.user_metadata.summary.data


def test_only_the_wait_for_the_chain_is_bounded_by_the_end_of_the_attempt() -> None:
    bounded = {
        scheduled.activity_type.name: scheduled.schedule_to_close_timeout.ToTimedelta()
        for _, scheduled in _scheduled("purchase")
        if scheduled.schedule_to_close_timeout.ToTimedelta()
    }
    assert set(bounded) == {"await_confirmation"}
    assert timedelta(hours=23, minutes=59) < bounded["await_confirmation"] <= timedelta(hours=24)
