"""Entry point of `settle`. Its imports are light, so that Ctrl-C during the others prints no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""Exit code that shells use for a program ended by SIGINT."""


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def leave_on_interrupt() -> None:
    """End the process immediately and silently at Ctrl-C: nothing has been started that must be stopped."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the parent process set its own handler
        signal.signal(signal.SIGINT, _leave)


def interrupt_as_usual() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt` again, so that asyncio shuts down in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the command line."""
    leave_on_interrupt()
    from cli import main as run

    run()
