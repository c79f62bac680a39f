"""Money is integers and exact decimals; every rounding is one floor, at the end."""

from __future__ import annotations

from decimal import Decimal, localcontext
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain import money
from domain.errors import InvalidInput
from domain.money import (
    check_payment_amount,
    credits_for_raw,
    credits_for_usd_cents,
    format_usd,
    format_usdc,
    raw_for_credits,
    raw_for_usd_cents,
    revenue_share_credits,
    usd_cents_for_credits,
)

CENTS = st.integers(min_value=1, max_value=10**15)
CREDITS = st.integers(min_value=0, max_value=2**63 - 1)


@st.composite
def shares(draw: st.DrawFn) -> Decimal:
    """Any decimal in [0, 1], of up to 60 digits: more than a decimal context or a float holds."""
    digits = draw(st.integers(min_value=0, max_value=60))
    return Decimal(draw(st.integers(min_value=0, max_value=10**digits))).scaleb(-digits, _wide())


def _wide() -> Any:
    with localcontext() as context:
        context.prec = 100
        return context.copy()


def test_the_constants_are_those_of_the_protocol() -> None:
    assert money.CREDITS_PER_USD == 10_000_000
    assert money.CREDITS_PER_USD_CENT == 100_000
    assert money.RAW_PER_USD_CENT == 10_000
    assert money.CREDITS_PER_RAW == 10
    assert Decimal("0.75") == money.DEFAULT_REVENUE_SHARE
    assert (money.DEFAULT_PAYMENT_MIN_USD_CENTS, money.DEFAULT_PAYMENT_MAX_USD_CENTS) == (100, 1_000_000)


def test_a_hundred_dollars_give_the_buyer_a_billion_and_the_system_tenant_three_quarters() -> None:
    purchased = credits_for_usd_cents(10_000)
    assert purchased == 1_000_000_000
    assert revenue_share_credits(purchased, Decimal("0.75")) == 750_000_000
    assert raw_for_usd_cents(10_000) == 100_000_000


@given(CENTS)
def test_credits_and_raw_units_are_exact_and_agree(amount_usd_cents: int) -> None:
    credits_ = credits_for_usd_cents(amount_usd_cents)
    raw = raw_for_usd_cents(amount_usd_cents)
    assert type(credits_) is int
    assert type(raw) is int
    assert credits_ == Fraction(amount_usd_cents, 100) * 10_000_000
    assert raw == Fraction(amount_usd_cents, 100) * 10**6
    assert credits_ == credits_for_raw(raw)
    assert raw_for_credits(credits_) == raw
    assert usd_cents_for_credits(credits_) == amount_usd_cents


@pytest.mark.parametrize(
    ("amount_credits", "raw", "cents"),
    [(0, 0, 0), (9, 0, 0), (10, 1, 0), (99_999, 9_999, 0), (100_000, 10_000, 1), (-9, 0, 0), (-150_009, -15_000, -1)],
)
def test_a_part_of_a_unit_is_left_out_on_either_side_of_nothing(amount_credits: int, raw: int, cents: int) -> None:
    assert raw_for_credits(amount_credits) == raw
    assert usd_cents_for_credits(amount_credits) == cents


@pytest.mark.parametrize(
    ("cents", "shown"),
    [
        (0, "0.00"),
        (5, "0.05"),
        (100, "1.00"),
        (123_456, "1,234.56"),
        (-5, "-0.05"),
        (10**17 + 1, "1" + ",000" * 5 + ".01"),
    ],
)
def test_dollars_are_written_exactly(cents: int, shown: str) -> None:
    assert format_usd(cents) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (0, "0.00"), (1, "0.000001"), (10_000, "0.01"), (24_990_000, "24.99"), (25_000_000, "25.00"),
        (1_234_500_100, "1,234.5001"), (-1, "-0.000001"), (10**60 + 1, "1" + ",000" * 18 + ".000001"),
    ],
)  # fmt: skip
def test_token_units_are_written_exactly(raw: int, shown: str) -> None:
    assert format_usdc(raw) == shown


@given(CENTS, CENTS)
def test_two_purchases_buy_what_one_of_the_sum_buys(first: int, second: int) -> None:
    assert credits_for_usd_cents(first) + credits_for_usd_cents(second) == credits_for_usd_cents(first + second)


@given(CREDITS, shares())
@example(2**63 - 1, Decimal("0.9999999999999999999999999999999999999999"))
@example(3, Decimal("0.3333333333333333333333333333333333333333"))
@example(1, Decimal("0.75"))
def test_the_bonus_is_the_exact_floor(purchased: int, share: Decimal) -> None:
    bonus = revenue_share_credits(purchased, share)
    assert type(bonus) is int
    exact = Fraction(share) * purchased
    assert bonus <= exact < bonus + 1


@given(CREDITS, shares())
def test_the_bonus_is_never_negative_and_never_more_than_the_purchase(purchased: int, share: Decimal) -> None:
    assert 0 <= revenue_share_credits(purchased, share) <= purchased


@given(CREDITS, shares(), shares())
def test_a_greater_share_never_gives_less(purchased: int, one: Decimal, other: Decimal) -> None:
    smaller, greater = sorted((one, other))
    assert revenue_share_credits(purchased, smaller) <= revenue_share_credits(purchased, greater)


@given(CREDITS, shares())
def test_the_bonus_does_not_depend_on_the_decimal_context(purchased: int, share: Decimal) -> None:
    with localcontext() as context:
        context.prec = 1
        narrow = revenue_share_credits(purchased, share)
    assert narrow == revenue_share_credits(purchased, share)


@pytest.mark.parametrize(
    ("purchased", "share", "bonus"),
    [
        (100_000, "0.00001", 1),
        (100_000, "0.0000099999", 0),
        (3, "0.5", 1),
        (10**17 + 1, "1", 10**17 + 1),
        (10**17 + 1, "0", 0),
        # A float would say 100000000000000000.
        (10**17 + 1, "0.99999999999999999999", 10**17),
        (9_007_199_254_740_993, "1.0", 9_007_199_254_740_993),
    ],
)
def test_the_floor_on_both_sides_of_its_edge(purchased: int, share: str, bonus: int) -> None:
    assert revenue_share_credits(purchased, Decimal(share)) == bonus


# -- amounts that people send


class _Cents(IntEnum):
    DOLLAR = 100


@pytest.mark.parametrize("amount", [100, 101, 999_999, 1_000_000, _Cents.DOLLAR])
def test_a_whole_number_within_the_limits_is_taken_as_it_is(amount: int) -> None:
    assert check_payment_amount(amount, minimum=100, maximum=1_000_000) == amount


@pytest.mark.parametrize("amount", [99, 1_000_001, 0, -1, -100, -(10**400), 10**400, 2**127, 2**128])
def test_a_number_outside_the_limits_is_refused_in_one_short_line(amount: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_payment_amount(amount, minimum=100, maximum=1_000_000)
    assert caught.value.field == "amountUsdCents"
    assert "100 to 1000000" in caught.value.message
    assert caught.value.code == "INVALID_INPUT"
    assert len(caught.value.message) < 120


@pytest.mark.parametrize(
    "amount",
    [True, False, 100.0, 100.5, float("nan"), float("inf"), "100", "", None, b"100", [100], Decimal(100), "1" * 9_999],
)
def test_what_is_no_whole_number_is_refused_in_one_short_line(amount: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_payment_amount(amount, minimum=0, maximum=1_000_000)
    assert caught.value.field == "amountUsdCents"
    assert len(caught.value.message) < 120


@given(st.integers(), st.integers(min_value=0, max_value=10**6), st.integers(min_value=0, max_value=10**6))
def test_the_limits_are_part_of_what_is_allowed(amount: int, one: int, other: int) -> None:
    minimum, maximum = sorted((one, other))
    if minimum <= amount <= maximum:
        assert check_payment_amount(amount, minimum=minimum, maximum=maximum) == amount
    else:
        with pytest.raises(InvalidInput):
            check_payment_amount(amount, minimum=minimum, maximum=maximum)
