"""`settle receipt show|verify`: what a call was charged, and whether that follows from what its receipt stores."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from commands.framework import parse_moment
from commands.output import grouped, print_json, progress, stdout, table
from composition import service_database
from db.billing.receipts import find_receipts
from domain.billing.receipts import StoredReceipt
from domain.errors import ReceiptNotFound
from domain.money import format_exact
from services.answers import ResponseModel
from services.billing.receipts import Verification, verify_all, verify_receipts
from settings import Settings

_BEGINNING: Final = datetime(2020, 1, 1, tzinfo=UTC)


class EntryView(ResponseModel):
    """The ledger's entry of a charge; `lines` are credits by ledger account and side."""

    entry_id: UUID
    reason: str
    reference: str
    amount_credits: int | None
    lines: dict[str, int]


class ReceiptView(ResponseModel):
    """A receipt. Amounts in US dollars are exact decimals as text."""

    receipt_id: UUID
    request_id: str
    hold_id: UUID | None
    held_credits: int | None
    billing_account_id: str
    key_id: UUID
    charged_credits: int
    uncollected_credits: int
    provider_cost_usd: str
    user_cost_usd: str
    absorbed_cost_usd: str
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
    upstream_id: str | None
    called_at: datetime
    created_at: datetime
    entry: EntryView | None

    @classmethod
    def of(cls, receipt: StoredReceipt) -> ReceiptView:
        """The answer about a receipt."""
        own = {
            name: getattr(receipt, name)
            for name in cls.model_fields
            if name not in {"receipt_id", "key_id", "entry"} and not name.endswith("_cost_usd")
        }
        entry = receipt.entry
        return cls(
            **own,
            receipt_id=receipt.id,
            key_id=receipt.virtual_key_id,
            provider_cost_usd=format_exact(receipt.provider_cost_usd),
            user_cost_usd=format_exact(receipt.user_cost_usd),
            absorbed_cost_usd=format_exact(receipt.absorbed_cost_usd),
            entry=entry
            and receipt.entry_id
            and EntryView(
                entry_id=receipt.entry_id,
                reason=entry.reason,
                reference=entry.reference,
                amount_credits=entry.amount_credits,
                lines=dict(entry.lines),
            ),
        )


class DifferenceView(ResponseModel):
    """A field that is not what the receipt's own lines give."""

    field: str
    stored: Any
    computed: Any


class VerificationView(ResponseModel):
    """Whether a receipt is what its own lines give."""

    receipt_id: UUID
    request_id: str
    is_right: bool
    differences: tuple[DifferenceView, ...]

    @classmethod
    def of(cls, verification: Verification) -> VerificationView:
        """The answer about a receipt that was verified."""
        return cls(
            receipt_id=verification.receipt.id,
            request_id=verification.receipt.request_id,
            is_right=not verification.differences,
            differences=tuple(
                DifferenceView(field=one.field, stored=_shown(one.stored), computed=_shown(one.computed))
                for one in verification.differences
            ),
        )


class VerificationsView(ResponseModel):
    """The result over many receipts; those that differ are listed up to a thousand."""

    verified: int
    differing: int
    receipts: tuple[VerificationView, ...]


async def show(settings: Settings, *, given: str, as_json: bool) -> None:
    """A receipt, or the receipts of a call. As JSON a list, since a call that failed over has several.

    Raises `ReceiptNotFound`.
    """
    async with service_database(settings) as database, database.snapshot() as connection:
        found = await find_receipts(connection, given)
    if not found:
        raise ReceiptNotFound(given)
    if as_json:
        views = [ReceiptView.of(receipt) for receipt in found]
        print_json(views[0] if len(views) == 1 else views)
        return
    for receipt in found:
        _print(receipt)


async def verify(settings: Settings, *, given: str, as_json: bool) -> bool:
    """Compute a receipt, or those of a call, again; False where anything differs. Raises `ReceiptNotFound`."""
    async with service_database(settings) as database:
        verifications = await verify_receipts(database, given)
    views = [VerificationView.of(verification) for verification in verifications]
    if as_json:
        print_json(views[0] if len(views) == 1 else views)
    else:
        _print_verified(views)
    return all(view.is_right for view in views)


async def verify_every(settings: Settings, *, since: str | None, as_json: bool) -> bool:
    """Compute all receipts again that were booked since a time (None: ever); False where any differs."""
    begin = parse_moment("--since", since) or _BEGINNING

    def report(done: int, total: int) -> None:
        progress(f"{grouped(done)} of {grouped(max(done, total))} receipts verified")

    async with service_database(settings) as database:
        result = await verify_all(database, since=begin, on_progress=report)
    views = tuple(VerificationView.of(verification) for verification in result.listed)
    if as_json:
        print_json(VerificationsView(verified=result.verified, differing=result.differing, receipts=views))
    else:
        _print_verified(views)
        stdout.print(f"{grouped(result.verified)} receipts verified, {grouped(result.differing)} differ", markup=False)
    return not result.differing


def _print(receipt: StoredReceipt) -> None:
    facts = [
        ("receipt", receipt.id),
        ("request", receipt.request_id),
        ("account", receipt.billing_account_id),
        ("key", receipt.virtual_key_id),
        ("model", f"{receipt.model}, from {receipt.provider}"),
        ("ended", receipt.charge_reason + (", estimated" if receipt.estimated else "")),
        ("doubt", receipt.doubt and f"{receipt.doubt}: {receipt.doubt_detail}"),
        ("charged", f"{grouped(receipt.charged_credits)} credits = {format_exact(receipt.user_cost_usd)} USD"),
        ("uncollected", f"{grouped(receipt.uncollected_credits)} credits" if receipt.uncollected_credits else None),
        ("provider's cost", f"{format_exact(receipt.provider_cost_usd)} USD"),
        ("absorbed", f"{format_exact(receipt.absorbed_cost_usd)} USD" if receipt.absorbed_cost_usd else None),
        ("tokens", _tokens(receipt)),
        ("attributed to", receipt.attributed_to),
        ("prices of", f"version {receipt.price_version}" if receipt.price_version else "the upstream's own statement"),
        ("factor", receipt.unit_prices.get("markup_factor")),
        ("entry", f"{receipt.entry_id} ({receipt.source_system}:{receipt.source_reference})"),
        ("called", receipt.called_at.isoformat(timespec="seconds")),
        ("booked", receipt.created_at.isoformat(timespec="seconds")),
    ]
    stdout.print(table("", ("fact", "value"), [(name, value) for name, value in facts if value is not None]))
    lines = [
        (line["unit"], grouped(line["count"]), f"{line['usd']} for {grouped(line['per'])}")
        for line in receipt.unit_prices.get("lines", ())
    ]
    stdout.print(table("What the cost is the sum of", ("unit", "count", "USD"), lines, right=("count", "USD")))


def _tokens(receipt: StoredReceipt) -> str:
    return (
        f"{grouped(receipt.input_tokens)} of input ({grouped(receipt.cached_input_tokens)} cached, "
        f"{grouped(receipt.cache_write_tokens)} written to the cache), {grouped(receipt.output_tokens)} of output "
        f"({grouped(receipt.reasoning_tokens)} of reasoning)"
    )


def _print_verified(views: Sequence[VerificationView]) -> None:
    for view in views:
        if view.is_right:
            stdout.print(f"receipt {view.receipt_id} is right: cost, price, credits and entry", markup=False)
            continue
        rows = [(one.field, one.stored, one.computed) for one in view.differences]
        stdout.print(table(f"Receipt {view.receipt_id} differs", ("field", "stored", "computed"), rows))


def _shown(value: object) -> object:
    if isinstance(value, Decimal):
        return format_exact(value)
    return str(value) if isinstance(value, UUID) else value
