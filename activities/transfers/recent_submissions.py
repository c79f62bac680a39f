"""Beside the followers of a chain: hashes that were recorded and have no run, because their sender died in between."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

import structlog

from domain.errors import Unavailable
from services.payments.recovery import RecentSubmissions

EVERY_SECONDS: Final = 15.0
"""With `services.payments.recovery.STRANDED_AFTER`, a run is started within half a minute."""

log = structlog.get_logger(__name__)


class SubmissionFollower:
    """Checks as long as its block runs, whatever the chain's nodes do."""

    def __init__(self, recent: RecentSubmissions) -> None:
        self._recent = recent
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="recent submissions")
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        while True:
            try:
                await self._recent.check()
            except Unavailable as error:
                log.warning("recent submissions not checked", error=error.message)
            except Exception:
                # The next check starts where this one did: a fault stops neither it nor the followers.
                log.exception("checking recent submissions failed")
            await asyncio.sleep(EVERY_SECONDS)
