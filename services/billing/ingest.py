"""Charging what an external proxy reports of its calls, each item on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from db.billing.ingest import UnknownAccount, ingest_charge
from db.billing.prices import current_prices
from db.engine import TenantDatabase
from domain.billing.charges import Charge, Terms, charge
from domain.billing.ingested import IngestedCall, InvalidItem, read_call
from domain.billing.price_book import PriceBook
from domain.billing.upstreams import PriceOverride
from domain.billing.usage import Usage

_NO_BOUND: Final = 2**62
"""Nothing was held for the call: an estimate of it is bounded by nothing else."""


class Outcome(StrEnum):
    """What became of an item."""

    CHARGED = "charged"
    REPEATED = "repeated"
    """The same body again: the same answer."""
    IGNORED = "ignored"
    """A failure that cost nothing."""
    CONFLICT = "conflict"
    """Another body was charged under its reference."""
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What is answered about one item."""

    outcome: Outcome
    reference: str | None = None
    receipt_id: UUID | None = None
    charged_credits: int | None = None
    error: str | None = None


class Ingest:
    """Safe to repeat, and to run in several processes: the reference is charged once."""

    def __init__(
        self, database: TenantDatabase, *, markup_factor: Decimal, overrides: Mapping[str, PriceOverride]
    ) -> None:
        self._database = database
        self._markup_factor = markup_factor
        self._overrides = overrides
        self._book: PriceBook | None = None

    async def take(self, items: list[Any]) -> list[ItemResult]:
        """Charge each item in a transaction of its own. Raises `DatabaseUnavailable`: then all may be sent again."""
        async with self._database.unscoped() as connection:
            self._book = await current_prices(connection, self._book)
        book = self._book.with_overrides(self._overrides)
        return [await self._take_one(item, book) for item in items]

    async def _take_one(self, item: Any, book: PriceBook) -> ItemResult:
        try:
            call = read_call(item)
        except InvalidItem as error:
            return ItemResult(Outcome.INVALID, error=str(error))
        if call.is_nothing:
            return ItemResult(Outcome.IGNORED, call.reference)
        owed, version = self._owed(call, book)
        try:
            async with self._database.unscoped_statement() as connection:
                done = await ingest_charge(
                    connection, call, owed, markup_factor=self._markup_factor, price_version=version
                )
        except UnknownAccount as error:
            return ItemResult(Outcome.INVALID, call.reference, error=f"there is no billing account {error}")
        return ItemResult(Outcome(done.outcome), call.reference, done.receipt_id, done.charged_credits)

    def _owed(self, call: IngestedCall, book: PriceBook) -> tuple[Charge, str | None]:
        price = None if call.is_cached else book.find(call.model)
        report = call.report
        if call.is_cached and isinstance(report, Usage):
            report = Usage(report.units, report.stated_cost_usd or Decimal(0))
        terms = Terms(
            rates=price.rates if price else None,
            markup_factor=self._markup_factor,
            held_credits=_NO_BOUND,
            output_tokens_limit=None,
        )
        return charge(call.end, report, Usage(), terms), price.version if price else None
