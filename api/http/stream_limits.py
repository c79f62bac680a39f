"""Limits of event streams: open streams, and concurrent reads of the database."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from domain.errors import RateLimited
from telemetry.metrics.api import EVENT_STREAMS

STREAMS_PER_ACCOUNT_MAX: Final = 10
STREAMS_PER_ADDRESS_MAX: Final = 100
STREAMS_MAX: Final = 1_000
READS_AT_ONCE_MAX: Final = 3
"""Of all streams together, so that the other database connections serve requests."""

READ_SECONDS_MAX: Final = 8.0
"""Time limit of a read: a frozen server must not block all reads until it recovers."""

RETRY_AFTER_SECONDS: Final = 2.0
"""When the next stream may be tried where no slot is free."""


class StreamLimits:
    """One process's limits."""

    def __init__(self) -> None:
        self.per_account_max = STREAMS_PER_ACCOUNT_MAX
        self.per_address_max = STREAMS_PER_ADDRESS_MAX
        self.all_max = STREAMS_MAX
        self.reads = asyncio.Semaphore(READS_AT_ONCE_MAX)
        self.read_seconds_max = READ_SECONDS_MAX
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        """Number of open streams."""
        return self._open["all"]

    @contextmanager
    def place(self, billing_account_id: str, address: str) -> Iterator[None]:
        """Hold a slot for one stream while the block runs. Raises `RateLimited` where none is free."""
        limits = {
            f"account:{billing_account_id}": self.per_account_max,
            f"address:{address}": self.per_address_max,
            "all": self.all_max,
        }
        if any(self._open[key] >= most for key, most in limits.items()):
            raise RateLimited(RETRY_AFTER_SECONDS, "event streams")
        self._open.update(limits.keys())
        EVENT_STREAMS.inc()
        try:
            yield
        finally:
            EVENT_STREAMS.dec()
            self._open.subtract(limits.keys())
            self._open += Counter()  # without entries at zero

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """One of the reads that all streams share. Raises `TimeoutError` where it takes too long."""
        async with self.reads, asyncio.timeout(self.read_seconds_max):
            yield
