"""Queries on price sources, quotes, and the deposits that have no price yet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text

from db.deposits.methods import method_of_row
from db.engine import AnyConnection, ServiceConnection, TenantConnection
from domain.deposits.methods import PaymentMethod
from domain.deposits.prices import PriceSource, Quote
from domain.deposits.worth import DOLLAR_TOKENS

_SOURCE: Final = text("SELECT s.* FROM price_sources s WHERE s.method_id = :method_id ORDER BY s.seq DESC LIMIT 1")
_SOURCE_OF_QUOTE: Final = text("SELECT s.* FROM price_sources s WHERE s.id = :id")
_SOURCES: Final = text("SELECT DISTINCT ON (s.method_id) s.* FROM price_sources s ORDER BY s.method_id, s.seq DESC")
_QUOTE: Final = text("SELECT q.* FROM price_quotes q WHERE q.id = :id")

_SOURCE_COLUMNS: Final = tuple(name for name in PriceSource.model_fields if name != "created_at")
_QUOTE_COLUMNS: Final = tuple(Quote.model_fields)


def _insert_into(table: str, columns: Collection[str]) -> str:
    places = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608 - names of our own fields


_INSERT_SOURCE: Final = text(_insert_into("price_sources", _SOURCE_COLUMNS))
_INSERT_QUOTE: Final = text(_insert_into("price_quotes", _QUOTE_COLUMNS) + " ON CONFLICT (id) DO NOTHING")

_UNPRICED_WHERE: Final = """
    t.chain_id = :chain_id AND t.quote_id IS NULL AND t.credits = 0 AND t.value_raw > 0 AND t.attempt_id IS NULL
    AND t.log_index >= 0 AND NOT (upper(m.token) = ANY (CAST(:dollars AS text[])))
"""

# With the quote of the address's charge: the deposit may be within its lock.
_UNPRICED: Final = text(
    f"""
    SELECT t.id AS deposit_id, t.tx_hash, t.block_number, t.block_hash, t.block_time, t.value_raw,
           c.quote_id AS charge_quote_id, c.price_expires_at, m.*
      FROM deposits t
      JOIN payment_methods m ON m.id = t.method_id
      JOIN deposit_addresses a ON a.id = t.address_id
      LEFT JOIN charges c ON c.id = a.charge_id AND c.address_id = a.id
     WHERE {_UNPRICED_WHERE}
       AND t.block_number <= :head - coalesce(greatest(m.confirmations, :min_confirmations), :min_confirmations) + 1
       AND NOT (t.id = ANY (CAST(:but AS uuid[])))
     ORDER BY t.block_number, t.log_index LIMIT :limit
    """  # noqa: S608 - a constant of ours
)

_UNPRICED_OF_METHOD: Final = text(
    f"""
    SELECT count(*) AS number, coalesce(sum(t.value_raw), 0) AS value_raw,
           coalesce(min(t.created_at) < now() - CAST(:lasting AS interval), false) AS is_lasting
      FROM deposits t JOIN payment_methods m ON m.id = t.method_id
     WHERE t.method_id = :method_id AND {_UNPRICED_WHERE}
    """  # noqa: S608 - a constant of ours
)

_SET_PRICE: Final = text(
    """
    UPDATE deposits SET quote_id = :quote_id, credits = :credits
     WHERE id = :id AND block_hash = :block_hash AND quote_id IS NULL AND attempt_id IS NULL
    """
)


# At the prices that it was credited at, and so that nothing is left when all of it has been moved.
_BOOKED_WORTH: Final = text(
    """
    SELECT least(b.credits - s.credits,
                 div((b.credits - s.credits) * CAST(:value_raw AS numeric), nullif(b.raw - s.raw, 0))) AS credits
      FROM (SELECT coalesce(sum(d.value_raw), 0) AS raw, coalesce(sum(d.credits), 0) AS credits
              FROM deposits d JOIN payment_methods m ON m.id = d.method_id
             WHERE d.address_id = :address_id AND m.token = :token AND d.credits > 0 AND d.log_index >= 0) b,
           (SELECT coalesce(sum(w.value_raw), 0) AS raw, coalesce(sum(w.credits), 0) AS credits
              FROM swept_transfers w JOIN payment_methods m ON m.id = w.method_id
             WHERE w.address_id = :address_id AND m.token = :token AND w.credits > 0) s
    """
)


@dataclass(frozen=True, slots=True)
class UnpricedDeposit:
    """A confirmed deposit of a token that is no dollar, before it has a price."""

    id: UUID
    tx_hash: str
    block_number: int
    block_hash: str
    block_time: datetime
    value_raw: int
    method: PaymentMethod
    charge_quote_id: UUID | None
    """The quote of its address's charge, which may be of another method."""
    price_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class WithoutPrice:
    """The deposits of a method that have no price. `is_lasting`: one of them since too long."""

    count: int
    value_raw: int
    is_lasting: bool


async def find_source(connection: AnyConnection, method_id: str) -> PriceSource | None:
    """Where a method's price comes from now; None where it has none."""
    row = (await connection.connection.execute(_SOURCE, {"method_id": method_id})).one_or_none()
    return source_of_row(row) if row else None


async def find_source_of_quote(connection: AnyConnection, quote: Quote) -> PriceSource:
    """The source that a quote names, which may not be its method's any more."""
    return source_of_row((await connection.connection.execute(_SOURCE_OF_QUOTE, {"id": quote.source_id})).one())


async def list_sources(connection: AnyConnection) -> dict[str, PriceSource]:
    """The present source of each method that has one, by the method's id."""
    return {row.method_id: source_of_row(row) for row in await connection.connection.execute(_SOURCES)}


async def insert_source(connection: ServiceConnection, source: PriceSource) -> None:
    """Write a source, which is its method's from now on."""
    await connection.connection.execute(_INSERT_SOURCE, {name: getattr(source, name) for name in _SOURCE_COLUMNS})


async def insert_quote(connection: TenantConnection | ServiceConnection, quote: Quote) -> None:
    """Write a quote, in the transaction that writes what it is for; nothing where it is stored already."""
    await connection.connection.execute(_INSERT_QUOTE, {name: getattr(quote, name) for name in _QUOTE_COLUMNS})


async def find_quote(connection: AnyConnection, quote_id: UUID) -> Quote | None:
    """A stored quote."""
    row = (await connection.connection.execute(_QUOTE, {"id": quote_id})).one_or_none()
    return quote_of_row(row) if row else None


async def list_unpriced(
    connection: ServiceConnection,
    chain_id: int,
    *,
    head: int,
    min_confirmations: int,
    but: Collection[UUID],
    limit: int,
) -> list[UnpricedDeposit]:
    """Deposits that are confirmed at this height and have no price, without those in `but`, in the chain's order."""
    values = {
        "chain_id": chain_id,
        "head": head,
        "min_confirmations": min_confirmations,
        "dollars": list(DOLLAR_TOKENS),
        "but": list(but),
        "limit": limit,
    }
    return [
        UnpricedDeposit(
            id=row.deposit_id,
            tx_hash=row.tx_hash,
            block_number=row.block_number,
            block_hash=row.block_hash,
            block_time=row.block_time,
            value_raw=int(row.value_raw),
            method=method_of_row(row),
            charge_quote_id=row.charge_quote_id,
            price_expires_at=row.price_expires_at,
        )
        for row in await connection.connection.execute(_UNPRICED, values)
    ]


async def find_without_price(
    connection: ServiceConnection, chain_id: int, method_id: str, *, lasting: timedelta
) -> WithoutPrice:
    """What a method has of deposits without a price."""
    values = {"chain_id": chain_id, "method_id": method_id, "dollars": list(DOLLAR_TOKENS), "lasting": lasting}
    row = (await connection.connection.execute(_UNPRICED_OF_METHOD, values)).one()
    return WithoutPrice(row.number, int(row.value_raw), row.is_lasting)


async def set_price(connection: ServiceConnection, deposit: UnpricedDeposit, quote_id: UUID, credits: int) -> bool:
    """What a deposit is worth, once; False where it has a price by now, or is in another block."""
    values = {"id": deposit.id, "block_hash": deposit.block_hash, "quote_id": quote_id, "credits": credits}
    return (await connection.connection.execute(_SET_PRICE, values)).rowcount == 1


async def booked_worth(connection: ServiceConnection, address_id: UUID, token: str, value_raw: int) -> int:
    """Credits at which an address's raw units of a token that is no dollar are on the books, for a part of them.

    They were credited at one price each; what is moved takes its share of what is left. 0 before they have a price.
    """
    values = {"address_id": address_id, "token": token, "value_raw": value_raw}
    found = (await connection.connection.execute(_BOOKED_WORTH, values)).scalar_one()
    return max(0, int(found or 0))


def source_of_row(row: Row[Any]) -> PriceSource:
    """A row of `price_sources` as a value."""
    values = {name: getattr(row, name) for name in PriceSource.model_fields}
    values["min_answer_raw"] = int(row.min_answer_raw)
    values["max_answer_raw"] = None if row.max_answer_raw is None else int(row.max_answer_raw)
    return PriceSource(**values)


def quote_of_row(row: Row[Any]) -> Quote:
    """A row of `price_quotes` as a value."""
    values = {name: getattr(row, name) for name in _QUOTE_COLUMNS}
    for name in ("round_id", "answer_raw", "second_round_id", "second_answer_raw"):
        values[name] = None if values[name] is None else int(values[name])
    return Quote(**values)
