"""A bare settlement: the same Temporal operations, payloads, time-outs and summaries, without database and chain.

`settle bench` divides the product's settlements per second by this workflow's. A change of the operations of
`workflows.verify_and_settle` must be made here too: the bench compares the two histories and fails where they differ.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from activities.messages import (
        AttemptOutcomeMessage,
        BonusToMint,
        CreditedPayment,
        MintedBonus,
        PaymentToCredit,
        PaymentToVerify,
        RecordedSubmission,
        Settlement,
        SettlementResult,
        Submission,
    )
    from domain.payments.attempt import AttemptStatus
    from domain.payments.finality import Final as FinalPayment
    from domain.payments.finality import FinalityLevel
    from domain.payments.verification import PaymentTerms, SettledTransfer, Verified
    from workflows.naming import PAYMENT_STATUS, SUBMIT_UPDATE
    from workflows.policies import LEDGER_RETRY, LEDGER_START_TO_CLOSE, POLL_RETRY, POLL_START_TO_CLOSE
    from workflows.verify_and_settle import TRACKS_FINALITY

BARE_TASK_QUEUE: Final = "settlement-bare"
BARE_WORKFLOW: Final = "BareSettlement"
VERIFICATION_TIMEOUT: Final = timedelta(days=1)
CREDITS: Final = 1_000_000_000
BONUS_CREDITS: Final = 750_000_000


def bare_workflow_id(attempt_id: UUID) -> str:
    """An id as long as a settlement's."""
    return f"verify-and-nothing-{attempt_id}"


@activity.defn(name="record_submission")
async def record_nothing(submission: Submission) -> RecordedSubmission:
    """Returns immediately, like all of these."""
    return RecordedSubmission(
        status=AttemptStatus.PENDING_UNVERIFIED,
        tx_hash=submission.tx_hash,
        verify_until=submission.submitted_at + VERIFICATION_TIMEOUT,
    )


@activity.defn(name="await_confirmation")
async def await_nothing(payment: PaymentToVerify) -> Verified:
    """A verification result of the usual size."""
    return Verified(transfer=_transfer(payment.attempt_id, payment.terms), confirmations=10)


@activity.defn(name="await_finality")
async def find_nothing_final(payment: CreditedPayment) -> FinalPayment:
    """An answer of the usual size."""
    return FinalPayment(transfer=_transfer(payment.attempt_id, payment.terms), level=FinalityLevel.CONFIRMATIONS)


def _transfer(attempt_id: UUID, terms: PaymentTerms) -> SettledTransfer:
    tx_hash = f"0x{attempt_id.hex:0>64}"
    return SettledTransfer(
        chain_id=terms.chain_id,
        tx_hash=tx_hash,
        log_index=0,
        block_number=100,
        block_hash=tx_hash,
        from_address=terms.payer,
        value_raw=terms.amount_raw,
        expected_raw=terms.amount_raw,
    )


@activity.defn(name="credit_buyer")
async def credit_nobody(payment: PaymentToCredit) -> AttemptOutcomeMessage:
    """Credits no account."""
    return AttemptOutcomeMessage(
        status=AttemptStatus.CREDITED, tx_hash=payment.transfer.tx_hash, amount_credits=CREDITS
    )


@activity.defn(name="mint_bonus")
async def mint_nothing(_bonus: BonusToMint) -> MintedBonus:
    """Mints nothing."""
    return MintedBonus(amount_credits=BONUS_CREDITS, share=Decimal("0.75"))


@workflow.defn(name=BARE_WORKFLOW)
class BareSettlement:
    """The operations of a purchase whose payment is confirmed at the first poll."""

    @workflow.init
    def __init__(self, payment: Settlement) -> None:
        self._payment = payment
        self._recorded: RecordedSubmission | None = None

    @workflow.update(name=SUBMIT_UPDATE)
    async def submit(self, _submission: Submission) -> RecordedSubmission:
        """Answers when the first activity has."""
        await workflow.wait_condition(lambda: self._recorded is not None)
        assert self._recorded is not None
        return self._recorded

    @workflow.run
    async def run(self, payment: Settlement) -> SettlementResult:
        """Five activities, one after the other."""
        submission = payment.submission
        short_hash = f"{submission.tx_hash[:10]}…"
        ref = submission.model_dump(include={"attempt_id", "owner_user_id", "billing_account_id"})
        self._recorded = recorded = await workflow.execute_activity(
            record_nothing,
            submission,
            start_to_close_timeout=LEDGER_START_TO_CLOSE,
            retry_policy=LEDGER_RETRY,
            summary=f"record hash {short_hash}",
        )
        verify_until = recorded.verify_until or workflow.now() + VERIFICATION_TIMEOUT
        verdict = await workflow.execute_activity(
            await_nothing,
            PaymentToVerify(
                **ref, terms=payment.terms, submitted_at=submission.submitted_at, verify_until=verify_until
            ),
            start_to_close_timeout=POLL_START_TO_CLOSE,
            schedule_to_close_timeout=verify_until - workflow.now(),
            retry_policy=POLL_RETRY,
            summary=f"wait for {short_hash} to be confirmed",
        )
        ending = await workflow.execute_activity(
            credit_nobody,
            PaymentToCredit(**ref, transfer=verdict.transfer),
            start_to_close_timeout=LEDGER_START_TO_CLOSE,
            retry_policy=LEDGER_RETRY,
            summary="credit the buyer",
        )
        bonus = await workflow.execute_activity(
            mint_nothing,
            BonusToMint(**ref),
            start_to_close_timeout=LEDGER_START_TO_CLOSE,
            retry_policy=LEDGER_RETRY,
            summary="credit the system tenant's bonus",
        )
        workflow.upsert_search_attributes([PAYMENT_STATUS.value_set(ending.status.value)])
        workflow.patched(TRACKS_FINALITY)
        final = await workflow.execute_activity(
            find_nothing_final,
            CreditedPayment(**ref, terms=payment.terms),
            start_to_close_timeout=POLL_START_TO_CLOSE,
            retry_policy=POLL_RETRY,
            summary=f"wait for {short_hash} to be final",
        )
        await workflow.wait_condition(workflow.all_handlers_finished)
        return SettlementResult(
            attempt_id=submission.attempt_id,
            status=ending.status,
            tx_hash=ending.tx_hash,
            buyer_credits=ending.amount_credits,
            system_tenant_credits=bonus.amount_credits,
            final_block=final.transfer.block_number,
        )
