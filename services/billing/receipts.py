"""Receipts verified: one, or all that were booked since a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from db.billing.receipts import count_receipts, find_receipts, page_receipts
from db.engine import ServiceDatabase
from domain.billing.receipts import Difference, StoredReceipt, verify
from domain.errors import ReceiptNotFound

PAGE: Final = 2_000
DIFFERING_MAX: Final = 1_000
"""Receipts that differ are listed up to here; all are counted."""


@dataclass(frozen=True, slots=True)
class Verification:
    """A receipt with all that differs."""

    receipt: StoredReceipt
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Verifications:
    """The result over many receipts."""

    verified: int
    differing: int
    listed: tuple[Verification, ...]


async def verify_receipts(database: ServiceDatabase, given: str) -> tuple[Verification, ...]:
    """Verify the receipt with this id, or all of the request with it. Raises `ReceiptNotFound`."""
    async with database.snapshot() as connection:
        found = await find_receipts(connection, given)
    if not found:
        raise ReceiptNotFound(given)
    return tuple(Verification(receipt, verify(receipt)) for receipt in found)


async def verify_all(
    database: ServiceDatabase, *, since: datetime, on_progress: Callable[[int, int], None]
) -> Verifications:
    """Verify every receipt booked at `since` or later, in pages; `on_progress` gets how many of how many are done.

    Receipts are immutable and their entries are, too, so that each page can be a transaction of its own.
    """
    verified, differing = 0, 0
    listed: list[Verification] = []
    after: StoredReceipt | None = None
    async with database.transaction() as connection:
        total = await count_receipts(connection, since=since)
    while True:
        async with database.transaction() as connection:
            page = await page_receipts(connection, since=since, after=after, limit=PAGE)
        found = [Verification(receipt, differences) for receipt in page if (differences := verify(receipt))]
        verified += len(page)
        differing += len(found)
        listed.extend(found[: DIFFERING_MAX - len(listed)])
        on_progress(verified, total)
        if len(page) < PAGE:
            return Verifications(verified, differing, tuple(listed))
        after = page[-1]
