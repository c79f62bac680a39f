"""Where the `settle` command begins. Light on purpose: Ctrl-C while the rest is imported must not print a traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""What shells say of a program that SIGINT ended."""


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def leave_on_interrupt() -> None:
    """End the process at once and without a word at Ctrl-C: nothing that would have to be stopped has been started."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us wants it otherwise
        signal.signal(signal.SIGINT, _leave)


def interrupt_as_usual() -> None:
    """Ctrl-C raises `KeyboardInterrupt` again, which asyncio turns into an orderly end."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the command line."""
    leave_on_interrupt()
    from cli import main as run

    run()
