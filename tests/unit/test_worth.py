"""What a token is worth: exact in every number of decimals, and nothing is taken for a dollar that is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.deposits.worth import is_dollar_token, price_in_raw, worth_in_credits
from domain.errors import PriceUnavailable
from domain.money import credits_for_raw, credits_for_usd_cents, raw_for_usd_cents


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
