"""What of a chain is followed, when a stretch of it is given up for now, and when its watch is not well."""

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
"""Followed at once beside the one of the settings: each costs two requests a block. More are a fault, not a change."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Attempts that name a token and a treasury: what is paid there is theirs."""

    scope: TransferScope
    until: datetime | None
    """When their day after the last one's end is over; None while one of them is open."""
    since: datetime
    """When the oldest of them was made."""
    is_known: bool = False
    """Whether a worker has followed them before: its settings, or an attempt, had them then."""


def is_same_scope(one: TransferScope, other: TransferScope) -> bool:
    """Whether both are the same token and treasury on the same chain, however they are written."""
    return (
        one.chain_id == other.chain_id
        and same_address(one.token, other.token)
        and same_address(one.treasury, other.treasury)
    )


def old_promises(current: TransferScope, promises: Sequence[Promise]) -> list[Promise]:
    """Those that the settings do not name, and that are followed all the same; first those that were before."""
    others = [promise for promise in promises if not is_same_scope(promise.scope, current)]
    return sorted(others, key=lambda promise: (not promise.is_known, promise.since))[:SCOPES_MAX]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and over how long, blocks have to be refused before reading goes on behind them."""

    tries: int
    seconds: float


PATIENCE_PRUNED: Final = Patience(tries=3, seconds=10.0)
"""Every node answers, and says that it does not keep the blocks. What was skipped is tried again every minute."""

PATIENCE_REFUSED: Final = Patience(tries=5, seconds=60.0)
"""Every node answers, and one at least refuses in words that may be a passing trouble's."""

PATIENCE_SOME_SILENT: Final = Patience(tries=5, seconds=300.0)
"""Some nodes do not answer at all, and one of those may have the blocks."""


class Refusals:
    """Counts how long the blocks behind one position have been refused. Pure bookkeeping, given the time in seconds."""

    def __init__(self) -> None:
        self._position: int | None = None
        self._since = 0.0
        self._tries = 0

    def note(self, position: int, now: float) -> None:
        """The blocks behind this position were refused once more."""
        if position != self._position:
            self._position, self._since, self._tries = position, now, 0
        self._tries += 1

    def has_lasted(self, patience: Patience, now: float) -> bool:
        """Whether that is often and long enough."""
        return self._tries >= patience.tries and now - self._since >= patience.seconds

    def moved(self, position: int) -> None:
        """What is refused lies behind another position by now; it is the same trouble."""
        if self._position is not None:
            self._position = position

    def forget(self) -> None:
        """The blocks were read."""
        self._position, self._tries = None, 0
