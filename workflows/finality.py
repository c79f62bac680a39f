"""Finality of one credited payment: wait until it is final, or reverse it, in two steps as it was credited.

`ReversePayment` consists of this; so does the end of `VerifyAndSettle` in runs up to schema revision 0006.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from temporalio import workflow

from workflows.publish import publish

with workflow.unsafe.imports_passed_through():
    from activities.messages import AttemptRef, CreditedPayment, PaymentToReverse, TrackedPayment
    from activities.payments.signatures import FinalitySignatures
    from domain.operations.events import PAYMENT_REVERSED, PlatformEvent
    from domain.payments.attempt import AttemptStatus, Purpose
    from domain.payments.finality import Final, ReorgedOut
    from workflows.policies import (
        ANNOUNCE_SCHEDULE_TO_CLOSE,
        LEDGER_RETRY,
        LEDGER_START_TO_CLOSE,
        POLL_RETRY,
        POLL_START_TO_CLOSE,
    )


class Reversed(NamedTuple):
    """The payment was reorged out, and its credits are reversed."""

    status: AttemptStatus
    message: str


async def settle_finality(payment: TrackedPayment, set_status: Callable[[str], None]) -> Final | Reversed:
    """Wait for the payment to be final, which leaves nothing in the history; reverse one that is reorged out."""
    outcome = await workflow.execute_activity_method(
        FinalitySignatures.await_finality,
        CreditedPayment(**_ref(payment), terms=payment.terms),
        start_to_close_timeout=POLL_START_TO_CLOSE,
        retry_policy=POLL_RETRY,
        summary=f"wait for {short(payment.tx_hash)} to be final",
    )
    return outcome if isinstance(outcome, Final) else await _reverse(payment, outcome, set_status)


async def _reverse(payment: TrackedPayment, gone: ReorgedOut, set_status: Callable[[str], None]) -> Reversed:
    set_status(f"reorged out: {gone.message}; reversing its credits")
    ending = await workflow.execute_activity_method(
        FinalitySignatures.reverse_payment,
        PaymentToReverse(**_ref(payment), gone=gone),
        start_to_close_timeout=LEDGER_START_TO_CLOSE,
        retry_policy=LEDGER_RETRY,
        summary="reverse the payment's credits",
    )
    bonus_credits = await _reverse_bonus(payment) if payment.purpose is Purpose.SELF else 0
    await _publish_reversal(payment, gone, bonus_credits)
    return Reversed(ending.status, gone.message)


async def _reverse_bonus(payment: TrackedPayment) -> int:
    bonus = await workflow.execute_activity_method(
        FinalitySignatures.reverse_bonus,
        AttemptRef(**_ref(payment)),
        start_to_close_timeout=LEDGER_START_TO_CLOSE,
        retry_policy=LEDGER_RETRY,
        summary="reverse the system tenant's bonus",
    )
    return bonus.amount_credits


async def _publish_reversal(payment: TrackedPayment, gone: ReorgedOut, bonus_credits: int) -> None:
    attempt_id = str(payment.attempt_id)
    event = PlatformEvent(
        id=f"{PAYMENT_REVERSED}-{attempt_id}",
        type=PAYMENT_REVERSED,
        subject=attempt_id,
        time=workflow.now(),
        data={
            "attemptId": attempt_id,
            "billingAccountId": payment.billing_account_id,
            "purpose": payment.purpose.value,
            "amountUsdCents": payment.amount_usd_cents,
            "bonusCredits": bonus_credits,
            "txHash": gone.transfer.tx_hash,
            "blockNumber": gone.transfer.block_number,
            "message": gone.message,
        },
    )
    # Whether it arrives or not: the log line was written, the finding and the metric are there.
    await publish(
        event,
        summary="publish the reversal",
        what="the reversal",
        schedule_to_close=ANNOUNCE_SCHEDULE_TO_CLOSE,
        retry_policy=LEDGER_RETRY,
        log_fields=log_fields(payment),
    )


def log_fields(payment: AttemptRef) -> dict[str, str]:
    """What log lines about a payment carry."""
    fields = {"attempt_id": str(payment.attempt_id), "billing_account_id": payment.billing_account_id}
    return fields | ({"request_id": payment.request_id} if payment.request_id else {})


def short(tx_hash: str) -> str:
    """A transaction's hash as people recognize it."""
    return f"{tx_hash[:10]}…"


def _ref(payment: TrackedPayment) -> dict[str, object]:
    """The fields that every activity's input shares."""
    return payment.model_dump(include=set(AttemptRef.model_fields))
