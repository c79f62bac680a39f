"""Following a chain: an activity that reads, acts, waits for the next block, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.contracts import Followed, Rescan, RescanReport, WatchedChain
from activities.scanning import ChainScan, Step
from activities.transfers import TransferDesk
from domain.errors import ConfigurationError, Unavailable

log = structlog.get_logger(__name__)

WORKER_STOPS: Final = "WORKER_STOPS"
"""Type of the failure by which another worker goes on with the chain."""

HEARTBEAT_SECONDS: Final = 3.0
"""Several fit into the activity's heartbeat time-out."""

POLL_SECONDS_MIN: Final = 0.2
POLL_SECONDS_MAX: Final = 15.0
"""Bounds of the wait for the next block, which is one block time."""

PATIENCE_SECONDS_MIN: Final = 1.0
PATIENCE_SECONDS_MAX: Final = 30.0
"""Bounds of the wait while chain, database or Temporal is gone; it doubles with each time."""


class WatchingActivities:
    """Any number may run at once: what is written is written once."""

    def __init__(self, scan: ChainScan, desk: TransferDesk, *, block_time: timedelta) -> None:
        self._scan = scan
        self._desk = desk
        self._poll_seconds = min(max(block_time.total_seconds(), POLL_SECONDS_MIN), POLL_SECONDS_MAX)

    @activity.defn(name="follow_chain")
    async def follow_chain(self, chain: WatchedChain) -> Followed:
        """Follow the chain for a while. What cannot be reached is waited for, in words that the heartbeat shows.

        Ends at once, to go on elsewhere, when the worker stops.
        """
        self._check_chain(chain)
        follower = _Follower(self._scan, self._desk, self._poll_seconds)
        loop = asyncio.get_running_loop()
        until = loop.time() + chain.follow_seconds
        async with _heartbeats(lambda: follower.words):
            while loop.time() < until:
                pause_seconds = await follower.go_on()
                await _wait_for_next(pause_seconds)
        return Followed(block_number=follower.block_number, words=follower.words)

    @activity.defn(name="rescan_chain")
    async def rescan_chain(self, rescan: Rescan) -> RescanReport:
        """Read the last blocks again, with every endpoint, for what nodes left out when the blocks were new.

        What is found is acted upon by whoever follows the chain.
        """
        words = f"reading the last {rescan.blocks} blocks again"
        async with _heartbeats(lambda: words):
            report = await self._scan.rescan(rescan.blocks)
        if report.added or report.orphaned:
            log.warning(
                "blocks read again",
                first=report.first,
                last=report.last,
                missed_transfers=report.added,
                orphaned_transfers=report.orphaned,
            )
        return report

    def _check_chain(self, chain: WatchedChain) -> None:
        watched = self._scan.scope.chain_id
        if chain.chain_id != watched:
            raise ConfigurationError(f"chain {chain.chain_id} is to be followed, this worker's CHAIN_ID is {watched}")


class _Follower:
    """One run of following: a step, and what to say about it."""

    def __init__(self, scan: ChainScan, desk: TransferDesk, poll_seconds: float) -> None:
        self.words = "begins"
        self.block_number: int | None = None
        self._scan = scan
        self._desk = desk
        self._poll_seconds = poll_seconds
        self._patience_seconds = PATIENCE_SECONDS_MIN
        self._waits_for: str | None = None
        self._transfers = 0

    async def go_on(self) -> float:
        """Read what is there and act on it; how many seconds to wait before the next time."""
        try:
            step = await self._scan.advance()
            self._tell(step)
            await self._desk.act(step.cursor.head_number)
        except Unavailable as error:
            return self._wait_for(error)
        if self._waits_for is not None:
            log.info("following the chain goes on", where=self.words)
            self._waits_for, self._patience_seconds = None, PATIENCE_SECONDS_MIN
        return self._poll_seconds if step.is_at_head else 0.0

    def _tell(self, step: Step) -> None:
        self._transfers += step.added
        self.block_number = step.cursor.block_number
        self.words = f"block {self.block_number}, {step.cursor.lag_blocks} behind, {self._transfers} transfers"

    def _wait_for(self, error: Unavailable) -> float:
        at = f"block {self.block_number}, " if self.block_number is not None else ""
        self.words = f"{at}waiting: {error.message}"
        if self._waits_for != error.code:
            # Once for each change, not for each try: a node that is down for an hour is one fact.
            log.warning("following the chain waits", error=error.message)
            self._waits_for = error.code
        patience_seconds = self._patience_seconds
        self._patience_seconds = min(2 * patience_seconds, PATIENCE_SECONDS_MAX)
        return patience_seconds


async def _wait_for_next(seconds: float) -> None:
    """Wait so long, unless the worker stops; then somebody else is to go on."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await activity.wait_for_worker_shutdown()
    if activity.is_worker_shutdown():
        raise ApplicationError(
            "the worker stops, another one goes on",
            type=WORKER_STOPS,
            category=ApplicationErrorCategory.BENIGN,
            next_retry_delay=timedelta(milliseconds=100),
        )


@asynccontextmanager
async def _heartbeats(words: Callable[[], str]) -> AsyncIterator[None]:
    """Tell Temporal every few seconds that this is alive, whatever it waits for, and what it does."""

    async def beat() -> None:
        while True:
            activity.heartbeat(words())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
