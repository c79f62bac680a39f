"""Queries on what spending needs by the clock: lapsed holds are resolved, months of receipts prepared."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import text

from db.engine import ServiceConnection

_COUNT_LAPSED: Final = text(
    "SELECT count(*) FROM credit_holds WHERE state = 'held' AND lease_until < clock_timestamp() - :since"
)
_MISSING_MONTHS: Final = text(
    """
    SELECT to_char(m.month, 'YYYY-MM') FROM (
        SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i) AS month
          FROM generate_series(0, :ahead) i) m
     WHERE to_regclass('charge_receipts_' || to_char(m.month, 'YYYY_MM')) IS NULL ORDER BY 1
    """
)


async def count_lapsed(connection: ServiceConnection, *, since: timedelta) -> int:
    """Holds whose lease ended longer than `since` ago, and that are still open."""
    return int((await connection.connection.execute(_COUNT_LAPSED, {"since": since})).scalar_one())


async def list_missing_months(connection: ServiceConnection, *, ahead: int) -> list[str]:
    """Months without a partition of receipts, of this one and `ahead` more, such as 2026-01."""
    return list((await connection.connection.execute(_MISSING_MONTHS, {"ahead": ahead})).scalars())
