"""Rules of watching a chain: which scopes are followed, when refused blocks are skipped, and when to raise an alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from domain.chain import TransferScope
from domain.identifiers import same_address

FOLLOWED_AFTER: Final = timedelta(days=1)
"""How long a token and treasury are followed after the last attempt that names them has ended."""

SCOPES_MAX: Final = 20
"""Most scopes followed besides the configured one: each costs two requests a block, and more indicate a fault."""

POLL_INTERVAL_MIN: Final = timedelta(milliseconds=200)
POLL_INTERVAL_MAX: Final = timedelta(seconds=15)


def poll_interval(block_time: timedelta) -> timedelta:
    """How long the watcher waits for the next block: one block time, within bounds."""
    return min(max(block_time, POLL_INTERVAL_MIN), POLL_INTERVAL_MAX)


@dataclass(frozen=True, slots=True)
class Promise:
    """A scope that attempts name: token and treasury of their payments."""

    scope: TransferScope
    until: datetime | None
    """When tracking ends, a day after the last attempt's end; None while one of them is open."""
    since: datetime
    """Creation time of the oldest attempt."""
    is_known: bool = False
    """Whether the scope was followed before, because of the settings or of an attempt."""


def is_same_scope(one: TransferScope, other: TransferScope) -> bool:
    """Whether both are the same token and treasury on the same chain, ignoring the case of addresses."""
    return (
        one.chain_id == other.chain_id
        and same_address(one.token, other.token)
        and same_address(one.treasury, other.treasury)
    )


def old_promises(current: TransferScope, promises: Sequence[Promise]) -> list[Promise]:
    """Scopes outside the settings to follow, those followed before first."""
    others = [promise for promise in promises if not is_same_scope(promise.scope, current)]
    return sorted(others, key=lambda promise: (not promise.is_known, promise.since))[:SCOPES_MAX]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and for how long, blocks must be refused before the watcher skips them."""

    tries: int
    seconds: float


PATIENCE_PRUNED: Final = Patience(tries=3, seconds=10.0)
"""Every node answers that it does not keep the blocks. Skipped blocks are retried every minute."""

PATIENCE_REFUSED: Final = Patience(tries=5, seconds=60.0)
"""Every node answers, and at least one gives a reason that may be temporary."""

PATIENCE_SOME_SILENT: Final = Patience(tries=5, seconds=300.0)
"""Some nodes do not answer at all, and one of those may have the blocks."""


class Refusals:
    """Tracks how long the blocks after one position have been refused. Pure bookkeeping, given the time in seconds."""

    def __init__(self) -> None:
        self._position: int | None = None
        self._since = 0.0
        self._tries = 0

    def note(self, position: int, now: float) -> None:
        """Record another refusal at this position."""
        if position != self._position:
            self._position, self._since, self._tries = position, now, 0
        self._tries += 1

    def has_lasted(self, patience: Patience, now: float) -> bool:
        """Whether the refusals are frequent and long enough to skip."""
        return self._tries >= patience.tries and now - self._since >= patience.seconds

    def moved(self, position: int) -> None:
        """Move to another position where the same trouble continues."""
        if self._position is not None:
            self._position = position

    def forget(self) -> None:
        """Reset: the blocks were read."""
        self._position, self._tries = None, 0
