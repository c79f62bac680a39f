"""Double entry: every change of an account's credits is a balanced journal entry.

A billing account's credits are a liability, what it is still owed. A payment debits cash; the system
tenant's bonus is minted and therefore debits an expense.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, model_validator

from domain.errors import BookkeepingError
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.money import credits_for_usd_cents, revenue_share_credits
from domain.payments.attempt import PaymentAttempt, Purpose


class Side(StrEnum):
    """The two sides of a journal line."""

    DEBIT = "debit"
    CREDIT = "credit"


class Reason(StrEnum):
    """Why an account's credits changed; each is unique per account and reference."""

    CREDITS_PURCHASE = "credits_purchase"
    PLATFORM_REVENUE_SHARE = "platform_revenue_share"
    SYSTEM_DONATION = "system_donation"
    PAYMENT_REVERSAL = "payment_reversal"
    OPERATOR_CREDIT = "operator_credit"


CASH_ACCOUNT: Final = "cash:usdc"
REVENUE_SHARE_EXPENSE_ACCOUNT: Final = "expense:platform_revenue_share"

CONTRA_ACCOUNT: Final[dict[Reason, str]] = {
    Reason.CREDITS_PURCHASE: CASH_ACCOUNT,
    Reason.SYSTEM_DONATION: CASH_ACCOUNT,
    Reason.PLATFORM_REVENUE_SHARE: REVENUE_SHARE_EXPENSE_ACCOUNT,
    Reason.OPERATOR_CREDIT: CASH_ACCOUNT,
}
"""The account on the other side of the billing account's liability; a reversal has that of what it reverses."""


def liability_account(billing_account_id: str) -> str:
    """Ledger account code of the credits that a billing account is owed."""
    return f"credits:{billing_account_id}"


class JournalLine(BaseModel):
    """One side of an entry; `amount_credits` is positive, `side` carries the sign."""

    model_config = ConfigDict(frozen=True)

    account_code: str
    side: Side
    amount_credits: int


class Posting(BaseModel):
    """One change of one billing account's credits, before it is written.

    `amount_credits` is signed: positive adds to what the account is owed. `reference` comes from facts
    (for a payment the attempt's id), so that the same change cannot be posted twice.
    """

    model_config = ConfigDict(frozen=True)

    billing_account_id: str
    amount_credits: int
    reason: Reason
    reference: str
    reverses: Reason | None = None
    """Of a reversal: the reason of the entry that it takes back."""

    @model_validator(mode="after")
    def _moves_something(self) -> Posting:
        if self.amount_credits == 0:
            raise ValueError("a posting of 0 credits is no posting")
        if (self.reason is Reason.PAYMENT_REVERSAL) != (self.reverses is not None):
            raise ValueError("a reversal names what it takes back, and nothing else does")
        return self

    @property
    def contra_account(self) -> str:
        """Ledger account code of the other side."""
        return CONTRA_ACCOUNT[self.reverses or self.reason]

    @property
    def lines(self) -> tuple[JournalLine, JournalLine]:
        """The balanced journal lines: debits equal credits by construction."""
        amount = abs(self.amount_credits)
        liability = liability_account(self.billing_account_id)
        debit, credit = (
            (self.contra_account, liability) if self.amount_credits > 0 else (liability, self.contra_account)
        )
        return (
            JournalLine(account_code=debit, side=Side.DEBIT, amount_credits=amount),
            JournalLine(account_code=credit, side=Side.CREDIT, amount_credits=amount),
        )


def purchase_posting(attempt: PaymentAttempt) -> Posting:
    """The buyer's credit: all of what was bought."""
    _require(attempt, Purpose.SELF)
    return Posting(
        billing_account_id=attempt.billing_account_id,
        amount_credits=credits_for_usd_cents(attempt.amount_usd_cents),
        reason=Reason.CREDITS_PURCHASE,
        reference=str(attempt.id),
    )


def revenue_share_posting(attempt: PaymentAttempt) -> Posting | None:
    """The system tenant's bonus for a credited purchase, or None where its share mints nothing."""
    _require(attempt, Purpose.SELF)
    if attempt.revenue_share is None:
        raise BookkeepingError(f"attempt {attempt.id} has no revenue share: it is not a credited purchase")
    amount_credits = revenue_share_credits(credits_for_usd_cents(attempt.amount_usd_cents), attempt.revenue_share)
    if amount_credits == 0:
        return None
    return Posting(
        billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
        amount_credits=amount_credits,
        reason=Reason.PLATFORM_REVENUE_SHARE,
        reference=str(attempt.id),
    )


def donation_posting(attempt: PaymentAttempt) -> Posting:
    """The system tenant's credit for a donation: all of it, the donor's balance is untouched."""
    _require(attempt, Purpose.SYSTEM)
    return Posting(
        billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
        amount_credits=credits_for_usd_cents(attempt.amount_usd_cents),
        reason=Reason.SYSTEM_DONATION,
        reference=str(attempt.id),
    )


def reversal_posting(billing_account_id: str, reference: str, reason: Reason, amount_credits: int) -> Posting:
    """What takes an entry of `amount_credits` back, in full: the balance may go below zero."""
    return Posting(
        billing_account_id=billing_account_id,
        amount_credits=-amount_credits,
        reason=Reason.PAYMENT_REVERSAL,
        reference=reference,
        reverses=reason,
    )


def _require(attempt: PaymentAttempt, purpose: Purpose) -> None:
    if attempt.purpose is not purpose:
        raise BookkeepingError(f"attempt {attempt.id} has purpose {attempt.purpose}, not {purpose}")
