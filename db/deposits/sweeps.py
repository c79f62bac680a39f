"""Queries on sweeps: what is at deposit addresses by the books, signed transactions, transfers to a treasury."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import text

from db.deposits.registry import address_of_row
from db.engine import ServiceConnection
from domain.chain import Transfer
from domain.coin import NATIVE_COIN
from domain.deposits.methods import DepositAddress


@dataclass(frozen=True, slots=True)
class SignedSweepTransaction:
    """A signed transaction of a sweep. `outcome` is None while its nonce is open."""

    tx_hash: str
    sender: str
    nonce: int
    raw: bytes
    outcome: str | None = None


class SweepCost(Protocol):
    """What a mined transaction has cost, amounts in wei."""

    @property
    def block_number(self) -> int:
        """Where it was mined."""

    @property
    def gas_used(self) -> int:
        """In units."""

    @property
    def gas_price_wei(self) -> int:
        """Of a unit."""

    @property
    def l1_fee_wei(self) -> int | None:
        """What a rollup took for publication, where it says so."""

    @property
    def spent_wei(self) -> int:
        """All of it."""


@dataclass(frozen=True, slots=True)
class ListedSweep:
    """A sweep, and what its transactions have cost so far."""

    id: UUID
    chain_id: int
    status: str
    created_at: datetime
    ended_at: datetime | None
    nonces: int
    decided: int
    gas_used: int
    spent_wei: int
    l1_fee_wei: int | None
    """The part of it that a rollup took for publication; None where no receipt says so."""


@dataclass(frozen=True, slots=True)
class SweepScope:
    """Transfers of a method's token to a treasury that deposit addresses pay to."""

    method_id: str
    chain_id: int
    token: str
    treasury: str
    first_block: int
    """Where reading begins: the first deposit's block, or the one after the last that was read."""
    cursor: int | None


# What came, less what was moved: only a hint of where to ask the chain, which knows.
_HOLDERS: Final = text(
    """
    SELECT a.* FROM deposit_addresses a
     WHERE a.chain_id = :chain_id AND a.scheme = :scheme
       AND (cast(:ring_id AS uuid) IS NULL OR a.ring_id = :ring_id)
       AND EXISTS (
           SELECT FROM deposits d JOIN payment_methods m ON m.id = d.method_id
            WHERE d.address_id = a.id AND d.log_index >= 0 AND lower(coalesce(m.address, :coin)) = lower(:token)
           HAVING sum(d.value_raw) > coalesce((
               SELECT sum(s.value_raw) FROM swept_transfers s JOIN payment_methods n ON n.id = s.method_id
                WHERE s.address_id = a.id AND lower(coalesce(n.address, :coin)) = lower(:token)), 0))
     ORDER BY a.id
    """
)

_INSERT_SWEEP: Final = text(
    "INSERT INTO sweeps (id, chain_id, plan) VALUES (:id, :chain_id, :plan) ON CONFLICT (id) DO NOTHING"
)

_INSERT_TRANSACTION: Final = text(
    "INSERT INTO sweep_transactions (chain_id, tx_hash, sweep_id, sender, nonce, raw)"
    " VALUES (:chain_id, :tx_hash, :sweep_id, :sender, :nonce, :raw) ON CONFLICT (chain_id, tx_hash) DO NOTHING"
)

_TRANSACTIONS: Final = text(
    "SELECT t.tx_hash, t.sender, t.nonce, t.raw, t.outcome FROM sweep_transactions t"
    " WHERE t.sweep_id = :sweep_id ORDER BY t.sender, t.nonce, t.stored_at, t.tx_hash"
)

_LEFT: Final = text(
    "SELECT s.id FROM sweeps s WHERE s.chain_id = :chain_id AND s.status = 'sent'"
    " AND s.created_at < clock_timestamp() - :grace ORDER BY s.created_at LIMIT 100"
)

_NOTE_OUTCOME: Final = text(
    "UPDATE sweep_transactions SET outcome = :outcome, block_number = :block_number, spent_wei = :spent_wei,"
    " gas_used = :gas_used, gas_price_wei = :gas_price_wei, l1_fee_wei = :l1_fee_wei"
    " WHERE chain_id = :chain_id AND tx_hash = :tx_hash AND outcome IS NULL"
)

# Of a nonce with several transactions, one is mined.
_LIST: Final = text(
    """
    SELECT s.id, s.chain_id, s.status, s.created_at, s.ended_at, count(DISTINCT (t.sender, t.nonce)) AS nonces,
           count(DISTINCT (t.sender, t.nonce)) FILTER (WHERE t.outcome IS NOT NULL) AS decided,
           coalesce(sum(t.gas_used), 0)::bigint AS gas_used, coalesce(sum(t.spent_wei), 0) AS spent_wei,
           sum(t.l1_fee_wei) AS l1_fee_wei
      FROM sweeps s LEFT JOIN sweep_transactions t ON t.sweep_id = s.id
     WHERE s.chain_id = :chain_id
     GROUP BY s.id ORDER BY s.created_at DESC, s.id LIMIT :limit
    """
)

_END_SWEEP: Final = text("UPDATE sweeps SET status = :status, ended_at = now() WHERE id = :id AND status = 'sent'")

_REOPEN_SWEEP: Final = text("UPDATE sweeps SET status = 'sent', ended_at = NULL WHERE id = :id AND status <> 'sent'")

# One row for each token and treasury: of a token with several methods the oldest one.
_SCOPES: Final = text(
    """
    SELECT DISTINCT ON (lower(m.contract), t.treasury) m.id AS method_id, m.chain_id, m.contract AS token, t.treasury,
           c.block_number AS cursor, f.first_block
      FROM (SELECT p.*, coalesce(p.address, :coin) AS contract FROM payment_methods p WHERE p.kind <> 'utxo') m
      CROSS JOIN LATERAL (
           SELECT lower(:treasury) AS treasury
            UNION SELECT to_address FROM treasuries()
            UNION SELECT DISTINCT lower(a.treasury) FROM deposit_addresses a
                   WHERE a.chain_id = m.chain_id AND a.treasury IS NOT NULL) t
      JOIN LATERAL (
           SELECT min(d.block_number) AS first_block FROM deposits d JOIN payment_methods n ON n.id = d.method_id
            WHERE d.chain_id = m.chain_id AND lower(coalesce(n.address, :coin)) = lower(m.contract)
           ) f ON f.first_block IS NOT NULL
      LEFT JOIN sweep_cursors c
        ON c.chain_id = m.chain_id AND c.token = lower(m.contract) AND c.treasury = t.treasury
     WHERE m.chain_id = :chain_id
     ORDER BY lower(m.contract), t.treasury, m.created_at, m.id
    """
)

_SENDERS: Final = text(
    "SELECT a.* FROM deposit_addresses a WHERE a.chain_id = :chain_id AND lower(a.address) = ANY (:senders)"
)

# Not by their block: a gap that is read later may be below the last one that was booked.
_SWEPT_COIN: Final = text(
    """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.from_address, o.value_raw
      FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.handled_at IS NULL AND o.token = :coin
       AND lower(o.to_address) = lower(:treasury) AND o.block_number <= :up_to
     ORDER BY o.block_number, o.log_index LIMIT :limit FOR UPDATE
    """
)

_HANDLED: Final = text(
    """
    UPDATE observed_transfers o SET handled_at = now()
     WHERE o.chain_id = :chain_id AND o.tx_hash = :tx_hash AND o.log_index = :log_index
    """
)

_BOOK: Final = text(
    "SELECT book_swept_transfer(:chain_id, :tx_hash, :log_index, :address_id, :method_id, :treasury, :value_raw,"
    " :credits, :block_number, :block_hash)"
)

_MOVE_CURSOR: Final = text(
    """
    INSERT INTO sweep_cursors AS c (chain_id, token, treasury, block_number)
    VALUES (:chain_id, lower(:token), lower(:treasury), :block_number)
    ON CONFLICT (chain_id, token, treasury) DO UPDATE SET block_number = excluded.block_number
     WHERE c.block_number = :before
    """
)


async def list_holders(
    connection: ServiceConnection, *, chain_id: int, scheme: str, ring_id: UUID | None, token: str
) -> list[DepositAddress]:
    """Addresses to which more of a token came than was moved from them."""
    values = {"chain_id": chain_id, "scheme": scheme, "ring_id": ring_id, "token": token, "coin": NATIVE_COIN}
    return [address_of_row(row) for row in await connection.connection.execute(_HOLDERS, values)]


async def insert_sweep(
    connection: ServiceConnection,
    sweep_id: UUID,
    chain_id: int,
    plan: Mapping[str, Any],
    transactions: Sequence[SignedSweepTransaction],
) -> None:
    """Store a sweep with its signed transactions; what is there stays. A sweep that had ended and gets another
    transaction goes on.
    """
    sql = connection.connection
    await sql.execute(_INSERT_SWEEP, {"id": sweep_id, "chain_id": chain_id, "plan": Jsonb(dict(plan))})
    added = 0
    for one in transactions:
        values = {
            "chain_id": chain_id,
            "tx_hash": one.tx_hash,
            "sweep_id": sweep_id,
            "sender": one.sender,
            "nonce": one.nonce,
            "raw": one.raw,
        }
        added += (await sql.execute(_INSERT_TRANSACTION, values)).rowcount
    if added:
        await sql.execute(_REOPEN_SWEEP, {"id": sweep_id})


async def list_transactions(connection: ServiceConnection, sweep_id: UUID) -> list[SignedSweepTransaction]:
    """The signed transactions of a sweep, by nonce, those with the same one in the order of their storing."""
    return [
        SignedSweepTransaction(row.tx_hash, row.sender, row.nonce, bytes(row.raw), row.outcome)
        for row in await connection.connection.execute(_TRANSACTIONS, {"sweep_id": sweep_id})
    ]


async def list_left(connection: ServiceConnection, chain_id: int, *, grace: timedelta) -> list[UUID]:
    """Sweeps that were stored longer ago than `grace`, and have not ended."""
    values = {"chain_id": chain_id, "grace": grace}
    return [row.id for row in await connection.connection.execute(_LEFT, values)]


async def note_outcome(
    connection: ServiceConnection, chain_id: int, tx_hash: str, outcome: str, mined: SweepCost | None = None
) -> None:
    """Write what has become of a transaction, once, and what it has cost where it was mined."""
    values = {
        "chain_id": chain_id,
        "tx_hash": tx_hash,
        "outcome": outcome,
        "block_number": mined and mined.block_number,
        "spent_wei": mined and Decimal(mined.spent_wei),
        "gas_used": mined and mined.gas_used,
        "gas_price_wei": mined and Decimal(mined.gas_price_wei),
        "l1_fee_wei": None if mined is None or mined.l1_fee_wei is None else Decimal(mined.l1_fee_wei),
    }
    await connection.connection.execute(_NOTE_OUTCOME, values)


async def list_sweeps(connection: ServiceConnection, chain_id: int, *, limit: int) -> list[ListedSweep]:
    """The newest sweeps of a chain, with what they have cost."""
    rows = await connection.connection.execute(_LIST, {"chain_id": chain_id, "limit": limit})
    return [
        ListedSweep(
            **{
                **row._mapping,
                "spent_wei": int(row.spent_wei),
                "l1_fee_wei": None if row.l1_fee_wei is None else int(row.l1_fee_wei),
            }
        )
        for row in rows
    ]


async def end_sweep(connection: ServiceConnection, sweep_id: UUID, status: str) -> None:
    """Write how a sweep has ended, `done` or `failed`."""
    await connection.connection.execute(_END_SWEEP, {"id": sweep_id, "status": status})


async def list_scopes(connection: ServiceConnection, chain_id: int, treasury: str) -> list[SweepScope]:
    """Tokens and treasuries whose transfers are read: of tokens that any deposit was made in."""
    values = {"chain_id": chain_id, "treasury": treasury, "coin": NATIVE_COIN}
    return [
        SweepScope(
            method_id=row.method_id,
            chain_id=row.chain_id,
            token=row.token,
            treasury=row.treasury,
            first_block=row.first_block if row.cursor is None else row.cursor + 1,
            cursor=row.cursor,
        )
        for row in await connection.connection.execute(_SCOPES, values)
    ]


async def find_senders(
    connection: ServiceConnection, chain_id: int, senders: Sequence[str]
) -> dict[str, DepositAddress]:
    """Those of the senders that are deposit addresses, by their address in lower case."""
    wanted = sorted({sender.lower() for sender in senders})
    found = await connection.connection.execute(_SENDERS, {"chain_id": chain_id, "senders": wanted})
    return {row.address.lower(): address_of_row(row) for row in found}


async def list_swept_coin(
    connection: ServiceConnection, scope: SweepScope, *, up_to: int, limit: int
) -> list[Transfer]:
    """Movements of the chain's own coin from deposit addresses to a treasury that are not booked, up to a block.

    They stay locked: of two passes at once, one books them.
    """
    values = {
        "chain_id": scope.chain_id,
        "treasury": scope.treasury,
        "coin": NATIVE_COIN,
        "up_to": up_to,
        "limit": limit,
    }
    rows = await connection.connection.execute(_SWEPT_COIN, values)
    return [Transfer.model_validate(dict(row._mapping)) for row in rows]


async def mark_swept_handled(connection: ServiceConnection, scope: SweepScope, transfer: Transfer) -> None:
    """Record that such a movement is booked, or is none of ours."""
    values = {"chain_id": scope.chain_id, "tx_hash": transfer.tx_hash, "log_index": transfer.log_index}
    await connection.connection.execute(_HANDLED, values)


async def book_swept_transfer(
    connection: ServiceConnection, scope: SweepScope, transfer: Transfer, address_id: UUID, credits: int
) -> bool:
    """Book a transfer from a deposit address to a treasury; False where it is booked already."""
    values = {
        "chain_id": scope.chain_id,
        "tx_hash": transfer.tx_hash,
        "log_index": transfer.log_index,
        "address_id": address_id,
        "method_id": scope.method_id,
        "treasury": scope.treasury,
        "value_raw": Decimal(transfer.value_raw),
        "credits": credits,
        "block_number": transfer.block_number,
        "block_hash": transfer.block_hash,
    }
    return bool((await connection.connection.execute(_BOOK, values)).scalar_one())


async def move_sweep_cursor(connection: ServiceConnection, scope: SweepScope, block_number: int) -> bool:
    """Note that a scope was read up to a block; False where another pass has moved it since."""
    values = {
        "chain_id": scope.chain_id,
        "token": scope.token,
        "treasury": scope.treasury,
        "block_number": block_number,
        "before": scope.cursor,
    }
    return (await connection.connection.execute(_MOVE_CURSOR, values)).rowcount == 1
