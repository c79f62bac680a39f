"""Days that pass in no time: the time-skipping server, with scripted activities.

The activities ask no server for the time: while one waits for an answer the server would skip to its timeout.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from activities.messages import AttemptOutcomeMessage, PaymentToCredit, PaymentToVerify, ReplacedHash, SettlementResult
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.verification import Refused, Verified
from tests.workflow.scripted import (
    NOT_FOUND_IN_TIME,
    TIMEOUT,
    A,
    B,
    Script,
    credited,
    not_yet,
    scripted_worker,
    settlement,
    submission,
    verified,
)
from workflows.naming import HASH_REPLACED_SIGNAL, workflow_id
from workflows.verify_and_settle import VerifyAndSettle

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
A_FEW_MINUTES = MINUTE * 10
"""Most polls of a day are an hour apart, and those that show when it ends: each costs the processor 4 ms."""


def _again_before(end: datetime) -> timedelta:
    """When the next poll is, from one to the next: every hour until the last two."""
    return HOUR if end - activity.info().started_time > 2 * HOUR else A_FEW_MINUTES


async def _now(environment: WorkflowEnvironment) -> datetime:
    """The server's time, at half a second.

    An activity whose schedule-to-close timeout ends at a whole second has none on this server (`getNanos() != 0` in its
    `TestServiceRetryState`) and is retried for years. It schedules within milliseconds of when the workflow decides.
    """
    return (await environment.get_current_time()).replace(microsecond=500_000)


async def _start(
    environment: WorkflowEnvironment, script: Script, attempt_id: UUID, submitted_at: datetime
) -> WorkflowHandle[VerifyAndSettle, SettlementResult]:
    return await environment.client.start_workflow(
        VerifyAndSettle.run,
        settlement(
            attempt_id,
            submitted_at=submitted_at,
            recorded=script.pending(submission(attempt_id, A, submitted_at)),
        ),
        id=workflow_id(attempt_id),
        task_queue=f"time-{attempt_id}",
    )


async def test_a_payment_that_is_not_found_fails_after_a_day_and_one_final_poll(
    skipping: WorkflowEnvironment,
) -> None:
    script, looks, attempt_id = Script(), list[timedelta](), uuid4()
    submitted_at = await _now(skipping)

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        looks.append(activity.info().started_time - submitted_at)
        if payment.is_last_look:
            return NOT_FOUND_IN_TIME
        raise not_yet("not found yet", again_in=HOUR)

    script.look = look
    async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
        result = await (await _start(skipping, script, attempt_id, submitted_at)).result()
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    assert [look.is_last_look for look in script.named("await_confirmation")] == [False] * (len(looks) - 1) + [True]
    assert 23 <= len(looks) <= 26
    # The wait ends early where the next retry would not fit into it: the final poll follows it at once.
    assert TIMEOUT - HOUR - MINUTE <= looks[-1] <= TIMEOUT + MINUTE


async def test_a_payment_that_appears_in_the_last_hour_is_credited(skipping: WorkflowEnvironment) -> None:
    script, attempt_id = Script(), uuid4()
    submitted_at = await _now(skipping)

    async def look(_: PaymentToVerify) -> Verified | Refused:
        if activity.info().started_time - submitted_at < TIMEOUT - HOUR:
            raise not_yet("not found yet", again_in=_again_before(submitted_at + TIMEOUT))
        return verified()

    script.look = look
    async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
        result = await (await _start(skipping, script, attempt_id, submitted_at)).result()
    assert result.status is AttemptStatus.CREDITED


async def test_a_payment_that_only_the_final_poll_sees_is_credited(skipping: WorkflowEnvironment) -> None:
    script, attempt_id = Script(), uuid4()

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        if payment.is_last_look:
            return verified()
        raise not_yet("the nodes are down", again_in=HOUR)

    script.look = look
    async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
        result = await (await _start(skipping, script, attempt_id, await _now(skipping))).result()
    assert result.status is AttemptStatus.CREDITED


async def test_a_poll_that_breaks_every_time_is_retried_to_the_end_and_ends_nothing(
    skipping: WorkflowEnvironment,
) -> None:
    script, attempt_id = Script(timeout=A_FEW_MINUTES), uuid4()

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        if payment.is_last_look:
            return verified()
        raise RuntimeError("a fault of the worker")

    script.look = look
    async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
        result = await (await _start(skipping, script, attempt_id, await _now(skipping))).result()
    assert result.status is AttemptStatus.CREDITED
    # After 1, 2, 4, 8 and 16 seconds, then every 30 seconds of the ten minutes.
    assert 20 <= len(script.named("await_confirmation")) <= 30


async def test_a_hash_that_replaces_another_has_a_day_of_its_own(skipping: WorkflowEnvironment) -> None:
    script, attempt_id = Script(), uuid4()
    submitted_at = await _now(skipping)

    async def look(payment: PaymentToVerify) -> Verified | Refused:
        if payment.is_last_look:
            return NOT_FOUND_IN_TIME
        raise not_yet("not found yet", again_in=_again_before(payment.verify_until))

    script.look = look
    async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
        handle = await _start(skipping, script, attempt_id, submitted_at)
        await skipping.sleep(TIMEOUT - HOUR)
        replaced_at = await _now(skipping)
        replaced = ReplacedHash(tx_hash=B, submitted_at=replaced_at, verify_until=replaced_at + TIMEOUT)
        await handle.signal(HASH_REPLACED_SIGNAL, replaced)
        result = await handle.result()
        ended_at = await _now(skipping)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    assert ended_at - submitted_at >= TIMEOUT - HOUR + TIMEOUT - MINUTE * 11
    ends = {look.verify_until for look in script.named("await_confirmation")}
    assert len(ends) == 2


async def test_thirty_polls_leave_no_more_history_than_one(skipping: WorkflowEnvironment) -> None:
    lengths = []
    for polls in (1, 30):
        script, attempt_id = Script(), uuid4()

        async def look(_: PaymentToVerify, script: Script = script, polls: int = polls) -> Verified | Refused:
            if len(script.named("await_confirmation")) <= polls:
                raise not_yet("not found yet", again_in=MINUTE)
            return verified()

        script.look = look
        async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
            handle = await _start(skipping, script, attempt_id, await _now(skipping))
            await handle.result()
        assert len(script.named("await_confirmation")) == polls + 1
        lengths.append(len((await handle.fetch_history()).events))
    assert lengths[0] == lengths[1]


async def test_the_ledger_is_retried_indefinitely(skipping: WorkflowEnvironment) -> None:
    script, attempt_id = Script(), uuid4()
    submitted_at = await _now(skipping)

    async def unavailable(message: PaymentToCredit) -> AttemptOutcomeMessage:
        if activity.info().is_local or activity.info().started_time < submitted_at + A_FEW_MINUTES:
            raise ConnectionError("PostgreSQL is down")
        return credited(message)

    script.credit = unavailable
    async with scripted_worker(skipping.client, script, f"time-{attempt_id}"):
        handle = await _start(skipping, script, attempt_id, submitted_at)
        result = await handle.result()
    assert result.status is AttemptStatus.CREDITED
    # One try in the worker that has the task, then a regular activity: every 30 seconds, without workflow tasks.
    assert 20 <= len(script.named("credit_buyer")) <= 30
    events = (await handle.fetch_history()).events
    assert len(events) < 30
    [regular] = [
        event.activity_task_scheduled_event_attributes
        for event in events
        if event.activity_task_scheduled_event_attributes.activity_type.name == "credit_buyer"
    ]
    assert regular.retry_policy.maximum_attempts == 0, "no limit"
    assert regular.schedule_to_close_timeout.ToTimedelta() > timedelta(days=365), "the server writes one for none"
