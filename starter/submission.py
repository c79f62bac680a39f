"""Submission of a hash to the attempt's workflow: one idempotent call to Temporal, and its failure cases.

`domain.payments.submission` decides; this module executes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import structlog
from temporalio.client import Client, WithStartWorkflowOperation, WorkflowUpdateFailedError
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError as UpdateNotAnswered
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.messages import RecordedSubmission, Settlement, Submission
from db.clock import read_clock
from db.engine import TenantConnection, TenantDatabase
from db.payments import attempts
from domain.errors import AttemptNotFound, BookkeepingError, HashInUse, StartupCheckFailed, TemporalUnavailable
from domain.money import format_usd
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.submission import (
    SubmissionPlan,
    Way,
    is_in_time,
    needs_time_of_payment,
    plan_submission,
    refuse_early,
)
from domain.payments.verification import terms_of
from services.payments import lifecycle
from starter.progress import read_workflow
from starter.temporal import refused_with, register_search_attributes, to_temporal_unavailable
from workflows.naming import (
    BILLING_ACCOUNT_ID,
    CHAIN_ID,
    PAYMENT_PURPOSE,
    PAYMENT_STATUS,
    SUBMIT_UPDATE,
    TX_HASH,
    submit_update_id,
    task_queue,
    workflow_id,
)
from workflows.verify_and_settle import VerifyAndSettle

ANSWER_TIMEOUT: Final = timedelta(seconds=3)
"""How long a submission waits for a worker. Without one the hash is recorded here and the workflow continues later."""

REUSE_POLICY: Final = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
"""Completed means that the attempt has ended; a run that failed or was terminated may be followed by another."""

log = structlog.get_logger(__name__)


class _EndedMeanwhile(Exception):
    """The attempt has ended since it was read."""

    def __init__(self, attempt: PaymentAttempt) -> None:
        super().__init__(f"attempt {attempt.id} is {attempt.status}")
        self.attempt = attempt


@dataclass(frozen=True, slots=True)
class _Found:
    """The database's state at a submission, read in one transaction."""

    attempt: PaymentAttempt
    is_held: bool
    """Whether another attempt of the same payer holds the hash."""
    now: datetime
    mined_at: datetime | None


async def find_in(connection: TenantConnection, attempt_id: UUID) -> PaymentAttempt:
    """The attempt. Raises `AttemptNotFound`, also for another account's."""
    attempt = await attempts.find_attempt(connection, attempt_id)
    if attempt is None:
        raise AttemptNotFound(attempt_id)
    return attempt


class SubmitPayment:
    """Submits hashes, and resumes interrupted payments. It owns neither database nor client."""

    def __init__(self, database: TenantDatabase, temporal: Client, *, chain_id: int) -> None:
        self._database = database
        self._temporal = temporal
        self._chain_id = chain_id

    async def submit(
        self,
        user_id: str,
        attempt_id: UUID,
        tx_hash: str,
        *,
        request_id: str | None = None,
        mined_at: datetime | None = None,
    ) -> PaymentAttempt:
        """Status of the attempt once the hash is recorded and its workflow runs. See `PaymentsClient.submit`."""
        found = await self._read(user_id, attempt_id, tx_hash, mined_at=mined_at)
        attempt = found.attempt
        plan = plan_submission(attempt, now=found.now, mined_at=found.mined_at, chain_id=self._chain_id)
        if plan.way is Way.ANSWER:
            await self._finish_what_was_interrupted(attempt)
            return attempt
        if plan.way is Way.EXPIRE and not await self._is_under_way(attempt_id):
            return await self._record(attempt, tx_hash, plan)
        refuse_early(attempt, tx_hash, is_held=found.is_held)
        submission = submission_of(attempt, tx_hash, plan.submitted_at, request_id, plan.mined_at)
        try:
            recorded = await self._submit_to_workflow(attempt, submission)
        except _EndedMeanwhile as ended:
            return ended.attempt
        if recorded is not None:
            progress = {"status": recorded.status, "tx_hash": recorded.tx_hash, "error_code": recorded.error_code}
            return attempt.model_copy(update=progress | {"expires_at": None})
        if plan.way is Way.EXPIRE:
            # The run has a submission that was in time: recording this late one here would invalidate it.
            return attempt
        log.warning("no worker answered, recording the submission here", attempt_id=str(attempt_id))
        return await self._record(attempt, tx_hash, plan)

    async def _read(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None = None) -> _Found:
        async with self._database.transaction(user_id) as connection:
            attempt = await find_in(connection, attempt_id)
            is_held = attempt.tx_hash != tx_hash and await attempts.is_hash_held(connection, attempt, tx_hash)
            now = await read_clock(connection.connection)
            if mined_at is None and needs_time_of_payment(attempt, now):
                mined_at = await attempts.find_observed_payment_time(connection, attempt.id, tx_hash)
        return _Found(attempt, is_held, now, mined_at)

    async def _record(self, attempt: PaymentAttempt, tx_hash: str, plan: SubmissionPlan) -> PaymentAttempt:
        async with self._database.transaction(attempt.owner_user_id) as connection:
            ending = await lifecycle.submit(
                connection, attempt.id, tx_hash, submitted_at=plan.submitted_at, mined_at=plan.mined_at
            )
        return ending.attempt

    async def _is_under_way(self, attempt_id: UUID) -> bool:
        """Whether a run has an earlier submission, made in time, that is not recorded yet."""
        state = await read_workflow(self._temporal, attempt_id)
        return state is not None and state.is_running

    async def _submit_to_workflow(self, attempt: PaymentAttempt, submission: Submission) -> RecordedSubmission | None:
        """Start or join the run, ignoring an earlier answer that does not count any more."""
        is_new = attempt.status is AttemptStatus.CREATED_INTENT
        over = None if is_new else await self._run_that_is_over(attempt, submission)
        try:
            return await self._start_and_submit(attempt, submission, after=over)
        except WorkflowAlreadyStartedError:
            over = await self._run_that_is_over(attempt, submission)
        except HashInUse:
            # A refusal is stored as long as its run is; the database knows whether it is still true.
            found = await self._read(attempt.owner_user_id, attempt.id, submission.tx_hash)
            refuse_early(found.attempt, submission.tx_hash, is_held=found.is_held)
            over = f"refusal-{submission.submitted_at.timestamp():.6f}"
        return await self._start_and_submit(attempt, submission, after=over)

    async def _run_that_is_over(self, attempt: PaymentAttempt, submission: Submission) -> str | None:
        """Id of the attempt's latest run where none is running any more, although the attempt has not ended.

        The run failed or was terminated; or it has completed, and the database was restored to an earlier moment, or
        the expired intent was paid in time after all. Raises `_EndedMeanwhile` where the attempt has ended since it was
        read.
        """
        state = await read_workflow(self._temporal, attempt.id)
        if state is None or state.is_running:
            return None
        async with self._database.transaction(attempt.owner_user_id) as connection:
            now = await find_in(connection, attempt.id)
        if now.is_final and not is_in_time(now, submission.submitted_at, submission.mined_at):
            raise _EndedMeanwhile(now)
        return state.run_id

    async def _start_and_submit(
        self, attempt: PaymentAttempt, submission: Submission, *, after: str | None
    ) -> RecordedSubmission | None:
        """One idempotent call: the workflow runs, and has recorded the hash. None where no worker answered yet.

        `after` names an ended run or a refusal whose answer does not count any more.
        """
        while True:
            try:
                return await self._update_with_start(attempt, submission, after=after)
            except WorkflowUpdateFailedError as error:
                raise refused_with(error) from error
            except (TimeoutError, UpdateNotAnswered):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # The SDK raises the same when the caller was cancelled, which needs no answer.
                    raise asyncio.CancelledError from None
                await self._require_started(attempt.id)
                return None
            except (RPCError, RuntimeError) as error:
                if not await self._search_attributes_were_missing(error):
                    raise to_temporal_unavailable(error) from error

    async def _update_with_start(
        self, attempt: PaymentAttempt, submission: Submission, *, after: str | None
    ) -> RecordedSubmission:
        start = WithStartWorkflowOperation(
            VerifyAndSettle.run,
            settlement_of(attempt, submission),
            id=workflow_id(attempt.id),
            task_queue=task_queue(attempt.chain_id),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=REUSE_POLICY if after is None else WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=_search_attributes(attempt, submission.tx_hash),
            static_summary=_summary(attempt),
            memo={"requestId": submission.request_id} if submission.request_id else None,
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT.total_seconds()):
                recorded: RecordedSubmission = await self._temporal.execute_update_with_start_workflow(
                    SUBMIT_UPDATE,
                    submission,
                    result_type=RecordedSubmission,
                    id=submit_update_id(attempt.submission_count, submission.tx_hash, after=after),
                    start_workflow_operation=start,
                )
                return recorded
        finally:
            await _forget(start)

    async def _search_attributes_were_missing(self, error: RPCError | RuntimeError) -> bool:
        """Register what a worker would have registered; True where that was missing."""
        refused = isinstance(error, RPCError) and error.status == RPCStatusCode.INVALID_ARGUMENT
        try:
            return refused and bool(await register_search_attributes(self._temporal))
        except StartupCheckFailed as missing:  # for an operator; the payer's submission is recorded and can wait
            raise TemporalUnavailable(missing.message) from error

    async def _require_started(self, attempt_id: UUID) -> None:
        """Raise `TemporalUnavailable` unless the workflow durably exists."""
        if await read_workflow(self._temporal, attempt_id) is None:
            raise TemporalUnavailable("Temporal has not started the settlement")

    async def _finish_what_was_interrupted(self, attempt: PaymentAttempt) -> None:
        """Start a run for a credited or reversed payment, unless one has completed: something may be due to it still.

        Best effort, since the answer is in the database already, and housekeeping checks, too
        (`services.payments.recovery`).
        """
        if attempt.status not in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT.total_seconds()):
                await self.start_after_the_credit(attempt, REUSE_POLICY)
        except WorkflowAlreadyStartedError:
            return
        except (RPCError, RuntimeError, TimeoutError) as error:
            log.warning("could not ensure that nothing is due", attempt_id=str(attempt.id), error=str(error))

    async def start_after_the_credit(self, attempt: PaymentAttempt, reuse_policy: WorkflowIDReusePolicy) -> None:
        """Start a run for a credited attempt: it finds what is done and does the rest. Raises the SDK's errors."""
        if attempt.tx_hash is None or attempt.submitted_at is None:
            raise BookkeepingError(f"attempt {attempt.id} is {attempt.status} without a submitted hash")
        submission = submission_of(attempt, attempt.tx_hash, attempt.submitted_at)
        await self._temporal.start_workflow(
            VerifyAndSettle.run,
            settlement_of(attempt, submission),
            id=workflow_id(attempt.id),
            task_queue=task_queue(attempt.chain_id),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=reuse_policy,
            search_attributes=_search_attributes(attempt, attempt.tx_hash),
            static_summary=_summary(attempt),
        )


def submission_of(
    attempt: PaymentAttempt,
    tx_hash: str,
    submitted_at: datetime,
    request_id: str | None = None,
    mined_at: datetime | None = None,
) -> Submission:
    """The message that submits `tx_hash`."""
    return Submission(
        attempt_id=attempt.id,
        owner_user_id=attempt.owner_user_id,
        billing_account_id=attempt.billing_account_id,
        tx_hash=tx_hash,
        submitted_at=submitted_at,
        request_id=request_id,
        mined_at=mined_at,
        chain_id=attempt.chain_id,
    )


def settlement_of(attempt: PaymentAttempt, submission: Submission) -> Settlement:
    """The input of the workflow that settles the attempt."""
    return Settlement(
        submission=submission,
        purpose=attempt.purpose,
        amount_usd_cents=attempt.amount_usd_cents,
        terms=terms_of(attempt),
    )


async def _forget(start: WithStartWorkflowOperation[Any, Any]) -> None:
    """Retrieve the start's own error, which the call has raised already: asyncio logs unretrieved ones."""
    with suppress(asyncio.CancelledError, Exception):
        async with asyncio.timeout(0):
            await start.workflow_handle()


def _search_attributes(attempt: PaymentAttempt, tx_hash: str) -> TypedSearchAttributes:
    return TypedSearchAttributes(
        [
            SearchAttributePair(PAYMENT_PURPOSE, attempt.purpose.value),
            SearchAttributePair(PAYMENT_STATUS, AttemptStatus.PENDING_UNVERIFIED.value),
            SearchAttributePair(BILLING_ACCOUNT_ID, attempt.billing_account_id),
            SearchAttributePair(CHAIN_ID, attempt.chain_id),
            SearchAttributePair(TX_HASH, tx_hash),
        ]
    )


def _summary(attempt: PaymentAttempt) -> str:
    kind = "purchase" if attempt.purpose is Purpose.SELF else "donation"
    return f"{kind} of {format_usd(attempt.amount_usd_cents)} USD by {attempt.from_address}"
