"""Queries on the finality of settled transfers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection, ServiceConnection
from db.payments.attempts import settled_transfer_of
from domain.payments.attempt import AttemptStatus
from domain.payments.finality import FinalityLevel
from domain.payments.verification import SettledTransfer

_CREDITED: Final = text(
    """
    SELECT a.status, a.amount_usd_cents, s.chain_id, s.tx_hash, s.from_address, s.value_raw,
           s.surplus_raw, s.unapplied_raw, coalesce(f.log_index, s.log_index) AS log_index,
           coalesce(f.block_number, s.block_number) AS block_number, coalesce(f.block_hash, s.block_hash) AS block_hash,
           f.outcome, f.level
      FROM payment_attempts a
      JOIN settled_transfers s ON s.attempt_id = a.id
      LEFT JOIN transfer_finality f ON f.attempt_id = a.id
     WHERE a.id = :attempt_id
    """
)

LOOKED_BACK: Final = timedelta(days=30)
"""Payments that have waited for longer have been reported before."""

LATE_COMMITS_MAX: Final = 1_000
"""How many rows with lower numbers may be committed after one that was seen."""

_FIRST: Final = text("SELECT min(id) FROM settled_transfers WHERE created_at > now() - CAST(:looked_back AS interval)")
_LAST: Final = text("SELECT max(id) FROM settled_transfers")
# Rows are numbered in the order of time, and nearly all are final: the first one that is not is soon found.
_OLDEST_WAITING: Final = text(
    """
    SELECT s.id, extract(epoch FROM now() - s.created_at)::float AS seconds, s.attempt_id, s.block_number
      FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
     WHERE s.id >= :first AND s.chain_id = :chain_id AND a.status = 'CREDITED'
       AND a.amount_usd_cents >= :from_cents AND a.amount_usd_cents < :below_cents
       AND NOT EXISTS (SELECT FROM transfer_finality f WHERE f.attempt_id = s.attempt_id)
     ORDER BY s.id LIMIT 1
    """
)


@dataclass(frozen=True, slots=True)
class WaitingForFinality:
    """The payment that has been credited for longest and is not final."""

    id: int
    """Number of its row of `settled_transfers`."""
    seconds: float
    attempt_id: UUID
    block_number: int


async def find_last_settled(connection: ReadAllConnection) -> int | None:
    """Number of the newest settled transfer."""
    last: int | None = (await connection.connection.execute(_LAST)).scalar_one()
    return last


async def find_oldest_waiting(
    connection: ReadAllConnection, chain_id: int, *, from_cents: int, below_cents: int, not_before: int | None = None
) -> WaitingForFinality | None:
    """The oldest payment of such a size that is credited and not final; None where there is none.

    `not_before` is the `id` of an earlier answer, or of the newest transfer where there was none: what was final then
    is so now.
    """
    if not_before is None:
        first = (await connection.connection.execute(_FIRST, {"looked_back": LOOKED_BACK})).scalar_one()
    else:
        first = not_before - LATE_COMMITS_MAX
    if first is None:
        return None
    values = {"first": first, "chain_id": chain_id, "from_cents": from_cents, "below_cents": below_cents}
    row = (await connection.connection.execute(_OLDEST_WAITING, values)).one_or_none()
    return WaitingForFinality(row.id, row.seconds, row.attempt_id, row.block_number) if row is not None else None


_INSERT: Final = text(
    """
    INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)
    VALUES (:attempt_id, :outcome, :chain_id, :tx_hash, :log_index, :block_number, :block_hash, :level)
    ON CONFLICT (attempt_id) DO NOTHING
    """
)


@dataclass(frozen=True, slots=True)
class Credited:
    """A credited attempt, the transfer that paid it, and its recorded finality."""

    status: AttemptStatus
    amount_usd_cents: int
    transfer: SettledTransfer
    final_level: FinalityLevel | None
    """The level at which the transfer was found to be final; None where it is not, or was reorged out."""


async def find_credited(connection: ReadAllConnection, attempt_id: UUID) -> Credited | None:
    """The attempt with the transfer that paid it, at its current position if known; None where nothing paid it."""
    row = (await connection.connection.execute(_CREDITED, {"attempt_id": attempt_id})).one_or_none()
    if row is None:
        return None
    return Credited(
        status=AttemptStatus(row.status),
        amount_usd_cents=row.amount_usd_cents,
        transfer=settled_transfer_of(row),
        final_level=FinalityLevel(row.level) if row.outcome == "final" else None,
    )


async def insert_finality(
    connection: ServiceConnection, attempt_id: UUID, transfer: SettledTransfer, level: FinalityLevel, *, outcome: str
) -> bool:
    """Record a transfer's finality, "final" or "reversed"; False where it is recorded already."""
    result = await connection.connection.execute(
        _INSERT,
        {
            "attempt_id": attempt_id,
            "outcome": outcome,
            "chain_id": transfer.chain_id,
            "tx_hash": transfer.tx_hash,
            "log_index": transfer.log_index,
            "block_number": transfer.block_number,
            "block_hash": transfer.block_hash,
            "level": level.value,
        },
    )
    return bool(result.rowcount)
