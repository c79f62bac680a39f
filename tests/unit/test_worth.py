"""What a token is worth: exact in every number of decimals, and nothing is taken for a dollar that is not."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.deposits.worth import UnitPrice, is_dollar_token, price_in_raw, typeable_raw, worth_in_credits
from domain.errors import PriceUnavailable
from domain.money import CREDITS_PER_USD, credits_for_raw, credits_for_usd_cents, format_token, raw_for_usd_cents


@dataclass(frozen=True)
class Token:
    """A payment method, as far as a price is concerned."""

    token: str
    decimals: int
    id: str = "TOKEN:chain"


USDC = Token("USDC", 6)


@given(cents=st.integers(1, 10**12))
def test_usdc_is_worth_and_costs_what_it_does_for_payments_of_wallets(cents: int) -> None:
    assert price_in_raw(USDC, cents) == raw_for_usd_cents(cents)
    assert worth_in_credits(USDC, cents) == credits_for_raw(cents)


@given(cents=st.integers(1, 10**12), decimals=st.integers(0, 36))
def test_who_pays_the_price_gets_the_amount_and_with_one_unit_less_does_not(cents: int, decimals: int) -> None:
    token = Token("DAI", decimals)
    price = price_in_raw(token, cents)
    assert worth_in_credits(token, price) >= credits_for_usd_cents(cents)
    assert price * 100 - cents * 10**decimals < 100
    assert worth_in_credits(token, price - 1) < credits_for_usd_cents(cents)


@pytest.mark.parametrize(
    ("token", "value_raw", "credits"),
    [
        (Token("DAI", 18), 10**18, 10_000_000),
        # A fraction of a credit is none's.
        (Token("DAI", 18), 10**11 - 1, 0),
        (Token("DAI", 18), 10**11, 1),
        (Token("GUSD", 2), 1, 100_000),
        (USDC, 2**256 - 1, (2**256 - 1) * 10),
    ],
)
def test_worth_is_rounded_down_to_a_credit(token: Token, value_raw: int, credits: int) -> None:
    assert worth_in_credits(token, value_raw) == credits


@pytest.mark.parametrize("symbol", ["WETH", "ETH", "BTC", "USDC2", "", "usd", "LINK"])
def test_a_token_that_is_no_dollar_has_no_price_and_is_never_taken_for_one(symbol: str) -> None:
    """A preset WETH method once asked for 50 WETH where 50 US dollars were due."""
    token = Token(symbol, 18, id=f"{symbol}:base")
    assert not is_dollar_token(symbol)
    with pytest.raises(PriceUnavailable, match="a dollar token"):
        price_in_raw(token, 5_000)
    with pytest.raises(PriceUnavailable):
        worth_in_credits(token, 10**18)


PRICES = st.builds(UnitPrice, answer_raw=st.integers(1, 10**30), decimals=st.integers(0, 36))


@given(cents=st.integers(1, 10**12), decimals=st.integers(0, 36), price=PRICES)
def test_at_any_price_what_is_asked_for_is_enough_and_one_unit_less_is_not(
    cents: int, decimals: int, price: UnitPrice
) -> None:
    """The payer's amount is rounded up, the worth down: no rounding gives away a credit."""
    token = Token("WETH", decimals)
    raw = price_in_raw(token, cents, price)
    assert worth_in_credits(token, raw, price) >= credits_for_usd_cents(cents)
    assert worth_in_credits(token, raw - 1, price) < credits_for_usd_cents(cents)
    exact = Fraction(raw * price.answer_raw * CREDITS_PER_USD, 10 ** (decimals + price.decimals))
    assert 0 <= exact - worth_in_credits(token, raw, price) < 1


@given(least=st.integers(1, 10**40))
def test_what_people_type_has_six_digits_and_costs_hardly_more(least: int) -> None:
    typed = typeable_raw(least)
    assert len(str(typed).rstrip("0")) <= 6
    assert least <= typed
    assert (typed - least) * 100_000 < least


def test_an_exchange_takes_the_decimals_of_what_is_typed() -> None:
    least = price_in_raw(Token("WETH", 18), 1_700, UnitPrice(253_417, 2))
    assert (format_token(least, 18), format_token(typeable_raw(least), 18)) == ("0.006708310807877925", "0.00670832")


@given(values=st.lists(st.integers(0, 10**24), max_size=6), price=PRICES)
def test_several_deposits_are_worth_no_more_than_one_of_their_sum(values: list[int], price: UnitPrice) -> None:
    token = Token("WETH", 18)
    apart = sum(worth_in_credits(token, value, price) for value in values)
    together = worth_in_credits(token, sum(values), price)
    assert together - len(values) <= apart <= together


@given(cents=st.integers(1, 10**9), price=PRICES)
def test_a_dollar_token_is_a_dollar_whatever_a_feed_says(cents: int, price: UnitPrice) -> None:
    assert price_in_raw(USDC, cents, price) == price_in_raw(USDC, cents)
    assert worth_in_credits(USDC, cents, price) == worth_in_credits(USDC, cents)


@pytest.mark.parametrize(("answer_raw", "decimals"), [(0, 8), (-1, 8), (1, -1)])
def test_what_is_not_positive_is_no_price(answer_raw: int, decimals: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        UnitPrice(answer_raw, decimals)
