"""Answers that are read to their end although their client has left: bounded in number, time and bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.policy import DRAIN_BYTES_MAX, DRAIN_SECONDS_MAX, DRAINS_MAX
from telemetry.metrics import gateway as metrics


class Drains:
    """Those of the process: so many at once, and no more."""

    def __init__(self) -> None:
        self.running = 0

    def take(self) -> bool:
        """Whether there is room for one more; it is taken then."""
        if self.running >= DRAINS_MAX:
            return False
        self.running += 1
        metrics.DRAINS.set(self.running)
        return True

    def give_back(self) -> None:
        """One has ended."""
        self.running -= 1
        metrics.DRAINS.set(self.running)


class Drain:
    """That of one call, once it has begun."""

    def __init__(self, drains: Drains, give_up: Callable[[], None]) -> None:
        """`give_up` is called when its time is over."""
        self._drains = drains
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0

    def begin(self) -> bool:
        """Whether there is room for it."""
        if not self._drains.take():
            return False
        self._timer = asyncio.get_running_loop().call_later(DRAIN_SECONDS_MAX, self._give_up)
        return True

    def exceeds(self, count: int) -> bool:
        """Whether so many more bytes are too many."""
        self._bytes += count
        return self._bytes > DRAIN_BYTES_MAX

    def end(self) -> None:
        """Give its room back, where it has begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._drains.give_back()
