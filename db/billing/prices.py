"""Queries on versions of prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import ServiceConnection
from db.tables.billing import ModelPrice, PriceVersion
from domain.billing.installed_prices import installed_book, installed_source
from domain.billing.price_book import ListedPrice, PriceBook
from domain.errors import StartupCheckFailed

SEEDED_BY: Final = "settle migrate"

_WRITERS_LOCK: Final = 0x5E771E_02
"""Advisory lock of the transactions that write a version: each compares with the one before."""

_NOW: Final = text("SELECT now()")
_LOCK: Final = text("SELECT pg_advisory_xact_lock(:key)").bindparams(key=_WRITERS_LOCK)

_WRITE: Final = text(
    """
    WITH version AS (
        INSERT INTO price_versions (source, counts_from, created_by) VALUES (:source, :counts_from, :created_by)
        RETURNING id
    ), written AS (
        INSERT INTO model_prices (version_id, model, provider, rates, names, position)
        SELECT v.id, p.model, p.provider, p.rates, p.names, p.position
          FROM version v, jsonb_to_recordset(:listed)
               AS p (model text, provider text, rates jsonb, names jsonb, position integer)
    )
    SELECT id FROM version
    """
).bindparams(bindparam("listed", type_=JSONB))

_COUNTING_AT: Final = (
    select(PriceVersion.id)
    .where(PriceVersion.counts_from <= func.coalesce(bindparam("moment", type_=TIMESTAMP(timezone=True)), func.now()))
    .order_by(PriceVersion.counts_from.desc(), PriceVersion.id.desc())
    .limit(1)
)
"""The version that took effect last. One that was written ahead of its time counts from then on."""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version of prices."""

    id: int
    source: str
    """The package and its release."""
    counts_from: datetime
    created_by: str
    created_at: datetime
    models: int


async def current_prices(connection: AsyncConnection, known: PriceBook | None = None) -> PriceBook:
    """The prices that count now; `known` itself where it is that version, so that asking often costs little.

    For any role. Raises `StartupCheckFailed` where there is no version yet.
    """
    version = await _counting_at(connection, None)
    if known is not None and known.version == str(version):
        return known
    return await read_version(connection, version)


async def prices_at(connection: AsyncConnection, moment: datetime) -> PriceBook:
    """The prices that count at a time, of the versions that there are. Raises `StartupCheckFailed`."""
    return await read_version(connection, await _counting_at(connection, moment))


async def _counting_at(connection: AsyncConnection, moment: datetime | None) -> int:
    version = (await connection.execute(_COUNTING_AT, {"moment": moment})).scalar_one_or_none()
    if version is None:
        raise StartupCheckFailed("the database has no version of prices; run: settle migrate")
    return int(version)


async def read_version(connection: AsyncConnection, version: int) -> PriceBook:
    """The prices of one version; it has at least one model."""
    rows = await connection.execute(
        select(ModelPrice.model, ModelPrice.provider, ModelPrice.rates, ModelPrice.names)
        .where(ModelPrice.version_id == version)
        .order_by(ModelPrice.position)
    )
    return PriceBook(str(version), tuple(ListedPrice(*row) for row in rows))


async def list_versions(connection: ServiceConnection) -> tuple[StoredVersion, ...]:
    """All versions, in the order in which they take effect."""
    rows = await connection.connection.execute(
        text(
            """
            SELECT v.id, v.source, v.counts_from, v.created_by, v.created_at,
                   (SELECT count(*) FROM model_prices p WHERE p.version_id = v.id) AS models
              FROM price_versions v ORDER BY v.counts_from, v.id
            """
        )
    )
    return tuple(StoredVersion(*row) for row in rows)


async def lock_versions(connection: ServiceConnection) -> None:
    """Wait for any other transaction that writes a version, until this one ends."""
    await connection.connection.execute(_LOCK)


async def write_version(
    connection: ServiceConnection, book: PriceBook, *, source: str, counts_from: datetime, created_by: str
) -> int:
    """Write the prices of a book as a new version, and return its id. Call `lock_versions` first."""
    written = await connection.connection.execute(_WRITE, _values(book, source, counts_from, created_by))
    return int(written.scalar_one())


def seed_first_version(connection: Connection) -> bool:
    """Write the installed price book as the first version, counting from now, where there is none.

    For the migration, as the owner. Returns whether it was written.
    """
    connection.execute(_LOCK)
    if connection.execute(select(PriceVersion.id).limit(1)).first() is not None:
        return False
    now: datetime = connection.execute(_NOW).scalar_one()
    book = installed_book(now.astimezone(UTC).date())
    connection.execute(_WRITE, _values(book, installed_source(), now, SEEDED_BY))
    return True


def _values(book: PriceBook, source: str, counts_from: datetime, created_by: str) -> Mapping[str, Any]:
    return {
        "source": source,
        "counts_from": counts_from,
        "created_by": created_by,
        "listed": [
            {
                "model": listed.model,
                "provider": listed.provider,
                "rates": listed.rates,
                "names": listed.names,
                "position": position,
            }
            for position, listed in enumerate(book.listed)
        ],
    }
