"""One account's requests take turns, so that nobody's flood makes anybody else wait."""

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

# An account's semaphore lives as long as somebody holds it or waits for it.
_turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()


@asynccontextmanager
async def turn(billing_account_id: str) -> AsyncIterator[None]:
    """Wait for a turn, and have it as long as the block runs. Raises `RateLimited` where none comes in time."""
    semaphore = _turns.get(billing_account_id)
    if semaphore is None:
        semaphore = _turns[billing_account_id] = asyncio.Semaphore(AT_ONCE_MAX)
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await semaphore.acquire()
    except TimeoutError:
        raise RateLimited(1, "requests at once") from None
    try:
        yield
    finally:
        semaphore.release()
