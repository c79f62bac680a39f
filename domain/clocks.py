"""Tolerances between the clocks of host, database and chain.

The database's clock decides (`db.clock`). Block timestamps come from the block producers and no setting of ours changes
them. The tolerances below cover the difference; doctor and an alert report a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from domain.transfers.matching import CLOCK_SLACK

HOST_OFFSET_MAX: Final = timedelta(seconds=60)
"""No rule depends on a host's clock, but log lines, certificates and displayed times do."""

CHAIN_BEHIND_MAX: Final = CLOCK_SLACK
"""Beyond it, a transfer that is paid immediately seems older than its intent and is not matched automatically."""

CHAIN_AHEAD_MAX: Final = timedelta(minutes=5)
"""Beyond it, much of an intent's lifetime (30 minutes by default) has passed before it starts."""


@dataclass(frozen=True, slots=True)
class ClockOffsets:
    """How far each clock is ahead of the database's; negative when behind."""

    host: timedelta
    chain: timedelta | None = None
    """None where it is unknown because the chain produces no blocks."""

    @property
    def problems(self) -> list[str]:
        """The offsets beyond their tolerance, one line each."""
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
    """How far the chain's clock is ahead, by its newest block. A correct newest block may be a block time old."""
    ahead = mined_at - now
    return min(ahead + block_time, timedelta(0)) if ahead < timedelta(0) else ahead


def in_words(offset: timedelta) -> str:
    """Format an offset as `600 s ahead of` or `3 s behind`."""
    seconds = offset.total_seconds()
    return f"{abs(seconds):.0f} s {'behind' if seconds < 0 else 'ahead of'}"
