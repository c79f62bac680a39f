"""The installed price book compared with the version that counts, and written as a version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

from db.billing.prices import lock_versions, prices_at, write_version
from db.clock import read_clock
from db.engine import ServiceConnection
from domain.billing.installed_prices import installed_book, installed_source, later_starts
from domain.billing.price_book import PriceBook, PriceChange, compare
from domain.errors import InvalidInput, Refusal


@dataclass(frozen=True, slots=True)
class Comparison:
    """The version that counts at a time, and what the installed price book would change then."""

    counts_from: datetime
    before: PriceBook
    installed: PriceBook
    source: str
    """The installed package and its release."""
    changes: tuple[PriceChange, ...]
    later: tuple[tuple[date, str], ...]
    """Days after `counts_from` on which the package has yet another price, with the model."""


async def compare_installed(connection: ServiceConnection, counts_from: datetime | None) -> Comparison:
    """Compare at `counts_from` (None: now). Raises `InvalidInput` for a time that is over."""
    now = await read_clock(connection.connection)
    if counts_from is not None and counts_from < now:
        raise InvalidInput("--counts-from", f"expected a time to come, got {counts_from.isoformat()}")
    moment = counts_from or now
    day = moment.astimezone(UTC).date()
    before = await prices_at(connection.connection, moment)
    installed = installed_book(day)
    return Comparison(moment, before, installed, installed_source(), compare(before, installed), later_starts(day))


async def import_installed(
    connection: ServiceConnection, counts_from: datetime | None, *, created_by: str
) -> tuple[Comparison, int]:
    """Write the installed price book as a version, and return what it changes, and its id.

    Of several at once each compares with the one before it. Raises `InvalidInput`, and `Refusal` where nothing differs.
    """
    await lock_versions(connection)
    comparison = await compare_installed(connection, counts_from)
    if not comparison.changes:
        raise Refusal(nothing_differs(comparison))
    version = await write_version(
        connection,
        comparison.installed,
        source=comparison.source,
        counts_from=comparison.counts_from,
        created_by=created_by,
    )
    return comparison, version


def nothing_differs(comparison: Comparison) -> str:
    """Why there is nothing to import."""
    return f"version {comparison.before.version} already has the prices of {comparison.source}: nothing to import"
