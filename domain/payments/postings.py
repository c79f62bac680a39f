"""Ledger postings of a payment: the buyer's credit, the system tenant's bonus, a donation."""

from __future__ import annotations

from domain.errors import BookkeepingError
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import CASH_ACCOUNT, Posting, Reason
from domain.money import revenue_share_credits
from domain.payments.attempt import PaymentAttempt, Purpose


def purchase_posting(attempt: PaymentAttempt) -> Posting:
    """The buyer's credit: the full purchase."""
    _require(attempt, Purpose.SELF)
    return Posting(
        billing_account_id=attempt.billing_account_id,
        amount_credits=attempt.credits,
        reason=Reason.CREDITS_PURCHASE,
        reference=str(attempt.id),
        cash_account=attempt.cash_account or CASH_ACCOUNT,
    )


def revenue_share_posting(attempt: PaymentAttempt) -> Posting | None:
    """The system tenant's bonus for a credited purchase, or None where its share mints nothing."""
    _require(attempt, Purpose.SELF)
    if attempt.revenue_share is None:
        raise BookkeepingError(f"attempt {attempt.id} has no revenue share: it is not a credited purchase")
    amount_credits = revenue_share_credits(attempt.credits, attempt.revenue_share)
    if amount_credits == 0:
        return None
    return Posting(
        billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
        amount_credits=amount_credits,
        reason=Reason.PLATFORM_REVENUE_SHARE,
        reference=str(attempt.id),
    )


def donation_posting(attempt: PaymentAttempt) -> Posting:
    """The system tenant's credit for a donation: the full amount. The donor's balance is not touched."""
    _require(attempt, Purpose.SYSTEM)
    return Posting(
        billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
        amount_credits=attempt.credits,
        reason=Reason.SYSTEM_DONATION,
        reference=str(attempt.id),
        cash_account=attempt.cash_account or CASH_ACCOUNT,
    )


def _require(attempt: PaymentAttempt, purpose: Purpose) -> None:
    if attempt.purpose is not purpose:
        raise BookkeepingError(f"attempt {attempt.id} has purpose {attempt.purpose}, not {purpose}")
