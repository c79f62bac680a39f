"""Postings balance by construction, and each purpose has its own."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from db.accounts.wallets import Payer
from domain.errors import BookkeepingError
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import (
    CONTRA_ACCOUNT,
    Posting,
    Reason,
    Side,
    liability_account,
    reversal_posting,
)
from domain.payments.attempt import Purpose
from domain.payments.postings import donation_posting, purchase_posting, revenue_share_posting
from tests.support.payments import new_attempt, wallet

PAYER = Payer("user", "account", wallet(1))
AMOUNTS = st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1).filter(bool)


@given(AMOUNTS, st.sampled_from(Reason), st.text(min_size=1, max_size=20))
def test_the_lines_balance_and_move_the_liability_by_the_amount(amount: int, reason: Reason, account: str) -> None:
    reverses = Reason.CREDITS_PURCHASE if reason is Reason.PAYMENT_REVERSAL else None
    posting = Posting(
        billing_account_id=account, amount_credits=amount, reason=reason, reference="x", reverses=reverses
    )
    sums = {
        side: sum(line.amount_credits for line in posting.lines if line.side is side)
        for side in (Side.DEBIT, Side.CREDIT)
    }
    assert sums[Side.DEBIT] == sums[Side.CREDIT] == abs(amount)
    assert all(line.amount_credits > 0 for line in posting.lines)
    # Only the liability's own code matters: an account may be called anything.
    moved = sum(
        line.amount_credits if line.side is Side.CREDIT else -line.amount_credits
        for line in posting.lines
        if line.account_code == liability_account(account)
    )
    assert moved == amount
    assert {line.account_code for line in posting.lines} == {
        liability_account(account),
        CONTRA_ACCOUNT[reverses or reason],
    }


def test_a_posting_of_nothing_is_no_posting() -> None:
    with pytest.raises(ValidationError, match="of 0 credits"):
        Posting(billing_account_id="x", amount_credits=0, reason=Reason.CREDITS_PURCHASE, reference="x")


def test_every_reason_has_an_account_on_the_other_side() -> None:
    assert CONTRA_ACCOUNT == {
        Reason.CREDITS_PURCHASE: "cash:usdc",
        Reason.SYSTEM_DONATION: "cash:usdc",
        Reason.PLATFORM_REVENUE_SHARE: "expense:platform_revenue_share",
        Reason.OPERATOR_CREDIT: "cash:usdc",
    }
    assert set(CONTRA_ACCOUNT) == set(Reason) - {Reason.PAYMENT_REVERSAL}


@pytest.mark.parametrize("reason", CONTRA_ACCOUNT)
def test_a_reversal_is_the_mirror_image_of_what_it_reverses(reason: Reason) -> None:
    given = Posting(billing_account_id="x", amount_credits=7, reason=reason, reference="r")
    taken = reversal_posting("x", "r", reason, 7)
    assert (taken.reason, taken.amount_credits) == (Reason.PAYMENT_REVERSAL, -7)
    sides = {(line.account_code, line.side) for line in given.lines}
    opposite = {Side.DEBIT: Side.CREDIT, Side.CREDIT: Side.DEBIT}
    assert {(line.account_code, opposite[line.side]) for line in taken.lines} == sides


def test_a_reversal_names_what_it_reverses_and_no_other_entry_does() -> None:
    for reason, reverses in ((Reason.PAYMENT_REVERSAL, None), (Reason.CREDITS_PURCHASE, Reason.SYSTEM_DONATION)):
        with pytest.raises(ValidationError, match="a reversal names"):
            Posting(billing_account_id="x", amount_credits=1, reason=reason, reference="r", reverses=reverses)


def test_a_purchase_gives_the_buyer_all_of_it() -> None:
    attempt = new_attempt(PAYER, cents=10_000)
    posting = purchase_posting(attempt)
    assert (posting.billing_account_id, posting.amount_credits) == ("account", 1_000_000_000)
    assert (posting.reason, posting.reference) == (Reason.CREDITS_PURCHASE, str(attempt.id))


def test_a_donation_gives_the_system_tenant_all_of_it() -> None:
    attempt = new_attempt(PAYER, cents=10_000, purpose=Purpose.SYSTEM)
    posting = donation_posting(attempt)
    assert (posting.billing_account_id, posting.amount_credits) == (SYSTEM_TENANT_ACCOUNT_ID, 1_000_000_000)
    assert (posting.reason, posting.reference) == (Reason.SYSTEM_DONATION, str(attempt.id))


def test_a_bonus_gives_the_system_tenant_its_share() -> None:
    attempt = new_attempt(PAYER, cents=10_000, revenue_share=Decimal("0.75"))
    posting = revenue_share_posting(attempt)
    assert posting is not None
    assert (posting.billing_account_id, posting.amount_credits) == (SYSTEM_TENANT_ACCOUNT_ID, 750_000_000)
    assert (posting.reason, posting.reference) == (Reason.PLATFORM_REVENUE_SHARE, str(attempt.id))


@pytest.mark.parametrize(("share", "amount"), [("0", None), ("0.0000000099", None), ("0.00000001", 1)])
def test_a_share_that_mints_nothing_has_no_posting(share: str, amount: int | None) -> None:
    posting = revenue_share_posting(new_attempt(PAYER, cents=1_000, revenue_share=Decimal(share)))
    assert (posting.amount_credits if posting else None) == amount


def test_there_is_no_bonus_before_its_share_is_decided() -> None:
    with pytest.raises(BookkeepingError, match="a credited purchase"):
        revenue_share_posting(new_attempt(PAYER))


def test_no_purpose_is_posted_as_the_other() -> None:
    purchase, donation = new_attempt(PAYER), new_attempt(PAYER, purpose=Purpose.SYSTEM)
    with pytest.raises(BookkeepingError, match="purpose system, not self"):
        purchase_posting(donation)
    with pytest.raises(BookkeepingError, match="purpose system, not self"):
        revenue_share_posting(donation)
    with pytest.raises(BookkeepingError, match="purpose self, not system"):
        donation_posting(purchase)
