"""Charges whose price has run out with nothing received."""

from __future__ import annotations

from db.deposits import charges
from db.engine import ServiceDatabase


async def expire_charges(database: ServiceDatabase, *, limit: int) -> int:
    """Let at most `limit` charges that are due be `expired`; how many there were.

    Each in a transaction of its own: one with several of them could wait for what records deposits, which locks charges
    in the order of its deposits and may wait for one of these.
    """
    async with database.autocommit() as connection:
        due = await charges.list_due(connection, limit=limit)
        for charge_id in due:
            await charges.refresh(connection, charge_id)
    return len(due)
