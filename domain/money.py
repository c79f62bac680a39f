"""Amounts as integers. Every name ends with the unit: `_usd_cents`, `_raw`, `_credits`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from domain.errors import InvalidInput

CREDITS_PER_USD: Final = 10_000_000
"""A constant of the protocol; never configurable."""

CREDITS_DECIMALS: Final = 7
"""A credit is the seventh decimal of a US dollar."""

_USD: Final = re.compile(rf"\d{{1,9}}(\.\d{{1,{CREDITS_DECIMALS}}})?", re.ASCII)

CREDITS_PER_USD_CENT: Final = CREDITS_PER_USD // 100
USDC_DECIMALS: Final = 6
RAW_PER_USD_CENT: Final = 10 ** (USDC_DECIMALS - 2)

CREDITS_PER_RAW: Final = CREDITS_PER_USD_CENT // RAW_PER_USD_CENT

DEFAULT_PAYMENT_MIN_USD_CENTS: Final = 100
DEFAULT_PAYMENT_MAX_USD_CENTS: Final = 1_000_000
DEFAULT_REVENUE_SHARE: Final = Decimal("0.75")


def credits_for_usd_cents(amount_usd_cents: int) -> int:
    """Credits bought with `amount_usd_cents`: always the full amount."""
    return amount_usd_cents * CREDITS_PER_USD_CENT


def raw_for_usd_cents(amount_usd_cents: int) -> int:
    """Raw USDC units (6 decimals) that pay for `amount_usd_cents`."""
    return amount_usd_cents * RAW_PER_USD_CENT


def credits_for_raw(amount_raw: int) -> int:
    """Credits that raw USDC units are worth."""
    return amount_raw * CREDITS_PER_RAW


def raw_for_credits(amount_credits: int) -> int:
    """Whole raw USDC units that credits are worth: exact for what was bought, else rounded down in value."""
    return _towards_zero(amount_credits, CREDITS_PER_RAW)


def usd_cents_for_credits(amount_credits: int) -> int:
    """Whole US cents that credits are worth, rounded down in value."""
    return _towards_zero(amount_credits, CREDITS_PER_USD_CENT)


def usd_of_cents(cents: Decimal) -> Decimal:
    """US dollars of cents that may have a fraction, exactly."""
    return cents.scaleb(-2)


def revenue_share_credits(purchased_credits: int, share: Decimal) -> int:
    """The system tenant's bonus: `floor(purchased_credits * share)`, exact for every decimal share.

    Minted on top of the purchase, never taken from the buyer.
    """
    numerator, denominator = share.as_integer_ratio()
    return purchased_credits * numerator // denominator


def check_payment_amount(amount_usd_cents: object, *, minimum: int, maximum: int) -> int:
    """Validate an amount of US cents and return it as an int. Raises `InvalidInput` naming `amountUsdCents`.

    Booleans, floats and strings are refused: a float never touches money.
    """
    if isinstance(amount_usd_cents, bool) or not isinstance(amount_usd_cents, int):
        raise InvalidInput("amountUsdCents", f"expected a whole number of US cents, got {amount_usd_cents!r:.40}")
    if not minimum <= amount_usd_cents <= maximum:
        got = str(amount_usd_cents) if amount_usd_cents.bit_length() < 128 else "a number far out of range"
        raise InvalidInput("amountUsdCents", f"expected {minimum} to {maximum} US cents, got {got}")
    return amount_usd_cents


def format_usd(amount_usd_cents: int) -> str:
    """Format US cents as dollars, exactly: `1,234.50`."""
    return _format(amount_usd_cents, decimals=2)


def credits_for_tokens(value_raw: int, answer_raw: int, *, decimals: int) -> int:
    """Credits for raw units at a raw price in US dollars, rounded down. `decimals`: of both together."""
    worth: int = value_raw * answer_raw * CREDITS_PER_USD // 10**decimals
    return worth


def tokens_for_usd_cents(amount_usd_cents: int, answer_raw: int, *, decimals: int) -> int:
    """The least number of raw units that are worth the amount, at a raw price in US dollars, as above."""
    needed_raw: int = -(-amount_usd_cents * 10**decimals // (100 * answer_raw))
    return needed_raw


def scaled_raw(amount_raw: int, digits: int) -> int:
    """The same amount with so many digits more after the point."""
    scaled: int = amount_raw * 10**digits
    return scaled


def format_usdc(amount_raw: int) -> str:
    """Format raw USDC units as USDC, exactly: `1,234.50`, `0.000001`."""
    return _format(amount_raw, decimals=USDC_DECIMALS)


def format_token(amount_raw: int, decimals: int) -> str:
    """Format raw units as whole tokens, exactly, as a wallet's field takes it: `1234.5`, `0.000001`, `25`."""
    whole, fraction = divmod(amount_raw, 10**decimals)
    digits = f"{fraction:0{decimals}d}".rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)


def usd_for_credits(amount_credits: int) -> Decimal:
    """What credits are worth in US dollars, exactly."""
    return Decimal(amount_credits).scaleb(-CREDITS_DECIMALS)


def parse_usd_as_credits(text: str, *, field: str) -> int:
    """The credits for an amount of US dollars as people write it, such as `12` or `0.5`. Raises `InvalidInput`."""
    if _USD.fullmatch(text) is None:
        raise InvalidInput(field, f"expected US dollars in digits, such as 40 or 12.50, got {text!r:.40}")
    return int(Decimal(text).scaleb(CREDITS_DECIMALS))


def format_exact(amount: Decimal) -> str:
    """A decimal as text, exactly, without an exponent and without zeros at the end: `0.0000001`, `12.5`, `3`."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format(amount: int, *, decimals: int) -> str:
    """Format a fixed-point number with thousands separators and without zeros after the second decimal."""
    whole, fraction = divmod(abs(amount), 10**decimals)
    digits = f"{fraction:0{decimals}d}"
    return f"{'-' if amount < 0 else ''}{whole:,}.{digits[:2]}{digits[2:].rstrip('0')}"


def _towards_zero(amount: int, divisor: int) -> int:
    return amount // divisor if amount >= 0 else -(-amount // divisor)
