"""How many requests of one account are worked on at once, so that nobody's flood makes anybody else wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from domain.errors import RateLimited

AT_ONCE_MAX: Final = 4
"""Of one account in one process, which has ten connections to the database for everybody."""

WAIT_SECONDS_MAX: Final = 10.0


class AccountConcurrency:
    """One process's limit: each account has its own places."""

    def __init__(self, *, at_once_max: int = AT_ONCE_MAX, wait_seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self._at_once_max = at_once_max
        self._wait_seconds_max = wait_seconds_max
        # An account's semaphore lives as long as somebody holds it or waits for it.
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def __len__(self) -> int:
        """Accounts that have a request under way."""
        return len(self._places)

    @asynccontextmanager
    async def place(self, billing_account_id: str) -> AsyncIterator[None]:
        """Wait for a place, and have it as long as the block runs. Raises `RateLimited` where none is free in time."""
        semaphore = self._places.get(billing_account_id)
        if semaphore is None:
            semaphore = self._places[billing_account_id] = asyncio.Semaphore(self._at_once_max)
        try:
            async with asyncio.timeout(self._wait_seconds_max):
                await semaphore.acquire()
        except TimeoutError:
            raise RateLimited(1, "requests at once") from None
        try:
            yield
        finally:
            semaphore.release()
