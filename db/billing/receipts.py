"""Queries on receipts, each with its hold and its entry of the ledger."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection
from domain.billing.receipts import PostedCharge, StoredReceipt

_OWN: Final = tuple(field.name for field in fields(StoredReceipt) if field.name not in {"held_credits", "entry"})

_FIND: Final = f"""
    SELECT {", ".join(f"r.{name}" for name in _OWN)},
           h.amount_credits AS held_credits,
           coalesce(l.id, g.id) AS posted_id, l.amount AS posted_amount, l.billing_account_id AS posted_account,
           l.virtual_key_id AS posted_key, coalesce(l.reason, g.reason) AS posted_reason,
           coalesce(l.reference, g.reference) AS posted_reference,
           (SELECT jsonb_object_agg(s.line, s.amount)
              FROM (SELECT j.account_code || ' ' || j.side AS line, sum(j.amount) AS amount
                      FROM journal_lines j WHERE j.entry_id = r.entry_id GROUP BY 1) s) AS posted_lines
      FROM charge_receipts r
      LEFT JOIN credit_holds h ON h.id = r.hold_id
      LEFT JOIN credit_ledger l ON l.id = r.entry_id
      LEFT JOIN general_entries g ON g.id = r.entry_id
"""  # noqa: S608 - the names are columns of this code

_FIND_ONE: Final = text(f"{_FIND} WHERE r.id = :id OR r.request_id = :given ORDER BY r.created_at, r.id LIMIT 100")
_PAGE: Final = text(
    f"{_FIND} WHERE r.created_at >= :since AND (r.created_at, r.id) > (:after_time, :after_id)"
    " ORDER BY r.created_at, r.id LIMIT :limit"
)
_COUNT: Final = text("SELECT count(*) FROM charge_receipts r WHERE r.created_at >= :since")


async def find_receipts(connection: ReadAllConnection, given: str) -> list[StoredReceipt]:
    """The receipt with this id, or those of the request with it: a call that failed over has one for each leg."""
    try:
        receipt_id: UUID | None = UUID(given)
    except ValueError:
        receipt_id = None
    rows = await connection.connection.execute(_FIND_ONE, {"id": receipt_id, "given": given})
    return [_to_receipt(row._mapping) for row in rows]


async def page_receipts(
    connection: ReadAllConnection, *, since: datetime, after: StoredReceipt | None, limit: int
) -> list[StoredReceipt]:
    """Receipts booked at `since` or later, in the order of booking, at most `limit`, behind the receipt `after`."""
    values = {
        "since": since,
        "after_time": after.created_at if after else since,
        "after_id": after.id if after else UUID(int=0),
        "limit": limit,
    }
    return [_to_receipt(row._mapping) for row in await connection.connection.execute(_PAGE, values)]


async def count_receipts(connection: ReadAllConnection, *, since: datetime) -> int:
    """How many receipts were booked at `since` or later."""
    return int((await connection.connection.execute(_COUNT, {"since": since})).scalar_one())


def _to_receipt(row: Any) -> StoredReceipt:
    return StoredReceipt(
        **{name: row[name] for name in (*_OWN, "held_credits")},
        entry=None
        if row["posted_id"] is None
        else PostedCharge(
            amount_credits=row["posted_amount"],
            billing_account_id=row["posted_account"],
            virtual_key_id=row["posted_key"],
            reason=row["posted_reason"],
            reference=row["posted_reference"],
            lines={line: int(amount) for line, amount in (row["posted_lines"] or {}).items()},
        ),
    )
