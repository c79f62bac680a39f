"""Health of each endpoint between requests: pure bookkeeping, given the time by its caller.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chain.rpc import RETRY_AFTER_SECONDS_MAX, Failure

HEAD_TOLERANCE_BLOCKS: Final = 3
"""How far below the highest-seen head a node may be without being "behind": nodes behind one load balancer differ by
one or two blocks, and another block may be mined between two answers.
"""

MARK_EXPIRY_SECONDS: Final = 60.0
"""How long every answer has to stay below the highest-seen head until that is discarded: long enough for a lagging pool
to catch up (30 blocks on Base), short enough for a chain that was rolled back or a false head.
"""

STALL_SECONDS: Final = 60.0
"""An endpoint whose head has not moved for this long is stuck: five blocks even on a 12 s chain."""

COOL_DOWN_SECONDS_MIN: Final = 1.0
COOL_DOWN_SECONDS_MAX: Final = 60.0
COOL_DOWN_WRONG_CHAIN_SECONDS: Final = 60.0
"""A wrong chain means a wrong address in the settings: worth a retry occasionally, not at every payment."""

COOL_DOWN_BEHIND_SECONDS: Final = 5.0
"""A node that is behind does answer, and catches up."""


class HeadMark:
    """The highest head seen over all endpoints, against which lagging nodes are detected.

    A head below it by more than the tolerance is behind. It is discarded when for `expiry_seconds` after the first
    answer below it no endpoint has reached it: then it was false, or the chain was rolled back, and the highest head of
    that time replaces it. The time runs from an answer, not from the age of the highest head, so that after a quiet
    hour the first lagging node is still recognised.
    """

    def __init__(
        self, *, tolerance_blocks: int = HEAD_TOLERANCE_BLOCKS, expiry_seconds: float = MARK_EXPIRY_SECONDS
    ) -> None:
        self.value = 0
        self._tolerance_blocks = tolerance_blocks
        self._expiry_seconds = expiry_seconds
        self._below_since: float | None = None
        self._below_best = 0

    def observe(self, head: int, now: float) -> None:
        """Record a head that an endpoint of the right chain reported."""
        if head >= self.value - self._tolerance_blocks:
            self.value = max(self.value, head)
            self._below_since = None
            return
        if self._below_since is None:
            self._below_since, self._below_best = now, head
        self._below_best = max(self._below_best, head)
        if now - self._below_since >= self._expiry_seconds:
            self.value, self._below_since = self._below_best, None

    def is_behind(self, head: int) -> bool:
        """Whether a node with this head lags too far to be asked."""
        return head < self.value - self._tolerance_blocks


@dataclass(slots=True)
class CircuitBreaker:
    """One endpoint's record."""

    failures: int = 0
    cools_until: float = 0.0
    pauses_until: float = 0.0
    failure: Failure | None = None
    head: int | None = None
    head_moved_at: float = 0.0
    stall_seconds: float = STALL_SECONDS

    def answered(self) -> None:
        """Record a usable answer, which clears earlier failures."""
        self.failures, self.cools_until, self.pauses_until, self.failure = 0, 0.0, 0.0, None

    def failed(self, failure: Failure, now: float, retry_after_seconds: float | None = None) -> None:
        """Record a failure: the endpoint is asked last for a while, longer with every failure in a row and as long as
        the node requests, within a bound.
        """
        self.failure = failure
        if failure is Failure.BEHIND:
            self.cools_until, self.pauses_until = now + COOL_DOWN_BEHIND_SECONDS, 0.0
            return
        self.failures += 1
        if failure is Failure.WRONG_CHAIN:
            seconds = COOL_DOWN_WRONG_CHAIN_SECONDS
        else:
            # The exponent is bounded first: 2 to the power of a day of failures is a very long number.
            seconds = min(COOL_DOWN_SECONDS_MIN * 2 ** min(self.failures - 1, 10), COOL_DOWN_SECONDS_MAX)
        if retry_after_seconds is not None:
            pause = min(retry_after_seconds, RETRY_AFTER_SECONDS_MAX)
            self.pauses_until = now + pause
            seconds = max(seconds, pause)
        self.cools_until = now + seconds

    def is_cooling(self, now: float) -> bool:
        """Whether other endpoints are to be asked first."""
        return now < self.cools_until

    def wants_pause(self, now: float) -> bool:
        """Whether the node itself requested a pause that has not ended."""
        return now < self.pauses_until

    def saw_head(self, head: int, now: float) -> None:
        """Record the endpoint's own head. Any change counts as movement: pools jitter, chains roll back."""
        if head != self.head:
            self.head, self.head_moved_at = head, now

    def is_stalled(self, now: float) -> bool:
        """Whether the head has not moved for so long that the node must be stuck."""
        return self.head is not None and now - self.head_moved_at >= self.stall_seconds
