"""Money in integers. The unit is the last word of every name: `_usd_cents`, `_raw`, `_credits`."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from domain.errors import InvalidInput

CREDITS_PER_USD: Final = 10_000_000
"""A protocol constant (SPEC 1); never configurable."""

CREDITS_PER_USD_CENT: Final = CREDITS_PER_USD // 100
RAW_PER_USD_CENT: Final = 10_000
"""USDC has 6 decimals, so one cent is 10,000 raw units."""

CREDITS_PER_RAW: Final = CREDITS_PER_USD_CENT // RAW_PER_USD_CENT

DEFAULT_PAYMENT_MIN_USD_CENTS: Final = 100
DEFAULT_PAYMENT_MAX_USD_CENTS: Final = 1_000_000
DEFAULT_REVENUE_SHARE: Final = Decimal("0.75")


def credits_for_usd_cents(amount_usd_cents: int) -> int:
    """Credits that a purchase of `amount_usd_cents` buys: all of it, always."""
    return amount_usd_cents * CREDITS_PER_USD_CENT


def raw_for_usd_cents(amount_usd_cents: int) -> int:
    """Raw USDC units (6 decimals) that pay for `amount_usd_cents`."""
    return amount_usd_cents * RAW_PER_USD_CENT


def revenue_share_credits(purchased_credits: int, share: Decimal) -> int:
    """The system tenant's bonus: `floor(purchased_credits * share)`, exact for every decimal share.

    Minted on top of the purchase, never taken from the buyer (SPEC 1).
    """
    numerator, denominator = share.as_integer_ratio()
    return purchased_credits * numerator // denominator


def check_payment_amount(amount_usd_cents: object, *, minimum: int, maximum: int) -> int:
    """The amount as an int of US cents, or `InvalidInput` naming `amountUsdCents`.

    Booleans, floats and strings are refused: a float never touches money.
    """
    if isinstance(amount_usd_cents, bool) or not isinstance(amount_usd_cents, int):
        raise InvalidInput("amountUsdCents", f"wants a whole number of US cents, got {amount_usd_cents!r:.40}")
    if not minimum <= amount_usd_cents <= maximum:
        got = str(amount_usd_cents) if amount_usd_cents.bit_length() < 128 else "a number far outside"
        raise InvalidInput("amountUsdCents", f"wants {minimum} to {maximum} US cents, got {got}")
    return amount_usd_cents
