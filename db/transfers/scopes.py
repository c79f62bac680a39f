"""Scopes to follow: the token and treasury of the settings, and those that attempts name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import ReadAllConnection, ServiceConnection
from domain.chain import TransferScope, scope_of_key
from domain.transfers.watching import FOLLOWED_AFTER, Promise

# Deposit addresses are followed in lanes of their own (db/deposits/lanes.py).
# Open ones by their own index, recently ended ones by the time of their last change. An expired intent keeps its expiry
# time, also before housekeeping ends it.
_PROMISED: Final = text(
    """
    WITH promised AS (
        SELECT a.token, a.to_address, a.created_at,
               CASE WHEN a.status = 'CREATED_INTENT' AND a.expires_at <= now()
                    THEN a.expires_at + CAST(:after AS interval) END AS until
          FROM payment_attempts a
         WHERE a.chain_id = :chain_id AND a.status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED') AND a.kind <> 'deposit'
         UNION ALL
        SELECT a.token, a.to_address, a.created_at, a.updated_at + CAST(:after AS interval)
          FROM payment_attempts a
         WHERE a.chain_id = :chain_id AND a.status NOT IN ('CREATED_INTENT', 'PENDING_UNVERIFIED')
           AND a.updated_at > now() - CAST(:after AS interval) AND a.kind <> 'deposit'
    )
    SELECT min(token) AS token, min(to_address) AS to_address, min(created_at) AS since,
           CASE WHEN bool_and(until IS NOT NULL) THEN max(until) END AS until,
           EXISTS (SELECT FROM chain_cursors c
                    WHERE c.chain_id = :chain_id AND c.token = min(p.token) AND c.to_address = min(p.to_address))
             AS is_known
      FROM promised p GROUP BY lower(token), lower(to_address)
    HAVING (bool_or(until IS NULL) OR max(until) > now())
       -- What an intent names is the word of who wrote it (db/transfers/destinations.py).
       AND EXISTS (SELECT FROM payment_destinations d
                    WHERE d.chain_id = :chain_id AND d.token = lower(min(p.token))
                      AND d.to_address = lower(min(p.to_address)))
     ORDER BY since
    """
)


_WATCHED_HEAD: Final = text("SELECT watched_head(:chain_id)")

# Read first: nothing is written unless something has changed.
_UNMARKED: Final = text(
    """
    SELECT EXISTS (
        SELECT FROM chain_cursors c
          LEFT JOIN unnest(CAST(:tokens AS text[]), CAST(:treasuries AS text[])) f (token, to_address)
            ON f.token = c.token AND f.to_address = c.to_address
         WHERE c.chain_id = :chain_id AND (f.token IS NULL) <> (c.retired_at IS NOT NULL))
    """
)
_MARK: Final = text(
    """
    UPDATE chain_cursors c
       SET retired_at = CASE WHEN f.token IS NULL THEN now() END,
           waits_for = NULL, waits_since = NULL
      FROM chain_cursors k
      LEFT JOIN unnest(CAST(:tokens AS text[]), CAST(:treasuries AS text[])) f (token, to_address)
        ON f.token = k.token AND f.to_address = k.to_address
     WHERE c.chain_id = :chain_id AND k.chain_id = c.chain_id AND k.token = c.token AND k.to_address = c.to_address
       AND (f.token IS NULL) <> (c.retired_at IS NOT NULL)
    """
)
_CURSORS: Final = text(
    """
    SELECT token, to_address, first_block, block_number, head_number, updated_at, waits_for, waits_since, now() AS now
      FROM chain_cursors WHERE chain_id = :chain_id AND retired_at IS NULL ORDER BY created_at
    """
)


@dataclass(frozen=True, slots=True)
class WatchedScope:
    """Progress of one scope. Times are by the database's clock."""

    scope: TransferScope
    first_block: int
    block_number: int
    head_number: int
    """The chain's height when the cursor moved."""
    moved_ago: timedelta
    waits_for: str | None
    waits: timedelta | None
    """How long it has waited."""


async def mark_followed(connection: ServiceConnection, chain_id: int, followed: Sequence[TransferScope]) -> None:
    """Follow these from now on, and no others of this chain."""
    values = {
        "chain_id": chain_id,
        "tokens": [scope.token for scope in followed],
        "treasuries": [scope.treasury for scope in followed],
    }
    if (await connection.connection.execute(_UNMARKED, values)).scalar_one():
        await connection.connection.execute(_MARK, values)


async def list_watched_scopes(connection: ReadAllConnection, chain_id: int) -> list[WatchedScope]:
    """All followed scopes of the chain, the longest followed first."""
    return [
        WatchedScope(
            scope=scope_of_key(chain_id, row.token, row.to_address),
            first_block=row.first_block,
            block_number=row.block_number,
            head_number=row.head_number,
            moved_ago=row.now - row.updated_at,
            waits_for=row.waits_for,
            waits=row.now - row.waits_since if row.waits_since is not None else None,
        )
        for row in await connection.connection.execute(_CURSORS, {"chain_id": chain_id})
    ]


async def list_promises(connection: ReadAllConnection, chain_id: int) -> list[Promise]:
    """Every scope that an attempt of this chain names, or named until at most a day ago; oldest first."""
    values = {"chain_id": chain_id, "after": FOLLOWED_AFTER}
    return [
        Promise(
            scope=TransferScope(chain_id=chain_id, token=row.token, treasury=row.to_address),
            until=row.until,
            since=row.since,
            is_known=row.is_known,
        )
        for row in await connection.connection.execute(_PROMISED, values)
    ]


async def find_watched_head(connection: AsyncConnection, chain_id: int) -> int | None:
    """The height of a chain as its worker has last seen it; None before one has followed it."""
    head: int | None = (await connection.execute(_WATCHED_HEAD, {"chain_id": chain_id})).scalar_one()
    return head
