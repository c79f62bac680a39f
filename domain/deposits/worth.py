"""What a token is worth in credits, and how much of it an amount of US dollars takes. Integers only."""

from __future__ import annotations

from typing import Final, Protocol

from domain.errors import PriceUnavailable
from domain.money import CREDITS_PER_USD

DOLLAR_TOKENS: Final = frozenset(
    {
        *("BUSD", "CUSD", "DAI", "FDUSD", "GHO", "GUSD", "LUSD", "PYUSD", "RLUSD", "SUSD", "TUSD"),
        *("USD0", "USDBC", "USDC", "USDC.E", "USDD", "USDE", "USDG", "USDP", "USDS", "USDT", "USDT0"),
    }
)
"""Symbols of tokens that one US dollar is paid out for. A method's symbol is the operator's word, not the contract's:
who registers a token under one of these says that it is worth a dollar.
"""


class Priced(Protocol):
    """What a price is asked for: a payment method."""

    @property
    def id(self) -> str:
        """`USDC:base`."""

    @property
    def token(self) -> str:
        """The symbol that it is registered under."""

    @property
    def decimals(self) -> int:
        """How many digits of a raw amount follow the point."""


def is_dollar_token(token: str) -> bool:
    """Whether a token is registered as a dollar token. Every other one needs a price."""
    return token.upper() in DOLLAR_TOKENS


def worth_in_credits(method: Priced, value_raw: int) -> int:
    """Credits that raw units of the method's token are worth, rounded down.

    Raises `PriceUnavailable` for a token that is not a dollar: none is ever taken for one.
    """
    _require_dollar(method)
    one_token_raw: int = 10**method.decimals
    return value_raw * CREDITS_PER_USD // one_token_raw


def price_in_raw(method: Priced, amount_usd_cents: int) -> int:
    """The least number of raw units of the method's token that are worth the amount. Raises `PriceUnavailable`."""
    _require_dollar(method)
    one_token_raw: int = 10**method.decimals
    return -(-amount_usd_cents * one_token_raw // 100)


def _require_dollar(method: Priced) -> None:
    if not is_dollar_token(method.token):
        raise PriceUnavailable(f"{method.token} is not registered as a dollar token, and {method.id} has no price")
