"""What a token is worth in credits, and how much of it an amount of US dollars takes. Integers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from domain.errors import PriceUnavailable
from domain.money import credits_for_tokens, format_token, tokens_for_usd_cents

DOLLAR_TOKENS: Final = frozenset(
    {
        *("BUSD", "CUSD", "DAI", "FDUSD", "GHO", "GUSD", "LUSD", "PYUSD", "RLUSD", "SUSD", "TUSD"),
        *("USD0", "USDBC", "USDC", "USDC.E", "USDD", "USDE", "USDG", "USDP", "USDS", "USDT", "USDT0"),
    }
)
"""Symbols of tokens that one US dollar is paid out for. A method's symbol is the operator's word, not the contract's:
who registers a token under one of these says that it is worth a dollar.
"""


SIGNIFICANT_DIGITS: Final = 6
"""Of an amount that people type: exchanges take eight decimals where a token has eighteen, and a unit less is paid in
part. It adds less than a thousandth of a percent, which is credited like the rest.
"""


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """US dollars for one whole token: `answer_raw` / 10^`decimals`. Raises `ValueError` where it is not positive."""

    answer_raw: int
    decimals: int

    def __post_init__(self) -> None:
        if self.answer_raw <= 0 or self.decimals < 0:
            raise ValueError(f"expected a positive price, got {self.answer_raw} with {self.decimals} decimals")

    @property
    def text(self) -> str:
        """US dollars as an exact decimal: `2534.17`."""
        return format_token(self.answer_raw, self.decimals)


ONE_DOLLAR: Final = UnitPrice(1, 0)


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


def worth_in_credits(method: Priced, value_raw: int, price: UnitPrice | None = None) -> int:
    """Credits that raw units of the method's token are worth at a price, rounded down.

    A dollar token needs none. Raises `PriceUnavailable` for any other one without a price: none is ever taken for a
    dollar.
    """
    one = _price_of(method, price)
    return credits_for_tokens(value_raw, one.answer_raw, decimals=method.decimals + one.decimals)


def price_in_raw(method: Priced, amount_usd_cents: int, price: UnitPrice | None = None) -> int:
    """The least number of raw units of the method's token that are worth the amount. Raises as `worth_in_credits`."""
    one = _price_of(method, price)
    return tokens_for_usd_cents(amount_usd_cents, one.answer_raw, decimals=method.decimals + one.decimals)


def typeable_raw(least_raw: int) -> int:
    """An amount in raw units, rounded up to `SIGNIFICANT_DIGITS`: what people are asked to send at a price."""
    step: int = 10 ** max(len(str(least_raw)) - SIGNIFICANT_DIGITS, 0)
    return -(-least_raw // step) * step


def _price_of(method: Priced, price: UnitPrice | None) -> UnitPrice:
    """A dollar token is a dollar, whatever a feed says; any other one is what it costs."""
    if is_dollar_token(method.token):
        return ONE_DOLLAR
    if price is None:
        raise PriceUnavailable(f"{method.token} is not registered as a dollar token, and {method.id} has no price")
    return price
