"""Comparison of the clocks of host, database and chain: for `settle doctor`, and continuously for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from prometheus_client import Gauge

from chain.reader import ChainReader
from db.clock import measure_host_offset, read_clock
from db.engine import ServiceConnection, ServiceDatabase, TenantDatabase
from domain.chain import ChainHead
from domain.clocks import ClockOffsets, chain_offset
from domain.errors import ChainUnavailable
from domain.utxo import is_utxo_chain

EVERY_SECONDS: Final = 30.0

NEW_BLOCK_SECONDS_MIN: Final = 2.0
NEW_BLOCK_SECONDS_MAX: Final = 30.0
"""How long doctor waits for a new block before it reports that the chain produces none: three block times, within these
bounds.
"""

CLOCK_OFFSET: Final = Gauge(
    "settle_clock_offset_seconds",
    "How far a clock is ahead of the database's, by which payments are in time",
    ["clock"],
)


class ChainClock:
    """The chain's clock, read from its newest block.

    It is only known while there are new blocks: a chain that has stopped, or a local one that mines on demand, has an
    old newest block and a correct clock.
    """

    def __init__(self, chain: ChainReader, block_time: timedelta) -> None:
        self._chain = chain
        self._block_time = block_time
        self._last: int | None = None

    async def compare(self, connection: ServiceConnection) -> timedelta | None:
        """Its offset from the database's clock; None without a new block since the previous call.

        Raises `ChainUnavailable`.
        """
        newest = await self._chain.heads.newest_block()
        now = await read_clock(connection.connection)
        last, self._last = self._last, newest.number
        return None if last is None or newest.number <= last else chain_offset(newest.mined_at, now, self._block_time)

    async def wait_and_compare(self, connection: ServiceConnection) -> tuple[timedelta | None, ChainHead]:
        """The offset immediately where the newest block is recent; otherwise when the next block arrives, if one
        does.
        """
        newest = await self._chain.heads.newest_block()
        offset = chain_offset(newest.mined_at, await read_clock(connection.connection), self._block_time)
        if not ClockOffsets(host=timedelta(0), chain=offset).problems:
            return offset, newest
        self._last = newest.number
        patience_seconds = min(max(3 * self._block_time.total_seconds(), NEW_BLOCK_SECONDS_MIN), NEW_BLOCK_SECONDS_MAX)
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_seconds
        while loop.time() < until:
            await asyncio.sleep(min(self._block_time.total_seconds(), patience_seconds / 10))
            if (moved := await self.compare(connection)) is not None:
                return moved, newest
        return None, newest


async def watch_host_clock(database: TenantDatabase) -> None:
    """Compare this host's clock with the database's once, and set the gauge. Raises `DatabaseUnavailable`."""
    async with database.unscoped_statement() as connection:
        CLOCK_OFFSET.labels("host").set((await measure_host_offset(connection)).total_seconds())


def clock_watch(database: ServiceDatabase, chain: ChainReader, block_time: timedelta) -> Callable[[], Awaitable[None]]:
    """The worker's periodic task: compare host and chain with the database, and set the gauges."""
    clock = ChainClock(chain, block_time)

    async def compare() -> None:
        async with database.autocommit() as connection:
            host = await measure_host_offset(connection.connection)
            CLOCK_OFFSET.labels("host").set(host.total_seconds())
            if is_utxo_chain(chain.chain_id):
                return  # a block's time is its miner's word
            try:
                ahead = await clock.compare(connection)
            except ChainUnavailable:
                return  # other gauges report it
            if ahead is not None:
                CLOCK_OFFSET.labels("chain").set(ahead.total_seconds())

    return compare
