"""Polling of the chain until there is a final result."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.messages import PaymentToVerify
from activities.payments.signatures import VerificationSignatures
from chain.preconditions import TOKEN_DECIMALS, SettlementPreconditions
from chain.quorum import EndpointsDisagree
from chain.reader import ChainReader
from db.deposits.deposits import find_decimals_of_deposit
from db.engine import ServiceDatabase
from db.payments import attempts, authorizations
from db.transfers import destinations, identity, observed
from domain.chain import ChainView, TransferScope
from domain.errors import AttemptNotFound, ChainUnavailable, PreconditionNotMet
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.verification import (
    NOTHING_KNOWN,
    KnownTransfers,
    PaymentTerms,
    Refused,
    VerificationResult,
    Verified,
    Waiting,
    WaitReason,
    before_timeout,
    evaluate,
    next_poll_delay,
)
from domain.payments.watched import WatchedWait, is_fresh, wait_by_watcher
from services.payments.authorizations import find_fate, refusal_of
from telemetry.metrics.worker import POLLS

STILL_WAITING: Final = "STILL_WAITING"
"""Type of the failure by which the activity is retried; its message and detail are shown to operators."""

NODE: Final = "node"
WATCHER: Final = "watcher"
"""What answered a poll, for the metric."""

POLL_TIMEOUT: Final = timedelta(seconds=25)
"""Time limit for all endpoints together; below the activity's start-to-close timeout, so that it is the activity that
answers.
"""


class VerificationActivities(VerificationSignatures):
    """Reads the chain; writes nothing."""

    def __init__(
        self,
        chain: ChainReader,
        database: ServiceDatabase,
        preconditions: SettlementPreconditions,
        *,
        min_confirmations: int,
        block_time: timedelta,
        verification_timeout: timedelta,
        own_destination: TransferScope | None = None,
        from_block: int | None = None,
    ) -> None:
        """`own_destination` is the settings' destination: payments to it are accepted from then on, under later
        settings too.

        `from_block` is the first accepted block, where the settings define one.
        """
        self._chain = chain
        self._database = database
        self._preconditions = preconditions
        self._min_confirmations = min_confirmations
        self._block_time = block_time
        self._verification_timeout = verification_timeout
        self._own_destination = own_destination
        self._is_own_noted = False
        self._from_block = from_block
        self._noted_scopes: set[TransferScope] = set()

    @activity.defn
    async def await_confirmation(self, payment: PaymentToVerify) -> Verified | Refused:
        """One poll: a final result, or a failure whose next retry is timed by what is missing.

        What the chain watcher has written comes first. Its rows are a hint: they may say that there is nothing to ask
        yet, and never more than that. A final result is the nodes', all of them.

        Waiting by retry leaves nothing in the workflow's history, however long it takes.
        """
        before = _previous_poll()
        attempt, watched_wait, known = await self._find(payment, before)
        if watched_wait is not None:
            POLLS.labels(outcome=watched_wait.waiting.reason.value, answered_by=WATCHER).inc()
            raise self._still_waiting(watched_wait.waiting, self._before_timeout(watched_wait.delay, attempt))
        verdict = await self._poll(payment, attempt, known, before)
        if isinstance(verdict, Waiting) and payment.terms.nonce is not None:
            verdict = await self._ended_authorization(payment, verdict) or verdict
        if not isinstance(verdict, Waiting):
            POLLS.labels(outcome=verdict.kind, answered_by=NODE).inc()
            return _about(attempt.tx_hash, verdict)
        POLLS.labels(outcome=verdict.reason.value, answered_by=NODE).inc()
        is_authorization = payment.terms.nonce is not None
        if payment.is_last_look and self._is_over(verdict, attempt, is_authorization=is_authorization):
            return Refused(
                status=AttemptStatus.FAILED,
                error_code=ErrorCode.RECEIPT_NOT_FOUND,
                message=f"not confirmed in time; the final poll said: {verdict.message}",
                tx_hash=attempt.tx_hash,
            )
        raise self._still_waiting(verdict, self._delay(verdict, attempt))

    def _still_waiting(self, waiting: Waiting, delay: timedelta) -> ApplicationError:
        return ApplicationError(
            waiting.message,
            waiting,
            type=STILL_WAITING,
            category=ApplicationErrorCategory.BENIGN,
            next_retry_delay=delay,
        )

    def _is_over(self, waiting: Waiting, attempt: attempts.UnderVerification, *, is_authorization: bool) -> bool:
        """Whether the final poll ends the wait, by the database's clock and its current hash.

        That hash may be newer than the workflow's: the starter records it where no worker answers. A payment that lacks
        only confirmations gets twice the time that these take.
        """
        if waiting.reason is WaitReason.PRECONDITION:
            # The transaction exists and is evaluated. The fault is with the token or the nodes, not the payer's.
            return False
        if is_authorization:
            # It ends when it is proved that it never pays: time alone proves nothing.
            return False
        confirming = waiting.reason is WaitReason.CONFIRMATIONS
        grace = self._block_time * self._min_confirmations * 2 if confirming else timedelta(0)
        return attempt.now >= attempt.submitted_at + self._verification_timeout + grace

    def _delay(self, waiting: Waiting, attempt: attempts.UnderVerification) -> timedelta:
        return next_poll_delay(
            waiting,
            waited=attempt.now - attempt.submitted_at,
            remaining=self._remaining(attempt),
            block_time=self._block_time,
        )

    def _before_timeout(self, delay: timedelta, attempt: attempts.UnderVerification) -> timedelta:
        return before_timeout(delay, remaining=self._remaining(attempt), block_time=self._block_time)

    def _remaining(self, attempt: attempts.UnderVerification) -> timedelta:
        return attempt.submitted_at + self._verification_timeout - attempt.now

    def _wait_by_watcher(
        self, payment: PaymentToVerify, attempt: attempts.UnderVerification, before: _Polled
    ) -> WatchedWait | None:
        """How the payment waits by the chain watcher's rows; None where the nodes are to be asked."""
        if payment.is_last_look:
            return None
        return wait_by_watcher(
            attempt.watched,
            attempt.tx_hash,
            min_confirmations=self._min_confirmations,
            waited=attempt.now - attempt.submitted_at,
            asked_ago=attempt.now - before.at if before.at is not None else None,
            is_mined=before.block_number is not None,
            block_time=self._block_time,
        )

    async def _find(
        self, payment: PaymentToVerify, before: _Polled
    ) -> tuple[attempts.UnderVerification, WatchedWait | None, KnownTransfers]:
        """The hash that the attempt waits for, how it waits where the watcher's rows say it, and what is known of that
        transaction's transfers, where they do not.
        """
        await self._note_settings(payment.terms)
        async with self._database.autocommit() as connection:
            attempt = await attempts.find_under_verification(connection, payment.attempt_id)
            if attempt is None:
                raise AttemptNotFound(payment.attempt_id)
            watched_wait = self._wait_by_watcher(payment, attempt, before)
            if watched_wait is not None:
                return attempt, watched_wait, NOTHING_KNOWN
            known = await identity.find_known_transfers(
                connection, payment.terms.scope, attempt.tx_hash, of_others_than=payment.attempt_id
            )
        return attempt, None, known.model_copy(update={"held_log_indexes": attempt.settled_log_indexes})

    async def _note_settings(self, terms: PaymentTerms) -> None:
        """Write the settings' destination and first block to the database, which checks every credit against them.

        Once per scope, and where the database has another first block than the settings.
        """
        scope = terms.scope
        # Of a deposit address there is nothing to write: it is given out by this system, and read in a lane.
        if terms.exact or scope in self._noted_scopes:
            return
        async with self._database.transaction() as connection:
            if await observed.set_from_block(connection, scope, self._from_block):
                self._noted_scopes.add(scope)

    async def _poll(
        self, payment: PaymentToVerify, attempt: attempts.UnderVerification, known: KnownTransfers, before: _Polled
    ) -> VerificationResult:
        def verdict_on(view: ChainView, known: KnownTransfers) -> VerificationResult:
            return evaluate(
                payment.terms,
                attempt.tx_hash,
                view,
                min_confirmations=self._min_confirmations,
                known=known,
                first_block=attempt.first_block if self._from_block is None else self._from_block,
                payer_kind=attempt.payer_kind,
            )

        is_judged = False
        coin = payment.terms.scope.is_of_coin
        try:
            async with asyncio.timeout(POLL_TIMEOUT.total_seconds()):
                hint, is_last = _block_hint(attempt, before), payment.is_last_look
                view = await self._chain.payments.look(attempt.tx_hash, block_hint=hint, ask_all=is_last, coin=coin)
                known = await self._with_claims(payment, view, known)
                verdict = verdict_on(view, known)
                if isinstance(verdict, Waiting):
                    self._remember(view, attempt)  # not for a final result: no poll follows
                    return verdict
                # What follows is irreversible, and one node may lie: all the others are asked.
                checked = await self._chain.payments.cross_check(attempt.tx_hash, view, coin=coin)
                verdict = verdict_on(checked, await self._with_claims(payment, checked, known))
                is_judged = not isinstance(verdict, Waiting)
                if isinstance(verdict, Verified) and not await self._is_known_destination(payment):
                    return self._waiting(
                        WaitReason.UNKNOWN_TREASURY,
                        "no worker of this system has been configured with the intent's treasury or token",
                    )
                if is_judged:
                    await self._require_preconditions(payment, checked)
                return self._with_time(verdict, checked)
        except PreconditionNotMet as error:
            return self._judged_but_not_believed(error.message)
        except EndpointsDisagree as error:
            return self._waiting(WaitReason.CONTRADICTION, error.message)
        except ChainUnavailable as error:
            return self._waiting(WaitReason.CHAIN_UNAVAILABLE, error.message)
        except TimeoutError:
            if is_judged:
                return self._judged_but_not_believed("the chain nodes did not answer in time about the token")
            return self._waiting(WaitReason.CHAIN_UNAVAILABLE, "the chain nodes did not answer in time")

    async def _with_claims(self, payment: PaymentToVerify, view: ChainView, known: KnownTransfers) -> KnownTransfers:
        """With the authorizations of the payer in this transaction that are claimed for other attempts."""
        transfers = view.receipt.transfers if view.receipt is not None else ()
        used = frozenset(log.authorization_nonce for log in transfers if log.authorization_nonce is not None)
        terms = payment.terms
        if not used or terms.nonce is not None:
            return known
        async with self._database.autocommit() as connection:
            claimed = await authorizations.find_claimed_nonces(
                connection, chain_id=terms.chain_id, token=terms.token, payer=terms.payer, nonces=used
            )
        return known.model_copy(update={"claimed_nonces": claimed})

    async def _ended_authorization(self, payment: PaymentToVerify, waiting: Waiting) -> Refused | None:
        """How a payment by signature ends of which nothing is on the chain, once it is proved that nothing will be."""
        if waiting.reason not in {WaitReason.NOT_FOUND, WaitReason.AUTHORIZATION_OPEN}:
            return None
        async with self._database.autocommit() as connection:
            claim = await authorizations.find_claim(connection, payment.attempt_id)
        if claim is None or claim.now.timestamp() <= claim.valid_before:
            return None
        try:
            async with asyncio.timeout(POLL_TIMEOUT.total_seconds()):
                fate = await find_fate(self._chain, claim)
        except (ChainUnavailable, TimeoutError):
            return None
        return refusal_of(claim, fate)

    def _remember(self, view: ChainView, attempt: attempts.UnderVerification) -> None:
        """Note what a node has answered, and when, where the next poll depends on it: a heartbeat is a request."""
        block = view.receipt.block_number if view.receipt is not None else None
        by_watcher = attempt.watched is not None and is_fresh(attempt.watched, block_time=self._block_time)
        if block is not None or by_watcher or _previous_poll().block_number is not None:
            activity.heartbeat(block, attempt.now.isoformat())

    async def _is_known_destination(self, payment: PaymentToVerify) -> bool:
        """Whether the intent's destination is known: an intent alone is written by a public process."""
        terms, own = payment.terms, self._own_destination
        promised = terms.scope
        async with self._database.autocommit() as connection:
            if own is not None and not self._is_own_noted:
                await destinations.note_destination(connection, own)
                self._is_own_noted = True
            if terms.exact:
                return await find_decimals_of_deposit(connection, payment.attempt_id) is not None
            return promised == own or await destinations.is_known_destination(connection, promised)

    async def _require_preconditions(self, payment: PaymentToVerify, view: ChainView) -> None:
        """Of the attempt's own token, which may differ from the settings', as of the evaluated block."""
        assert view.receipt is not None, "a final result has a receipt"
        decimals: int | None = TOKEN_DECIMALS
        if payment.terms.exact:
            async with self._database.autocommit() as connection:
                decimals = await find_decimals_of_deposit(connection, payment.attempt_id)
        await self._preconditions.require(
            payment.terms.token,
            at_block=view.receipt.block_number,
            decimals=TOKEN_DECIMALS if decimals is None else decimals,
        )

    def _with_time(self, verdict: VerificationResult, view: ChainView) -> VerificationResult:
        """With the time at which the last confirmation was mined, estimated from an even block time: no poll fetches
        that block.
        """
        mined_at = view.canonical.mined_at if view.canonical else None
        if not isinstance(verdict, Verified) or mined_at is None:
            return verdict
        return verdict.model_copy(update={"confirmed_at": mined_at + (self._min_confirmations - 1) * self._block_time})

    def _judged_but_not_believed(self, message: str) -> Waiting:
        """The payment has its confirmations; it waits for the preconditions."""
        waiting = self._waiting(WaitReason.PRECONDITION, message)
        return waiting.model_copy(update={"confirmations": self._min_confirmations})

    def _waiting(self, reason: WaitReason, message: str) -> Waiting:
        return Waiting(reason=reason, message=message, confirmations_needed=self._min_confirmations)


def _about(tx_hash: str, verdict: Verified | Refused) -> Verified | Refused:
    """A refusal names its hash: it does not end an attempt whose hash has been replaced since."""
    return verdict.model_copy(update={"tx_hash": tx_hash}) if isinstance(verdict, Refused) else verdict


@dataclass(frozen=True, slots=True)
class _Polled:
    """The previous poll of this wait that asked a node; empty before the first."""

    block_number: int | None = None
    """The block in which the node had the transaction."""
    at: datetime | None = None
    """By the database's clock."""


def _previous_poll() -> _Polled:
    """From the activity's heartbeat; one of the version before has only the block."""
    details = activity.info().heartbeat_details
    block = details[0] if details and isinstance(details[0], int) else None
    at = datetime.fromisoformat(details[1]) if len(details) > 1 and isinstance(details[1], str) else None
    return _Polled(block, at)


def _block_hint(attempt: attempts.UnderVerification, before: _Polled) -> int | None:
    """The block in which the transaction may be: asking for it immediately saves a second request."""
    watched = attempt.watched
    if watched is None or watched.seen_in_block is None or watched.seen_in_block > watched.head_number:
        return before.block_number
    return watched.seen_in_block
