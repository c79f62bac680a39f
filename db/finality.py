"""Queries on what becomes of a settled transfer after the credit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection, ServiceConnection
from domain.attempt import AttemptStatus
from domain.finality import FinalityLevel
from domain.verdict import SettledTransfer

_CREDITED: Final = text(
    """
    SELECT a.status, a.amount_usd_cents, a.amount_raw, s.chain_id, s.tx_hash, s.from_address, s.value_raw,
           s.unapplied_raw, coalesce(f.log_index, s.log_index) AS log_index,
           coalesce(f.block_number, s.block_number) AS block_number, coalesce(f.block_hash, s.block_hash) AS block_hash,
           f.outcome, f.level
      FROM payment_attempts a
      JOIN settled_transfers s ON s.attempt_id = a.id
      LEFT JOIN transfer_finality f ON f.attempt_id = a.id
     WHERE a.id = :attempt_id
    """
)

_INSERT: Final = text(
    """
    INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)
    VALUES (:attempt_id, :outcome, :chain_id, :tx_hash, :log_index, :block_number, :block_hash, :level)
    ON CONFLICT (attempt_id) DO NOTHING
    """
)


@dataclass(frozen=True, slots=True)
class Credited:
    """A credited attempt, the transfer that paid it, and what is on record of its finality."""

    status: AttemptStatus
    amount_usd_cents: int
    transfer: SettledTransfer
    final_level: FinalityLevel | None
    """At which level the transfer was found to be there for good; None where it has not been, or is gone."""


async def find_credited(connection: ReadAllConnection, attempt_id: UUID) -> Credited | None:
    """The attempt with the transfer that paid it, where it is now if that is known; None where nothing paid it."""
    row = (await connection.connection.execute(_CREDITED, {"attempt_id": attempt_id})).one_or_none()
    if row is None:
        return None
    return Credited(
        status=AttemptStatus(row.status),
        amount_usd_cents=row.amount_usd_cents,
        transfer=SettledTransfer(
            chain_id=row.chain_id,
            tx_hash=row.tx_hash,
            log_index=row.log_index,
            block_number=row.block_number,
            block_hash=row.block_hash,
            from_address=row.from_address,
            value_raw=int(row.value_raw),
            expected_raw=row.amount_raw,
            unapplied_raw=int(row.unapplied_raw),
        ),
        final_level=FinalityLevel(row.level) if row.outcome == "final" else None,
    )


async def insert_finality(
    connection: ServiceConnection, attempt_id: UUID, transfer: SettledTransfer, level: FinalityLevel, *, outcome: str
) -> bool:
    """Write down what became of a transfer, "final" or "reversed"; False where something is written already."""
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
