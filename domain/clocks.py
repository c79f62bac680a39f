"""How far clocks may be apart: host, database and chain.

The database's clock decides (`db.clock`). A chain's blocks have the clock of who makes them, which no setting of ours
reaches; the tolerances below are for the difference, and doctor and an alert tell when it grows beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from domain.transfers.matching import CLOCK_SLACK

HOST_OFFSET_MAX: Final = timedelta(seconds=60)
"""Nothing is decided by a host's clock; log lines, certificates and what people are shown are."""

CHAIN_BEHIND_MAX: Final = CLOCK_SLACK
"""Beyond it, a transfer that is paid at once seems older than its intent and pays nothing by itself."""

CHAIN_AHEAD_MAX: Final = timedelta(minutes=5)
"""Beyond it, a good part of an intent's life is over before it begins: 30 minutes by default."""


@dataclass(frozen=True, slots=True)
class ClockOffsets:
    """How far each clock is ahead of the database's; negative where it is behind."""

    host: timedelta
    chain: timedelta | None = None
    """None where it cannot be told: the chain makes no blocks."""

    @property
    def problems(self) -> list[str]:
        """What is too far apart, one line each."""
        found = []
        if abs(self.host) > HOST_OFFSET_MAX:
            found.append(
                f"this host's clock is {in_words(self.host)} the database's, expected at most "
                f"{HOST_OFFSET_MAX.total_seconds():g} s"
            )
        if self.chain is not None and not -CHAIN_BEHIND_MAX <= self.chain <= CHAIN_AHEAD_MAX:
            found.append(
                f"the chain's newest block is {in_words(self.chain)} the database's clock, expected at most "
                f"{CHAIN_BEHIND_MAX.total_seconds():g} s behind and {CHAIN_AHEAD_MAX.total_seconds():g} s ahead"
            )
        return found


def chain_offset(mined_at: datetime, now: datetime, block_time: timedelta) -> timedelta:
    """How far the chain's clock is ahead, by its newest block: that one may be a block time old and be right."""
    ahead = mined_at - now
    return min(ahead + block_time, timedelta(0)) if ahead < timedelta(0) else ahead


def in_words(offset: timedelta) -> str:
    """`600 s ahead of`, `3 s behind`."""
    seconds = offset.total_seconds()
    return f"{abs(seconds):.0f} s {'behind' if seconds < 0 else 'ahead of'}"
