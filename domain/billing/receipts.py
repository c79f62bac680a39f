"""Receipts computed again, from nothing but what they store, and compared with what was charged and posted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError

from domain.billing.charges import CallEnd, is_priced
from domain.billing.pricing import PricedLine, cost_usd, credits_for_usd, to_usd
from domain.money import usd_for_credits

_NOTHING: Final = Decimal(0)


class UnitPrices(BaseModel):
    """`charge_receipts.unit_prices`: the lines that the cost is the sum of, and the factor of the price."""

    model_config = ConfigDict(frozen=True)

    markup_factor: Decimal
    lines: tuple[PricedLine, ...]


@dataclass(frozen=True, slots=True)
class PostedCharge:
    """The ledger's entry of a receipt. `amount_credits` is None where it changes no account's credits."""

    amount_credits: int | None
    billing_account_id: str | None
    virtual_key_id: UUID | None
    reason: str
    reference: str
    lines: Mapping[str, int]
    """Credits by ledger account and side: `{"revenue:usage credit": 1250, …}`."""


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A row of `charge_receipts`, with what its hold set aside and what the ledger has of it."""

    id: UUID
    request_id: str
    hold_id: UUID | None
    held_credits: int | None
    billing_account_id: str
    virtual_key_id: UUID
    charged_credits: int
    uncollected_credits: int
    provider_cost_usd: Decimal
    user_cost_usd: Decimal
    absorbed_cost_usd: Decimal
    source_system: str
    source_reference: str
    charge_reason: str
    model: str
    provider: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool
    doubt: str | None
    doubt_detail: str | None
    price_version: str | None
    unit_prices: Any
    attributed_to: str | None
    entry_id: UUID | None
    upstream_id: str | None
    called_at: datetime
    created_at: datetime
    entry: PostedCharge | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of a receipt, or of its entry, that is not what the receipt's own lines give."""

    field: str
    """`charged_credits`, `entry.amount`, `entry.lines[revenue:usage credit]`, …"""
    stored: object
    computed: object


def verify(receipt: StoredReceipt) -> tuple[Difference, ...]:
    """Compute cost, price and credits again, and compare them with the receipt and its entry; () where all agree."""
    try:
        prices = UnitPrices.model_validate(receipt.unit_prices)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, ("unit_prices", *problem["loc"])))
        return (Difference(where, receipt.unit_prices, problem["msg"]),)
    return tuple(
        Difference(field, stored, computed)
        for field, stored, computed in (*_of_receipt(receipt, prices), *_of_entry(receipt))
        if stored != computed
    )


def _of_receipt(receipt: StoredReceipt, prices: UnitPrices) -> Iterator[tuple[str, object, object]]:
    """Each amount of a receipt, with what it must be."""
    cost = cost_usd(prices.lines)
    asked_credits, price, absorbed = 0, _NOTHING, cost
    if _is_charged(receipt):
        asked_credits = credits_for_usd(cost, factor=prices.markup_factor)
        price = to_usd(Fraction(cost) * Fraction(prices.markup_factor))
        if receipt.estimated and receipt.held_credits is not None and asked_credits > receipt.held_credits:
            # What is only estimated costs at most what was held.
            asked_credits = receipt.held_credits
            price = usd_for_credits(asked_credits)
        absorbed = max(_NOTHING, cost - price)
    if receipt.uncollected_credits:
        # The account could not pay for all of it: the platform bears the rest.
        price = usd_for_credits(receipt.charged_credits)
        absorbed = max(absorbed, cost - price)
    yield "provider_cost_usd", receipt.provider_cost_usd, cost
    yield "user_cost_usd", receipt.user_cost_usd, price
    yield "absorbed_cost_usd", receipt.absorbed_cost_usd, absorbed
    yield "charged_credits", receipt.charged_credits, asked_credits - receipt.uncollected_credits


def _is_charged(receipt: StoredReceipt) -> bool:
    try:
        end = CallEnd(receipt.charge_reason)
    except ValueError:
        return True
    return is_priced(end, estimated=receipt.estimated)


def _of_entry(receipt: StoredReceipt) -> Iterator[tuple[str, object, object]]:
    """The entry as the ledger has it, with what it must be: both sides of the margin, in whole credits."""
    cost, absorbed = credits_for_usd(receipt.provider_cost_usd), credits_for_usd(receipt.absorbed_cost_usd)
    charged = receipt.charged_credits
    lines = {
        f"credits:{receipt.billing_account_id} debit": charged,
        "revenue:usage credit": charged,
        "expense:providers debit": cost - absorbed,
        "expense:absorbed debit": absorbed,
        "payable:providers credit": cost,
    }
    expected = {line: amount for line, amount in lines.items() if amount}
    entry = receipt.entry
    if not expected or entry is None:
        yield "entry_id", receipt.entry_id, None if not expected else "an entry of the ledger"
        return
    yield "entry.reference", entry.reference, f"{receipt.source_system}:{receipt.source_reference}"
    yield "entry.reason", entry.reason, "llm_usage" if charged else "absorbed_cost"
    yield "entry.amount", entry.amount_credits, -charged if charged else None
    if charged:
        yield "entry.billing_account_id", entry.billing_account_id, receipt.billing_account_id
        yield "entry.virtual_key_id", entry.virtual_key_id, receipt.virtual_key_id
    for line in sorted(expected.keys() | entry.lines.keys()):
        yield f"entry.lines[{line}]", entry.lines.get(line, 0), expected.get(line, 0)
