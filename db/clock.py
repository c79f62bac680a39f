"""The database's clock, which decides everything that expires or is compared with a block's time.

Hosts have clocks of their own, and one host may create an intent that another one ends.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_NOW: Final = text("SELECT clock_timestamp()")

_host_offset = timedelta(0)
"""How far this host's clock was ahead at the last comparison; one per process, as the host has one clock."""


async def read_clock(connection: AsyncConnection) -> datetime:
    """The current time, also in the middle of a transaction."""
    global _host_offset  # noqa: PLW0603 - a fact about the host, not a state of the program
    before = datetime.now(UTC)
    now: datetime = (await connection.execute(_NOW)).scalar_one()
    # Accurate to half of the query's duration.
    _host_offset = before + (datetime.now(UTC) - before) / 2 - now
    return now


async def measure_host_offset(connection: AsyncConnection) -> timedelta:
    """How far this host's clock is ahead of the database's; negative where it is behind."""
    await read_clock(connection)
    return _host_offset


def estimated_now() -> datetime:
    """The database's time estimated from the last comparison, without a query: for display and metrics only."""
    return datetime.now(UTC) - _host_offset
