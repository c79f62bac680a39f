"""What the books say of a provider's costs of one day: receipts, the ledger, and holds that are still open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Final

from sqlalchemy import text

from db.engine import ServiceConnection

LATE_DAYS_MAX: Final = 35
"""A call that is booked later after it was made is of a period that providers have closed."""

_DAY: Final = text(
    """
    WITH made AS (
        SELECT r.provider_cost_usd, r.entry_id, credits_of_usd(r.provider_cost_usd) AS cost_credits
          FROM charge_receipts r
         WHERE r.provider = :provider
           AND r.created_at >= CAST(:day AS date)::timestamp AT TIME ZONE 'UTC'
           AND r.created_at < (CAST(:day AS date) + CAST(:late_days AS integer))::timestamp AT TIME ZONE 'UTC'
           AND r.called_at >= CAST(:day AS date)::timestamp AT TIME ZONE 'UTC'
           AND r.called_at < (CAST(:day AS date) + 1)::timestamp AT TIME ZONE 'UTC')
    SELECT (SELECT count(*) FROM made) AS receipts,
           (SELECT coalesce(sum(m.provider_cost_usd), 0) FROM made m) AS receipts_usd,
           (SELECT coalesce(sum(m.cost_credits), 0)::bigint FROM made m) AS receipts_credits,
           (SELECT coalesce(sum(l.amount), 0)::bigint FROM made m
              JOIN journal_lines l ON l.entry_id = m.entry_id
               AND l.account_code = 'payable:providers' AND l.side = 'credit') AS ledger_credits,
           (SELECT count(*) FROM credit_holds h
             WHERE h.state = 'held' AND h.upstream = :provider
               AND h.created_at >= CAST(:day AS date)::timestamp AT TIME ZONE 'UTC'
               AND h.created_at < (CAST(:day AS date) + 1)::timestamp AT TIME ZONE 'UTC') AS open_holds
    """
)


@dataclass(frozen=True, slots=True)
class BookedDay:
    """Calls that were made on one UTC day."""

    receipts: int
    receipts_usd: Decimal
    receipts_credits: int
    """The same, each rounded up to the credit, as the ledger has it."""
    ledger_credits: int
    """Owed to providers by the entries of these receipts."""
    open_holds: int


async def read_booked_day(connection: ServiceConnection, provider: str, day: date) -> BookedDay:
    """What was booked for a provider's calls of a UTC day."""
    values = {"provider": provider, "day": day, "late_days": LATE_DAYS_MAX}
    return BookedDay(*(await connection.connection.execute(_DAY, values)).one())
