"""Double entry: every change of an account's credits is a balanced journal entry.

A billing account's credits are a liability: what it is still owed. A payment debits cash. The system tenant's bonus is
minted, and therefore debits an expense.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, model_validator


class Side(StrEnum):
    """The two sides of a journal line."""

    DEBIT = "debit"
    CREDIT = "credit"


class Reason(StrEnum):
    """Reason of a ledger entry; unique per account and reference."""

    CREDITS_PURCHASE = "credits_purchase"
    PLATFORM_REVENUE_SHARE = "platform_revenue_share"
    SYSTEM_DONATION = "system_donation"
    PAYMENT_REVERSAL = "payment_reversal"
    OPERATOR_CREDIT = "operator_credit"


USAGE_REASON: Final = "llm_usage"
"""Reason of a call's charge, which the database function `post_charge` posts with lines of its own: no `Posting`."""

CASH_ACCOUNT: Final = "cash:usdc"
REVENUE_SHARE_EXPENSE_ACCOUNT: Final = "expense:platform_revenue_share"

CONTRA_ACCOUNT: Final[dict[Reason, str]] = {
    Reason.CREDITS_PURCHASE: CASH_ACCOUNT,
    Reason.SYSTEM_DONATION: CASH_ACCOUNT,
    Reason.PLATFORM_REVENUE_SHARE: REVENUE_SHARE_EXPENSE_ACCOUNT,
    Reason.OPERATOR_CREDIT: CASH_ACCOUNT,
}
"""Contra account of the billing account's liability, by reason; a reversal has that of the entry it reverses."""


def deposits_account(token: str) -> str:
    """Code of the ledger account of what is at deposit addresses, of a token by its symbol."""
    return f"cash:{token.lower()}:deposits"


def liability_account(billing_account_id: str) -> str:
    """Code of the ledger account that holds a billing account's credits."""
    return f"credits:{billing_account_id}"


class JournalLine(BaseModel):
    """One side of an entry; `amount_credits` is positive, `side` carries the sign."""

    model_config = ConfigDict(frozen=True)

    account_code: str
    side: Side
    amount_credits: int


class Posting(BaseModel):
    """One change of one billing account's credits, before it is written.

    `amount_credits` is signed: positive increases the account's credits. `reference` is derived from facts (for a
    payment the attempt's id), so that the same change cannot be posted twice.
    """

    model_config = ConfigDict(frozen=True)

    billing_account_id: str
    amount_credits: int
    reason: Reason
    reference: str
    reverses: Reason | None = None
    """Of a reversal: the reason of the entry that it reverses."""
    cash_account: str = CASH_ACCOUNT
    """Where the money is, of what came in: the treasury's account, or that of deposit addresses."""

    @model_validator(mode="after")
    def _moves_something(self) -> Posting:
        if self.amount_credits == 0:
            raise ValueError("a posting must not be of 0 credits")
        if (self.reason is Reason.PAYMENT_REVERSAL) != (self.reverses is not None):
            raise ValueError("a reversal names the reason that it reverses, and no other posting does")
        return self

    @property
    def contra_account(self) -> str:
        """Code of the contra account."""
        account = CONTRA_ACCOUNT[self.reverses or self.reason]
        return self.cash_account if account == CASH_ACCOUNT else account

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


def reversal_posting(
    billing_account_id: str, reference: str, reason: Reason, amount_credits: int, cash_account: str = CASH_ACCOUNT
) -> Posting:
    """Reverse an entry of `amount_credits` in full; the balance may become negative."""
    return Posting(
        billing_account_id=billing_account_id,
        amount_credits=-amount_credits,
        reason=Reason.PAYMENT_REVERSAL,
        reference=reference,
        reverses=reason,
        cash_account=cash_account,
    )
