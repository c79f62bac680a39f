"""Submission of a hash: recorded in the database, then the attempt's workflow is started, or signalled a new hash.

No worker takes part. A process that dies in between leaves a recorded hash without a run, which the chain watcher and
housekeeping find (`services.payments.recovery`).
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from temporalio.client import Client
from temporalio.common import (
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.messages import RecordedSubmission, ReplacedHash, Settlement, Submission
from db.engine import TenantConnection, TenantDatabase
from db.payments import attempts
from domain.errors import AttemptNotFound, BookkeepingError, StartupCheckFailed, TemporalUnavailable
from domain.money import format_usd
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.verification import terms_of
from services.payments.submission import record_hash
from starter.payment_attributes import search_attributes
from starter.reversals import start_reversal
from starter.temporal import register_search_attributes, to_temporal_unavailable
from workflows.naming import (
    HASH_REPLACED_SIGNAL,
    task_queue,
    workflow_id,
)
from workflows.policies import WORKFLOW_TASK_TIMEOUT
from workflows.verify_and_settle import VerifyAndSettle

START_TIMEOUT: Final = timedelta(seconds=5)
"""How long a submission waits for Temporal. The hash is recorded by then: a run is started for it later."""

REUSE_POLICY: Final = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
"""Completed means that the attempt has ended; a run that failed or was terminated may be followed by another."""

log = structlog.get_logger(__name__)


async def find_in(connection: TenantConnection, attempt_id: UUID) -> PaymentAttempt:
    """The attempt. Raises `AttemptNotFound`, also for another account's."""
    attempt = await attempts.find_attempt(connection, attempt_id)
    if attempt is None:
        raise AttemptNotFound(attempt_id)
    return attempt


class SubmitPayment:
    """Submits hashes, and resumes interrupted payments. It owns neither database nor client."""

    def __init__(
        self, database: TenantDatabase, temporal: Client, *, chain_id: int, verification_timeout: timedelta
    ) -> None:
        self._database = database
        self._temporal = temporal
        self._chain_id = chain_id
        self._verification_timeout = verification_timeout

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
        recorded = await record_hash(
            self._database, user_id, attempt_id, tx_hash, chain_id=self._chain_id, mined_at=mined_at
        )
        attempt = recorded.attempt
        if attempt.status is not AttemptStatus.PENDING_UNVERIFIED:
            await self._finish_what_was_interrupted(attempt)
            return attempt
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                return await self._ensure_run(attempt, recorded.is_replacement, request_id)
        except (RPCError, RuntimeError, TimeoutError) as error:
            raise to_temporal_unavailable(error) from error

    async def _ensure_run(
        self, attempt: PaymentAttempt, is_replacement: bool, request_id: str | None
    ) -> PaymentAttempt:
        """Start the run or join it. An attempt that has ended since it was recorded is returned as it is now."""
        try:
            await self.start(attempt, REUSE_POLICY, hash_replaced=is_replacement, request_id=request_id)
        except WorkflowAlreadyStartedError:
            # It has completed: the attempt has ended just now, or the database was restored to an earlier moment, or
            # the expired intent was paid in time after all.
            async with self._database.transaction(attempt.owner_user_id) as connection:
                attempt = await find_in(connection, attempt.id)
            if attempt.status is AttemptStatus.PENDING_UNVERIFIED:
                await self.start(attempt, WorkflowIDReusePolicy.ALLOW_DUPLICATE, request_id=request_id)
        return attempt

    async def _finish_what_was_interrupted(self, attempt: PaymentAttempt) -> None:
        """Start a run for a credited or reversed payment, unless one has completed: something may be due to it still.

        Best effort, since the answer is in the database already, and housekeeping checks, too
        (`services.payments.recovery`).
        """
        if attempt.status not in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            return
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                if attempt.status is AttemptStatus.REVERSED:
                    await start_reversal(self._temporal, attempt, again=False)
                else:
                    await self.start(attempt, REUSE_POLICY)
        except WorkflowAlreadyStartedError:
            return
        except (RPCError, RuntimeError, TimeoutError, TemporalUnavailable) as error:
            log.warning("could not ensure that nothing is due", attempt_id=str(attempt.id), error=str(error))

    async def start(
        self,
        attempt: PaymentAttempt,
        reuse_policy: WorkflowIDReusePolicy,
        *,
        hash_replaced: bool = False,
        request_id: str | None = None,
    ) -> None:
        """Start a run for a submitted attempt, or join the one that is running; a replaced hash is signalled to it.

        A run finds in the database what is done, and does the rest. Raises the SDK's errors, and `TemporalUnavailable`
        where Temporal lacks what an operator has to provide.
        """
        if attempt.tx_hash is None or attempt.submitted_at is None:
            raise BookkeepingError(f"attempt {attempt.id} is {attempt.status} without a submitted hash")
        submission = submission_of(attempt, attempt.tx_hash, attempt.submitted_at, request_id)
        recorded = RecordedSubmission.of(attempt, self._verification_timeout)
        replaced = []
        if hash_replaced and recorded.verify_until is not None:
            replaced.append(
                ReplacedHash(
                    tx_hash=submission.tx_hash, submitted_at=submission.submitted_at, verify_until=recorded.verify_until
                )
            )
        while True:
            try:
                await self._temporal.start_workflow(
                    VerifyAndSettle.run,
                    settlement_of(attempt, submission, recorded),
                    id=workflow_id(attempt.id),
                    task_queue=task_queue(attempt.chain_id),
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=reuse_policy,
                    start_signal=HASH_REPLACED_SIGNAL if replaced else None,
                    start_signal_args=replaced,
                    search_attributes=search_attributes(attempt, attempt.tx_hash, AttemptStatus.PENDING_UNVERIFIED),
                    task_timeout=WORKFLOW_TASK_TIMEOUT,
                    static_summary=_summary(attempt),
                    memo={"requestId": request_id} if request_id else None,
                )
                return
            except RPCError as error:
                if not await self._search_attributes_were_missing(error):
                    raise

    async def _search_attributes_were_missing(self, error: RPCError) -> bool:
        """Register what a worker would have registered; True where that was missing."""
        refused = error.status == RPCStatusCode.INVALID_ARGUMENT
        try:
            return refused and bool(await register_search_attributes(self._temporal))
        except StartupCheckFailed as missing:  # for an operator; the payer's submission is recorded and can wait
            raise TemporalUnavailable(missing.message) from error


def submission_of(
    attempt: PaymentAttempt,
    tx_hash: str,
    submitted_at: datetime,
    request_id: str | None = None,
) -> Submission:
    """The message that submits `tx_hash`."""
    return Submission(
        attempt_id=attempt.id,
        owner_user_id=attempt.owner_user_id,
        billing_account_id=attempt.billing_account_id,
        tx_hash=tx_hash,
        submitted_at=submitted_at,
        request_id=request_id,
        chain_id=attempt.chain_id,
    )


def settlement_of(
    attempt: PaymentAttempt, submission: Submission, recorded: RecordedSubmission | None = None
) -> Settlement:
    """The input of the workflow that settles the attempt."""
    return Settlement(
        submission=submission,
        purpose=attempt.purpose,
        amount_usd_cents=attempt.amount_usd_cents,
        terms=terms_of(attempt),
        recorded=recorded,
    )


def _summary(attempt: PaymentAttempt) -> str:
    kind = "purchase" if attempt.purpose is Purpose.SELF else "donation"
    return f"{kind} of {format_usd(attempt.amount_usd_cents)} USD by {attempt.from_address}"
