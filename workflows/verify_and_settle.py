"""One payment, from the submitted hash to the credits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, RetryState, is_cancelled_exception

from workflows.finality import Reversed, log_fields, settle_finality, short

with workflow.unsafe.imports_passed_through():
    from activities.messages import (
        AttemptOutcomeMessage,
        AttemptRef,
        BonusToMint,
        Message,
        PaymentToCredit,
        PaymentToRefuse,
        PaymentToVerify,
        RecordedSubmission,
        ReplacedHash,
        Settlement,
        SettlementResult,
        Submission,
        TrackedPayment,
    )
    from activities.payments.signatures import (
        PayerSignatures,
        SystemTenantSignatures,
        VerificationSignatures,
    )
    from domain.errors import BookkeepingError, TransferAlreadySettled
    from domain.payments.attempt import FINAL_STATUSES, AttemptStatus, Purpose
    from domain.payments.verification import Refused, Verified
    from workflows.naming import HASH_REPLACED_SIGNAL, PAYMENT_STATUS, SUBMIT_UPDATE, TX_HASH, VERIFY_AND_SETTLE
    from workflows.policies import (
        LEDGER_RETRY,
        LEDGER_START_TO_CLOSE,
        LOCAL_LEDGER_RETRY,
        LOCAL_LEDGER_SCHEDULE_TO_CLOSE,
        POLL_RETRY,
        POLL_START_TO_CLOSE,
    )

TRACKS_FINALITY = "looks-after-the-credit"
"""A run that had ended before this patch replays unchanged; one that has not yet got there polls.

Of runs that a starter up to schema revision 0006 has started; finality is decided for all others together.
"""

_M = TypeVar("_M", bound=Message)
_R = TypeVar("_R", bound=Message)


@workflow.defn(name=VERIFY_AND_SETTLE)
class VerifyAndSettle:
    """Waits for the chain to confirm a payment, then credits the buyer and the system tenant, each once."""

    @workflow.init
    def __init__(self, payment: Settlement) -> None:
        self._payment = payment
        self._first_tx_hash = payment.submission.tx_hash
        self._first_refusal: ApplicationError | None = None
        self._recorded = payment.recorded
        self._submitted_at = payment.submission.submitted_at
        self._hash_replaced = False
        self._one_submission_at_a_time = asyncio.Lock()

    @workflow.run
    async def run(self, payment: Settlement) -> SettlementResult:
        """Lifecycle of a payment. Its submission is recorded, but by a starter up to schema revision 0006."""
        recorded = payment.recorded or await self._record_first_submission()
        if recorded.status in FINAL_STATUSES:
            result = await self._complete_what_ended(recorded)
        else:
            result = await self._verify_and_settle()
        await self._publish_end(result)
        if payment.recorded is None and workflow.patched(TRACKS_FINALITY):
            result = await self._track_finality(result)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return result

    @workflow.signal(name=HASH_REPLACED_SIGNAL)
    def replace_hash(self, replaced: ReplacedHash) -> None:
        """The recorded hash is another one: it is polled for at once, and has a verification time of its own."""
        if replaced.submitted_at > self._submitted_at:
            self._recorded = RecordedSubmission(
                status=AttemptStatus.PENDING_UNVERIFIED, tx_hash=replaced.tx_hash, verify_until=replaced.verify_until
            )
            self._note_replaced_hash(replaced.submitted_at)

    @workflow.update(name=SUBMIT_UPDATE)
    async def submit(self, submission: Submission) -> RecordedSubmission:
        """Record a hash, for a starter up to schema revision 0006: the first, the same again, or one that replaces
        it.
        """
        if submission.tx_hash == self._first_tx_hash and self._recorded is None:
            # `run` is recording this very submission: it is in the input too, so that it outlives a lost update.
            await workflow.wait_condition(lambda: self._recorded is not None or self._first_refusal is not None)
            if self._first_refusal is not None:
                raise self._first_refusal
            assert self._recorded is not None
            return self._recorded
        return await self._record(submission)

    async def _record_first_submission(self) -> RecordedSubmission:
        try:
            return await self._record(self._payment.submission)
        except ApplicationError as refusal:
            # A later submission may be good and starts a new run, which a failed run does not prevent.
            self._first_refusal = refusal
            await workflow.wait_condition(workflow.all_handlers_finished)
            if self._recorded is not None:
                return self._recorded  # another hash was recorded concurrently: this run settles it
            raise

    async def _complete_what_ended(self, recorded: RecordedSubmission) -> SettlementResult:
        """An earlier run ended the attempt. It may have been terminated before the bonus: minting is idempotent."""
        ending = AttemptOutcomeMessage(status=recorded.status, error_code=recorded.error_code, tx_hash=recorded.tx_hash)
        purchase_credited = recorded.status is AttemptStatus.CREDITED and self._payment.purpose is Purpose.SELF
        return self._result(ending, system_tenant_credits=await self._mint_bonus() if purchase_credited else 0)

    async def _record(self, submission: Submission) -> RecordedSubmission:
        async with self._one_submission_at_a_time:
            try:
                recorded = await workflow.execute_activity_method(
                    PayerSignatures.record_submission,
                    submission.model_copy(update={"chain_id": self._payment.terms.chain_id}),
                    start_to_close_timeout=LEDGER_START_TO_CLOSE,
                    retry_policy=LEDGER_RETRY,
                    summary=f"record hash {short(submission.tx_hash)}",
                )
            except ActivityError as error:
                raise _cause(error) from error
            before, self._recorded = self._tx_hash(), recorded
            if recorded.tx_hash not in {None, before}:
                self._note_replaced_hash(submission.submitted_at)
            return recorded

    def _note_replaced_hash(self, submitted_at: datetime) -> None:
        self._submitted_at = submitted_at
        self._hash_replaced = True
        workflow.upsert_search_attributes([TX_HASH.value_set(self._tx_hash())])

    async def _verify_and_settle(self) -> SettlementResult:
        while True:
            verdict = await self._await_verdict()
            try:
                result = await self._settle(verdict)
                if result.status in FINAL_STATUSES:
                    return result
                # The hash was replaced while its refusal was being recorded: nothing ended, poll for the new one.
            except ApplicationError as error:
                if error.type != TransferAlreadySettled.code:
                    raise
                # Another attempt was paid with that very transfer: poll again without it.
                workflow.logger.warning(
                    "transfer already settled, polling again: %s", error.message, extra=self._log_fields()
                )

    async def _await_verdict(self) -> Verified | Refused:
        """Wait for the chain. A replaced hash is polled for immediately; the wait itself leaves no history."""
        while True:
            self._hash_replaced = False
            verify_until = self._verify_until()
            remaining = verify_until - workflow.now()
            verdict = (
                await self._poll_until_verified(verify_until, remaining)
                if remaining > timedelta(0)
                else await self._final_poll(verify_until)
            )
            if isinstance(verdict, Verified) or (verdict is not None and not self._hash_replaced):
                return verdict

    async def _poll_until_verified(self, verify_until: datetime, remaining: timedelta) -> Verified | Refused | None:
        """One wait, for one hash; None where it was replaced, or where the time is up."""
        self._set_status(
            f"waiting for {short(self._tx_hash())} to be confirmed, until {verify_until:%Y-%m-%d %H:%M} UTC"
        )
        look = workflow.start_activity_method(
            VerificationSignatures.await_confirmation,
            self._to_verify(verify_until),
            start_to_close_timeout=POLL_START_TO_CLOSE,
            schedule_to_close_timeout=remaining,
            retry_policy=POLL_RETRY,
            summary=f"wait for {short(self._tx_hash())} to be confirmed",
        )
        await self._done_or_hash_replaced(look)
        if not look.done():
            look.cancel()
        try:
            return await look
        except ActivityError as error:
            if not (self._hash_replaced or error.retry_state == RetryState.TIMEOUT):
                raise _cause(error) from error
        await self._time_up_or_hash_replaced(verify_until)
        return None

    async def _time_up_or_hash_replaced(self, verify_until: datetime) -> None:
        """The wait ends early when no further poll fits into it: the remaining time passes without one."""
        remaining = verify_until - workflow.now()
        if remaining > timedelta(0) and not self._hash_replaced:
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(lambda: self._hash_replaced, timeout=remaining)

    async def _done_or_hash_replaced(self, look: workflow.ActivityHandle[Verified | Refused]) -> None:
        await workflow.wait_condition(lambda: look.done() or self._hash_replaced)

    async def _final_poll(self, verify_until: datetime) -> Verified | Refused:
        """The time is up, perhaps because no worker ran for a day: poll once more before the payment is given up."""
        self._set_status("time is up: final poll of the chain")
        return await workflow.execute_activity_method(
            VerificationSignatures.await_confirmation,
            self._to_verify(verify_until, is_last_look=True),
            start_to_close_timeout=POLL_START_TO_CLOSE,
            retry_policy=POLL_RETRY,
            summary=f"final poll for {short(self._tx_hash())}",
        )

    async def _settle(self, verdict: Verified | Refused) -> SettlementResult:
        if isinstance(verdict, Refused):
            return self._result(await self._end_without_credits(verdict))
        if self._payment.purpose is Purpose.SYSTEM:
            donation = await self._credit_donation(verdict)
            return self._result(donation, system_tenant_credits=donation.amount_credits)
        purchase = await self._credit_buyer(verdict)
        bonus_credits = await self._mint_bonus() if purchase.status is AttemptStatus.CREDITED else 0
        return self._result(purchase, buyer_credits=purchase.amount_credits, system_tenant_credits=bonus_credits)

    async def _credit_buyer(self, verdict: Verified) -> AttemptOutcomeMessage:
        self._set_status("confirmed: crediting the buyer")
        return await self._ledger_step(
            PayerSignatures.credit_buyer,
            PaymentToCredit(**self._ref(), transfer=verdict.transfer, confirmed_at=verdict.confirmed_at),
            summary="credit the buyer",
        )

    async def _mint_bonus(self) -> int:
        self._set_status("buyer credited: crediting the system tenant's bonus")
        bonus = await self._ledger_step(
            SystemTenantSignatures.mint_bonus, BonusToMint(**self._ref()), summary="credit the system tenant's bonus"
        )
        return bonus.amount_credits

    async def _credit_donation(self, verdict: Verified) -> AttemptOutcomeMessage:
        self._set_status("confirmed: crediting the donation to the system tenant")
        return await self._ledger_step(
            SystemTenantSignatures.credit_donation,
            PaymentToCredit(**self._ref(), transfer=verdict.transfer, confirmed_at=verdict.confirmed_at),
            summary="credit the donation to the system tenant",
        )

    async def _end_without_credits(self, refused: Refused) -> AttemptOutcomeMessage:
        self._set_status(f"{refused.error_code.value}: {refused.message}")
        return await self._ledger_step(
            PayerSignatures.end_without_credits,
            PaymentToRefuse(**self._ref(), refused=refused),
            summary=f"end as {refused.status.value}: {refused.error_code.value}",
        )

    async def _ledger_step(self, step: Callable[[Any, _M], Awaitable[_R]], message: _M, *, summary: str) -> _R:
        """One transaction: in this worker, where the database answers at once, else as an activity of its own.

        That one is pending in Temporal's UI with its error, and waits without workflow tasks. The transaction may have
        been committed by then: every step finds what is done. A refusal is the step's answer either way.
        """
        if self._payment.recorded is not None:
            try:
                return await workflow.execute_local_activity_method(
                    step,
                    message,
                    schedule_to_close_timeout=LOCAL_LEDGER_SCHEDULE_TO_CLOSE,
                    retry_policy=LOCAL_LEDGER_RETRY,
                    summary=summary,
                )
            except FailureError as error:
                # The SDK raises a local activity's own error as it is, and wraps a time-out.
                cause = error.cause if isinstance(error, ActivityError) else error
                if is_cancelled_exception(error):
                    raise
                if isinstance(cause, ApplicationError) and cause.non_retryable:
                    raise cause  # noqa: B904 - it is the error that was caught, or its cause
                workflow.logger.warning("%s: %s", summary, cause, extra=self._log_fields())
        try:
            return await workflow.execute_activity_method(
                step,
                message,
                start_to_close_timeout=LEDGER_START_TO_CLOSE,
                retry_policy=LEDGER_RETRY,
                summary=summary,
            )
        except ActivityError as error:
            raise _cause(error) from error

    async def _track_finality(self, result: SettlementResult) -> SettlementResult:
        """Track the payment until it is final. One that is reorged out for good is reversed."""
        if result.status not in {AttemptStatus.CREDITED, AttemptStatus.REVERSED}:
            return result
        outcome = await settle_finality(self._tracked(), self._set_status)
        if isinstance(outcome, Reversed):
            workflow.upsert_search_attributes([PAYMENT_STATUS.value_set(outcome.status.value)])
            self._set_status(f"{outcome.status.value}: {outcome.message}")
            return result.model_copy(update={"status": outcome.status})
        self._set_status(f"{_format_result(result)}; block {outcome.transfer.block_number} is {outcome.level.words}")
        return result.model_copy(update={"final_block": outcome.transfer.block_number})

    def _tracked(self) -> TrackedPayment:
        return TrackedPayment(
            **self._ref(),
            terms=self._payment.terms,
            purpose=self._payment.purpose,
            amount_usd_cents=self._payment.amount_usd_cents,
            tx_hash=self._tx_hash(),
        )

    async def _publish_end(self, result: SettlementResult) -> None:
        workflow.upsert_search_attributes([PAYMENT_STATUS.value_set(result.status.value)])
        self._set_status(_format_result(result))

    def _set_status(self, words: str) -> None:
        """Status text at the top of the workflow's page."""
        workflow.set_current_details(words)
        workflow.logger.info(words, extra=self._log_fields())

    def _log_fields(self) -> dict[str, str]:
        return log_fields(self._payment.submission)

    def _ref(self) -> dict[str, object]:
        """The fields that every activity's input shares."""
        ref = self._payment.submission.model_dump(include=set(AttemptRef.model_fields))
        return ref | {"chain_id": self._payment.terms.chain_id}

    def _to_verify(self, verify_until: datetime, *, is_last_look: bool = False) -> PaymentToVerify:
        return PaymentToVerify(
            **self._ref(),
            terms=self._payment.terms,
            submitted_at=self._submitted_at,
            verify_until=verify_until,
            is_last_look=is_last_look,
        )

    def _tx_hash(self) -> str:
        recorded = self._recorded
        return (recorded.tx_hash if recorded else None) or self._first_tx_hash

    def _verify_until(self) -> datetime:
        recorded = self._recorded
        if recorded is None or recorded.verify_until is None:
            raise ApplicationError("a pending attempt has no end of its verification time", type=BookkeepingError.code)
        return recorded.verify_until

    def _result(
        self, ending: AttemptOutcomeMessage, *, buyer_credits: int = 0, system_tenant_credits: int = 0
    ) -> SettlementResult:
        return SettlementResult(
            attempt_id=self._payment.submission.attempt_id,
            status=ending.status,
            error_code=ending.error_code,
            tx_hash=ending.tx_hash,
            buyer_credits=buyer_credits,
            system_tenant_credits=system_tenant_credits,
        )


def _cause(error: ActivityError) -> ApplicationError | ActivityError:
    """The activity's own error where it gave one, so that its code is not hidden one level down."""
    return error.cause if isinstance(error.cause, ApplicationError) else error


def _format_result(result: SettlementResult) -> str:
    error = f" / {result.error_code.value}" if result.error_code else ""
    return (
        f"{result.status.value}{error}: {result.buyer_credits} credits to the buyer, "
        f"{result.system_tenant_credits} to the system tenant"
    )
