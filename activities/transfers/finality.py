"""Finality beside the following of a chain: a pass whenever a level has reached another block."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import structlog

from chain.head_reader import ChainProgress
from domain.errors import SettleError
from domain.payments.finality import FinalityLevel
from services.payments.finality import FinalityDecider

PATIENCE_SECONDS_MIN: Final = 1.0
PATIENCE_SECONDS_MAX: Final = 60.0
"""Bounds of the wait after a pass that failed; it doubles each time."""

log = structlog.get_logger(__name__)


class FinalityFollower:
    """Starts passes in the background, one at a time, so that none delays the following of the chain or ends it.

    An async context manager: a pass that is under way at its end is cancelled, and what it has not decided is decided
    by the next one.
    """

    def __init__(self, decider: FinalityDecider, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is a monotonic clock in seconds."""
        self.words = ""
        """What it waits for, as the end of a sentence; empty where it waits for nothing."""
        self._decider = decider
        self._clock = clock
        self._decided_up_to: dict[FinalityLevel, int] = {}
        self._patience_seconds = PATIENCE_SECONDS_MIN
        self._not_before = 0.0
        self._pass: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pass is not None:
            self._pass.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pass

    def saw(self, progress: ChainProgress | None) -> None:
        """Start a pass where a level has reached a block above those of the last one, and none is under way."""
        if progress is None or self._is_busy() or self._clock() < self._not_before:
            return
        reached = self._decider.reached(progress)
        if any(block_number > self._decided_up_to.get(level, -1) for level, block_number in reached.items()):
            self._pass = asyncio.create_task(self._decide(reached))

    async def finish(self) -> None:
        """Wait for the pass that is under way, if one is."""
        if self._pass is not None:
            await self._pass

    def _is_busy(self) -> bool:
        return self._pass is not None and not self._pass.done()

    async def _decide(self, reached: dict[FinalityLevel, int]) -> None:
        try:
            decided = await self._decider.decide(reached)
        except SettleError as error:
            self._wait(error.message)
        except Exception as error:
            log.exception("deciding finality failed")
            self._wait(f"a fault, see the log: {type(error).__name__}")
        else:
            self._decided_up_to |= reached
            self._patience_seconds, self.words = PATIENCE_SECONDS_MIN, ""
            if decided.counts:
                log.info("finality decided", **decided.counts)

    def _wait(self, message: str) -> None:
        if not self.words:
            # Logged once, not per try: a node that is down for an hour is one event.
            log.warning("finality waits", error=message)
        self.words = f"; finality waits: {message}"
        self._not_before = self._clock() + self._patience_seconds
        self._patience_seconds = min(2 * self._patience_seconds, PATIENCE_SECONDS_MAX)
