"""Beside the followers of a chain: signed authorizations, from their broadcast to the proof that they never pay."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Final, Self

import structlog

from domain.errors import Unavailable
from services.payments.authorizations import ClaimedAuthorizations

SUBMIT_EVERY_SECONDS: Final = 1.0
"""A payer waits for it."""

END_EVERY_SECONDS: Final = 15.0

log = structlog.get_logger(__name__)


class AuthorizationFollower:
    """Checks as long as its block runs, whatever the followers of the chain wait for."""

    def __init__(self, claims: ClaimedAuthorizations) -> None:
        self._claims = claims
        self._task: asyncio.Task[None] | None = None
        self._ends_at = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="authorizations")
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
                await self._claims.submit_relayed()
                if time.monotonic() >= self._ends_at:
                    await self._claims.end_overdue()
                    await self._claims.end_of_charges()
                    self._ends_at = time.monotonic() + END_EVERY_SECONDS
            except Unavailable as error:
                log.warning("authorizations not checked", error=error.message)
            except Exception:
                # What is due is read again each time: a fault stops neither it nor the followers.
                log.exception("checking authorizations failed")
            await asyncio.sleep(SUBMIT_EVERY_SECONDS)
