"""Per-account concurrency limit (bulkhead), so that one account's requests cannot delay another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from domain.errors import RateLimited

AT_ONCE_MAX: Final = 4
"""Concurrent requests of one account in one process, which has ten database connections for all accounts."""

WAIT_SECONDS_MAX: Final = 10.0


class AccountConcurrency:
    """One process's limit: each account has its own places."""

    def __init__(self, *, at_once_max: int = AT_ONCE_MAX, wait_seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self._at_once_max = at_once_max
        self._wait_seconds_max = wait_seconds_max
        # An account's semaphore lives as long as a request holds it or waits for it.
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def __len__(self) -> int:
        """Accounts with a running request."""
        return len(self._places)

    @asynccontextmanager
    async def place(self, billing_account_id: str) -> AsyncIterator[None]:
        """Hold a slot while the block runs. Raises `RateLimited` where none becomes free in time."""
        semaphore = self._places.get(billing_account_id)
        if semaphore is None:
            semaphore = self._places[billing_account_id] = asyncio.Semaphore(self._at_once_max)
        try:
            async with asyncio.timeout(self._wait_seconds_max):
                await semaphore.acquire()
        except TimeoutError:
            raise RateLimited(1, "concurrent requests") from None
        try:
            yield
        finally:
            semaphore.release()
