"""Housekeeping queries: intents that expired unpaid, expired rows.

Each call is one bounded batch, and skips locked rows: the next one finds them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text

from db.engine import ServiceConnection
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose

_EXPIRE_INTENTS: Final = text(
    """
    WITH due AS (
        SELECT a.id FROM payment_attempts a
         WHERE a.status = 'CREATED_INTENT' AND a.expires_at <= CAST(:due_at AS timestamptz)
           -- A claimed signature may be used as long as nothing proves that it cannot be.
           AND a.authorization_nonce IS NULL
         ORDER BY a.expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE payment_attempts a SET status = :failed, error_code = :error_code
          FROM due WHERE a.id = due.id RETURNING a.id, a.purpose
    ), told AS (
        INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, error_code)
        SELECT id, lower(:failed), 'CREATED_INTENT', :failed, :error_code FROM ended
    )
    SELECT purpose, count(*) AS expired FROM ended GROUP BY purpose
    """
)


async def expire_intents(connection: ServiceConnection, due_at: datetime, *, limit: int) -> dict[Purpose, int]:
    """End at most `limit` unpaid intents that were due at `due_at`; returns how many of which purpose ended."""
    values = {
        "due_at": due_at,
        "limit": limit,
        "failed": AttemptStatus.FAILED.value,
        "error_code": ErrorCode.INTENT_EXPIRED.value,
    }
    rows = await connection.connection.execute(_EXPIRE_INTENTS, values)
    return {Purpose(row.purpose): row.expired for row in rows}


_PRUNE: Final = text("SELECT pruned_from, pruned_rows FROM prune_expired(:limit, CAST(:keys_older_than AS interval))")


async def prune_expired(
    connection: ServiceConnection, *, idempotency_keys_older_than: timedelta, limit: int
) -> dict[str, int]:
    """Delete at most `limit` expired rows of each table; returns how many of each were deleted."""
    values = {"limit": limit, "keys_older_than": idempotency_keys_older_than}
    rows = await connection.connection.execute(_PRUNE, values)
    return {row.pruned_from: row.pruned_rows for row in rows}
