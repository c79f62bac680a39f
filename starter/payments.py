"""Create an intent, submit a hash, ask for status: all that an API or a script needs to take payments."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

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
from db.accounts import idempotency
from db.accounts.wallets import Payer, find_non_payer_kind, provision_wallet
from db.clock import read_clock
from db.engine import TenantConnection, TenantDatabase
from db.payments import attempts
from domain.errors import (
    AttemptNotFound,
    BookkeepingError,
    HashInUse,
    StartupCheckFailed,
    TemporalUnavailable,
    TooManyReplacements,
    WrongChain,
)
from domain.identifiers import parse_tx_hash
from domain.money import check_payment_amount, format_usd, raw_for_usd_cents
from domain.payments.attempt import MAX_SUBMISSIONS, AttemptStatus, PaymentAttempt, Purpose
from domain.payments.verification import Waiting, WaitReason, terms_of
from domain.transfers.income import NonPayer, require_payer
from services.payments import lifecycle as payments
from starter.models import AttemptView, Intent
from starter.progress import ProgressReader, read_workflow
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
"""How long a submission waits for a worker. Without one the hash is recorded here and the workflow goes on later."""

_REUSE_POLICY: Final = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
"""Completed means that the attempt has ended; a run that failed or was terminated may be followed by another."""

log = structlog.get_logger(__name__)


class _EndedMeanwhile(Exception):
    """The attempt has ended since it was read."""

    def __init__(self, attempt: PaymentAttempt) -> None:
        super().__init__(f"attempt {attempt.id} is {attempt.status}")
        self.attempt = attempt


@dataclass(frozen=True, slots=True)
class PaymentPolicy:
    """What new intents are made with. `treasury` receives `token` on chain `chain_id`."""

    chain_id: int
    token: str
    treasury: str
    intent_ttl: timedelta
    min_usd_cents: int
    max_usd_cents: int
    min_confirmations: int


class PaymentsClient:
    """The typed client. It holds a database of role settle_app and a Temporal client, and owns neither."""

    def __init__(
        self,
        database: TenantDatabase,
        temporal: Client,
        policy: PaymentPolicy,
        *,
        read_head: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """With `read_head`, the chain's height, confirmations are counted block by block between two looks."""
        self._database = database
        self._temporal = temporal
        self._policy = policy
        self._progress = ProgressReader(temporal, read_head)

    async def provision(self, wallet_address: str) -> Payer:
        """The payer behind a wallet (EIP-55 checksum form); opens user, account and key when it has none."""
        async with self._database.unscoped() as connection:
            return await provision_wallet(connection, wallet_address)

    async def require_payer(self, wallet_address: str) -> None:
        """Raise `PayerRefused` where no payment of this wallet could be credited: the treasury's own, or nobody's."""
        async with self._database.unscoped() as connection:
            self._require_payer(wallet_address, await find_non_payer_kind(connection, wallet_address))

    def _require_payer(self, wallet_address: str, known: NonPayer | None) -> None:
        require_payer(wallet_address, treasury=self._policy.treasury, token=self._policy.token, known=known)

    async def create_intent(
        self,
        payer: Payer,
        amount_usd_cents: int,
        purpose: Purpose = Purpose.SELF,
        *,
        idempotency_key: str | None = None,
    ) -> Intent:
        """A new attempt that waits to be paid; with an `idempotency_key` that came before, what it was answered then.

        Raises `InvalidInput` for an amount out of bounds, `PayerRefused` for a wallet that pays for nobody, and
        `IdempotencyKeyReused`.
        """
        policy = self._policy
        amount = check_payment_amount(amount_usd_cents, minimum=policy.min_usd_cents, maximum=policy.max_usd_cents)
        async with self._database.transaction(payer.user_id) as connection:
            known = await find_non_payer_kind(connection.connection, payer.wallet_address)
            self._require_payer(payer.wallet_address, known)
            now = await read_clock(connection.connection)
            attempt = PaymentAttempt(
                id=uuid4(),
                billing_account_id=payer.billing_account_id,
                owner_user_id=payer.user_id,
                from_address=payer.wallet_address,
                chain_id=policy.chain_id,
                token=policy.token,
                to_address=policy.treasury,
                amount_raw=raw_for_usd_cents(amount),
                amount_usd_cents=amount,
                purpose=purpose,
                status=AttemptStatus.CREATED_INTENT,
                expires_at=now + policy.intent_ttl,
                created_at=now,
            )
            intent = Intent.of(attempt, now + policy.intent_ttl)
            if idempotency_key is not None:
                answered = await idempotency.keep_answer(
                    connection,
                    payer.billing_account_id,
                    idempotency_key,
                    _request_hash(amount, purpose),
                    intent.model_dump(mode="json"),
                )
                if answered is not None:
                    return Intent.model_validate(answered)
            await payments.create_intent(connection, attempt)
        return intent

    async def submit(
        self,
        user_id: str,
        attempt_id: UUID,
        tx_hash: str,
        *,
        request_id: str | None = None,
        mined_at: datetime | None = None,
    ) -> AttemptView:
        """Say that `tx_hash` pays the attempt. Safe to repeat: the same answer, one workflow.

        When this returns, the hash is recorded and the durable workflow is running, whatever the chain does and
        whether or not a worker is there. A finished attempt answers with its end; so does an intent that expired.
        A credited purchase whose workflow was terminated before the bonus gets a new run, which mints it.

        An intent whose payment was mined before it expired was paid in time, whenever it is submitted: `mined_at` says
        so, or what the chain watcher has written down.

        Raises `InvalidInput`, `AttemptNotFound`, `HashInUse`, `TooManyReplacements`, `WrongChain`,
        `DatabaseUnavailable` and `TemporalUnavailable`.
        """
        tx_hash = parse_tx_hash(tx_hash)
        attempt, is_held, now = await self._find_to_submit(user_id, attempt_id, tx_hash)
        submitted_at = _after_the_last(attempt, now)
        is_late = attempt.is_final or self._is_past_expiry(attempt, submitted_at)
        if mined_at is None and is_late and attempt.may_have_been_paid_in_time:
            mined_at = await self._find_time_of_payment(attempt, tx_hash)
        paid_in_time = attempt.was_paid_in_time(mined_at)
        # An intent that somebody's fast clock has ended before its time is not over.
        in_time = paid_in_time or (attempt.is_final and attempt.was_submitted_in_time(submitted_at))
        if attempt.is_final and not in_time:
            await self._finish_what_was_interrupted(attempt)
            return self._answer(attempt)
        if attempt.chain_id != self._policy.chain_id:
            raise WrongChain(attempt.chain_id, self._policy.chain_id)
        expired = self._has_expired(attempt, submitted_at) and not in_time
        if expired and not await self._is_under_way(attempt_id):
            return self._answer(await self._record(user_id, attempt_id, tx_hash, submitted_at))
        # Refused before Temporal hears of it: a refused update would leave a started workflow behind.
        _refuse_early(attempt, tx_hash, is_held=is_held)

        try:
            submission = _submission(attempt, tx_hash, submitted_at, request_id, mined_at if paid_in_time else None)
            recorded = await self._submit_to_workflow(attempt, submission)
        except _EndedMeanwhile as ended:
            return self._answer(ended.attempt)
        if recorded is None and expired:
            # The run has a submission that was in time: recording this late one here would spoil it.
            return self._answer(attempt)
        if recorded is None:
            log.warning("no worker answered, recording the submission here", attempt_id=str(attempt_id))
            return self._answer(await self._record(user_id, attempt_id, tx_hash, submitted_at, submission.mined_at))
        progress = {"status": recorded.status, "tx_hash": recorded.tx_hash, "error_code": recorded.error_code}
        return self._answer(attempt.model_copy(update=progress | {"expires_at": None}))

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """Start a run for an attempt for which the books say that something is due; False where one is at it.

        Also after a run that has completed: the database may have been set back since. The new run finds in the
        database what is done, and does the rest. Raises `AttemptNotFound`, `DatabaseUnavailable`, `TemporalUnavailable`
        and what `submit` raises.
        """
        state = await read_workflow(self._temporal, attempt_id)
        if state is not None and state.is_running:
            return False
        attempt = await self._find(user_id, attempt_id)
        if attempt.chain_id != self._policy.chain_id:
            raise WrongChain(attempt.chain_id, self._policy.chain_id)
        if attempt.status is AttemptStatus.PENDING_UNVERIFIED and attempt.tx_hash is not None:
            await self.submit(user_id, attempt_id, attempt.tx_hash)
            return True
        if attempt.status not in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            return False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT.total_seconds()):
                await self._start_after_the_credit(attempt, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
        except (RPCError, RuntimeError, TimeoutError) as error:
            raise to_temporal_unavailable(error) from error
        return True

    def _answer(self, attempt: PaymentAttempt) -> AttemptView:
        """A submission's answer, the same on every way that it may take: the chain has not been asked yet."""
        view = AttemptView.of(attempt)
        if view.status is not AttemptStatus.PENDING_UNVERIFIED:
            return view
        return view.model_copy(update={"confirmations": 0, "confirmations_needed": self._policy.min_confirmations})

    async def status(self, user_id: str, attempt_id: UUID) -> AttemptView:
        """How the attempt stands, with the confirmations so far while it waits.

        Raises `AttemptNotFound`, also for somebody else's, and `DatabaseUnavailable`.
        """
        attempt = await self._find(user_id, attempt_id)
        return await self.with_progress(attempt)

    async def with_progress(self, attempt: PaymentAttempt) -> AttemptView:
        """The view of an attempt that was read already, with the confirmations so far while it waits."""
        view = AttemptView.of(attempt)
        if attempt.status is not AttemptStatus.PENDING_UNVERIFIED or attempt.tx_hash is None:
            return view
        # Blocks of another chain confirm nothing: of its payments the last look's word is all there is.
        is_own = attempt.chain_id == self._policy.chain_id
        look = await self._progress.read(attempt.id, attempt.tx_hash, counts_blocks=is_own)
        waiting = look.waiting if look else None
        return view.model_copy(
            update={
                "confirmations": waiting.confirmations if waiting else 0,
                "confirmations_needed": waiting.confirmations_needed if waiting else self._policy.min_confirmations,
                "waiting_for": _payer_message(waiting) if waiting else None,
                "next_look_at": look.next_attempt_at if look else None,
            }
        )

    async def _find(self, user_id: str, attempt_id: UUID) -> PaymentAttempt:
        async with self._database.transaction(user_id) as connection:
            return await _find_in(connection, attempt_id)

    async def _find_to_submit(
        self, user_id: str, attempt_id: UUID, tx_hash: str
    ) -> tuple[PaymentAttempt, bool, datetime]:
        """The attempt, whether another one of the same payer holds the hash, and the database's time."""
        async with self._database.transaction(user_id) as connection:
            attempt = await _find_in(connection, attempt_id)
            is_held = attempt.tx_hash != tx_hash and await attempts.is_hash_held(connection, attempt, tx_hash)
            now = await read_clock(connection.connection)
        return attempt, is_held, now

    async def _find_time_of_payment(self, attempt: PaymentAttempt, tx_hash: str) -> datetime | None:
        async with self._database.transaction(attempt.owner_user_id) as connection:
            return await attempts.find_observed_payment_time(connection, attempt.id, tx_hash)

    async def _record(
        self,
        user_id: str,
        attempt_id: UUID,
        tx_hash: str,
        submitted_at: datetime,
        mined_at: datetime | None = None,
    ) -> PaymentAttempt:
        async with self._database.transaction(user_id) as connection:
            ending = await payments.submit(
                connection, attempt_id, tx_hash, submitted_at=submitted_at, mined_at=mined_at
            )
        return ending.attempt

    def _has_expired(self, attempt: PaymentAttempt, now: datetime) -> bool:
        return attempt.status is AttemptStatus.CREATED_INTENT and self._is_past_expiry(attempt, now)

    @staticmethod
    def _is_past_expiry(attempt: PaymentAttempt, now: datetime) -> bool:
        return attempt.expires_at is not None and now >= attempt.expires_at

    async def _is_under_way(self, attempt_id: UUID) -> bool:
        """Whether a run has the attempt: an earlier submission, in time, that is not recorded yet."""
        state = await read_workflow(self._temporal, attempt_id)
        return state is not None and state.is_running

    async def _submit_to_workflow(self, attempt: PaymentAttempt, submission: Submission) -> RecordedSubmission | None:
        """`_start_and_submit`, which must not be content with what an earlier run answered that is over by now."""
        is_new = attempt.status is AttemptStatus.CREATED_INTENT
        over = None if is_new else await self._run_that_is_over(attempt, submission)
        try:
            return await self._start_and_submit(attempt, submission, after=over)
        except WorkflowAlreadyStartedError:
            over = await self._run_that_is_over(attempt, submission)
            return await self._start_and_submit(attempt, submission, after=over)
        except HashInUse:
            # A refusal is kept as long as its run is; whether it is still true, the database knows.
            found, is_held, _ = await self._find_to_submit(attempt.owner_user_id, attempt.id, submission.tx_hash)
            _refuse_early(found, submission.tx_hash, is_held=is_held)
            return await self._start_and_submit(
                attempt, submission, after=f"refusal-{submission.submitted_at.timestamp():.6f}"
            )

    async def _run_that_is_over(self, attempt: PaymentAttempt, submission: Submission) -> str | None:
        """Id of the attempt's latest run where nobody settles the attempt any more, although it has not ended.

        The run failed or was stopped; or it has completed, and the database was set back to an earlier moment, or the
        intent that expired turns out to have been paid in time.
        Raises `_EndedMeanwhile` where the attempt has ended since it was read.
        """
        state = await read_workflow(self._temporal, attempt.id)
        if state is None or state.is_running:
            return None
        now = await self._find(attempt.owner_user_id, attempt.id)
        in_time = now.was_paid_in_time(submission.mined_at) or now.was_submitted_in_time(submission.submitted_at)
        if now.is_final and not in_time:
            raise _EndedMeanwhile(now)
        return state.run_id

    async def _start_and_submit(
        self, attempt: PaymentAttempt, submission: Submission, *, after: str | None
    ) -> RecordedSubmission | None:
        """One idempotent call: the workflow runs, and has recorded the hash. None where no worker answered yet.

        `after` names what came before and does not count any more: a run that is over, or a refusal.
        """
        start = WithStartWorkflowOperation(
            VerifyAndSettle.run,
            _settlement(attempt, submission),
            id=workflow_id(attempt.id),
            task_queue=task_queue(attempt.chain_id),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=_REUSE_POLICY if after is None else WorkflowIDReusePolicy.ALLOW_DUPLICATE,
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
        except WorkflowUpdateFailedError as error:
            raise refused_with(error) from error
        except (TimeoutError, UpdateNotAnswered):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # The SDK says the same when the caller was cancelled: that one wants no answer any more.
                raise asyncio.CancelledError from None
            await self._require_started(attempt.id)
            return None
        except (RPCError, RuntimeError) as error:
            if not await self._search_attributes_were_missing(error):
                raise to_temporal_unavailable(error) from error
        finally:
            await _forget(start)
        return await self._start_and_submit(attempt, submission, after=after)

    async def _search_attributes_were_missing(self, error: RPCError | RuntimeError) -> bool:
        """Register what a worker would have registered, had one ever run here; True where that was the trouble."""
        refused = isinstance(error, RPCError) and error.status == RPCStatusCode.INVALID_ARGUMENT
        try:
            return refused and bool(await register_search_attributes(self._temporal))
        except StartupCheckFailed as missing:  # for an operator; the payer's submission is on record and can wait
            raise TemporalUnavailable(missing.message) from error

    async def _finish_what_was_interrupted(self, attempt: PaymentAttempt) -> None:
        """Start a run for a credited purchase, unless one has completed: the bonus may be missing.

        Best effort, since the answer is in the database already.
        """
        if attempt.status is not AttemptStatus.CREDITED or attempt.purpose is not Purpose.SELF:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT.total_seconds()):
                await self._start_after_the_credit(attempt, _REUSE_POLICY)
        except WorkflowAlreadyStartedError:
            return
        except (RPCError, RuntimeError, TimeoutError) as error:
            log.warning("could not make sure of the bonus", attempt_id=str(attempt.id), error=str(error))

    async def _start_after_the_credit(self, attempt: PaymentAttempt, reuse_policy: WorkflowIDReusePolicy) -> None:
        if attempt.tx_hash is None or attempt.submitted_at is None:
            raise BookkeepingError(f"attempt {attempt.id} is {attempt.status} without a submitted hash")
        submission = _submission(attempt, attempt.tx_hash, attempt.submitted_at)
        await self._temporal.start_workflow(
            VerifyAndSettle.run,
            _settlement(attempt, submission),
            id=workflow_id(attempt.id),
            task_queue=task_queue(attempt.chain_id),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=reuse_policy,
            search_attributes=_search_attributes(attempt, attempt.tx_hash),
            static_summary=_summary(attempt),
        )

    async def _require_started(self, attempt_id: UUID) -> None:
        """Raise `TemporalUnavailable` unless the workflow durably exists."""
        if await read_workflow(self._temporal, attempt_id) is None:
            raise TemporalUnavailable("Temporal has not started the settlement")


def _payer_message(waiting: Waiting) -> str:
    """What the payment waits for. Which node said what is for operators: it names servers of ours."""
    match waiting.reason:
        case WaitReason.CHAIN_UNAVAILABLE | WaitReason.WRONG_CHAIN | WaitReason.CONTRADICTION | WaitReason.PRECONDITION:
            return "the chain cannot be read right now"
        case _:
            return waiting.message


async def _find_in(connection: TenantConnection, attempt_id: UUID) -> PaymentAttempt:
    attempt = await attempts.find_attempt(connection, attempt_id)
    if attempt is None:
        raise AttemptNotFound(attempt_id)
    return attempt


def _after_the_last(attempt: PaymentAttempt, now: datetime) -> datetime:
    """When this submission is: after the one that it has seen, also where the database's clock was set back between."""
    return now if attempt.submitted_at is None else max(now, attempt.submitted_at + timedelta(microseconds=1))


def _refuse_early(attempt: PaymentAttempt, tx_hash: str, *, is_held: bool) -> None:
    if attempt.tx_hash == tx_hash:
        return
    if attempt.submission_count >= MAX_SUBMISSIONS:
        raise TooManyReplacements(MAX_SUBMISSIONS)
    if is_held:
        raise HashInUse(tx_hash)


def _request_hash(amount_usd_cents: int, purpose: Purpose) -> bytes:
    """What makes two requests for an intent the same one."""
    return hashlib.sha256(f"intent:{amount_usd_cents}:{purpose.value}".encode()).digest()


def _submission(
    attempt: PaymentAttempt,
    tx_hash: str,
    submitted_at: datetime,
    request_id: str | None = None,
    mined_at: datetime | None = None,
) -> Submission:
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


def _settlement(attempt: PaymentAttempt, submission: Submission) -> Settlement:
    return Settlement(
        submission=submission,
        purpose=attempt.purpose,
        amount_usd_cents=attempt.amount_usd_cents,
        terms=terms_of(attempt),
    )


async def _forget(start: WithStartWorkflowOperation[Any, Any]) -> None:
    """Take the start's own error, which the call has raised already: asyncio complains about one nobody takes."""
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
