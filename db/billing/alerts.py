"""Queries on what is to be published: crossings of thresholds, and receipts that operators should know of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import BigInteger

from db.engine import ServiceConnection

_TO_ANNOUNCE: Final = text(
    """
    SELECT a.id, a.kind, a.billing_account_id, a.virtual_key_id, a.period, a.period_start, a.threshold_percent,
           a.balance_credits, a.spent_credits, a.limit_credits, a.reference, a.created_at
      FROM billing_alerts a WHERE a.announced_at IS NULL ORDER BY a.id LIMIT :limit
    """
)
_ANNOUNCED: Final = text(
    "UPDATE billing_alerts SET announced_at = now() WHERE id = ANY (:ids) AND announced_at IS NULL"
).bindparams(bindparam("ids", type_=ARRAY(BigInteger)))

# A receipt's time is when its transaction began, so one may appear below others that were seen: the cursor stays behind
# by more than a transaction may take.
_DOUBTFUL: Final = text(
    """
    SELECT r.id, r.source_system || ':' || r.source_reference AS reference, r.billing_account_id, r.model, r.provider,
           r.doubt, r.doubt_detail, r.charged_credits, r.uncollected_credits, r.created_at
      FROM charge_receipts r, billing_cursors c
     WHERE c.name = 'doubtful_receipts' AND r.created_at >= c.seen_to
       AND (r.doubt IS NOT NULL OR r.uncollected_credits > 0)
       AND NOT EXISTS (
           SELECT FROM findings f
            WHERE f.key = CASE WHEN r.doubt IS NOT NULL THEN 'charge_doubtful:' ELSE 'charge_uncollected:' END
                          || r.source_system || ':' || r.source_reference)
     ORDER BY r.created_at, r.id LIMIT :limit
    """
)
_MOVE_CURSOR: Final = text(
    """
    UPDATE billing_cursors SET seen_to = greatest(seen_to, now() - CAST(:behind AS interval))
     WHERE name = 'doubtful_receipts' RETURNING seen_to
    """
)
_OPEN_MONTHS: Final = text("SELECT open_receipt_months(:months_ahead)")


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """A threshold that a charge crossed. Amounts are credits."""

    id: int
    kind: str
    """`balance_exhausted`, `account_limit` or `key_limit`."""
    billing_account_id: str
    virtual_key_id: UUID | None
    period: str | None
    period_start: date | None
    threshold_percent: int | None
    balance_credits: int
    spent_credits: int | None
    limit_credits: int | None
    reference: str
    """Of the charge."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DoubtfulReceipt:
    """A charge that is not what the provider reported, or that its account could not pay in full."""

    id: UUID
    reference: str
    billing_account_id: str
    model: str
    provider: str
    doubt: str | None
    doubt_detail: str | None
    charged_credits: int
    uncollected_credits: int
    created_at: datetime


async def list_alerts_to_publish(connection: ServiceConnection, *, limit: int) -> list[StoredAlert]:
    """Crossings that were not published, the oldest first."""
    rows = await connection.connection.execute(_TO_ANNOUNCE, {"limit": limit})
    return [StoredAlert(*row) for row in rows]


async def mark_alerts_published(connection: ServiceConnection, ids: Sequence[int]) -> None:
    """Record which crossings were published."""
    await connection.connection.execute(_ANNOUNCED, {"ids": list(ids)})


async def list_doubtful_receipts(connection: ServiceConnection, *, limit: int) -> list[DoubtfulReceipt]:
    """Receipts since the cursor that have no finding yet, the oldest first."""
    rows = await connection.connection.execute(_DOUBTFUL, {"limit": limit})
    return [DoubtfulReceipt(*row) for row in rows]


async def move_receipts_cursor(connection: ServiceConnection, *, behind_seconds: float) -> datetime:
    """Note that every receipt has been checked, up to so long ago; returns when that was."""
    row = await connection.connection.execute(_MOVE_CURSOR, {"behind": f"{behind_seconds} seconds"})
    seen_to: datetime = row.scalar_one()
    return seen_to


async def open_receipt_months(connection: ServiceConnection, *, months_ahead: int) -> int:
    """Prepare the partitions of this month and of the next ones; returns how many are new."""
    opened: int = (await connection.connection.execute(_OPEN_MONTHS, {"months_ahead": months_ahead})).scalar_one()
    return opened
