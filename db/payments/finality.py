"""Queries on the finality of settled transfers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection, ServiceConnection, TenantConnection
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
_AWAITING: Final = text(
    "SELECT attempt_id FROM transfers_awaiting_finality WHERE attempt_id = ANY (CAST(:attempt_ids AS uuid[]))"
)
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


async def find_awaiting(connection: TenantConnection, attempt_ids: Collection[UUID]) -> frozenset[UUID]:
    """Those of the tenant's credited payments that are not final yet."""
    rows = await connection.connection.execute(_AWAITING, {"attempt_ids": list(attempt_ids)})
    return frozenset(row.attempt_id for row in rows)


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


# The attempts are locked first, as a reversal locks its own: of the two, one waits for the other and finds its outcome.
_INSERT_FINAL: Final = text(
    """
    WITH wanted AS (
        SELECT w.attempt_id, w.block_hash
          FROM unnest(CAST(:attempt_ids AS uuid[]), CAST(:block_hashes AS text[])) AS w (attempt_id, block_hash)
    ), credited AS (
        SELECT id FROM payment_attempts
         WHERE id = ANY (CAST(:attempt_ids AS uuid[])) AND status = 'CREDITED' ORDER BY id FOR KEY SHARE
    )
    INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)
    SELECT s.attempt_id, 'final', s.chain_id, s.tx_hash, s.log_index, s.block_number, s.block_hash, CAST(:level AS text)
      FROM credited c
      JOIN settled_transfers s ON s.attempt_id = c.id
      JOIN wanted w ON w.attempt_id = s.attempt_id AND w.block_hash = s.block_hash
     ORDER BY s.attempt_id
    ON CONFLICT (attempt_id) DO NOTHING
    RETURNING attempt_id
    """
)

_PROGRESS: Final = text(
    """
    INSERT INTO finality_progress (chain_id, level, block_number)
    SELECT :chain_id, p.level, p.block_number
      FROM unnest(CAST(:levels AS text[]), CAST(:block_numbers AS bigint[])) AS p (level, block_number)
     WHERE EXISTS (SELECT FROM transfers_awaiting_finality w WHERE w.chain_id = :chain_id)
    ON CONFLICT (chain_id, level) DO UPDATE SET block_number = excluded.block_number, moved_at = now()
    RETURNING 1
    """
)

_IS_AWAITED: Final = text("SELECT EXISTS (SELECT FROM transfers_awaiting_finality WHERE chain_id = :chain_id)")

_IS_AWAITING: Final = text("SELECT EXISTS (SELECT FROM transfers_awaiting_finality WHERE attempt_id = :attempt_id)")

_PAGE_AWAITING: Final = text(
    """
    SELECT w.attempt_id, w.block_number, s.block_hash, b.owner_user_id
      FROM transfers_awaiting_finality w
      JOIN settled_transfers s ON s.attempt_id = w.attempt_id
      JOIN payment_attempts a ON a.id = w.attempt_id
      JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE w.chain_id = :chain_id AND w.block_number <= :up_to_block
       AND (w.block_number, w.attempt_id) > (CAST(:after_block AS bigint), CAST(:after_id AS uuid))
       AND a.amount_usd_cents >= :from_cents AND a.amount_usd_cents < :below_cents
     ORDER BY w.block_number, w.attempt_id LIMIT :limit
    """
)

_ADD_AWAITING: Final = text(
    """
    INSERT INTO transfers_awaiting_finality (attempt_id, chain_id, block_number)
    SELECT s.attempt_id, s.chain_id, s.block_number FROM settled_transfers s
     WHERE s.attempt_id = ANY (CAST(:ids AS uuid[]))
       AND NOT EXISTS (SELECT FROM transfer_finality f WHERE f.attempt_id = s.attempt_id)
    ON CONFLICT (attempt_id) DO NOTHING
    RETURNING attempt_id
    """
)

_STANDING: Final = text(
    """
    SELECT w.block_number AS awaiting_block, f.outcome, f.level, f.block_number AS outcome_block,
           (SELECT jsonb_object_agg(p.level, p.block_number) FROM finality_progress p WHERE p.chain_id = a.chain_id)
               AS reached
      FROM payment_attempts a
      LEFT JOIN transfers_awaiting_finality w ON w.attempt_id = a.id
      LEFT JOIN transfer_finality f ON f.attempt_id = a.id
     WHERE a.id = :attempt_id
    """
)

FIRST: Final = (-1, UUID(int=0))
"""Before the first block and attempt."""


@dataclass(frozen=True, slots=True)
class AwaitingFinality:
    """A credited payment without an outcome, and the block in which it was credited."""

    attempt_id: UUID
    owner_user_id: str
    block_number: int
    block_hash: str

    @property
    def place(self) -> tuple[int, UUID]:
        """Its place in the order of the pages."""
        return self.block_number, self.attempt_id


@dataclass(frozen=True, slots=True)
class FinalityStanding:
    """How far a payment is from being final."""

    awaiting_block: int | None
    """The block in which it was credited, while it has no outcome."""
    reached: Mapping[FinalityLevel, int]
    """The last block of each level, as last noted."""
    final_block: int | None = None
    final_level: FinalityLevel | None = None
    """Where and by which level it is final."""


async def find_standing(connection: ReadAllConnection, attempt_id: UUID) -> FinalityStanding | None:
    """How far an attempt's payment is from being final; None where there is no such attempt."""
    row = (await connection.connection.execute(_STANDING, {"attempt_id": attempt_id})).one_or_none()
    if row is None:
        return None
    is_final = row.outcome == "final"
    return FinalityStanding(
        awaiting_block=row.awaiting_block,
        reached={FinalityLevel(level): number for level, number in (row.reached or {}).items()},
        final_block=row.outcome_block if is_final else None,
        final_level=FinalityLevel(row.level) if is_final else None,
    )


async def note_progress(connection: ServiceConnection, chain_id: int, reached: Mapping[FinalityLevel, int]) -> bool:
    """Note the last block of each level, where a payment awaits one; False where none does, which costs an index."""
    values = {
        "chain_id": chain_id,
        "levels": [level.value for level in reached],
        "block_numbers": [max(block_number, 0) for block_number in reached.values()],
    }
    return bool((await connection.connection.execute(_PROGRESS, values)).rowcount)


async def is_awaited(connection: ServiceConnection, chain_id: int) -> bool:
    """Whether a credited payment of the chain is without an outcome."""
    return bool((await connection.connection.execute(_IS_AWAITED, {"chain_id": chain_id})).scalar_one())


async def is_awaiting(connection: ServiceConnection, attempt_id: UUID) -> bool:
    """Whether this payment is credited and without an outcome."""
    return bool((await connection.connection.execute(_IS_AWAITING, {"attempt_id": attempt_id})).scalar_one())


async def page_awaiting(
    connection: ServiceConnection,
    chain_id: int,
    *,
    up_to_block: int,
    from_cents: int,
    below_cents: int,
    after: tuple[int, UUID],
    limit: int,
) -> list[AwaitingFinality]:
    """Credited payments of such a size without an outcome, up to a block, in the order of `AwaitingFinality.place`."""
    values = {
        "chain_id": chain_id,
        "up_to_block": up_to_block,
        "from_cents": from_cents,
        "below_cents": below_cents,
        "after_block": after[0],
        "after_id": after[1],
        "limit": limit,
    }
    rows = await connection.connection.execute(_PAGE_AWAITING, values)
    return [AwaitingFinality(row.attempt_id, row.owner_user_id, row.block_number, row.block_hash) for row in rows]


async def add_awaiting(connection: ServiceConnection, ids: Collection[UUID]) -> set[UUID]:
    """List credited payments without an outcome that are not listed; returns those that were not."""
    rows = await connection.connection.execute(_ADD_AWAITING, {"ids": list(ids)})
    return {row.attempt_id for row in rows}


async def insert_final(
    connection: ServiceConnection, payments: Collection[AwaitingFinality], level: FinalityLevel
) -> set[UUID]:
    """Record that these payments are final in the blocks in which they were credited; returns those now recorded.

    One that has an outcome already, or is not credited any more, is left as it is.
    """
    values = {
        "attempt_ids": [payment.attempt_id for payment in payments],
        "block_hashes": [payment.block_hash for payment in payments],
        "level": level.value,
    }
    rows = await connection.connection.execute(_INSERT_FINAL, values)
    return {row.attempt_id for row in rows}


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
