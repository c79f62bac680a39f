"""Polling of the chain until there is a final result."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.messages import PaymentToVerify
from activities.payments.signatures import VerificationSignatures
from chain.preconditions import SettlementPreconditions
from chain.quorum import EndpointsDisagree
from chain.reader import ChainReader
from db.engine import ServiceDatabase
from db.payments import attempts
from db.transfers import destinations, identity, observed
from domain.chain import ChainView, TransferScope
from domain.errors import AttemptNotFound, ChainUnavailable, PreconditionNotMet
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.verification import (
    KnownTransfers,
    PaymentTerms,
    Refused,
    VerificationResult,
    Verified,
    Waiting,
    WaitReason,
    evaluate,
    next_poll_delay,
)
from telemetry.metrics.worker import POLLS

STILL_WAITING: Final = "STILL_WAITING"
"""Type of the failure by which the activity is retried; its message and detail are shown to operators."""

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
        """One poll of the chain: a final result, or a failure whose next retry is timed by what is missing.

        Waiting by retry leaves nothing in the workflow's history, however long it takes.
        """
        attempt, known = await self._find(payment)
        verdict = await self._poll(payment, attempt, known)
        if not isinstance(verdict, Waiting):
            POLLS.labels(outcome=verdict.kind).inc()
            return _about(attempt.tx_hash, verdict)
        POLLS.labels(outcome=verdict.reason.value).inc()
        if payment.is_last_look and self._is_over(verdict, attempt):
            return Refused(
                status=AttemptStatus.FAILED,
                error_code=ErrorCode.RECEIPT_NOT_FOUND,
                message=f"not confirmed in time; the final poll said: {verdict.message}",
                tx_hash=attempt.tx_hash,
            )
        raise ApplicationError(
            verdict.message,
            verdict,
            type=STILL_WAITING,
            category=ApplicationErrorCategory.BENIGN,
            next_retry_delay=self._delay(verdict, attempt),
        )

    def _is_over(self, waiting: Waiting, attempt: attempts.UnderVerification) -> bool:
        """Whether the final poll ends the wait, by the database's clock and its current hash.

        That hash may be newer than the workflow's: the starter records it where no worker answers. A payment that lacks
        only confirmations gets twice the time that these take.
        """
        if waiting.reason is WaitReason.PRECONDITION:
            # The transaction exists and is evaluated. The fault is with the token or the nodes, not the payer's.
            return False
        confirming = waiting.reason is WaitReason.CONFIRMATIONS
        grace = self._block_time * self._min_confirmations * 2 if confirming else timedelta(0)
        return attempt.now >= attempt.submitted_at + self._verification_timeout + grace

    def _delay(self, waiting: Waiting, attempt: attempts.UnderVerification) -> timedelta:
        return next_poll_delay(
            waiting,
            waited=attempt.now - attempt.submitted_at,
            remaining=attempt.submitted_at + self._verification_timeout - attempt.now,
            block_time=self._block_time,
        )

    async def _find(self, payment: PaymentToVerify) -> tuple[attempts.UnderVerification, KnownTransfers]:
        """The hash that the attempt waits for, and what is known of that transaction's transfers."""
        await self._note_settings(payment.terms)
        async with self._database.autocommit() as connection:
            attempt = await attempts.find_under_verification(connection, payment.attempt_id)
            if attempt is None:
                raise AttemptNotFound(payment.attempt_id)
            known = await identity.find_known_transfers(
                connection, payment.terms.scope, attempt.tx_hash, of_others_than=payment.attempt_id
            )
        return attempt, known.model_copy(update={"held_log_indexes": attempt.settled_log_indexes})

    async def _note_settings(self, terms: PaymentTerms) -> None:
        """Write the settings' destination and first block to the database, which checks every credit against them.

        Once per scope, and where the database has another first block than the settings.
        """
        scope = terms.scope
        if scope in self._noted_scopes:
            return
        async with self._database.transaction() as connection:
            if await observed.set_from_block(connection, scope, self._from_block):
                self._noted_scopes.add(scope)

    async def _poll(
        self, payment: PaymentToVerify, attempt: attempts.UnderVerification, known: KnownTransfers
    ) -> VerificationResult:
        def verdict_on(view: ChainView) -> VerificationResult:
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
        try:
            async with asyncio.timeout(POLL_TIMEOUT.total_seconds()):
                view = await self._chain.payments.look(
                    attempt.tx_hash, block_hint=_block_seen_before(), ask_all=payment.is_last_look
                )
                verdict = verdict_on(view)
                if isinstance(verdict, Waiting):
                    _remember_block(view)  # not for a final result: no poll follows, and a heartbeat is a request
                    return verdict
                # What follows is irreversible, and one node may lie: all the others are asked.
                checked = await self._chain.payments.cross_check(attempt.tx_hash, view)
                verdict = verdict_on(checked)
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

    async def _is_known_destination(self, payment: PaymentToVerify) -> bool:
        """Whether the intent's destination is known: an intent alone is written by a public process."""
        terms, own = payment.terms, self._own_destination
        promised = terms.scope
        async with self._database.autocommit() as connection:
            if own is not None and not self._is_own_noted:
                await destinations.note_destination(connection, own)
                self._is_own_noted = True
            return promised == own or await destinations.is_known_destination(connection, promised)

    async def _require_preconditions(self, payment: PaymentToVerify, view: ChainView) -> None:
        """Of the attempt's own token, which may differ from the settings', as of the evaluated block."""
        assert view.receipt is not None, "a final result has a receipt"
        await self._preconditions.require(payment.terms.token, at_block=view.receipt.block_number)

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


def _block_seen_before() -> int | None:
    """The block in which the previous poll found the transaction: asking for it immediately saves a second request."""
    details = activity.info().heartbeat_details
    return details[0] if details and isinstance(details[0], int) else None


def _remember_block(view: ChainView) -> None:
    if view.receipt is not None:
        activity.heartbeat(view.receipt.block_number)
