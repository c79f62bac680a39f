"""When a webhook that was not delivered is tried again, and when it is given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

FIRST_DELAYS: Final = (
    timedelta(seconds=5),
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
)
LATER_DELAY: Final = timedelta(hours=1)
GIVEN_UP_AFTER: Final = timedelta(days=3)
"""A receiver that fails on a Friday evening is fixed on a Monday."""

ASKED_DELAY_MAX: Final = LATER_DELAY
"""A receiver may put the next try off, and not so far that its deliveries become rarer than they end."""


def next_delay(failures: int, tried_for: timedelta, asked: timedelta = timedelta(0)) -> timedelta | None:
    """How long to wait after the `failures`-th failure in a row; None where the delivery is given up.

    `tried_for` is the time since the first try, `asked` what the receiver asks to wait: it brings no try forward.
    """
    delay = FIRST_DELAYS[failures - 1] if failures <= len(FIRST_DELAYS) else LATER_DELAY
    return None if tried_for + delay > GIVEN_UP_AFTER else max(delay, min(asked, ASKED_DELAY_MAX))
