"""Housekeeping queries: intents that expired unpaid, expired rows, payments without a workflow.

Each call is one bounded batch, and skips locked rows: the next one finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ServiceConnection
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose

_EXPIRE_INTENTS: Final = text(
    """
    WITH due AS (
        SELECT a.id FROM payment_attempts a
         WHERE a.status = 'CREATED_INTENT' AND a.expires_at <= CAST(:due_at AS timestamptz)
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


@dataclass(frozen=True, slots=True)
class UnfinishedPayment:
    """A submitted payment that is not finished according to the database; a workflow should be running for it."""

    attempt_id: UUID
    owner_user_id: str
    tx_hash: str
    status: AttemptStatus

    @property
    def is_credited(self) -> bool:
        """Whether only its bonus is missing."""
        return self.status is AttemptStatus.CREDITED


_PENDING: Final = text(
    """
    SELECT a.id, a.tx_hash, a.status, b.owner_user_id
      FROM payment_attempts a JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE a.status = 'PENDING_UNVERIFIED' AND a.chain_id = :chain_id
       AND a.submitted_at <= CAST(:before AS timestamptz)
     ORDER BY random() LIMIT :limit
    """
)
# By the purchase's entry, because entries are in the order of time: a day of them is found without an index of its own.
_WITHOUT_BONUS: Final = text(
    """
    SELECT a.id, a.tx_hash, a.status, b.owner_user_id
      FROM credit_ledger e
      JOIN payment_attempts a ON a.id::text = e.reference
      JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE e.reason = 'credits_purchase'
       AND e.created_at > CAST(:since AS timestamptz) AND e.created_at <= CAST(:before AS timestamptz)
       AND a.status = 'CREDITED' AND a.purpose = 'self' AND a.chain_id = :chain_id
       AND bonus_of_credits(e.amount, a.revenue_share) > 0
       AND NOT EXISTS (SELECT 1 FROM credit_ledger s
                        WHERE s.reference = e.reference AND s.reason = 'platform_revenue_share')
     ORDER BY random() LIMIT :limit
    """
)


async def list_pending(
    connection: ServiceConnection, chain_id: int, *, before: datetime, limit: int
) -> list[UnfinishedPayment]:
    """Payments submitted `before` that wait, at most `limit`: another selection at each call where there are more."""
    values = {"chain_id": chain_id, "before": before, "limit": limit}
    rows = await connection.connection.execute(_PENDING, values)
    return [UnfinishedPayment(row.id, row.owner_user_id, row.tx_hash, AttemptStatus(row.status)) for row in rows]


async def list_without_bonus(
    connection: ServiceConnection, chain_id: int, *, since: datetime, before: datetime, limit: int
) -> list[UnfinishedPayment]:
    """Purchases credited in that period whose bonus is due and missing; at most `limit`, as above."""
    values = {"chain_id": chain_id, "since": since, "before": before, "limit": limit}
    rows = await connection.connection.execute(_WITHOUT_BONUS, values)
    return [UnfinishedPayment(row.id, row.owner_user_id, row.tx_hash, AttemptStatus(row.status)) for row in rows]
