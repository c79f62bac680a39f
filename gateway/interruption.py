"""What of a call can be given up at any time: waiting for its upstream, never a statement to the database."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from domain.billing.charges import CallEnd

T = TypeVar("T")


class Interrupted(Exception):
    """The client left, or the process ends."""


class Interruption:
    """Of one call's task: whether it is to end now, and why."""

    def __init__(self) -> None:
        self.by: CallEnd | None = None
        """Why the call is to end; the first reason counts."""
        self._task: asyncio.Task[object] | None = None
        self._is_possible = False

    def begin(self) -> None:
        """The current task is the call's."""
        self._task = asyncio.current_task()

    def interrupt(self, end: CallEnd) -> None:
        """End now what can be interrupted, or what will be next."""
        self.by = self.by or end
        if self._is_possible and self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def interruptibly(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what may be given up at any time. Raises `Interrupted`."""
        if self.by is not None:
            work.close()
            raise Interrupted
        self._is_possible = True
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.by is None or task is None:
                raise
            task.uncancel()
            raise Interrupted from None
        finally:
            self._is_possible = False

    def stop_where_interrupted(self) -> None:
        """What the task itself has interrupted ends as by an interruption from outside. Raises `Interrupted`."""
        if self._is_possible and self.by is not None:
            raise Interrupted
