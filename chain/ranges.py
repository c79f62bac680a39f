"""Block ranges per log query: the provider's limit is found by trial, and remembered. Pure bookkeeping.

Providers limit a log query to 10, 500, 2,000 or 10,000 blocks, or to so many logs, or to so many seconds, and report it
in as many ways. Only "it was refused" is relied upon.
"""

from __future__ import annotations

from typing import Final

GROW_AFTER: Final = 64
"""Full ranges answered at a known limit before one more block is tried: the plan may have changed, or a busy part of
the chain may have passed. It costs one refusal in 64 requests.
"""


class LogRange:
    """The number of blocks that one endpoint returns per answer, as far as known; `size` is what to request."""

    def __init__(self, blocks_max: int) -> None:
        self.size = blocks_max
        self._blocks_max = blocks_max
        self._answered = 0
        """The largest full range that was answered since anything as small was refused."""
        self._refused: int | None = None
        """The smallest that was refused, until it is answered after all."""
        self._in_a_row = 0

    def answered(self, blocks: int) -> None:
        """Record that a range of so many blocks was answered. A shorter one than `size`, as at the head, says
        nothing.
        """
        if blocks < self.size:
            return
        self._answered = blocks
        if self._refused is not None and blocks >= self._refused:
            self._refused = None
        if self._refused is None:
            self.size = min(2 * blocks, self._blocks_max)
        elif blocks + 1 < self._refused:
            self.size = (blocks + self._refused) // 2
        else:
            self._in_a_row += 1
            if self._in_a_row >= GROW_AFTER:
                self._in_a_row = 0
                self.size = min(self._refused, self._blocks_max)

    def refused(self, blocks: int) -> bool:
        """Record that a range of so many blocks was refused; True where a smaller one can be requested.

        A refused single block says nothing about sizes.
        """
        if blocks <= 1:
            return False
        self._in_a_row = 0
        self._refused = blocks
        if self._answered >= blocks:
            self._answered = 0
        self.size = max(blocks // 2, self._answered)
        return True
