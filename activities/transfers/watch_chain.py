"""Temporal workflows: the lifecycle of a payment, the chain watch, operators' remedies, scheduled jobs; and their
names.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.messages import Followed, Rescan, WatchedChain
from activities.transfers.authorizations import follow_authorizations
from activities.transfers.finality import FinalityFollower
from activities.transfers.recent_submissions import follow_submissions
from activities.transfers.signatures import WatchingSignatures
from chain.head_reader import ChainProgress
from db.engine import ServiceDatabase
from db.transfers.scopes import list_promises, mark_followed
from domain.chain import DepositScope, TransferScope
from domain.errors import Unavailable
from domain.transfers.rescan import RescanReport
from domain.transfers.watching import Promise, old_promises, poll_interval
from services.background import in_background
from services.payments.authorizations import ClaimedAuthorizations
from services.payments.finality import FinalityDecider
from services.payments.recovery import RecentSubmissions
from services.transfers.block_scanner import BlockScanner, Step

log = structlog.get_logger(__name__)

WORKER_STOPS: Final = "WORKER_STOPS"
"""Type of the failure by which another worker continues with the chain."""

HEARTBEAT_SECONDS: Final = 3.0
"""Several fit into the activity's heartbeat time-out."""

PATIENCE_SECONDS_MIN: Final = 1.0
PATIENCE_SECONDS_MAX: Final = 30.0
"""Bounds of the wait while chain, database or Temporal is unavailable; it doubles each time."""


PROMISES_EVERY_SECONDS: Final = 10.0
"""How often the scopes of attempts are read, which finds those made by a process with other settings."""


class Matcher(Protocol):
    """Decides about what was read."""

    async def act(self, head: int) -> None:
        """Decide about every transfer that is confirmed at this chain height. Raises `Unavailable`."""


@dataclass(frozen=True, slots=True)
class ScopeWatch:
    """The scanner of one scope, and the matcher of its transfers."""

    scan: BlockScanner
    matcher: Matcher
    every_seconds: float | None = None
    """How often it is read; None: with each block."""


OpenScope = Callable[[TransferScope, Promise | None], ScopeWatch]
"""Creates them for a scope; for one that attempts name, with the tracked scope."""


class DepositWatches(Protocol):
    """The lanes of deposit addresses."""

    async def read(self) -> Mapping[TransferScope, ScopeWatch]:
        """The lanes to follow now; none before an address was given out. Raises `DatabaseUnavailable`."""


class NoDeposits:
    """No lanes: for a chain without deposit addresses."""

    async def read(self) -> Mapping[TransferScope, ScopeWatch]:
        """Never any."""
        return {}


class ScopeWatches:
    """The scope of the settings, and those that attempts still name: read from the database, so that a process with new
    settings continues with earlier ones.
    """

    def __init__(
        self,
        database: ServiceDatabase,
        current: TransferScope,
        open_scope: OpenScope,
        deposits: DepositWatches | None = None,
    ) -> None:
        self.current = current
        self._deposits = deposits or NoDeposits()
        self._lanes: Mapping[TransferScope, ScopeWatch] = {}
        self._database = database
        self._open_scope = open_scope
        self._open: dict[TransferScope, ScopeWatch] = {current: open_scope(current, None)}

    async def read(self) -> dict[TransferScope, ScopeWatch]:
        """The scopes to follow now, that of the settings first. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            promises = await list_promises(connection, self.current.chain_id)
        wanted = {promise.scope: promise for promise in old_promises(self.current, promises)}
        for scope in [scope for scope in self._open if scope != self.current and scope not in wanted]:
            del self._open[scope]
            log.info("an old treasury is not followed any more", treasury=scope.treasury, token=scope.token)
        for scope, promise in wanted.items():
            if scope not in self._open:
                self._open[scope] = self._open_scope(scope, promise)
                log.info("an old treasury is followed", treasury=scope.treasury, token=scope.token)
        self._lanes = await self._deposits.read()
        async with self._database.transaction() as connection:
            await mark_followed(connection, self.current.chain_id, [*self._open, *self._lanes])
        return self.known()

    def known(self) -> dict[TransferScope, ScopeWatch]:
        """The scopes as last read, that of the settings first, deposits' lanes last."""
        return {**self._open, **self._lanes}


class WatchingActivities(WatchingSignatures):
    """Any number may run concurrently: everything is written once."""

    def __init__(
        self,
        watches: ScopeWatches,
        recent: RecentSubmissions,
        finality: FinalityDecider,
        claims: ClaimedAuthorizations,
        *,
        block_time: timedelta,
    ) -> None:
        self._watches = watches
        self._claims = claims
        self._recent = recent
        self._finality = finality
        self._poll_seconds = poll_interval(block_time).total_seconds()

    @activity.defn
    async def follow_chain(self, chain: WatchedChain) -> Followed:
        """Follow the chain for a while. It waits for what cannot be reached, and its heartbeat says so.

        Ends immediately when the worker stops, to continue elsewhere.
        """
        followers = Followers(self._watches, self._poll_seconds)
        finality = FinalityFollower(self._finality)
        loop = asyncio.get_running_loop()
        until = loop.time() + chain.follow_seconds
        async with (
            _heartbeats(lambda: followers.words + finality.words),
            in_background(follow_submissions(self._recent), name="recent submissions"),
            in_background(follow_authorizations(self._claims), name="authorizations"),
            finality,
        ):
            while loop.time() < until:
                seconds = await followers.go_on()
                finality.saw(followers.progress)
                await _wait_for_next(seconds)
        return Followed(block_number=followers.block_number, words=followers.words)

    @activity.defn
    async def rescan_chain(self, rescan: Rescan) -> RescanReport:
        """Read the last blocks again, with every endpoint, for what nodes left out when the blocks were new.

        The watcher acts on what is found. Numbers are those of all scopes together, the rest of the report is of the
        scope of the settings.
        """
        words = f"reading the last {rescan.blocks} blocks again"
        async with _heartbeats(lambda: words):
            scopes = await self._watches.read()
            report = await scopes.pop(self._watches.current).scan.rescan(rescan.blocks)
            for watch in scopes.values():
                other = await watch.scan.rescan(rescan.blocks)
                report = report.model_copy(
                    update={
                        "added": report.added + other.added,
                        "orphaned": report.orphaned + other.orphaned,
                        "closed_findings": report.closed_findings + other.closed_findings,
                    }
                )
        if report.added or report.orphaned:
            log.warning(
                "blocks read again",
                first=report.first,
                last=report.last,
                missed_transfers=report.added,
                orphaned_transfers=report.orphaned,
            )
        return report


class Followers:
    """One run of following every scope: one that waits does not delay the others."""

    def __init__(
        self, watches: ScopeWatches, poll_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._watches = watches
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._read_from = 0.0
        self._followers: dict[TransferScope, _Follower] = {}
        self._goes_on_at: dict[TransferScope, float] = {}

    @property
    def block_number(self) -> int | None:
        """Progress in the scope of the settings."""
        current = self._followers.get(self._watches.current)
        return current.block_number if current is not None else None

    @property
    def progress(self) -> ChainProgress | None:
        """The chain's head and the tagged blocks, as last read for the scope of the settings."""
        return self._watches.known()[self._watches.current].scan.progress

    @property
    def words(self) -> str:
        """Progress of each scope, or what it waits for."""
        lines = [
            follower.words if scope == self._watches.current else f"{_name(scope)}: {follower.words}"
            for scope, follower in self._followers.items()
        ]
        return "; ".join(lines) or "starting"

    async def go_on(self) -> float:
        """Read and act on each scope that is not waiting; returns the seconds to wait then."""
        await self._refresh()
        for scope, follower in list(self._followers.items()):
            if self._goes_on_at[scope] <= self._clock():
                self._goes_on_at[scope] = await follower.go_on() + self._clock()
        return max(min(self._goes_on_at.values()) - self._clock(), 0.0)

    async def _refresh(self) -> None:
        if self._followers and self._clock() < self._read_from:
            return
        try:
            scopes = await self._watches.read()
        except Unavailable:
            # Each of them reports it itself, shortly.
            scopes = self._watches.known()
        self._read_from = self._clock() + PROMISES_EVERY_SECONDS
        for scope in self._followers.keys() - scopes.keys():
            del self._followers[scope], self._goes_on_at[scope]
        for scope, watch in scopes.items():
            if scope not in self._followers:
                seconds = self._poll_seconds if watch.every_seconds is None else watch.every_seconds
                self._followers[scope] = _Follower(watch.scan, watch.matcher, seconds)
                self._goes_on_at[scope] = self._clock()


def _name(scope: TransferScope) -> str:
    return scope.words if isinstance(scope, DepositScope) else f"old {scope.words}"


class _Follower:
    """One run of following one scope: a step, and its status text."""

    def __init__(self, scan: BlockScanner, matcher: Matcher, poll_seconds: float) -> None:
        self.words = "begins"
        self.block_number: int | None = None
        self._scan = scan
        self._matcher = matcher
        self._poll_seconds = poll_seconds
        self._patience_seconds = PATIENCE_SECONDS_MIN
        self._waits_for: str | None = None
        self._is_noted: bool | None = None
        self._transfers = 0

    async def go_on(self) -> float:
        """Read what there is and act on it; returns the seconds to wait before the next time."""
        try:
            step = await self._scan.advance()
            self._tell(step)
            await self._matcher.act(step.cursor.head_number)
            if step.is_at_head and self.block_number is not None:
                await self._scan.read_due_gap()
            if self._is_noted is not False:
                await self._scan.record_waiting(None)
                self._is_noted = False
        except Unavailable as error:
            return await self._wait_for(error.code, error.message)
        except Exception as error:
            # A fault in one scope, or about one transfer, does not stop the others.
            log.exception("following the chain failed")
            return await self._wait_for(type(error).__name__, f"a fault, see the log: {type(error).__name__}")
        if self._waits_for is not None:
            log.info("following the chain continues", where=self.words)
            self._waits_for, self._patience_seconds = None, PATIENCE_SECONDS_MIN
        return self._poll_seconds if step.is_at_head else 0.0

    def _tell(self, step: Step) -> None:
        self._transfers += step.added
        self.block_number = step.cursor.block_number
        self.words = f"block {self.block_number}, {step.cursor.lag_blocks} behind, {self._transfers} transfers"

    async def _wait_for(self, code: str, message: str) -> float:
        at = f"block {self.block_number}, " if self.block_number is not None else ""
        self.words = f"{at}waiting: {message}"
        if self._waits_for != code:
            # Logged once per change, not per try: a node that is down for an hour is one event.
            log.warning("following the chain waits", error=message)
            self._waits_for = code
        with contextlib.suppress(Unavailable):
            await self._scan.record_waiting(message)
            self._is_noted = True
        patience_seconds = self._patience_seconds
        self._patience_seconds = min(2 * patience_seconds, PATIENCE_SECONDS_MAX)
        return patience_seconds


async def _wait_for_next(seconds: float) -> None:
    """Wait so long, unless the worker stops; then another one continues."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await activity.wait_for_worker_shutdown()
    if activity.is_worker_shutdown():
        raise ApplicationError(
            "the worker stops, another one continues",
            type=WORKER_STOPS,
            category=ApplicationErrorCategory.BENIGN,
            next_retry_delay=timedelta(milliseconds=100),
        )


@asynccontextmanager
async def _heartbeats(words: Callable[[], str]) -> AsyncIterator[None]:
    """Send a heartbeat with the status every few seconds, whatever the activity waits for."""

    async def beat() -> None:
        while True:
            activity.heartbeat(words())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async with in_background(beat()):
        yield
