"""`settle` on a host whose clock is wrong: ahead by as many seconds as a variable says, or behind.

Every clock of the day that Python reads is; monotonic clocks run as they do.
"""

from __future__ import annotations

import datetime as module
import os
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

CLOCK_AHEAD_VARIABLE: Final = "SETTLE_TEST_CLOCK_AHEAD_SECONDS"
"""Among a process's variables: it runs on a host whose clock is that far ahead."""


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


def main() -> None:
    """Shift the clocks before anything of the product is imported, and run its command line."""
    ahead = timedelta(seconds=float(os.environ[CLOCK_AHEAD_VARIABLE]))

    class Shifted(datetime, metaclass=_AnyDatetime):
        """`datetime` with another idea of now."""

        __slots__ = ()  # compiled modules compare its size

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            """The host's time."""
            return datetime.now(tz) + ahead

    real_time = time.time
    module.datetime = Shifted  # type: ignore[misc]
    time.time = lambda: real_time() + ahead.total_seconds()
    from cli import main as run

    run()


if __name__ == "__main__":
    main()
