"""Gaps: blocks that no node returned, recorded when they are skipped and closed when they are read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, text

from db.engine import ReadAllConnection, ServiceConnection
from db.operations.findings import open_finding, settle_finding
from domain.chain import DepositScope, TransferScope, scope_of_key
from domain.operations.findings import Finding, FindingKind, Remedy, gap_key


@dataclass(frozen=True, slots=True)
class Gap:
    """Blocks of a scope that have not been read, both ends included."""

    id: int
    scope: TransferScope
    first_block: int
    last_block: int
    reason: str
    created_at: datetime
    tried_at: datetime
    is_acknowledged: bool
    """Whether an operator has acknowledged the gap."""


_COLUMNS: Final = f"""
    g.id, g.chain_id, g.token, g.to_address, g.first_block, g.last_block, g.reason, g.created_at, g.tried_at,
    coalesce(f.resolution = '{Remedy.WRITE_OFF.value}', false) AS is_acknowledged
"""
_OF_SCOPE: Final = "g.read_at IS NULL AND g.chain_id = :chain_id AND g.token = :token AND g.to_address = :to_address"
_WITH_FINDING: Final = f"chain_gaps g LEFT JOIN findings f ON f.key = '{gap_key(0)[:-1]}' || g.id::text"

# Adjacent or overlapping ones of the same scope form one gap.
_EXTEND: Final = text(
    f"""
    UPDATE chain_gaps g
       SET first_block = least(g.first_block, :first), last_block = greatest(g.last_block, :last), reason = :reason,
           tried_at = now()
     WHERE g.id = (SELECT max(g.id) FROM chain_gaps g
                    WHERE {_OF_SCOPE} AND g.first_block <= :last + 1 AND g.last_block >= :first - 1
                      -- What an operator has acknowledged is not what is found now.
                      AND NOT EXISTS (SELECT FROM findings f
                                       WHERE f.key = '{gap_key(0)[:-1]}' || g.id::text
                                         AND f.resolution = '{Remedy.WRITE_OFF.value}'))
    RETURNING g.id, g.first_block, g.last_block
    """  # noqa: S608 - constants
)
_INSERT: Final = text(
    """
    INSERT INTO chain_gaps (chain_id, token, to_address, first_block, last_block, reason)
    VALUES (:chain_id, :token, :to_address, :first, :last, :reason) RETURNING id, first_block, last_block
    """
)
# A range in the middle of a gap does not split it: its blocks will be read once more.
_SHRINK: Final = text(
    f"""
    UPDATE chain_gaps g
       SET first_block = CASE WHEN g.first_block >= :first AND g.last_block > :last THEN :last + 1
                              ELSE g.first_block END,
           last_block = CASE WHEN g.first_block < :first AND g.last_block <= :last THEN :first - 1
                             ELSE g.last_block END,
           read_at = CASE WHEN g.first_block >= :first AND g.last_block <= :last THEN now() END
     WHERE {_OF_SCOPE} AND g.first_block <= :last AND g.last_block >= :first
    RETURNING g.id, g.read_at IS NOT NULL AS is_read
    """  # noqa: S608 - constants
)
_LIST: Final = text(
    f"""
    SELECT {_COLUMNS} FROM {_WITH_FINDING}
     WHERE g.read_at IS NULL AND g.chain_id = :chain_id ORDER BY g.first_block, g.id
    """  # noqa: S608 - constants
)
# An operator's retry is due immediately.
_DUE: Final = text(
    f"""
    SELECT {_COLUMNS} FROM {_WITH_FINDING}
     WHERE {_OF_SCOPE}
       AND (f.id IS NULL OR f.resolution IS NULL OR f.resolution = '{Remedy.RETRY.value}')
       AND (f.resolution = '{Remedy.RETRY.value}' OR g.tried_at <= now() - CAST(:every AS interval))
     ORDER BY g.tried_at LIMIT 1
    """  # noqa: S608 - constants
)
_TRIED: Final = text("UPDATE chain_gaps SET tried_at = now(), reason = :reason WHERE id = :id AND read_at IS NULL")


async def open_gap(connection: ServiceConnection, scope: TransferScope, first: int, last: int, reason: str) -> bool:
    """Record a gap, with a finding; True where it is new."""
    values = {**_of(scope), "first": first, "last": last, "reason": reason}
    row = (await connection.connection.execute(_EXTEND, values)).one_or_none()
    if row is None:
        row = (await connection.connection.execute(_INSERT, values)).one()
    return await open_finding(connection, _finding(row.id, scope, row.first_block, row.last_block, reason))


async def take_out_read(connection: ServiceConnection, scope: TransferScope, first: int, last: int) -> int:
    """Remove blocks that were read from their gaps; returns how many gaps that closed."""
    ended = 0
    for row in await connection.connection.execute(_SHRINK, {**_of(scope), "first": first, "last": last}):
        if row.is_read:
            ended += 1
            await settle_finding(connection, gap_key(row.id))
    return ended


async def note_tried(connection: ServiceConnection, gap: Gap, reason: str) -> None:
    """Record another failed request; where an operator had asked for it, the finding is reopened."""
    await connection.connection.execute(_TRIED, {"id": gap.id, "reason": reason})
    await open_finding(connection, _finding(gap.id, gap.scope, gap.first_block, gap.last_block, reason))


async def find_due_gap(connection: ReadAllConnection, scope: TransferScope, *, every: timedelta) -> Gap | None:
    """The gap of a scope that was requested least recently, if a request is due or an operator asked for it."""
    row = (await connection.connection.execute(_DUE, {**_of(scope), "every": every})).one_or_none()
    return _gap(row) if row is not None else None


async def list_gaps(connection: ReadAllConnection, chain_id: int) -> list[Gap]:
    """All gaps of a chain, the lowest first, including acknowledged ones."""
    return [_gap(row) for row in await connection.connection.execute(_LIST, {"chain_id": chain_id})]


def _finding(gap_id: int, scope: TransferScope, first: int, last: int, reason: str) -> Finding:
    blocks = f"block {first} was" if first == last else f"blocks {first} to {last} were"
    return Finding(
        kind=FindingKind.CHAIN_GAP,
        detail=f"{blocks} not read, {_transfers(scope)} in them are not known: {reason}",
        chain_id=scope.chain_id,
        gap_id=gap_id,
        details={
            "fromBlock": first,
            "toBlock": last,
            "token": scope.token,
            "treasury": scope.treasury,
            "command": f"settle chain rescan --from {first} --to {last}",
        },
    )


def _transfers(scope: TransferScope) -> str:
    if isinstance(scope, DepositScope):
        return f"transfers to {scope.words}"
    return f"transfers of {scope.token} to {scope.treasury}"


def _of(scope: TransferScope) -> dict[str, Any]:
    return {"chain_id": scope.chain_id, "token": scope.token, "to_address": scope.treasury}


def _gap(row: Row[Any]) -> Gap:
    return Gap(
        id=row.id,
        scope=scope_of_key(row.chain_id, row.token, row.to_address),
        first_block=row.first_block,
        last_block=row.last_block,
        reason=row.reason,
        created_at=row.created_at,
        tried_at=row.tried_at,
        is_acknowledged=row.is_acknowledged,
    )
