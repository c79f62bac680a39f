"""`settle` on a host whose clock is wrong: ahead by as many seconds as a variable says, or behind.

Every clock of the day that Python reads is, also in what the parent of a forked process has imported; monotonic clocks
run as they do.
"""

from __future__ import annotations

import datetime as module
import os
import sys
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

CLOCK_AHEAD_VARIABLE: Final = "SETTLE_TEST_CLOCK_AHEAD_SECONDS"
"""Among a process's variables: it runs on a host whose clock is that far ahead."""


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


def main() -> None:
    """Shift the clocks, and run the product's command line."""
    ahead = timedelta(seconds=float(os.environ[CLOCK_AHEAD_VARIABLE]))

    class Shifted(datetime, metaclass=_AnyDatetime):
        """`datetime` with another idea of now."""

        __slots__ = ()  # compiled modules compare its size

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            """The host's time."""
            return datetime.now(tz) + ahead

    real_time = time.time

    def shifted_time() -> float:
        return real_time() + ahead.total_seconds()

    clocks: dict[int, object] = {id(datetime): Shifted, id(real_time): shifted_time}
    for name, imported in list(sys.modules.items()):
        if name not in {__name__, "_datetime"}:
            for attribute, value in list(vars(imported).items()):
                if id(value) in clocks:
                    setattr(imported, attribute, clocks[id(value)])
    assert module.datetime is Shifted
    assert time.time is shifted_time
    from cli import main as run

    run()


if __name__ == "__main__":
    main()
