"""A payment's progress as server-sent events: an event when something has changed, and silence that is kept alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Final
from uuid import UUID

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Receive, Scope, Send

from api.accounts.sessions import find_session
from api.resources import Services
from db.accounts.sessions import Session
from domain.errors import Unavailable
from domain.payments.attempt import AttemptStatus, ClientStatus
from starter.models import AttemptView

STREAM_SECONDS_MAX: Final = 600.0
"""Then the browser comes again by itself; a stream that nobody reads does not stay for ever."""

KEEPALIVE_SECONDS: Final = 15.0
SESSION_CHECK_SECONDS: Final = 2.0
"""How long a stream may outlive its session. A check costs half a reading (0.4 ms), and waits its turn with them."""

TICK_SECONDS_MIN: Final = 0.25
TICK_SECONDS_MAX: Final = 2.0
UNPAID_TICK_SECONDS: Final = 5.0
"""Until a hash is submitted nothing happens that the submitter does not hear from the submission's own answer."""

RETRY_MILLISECONDS: Final = 2_000
"""When the browser comes again after a stream has ended without a final status."""


class EventStream(StreamingResponse):
    """A stream of events, which holds one of the places for streams while it is sent, and whatever becomes of it."""

    def __init__(self, events: AsyncIterator[bytes], place: AbstractContextManager[None]) -> None:
        # Proxies that collect a response before they pass it on would make nothing of it.
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Raises `RateLimited`, before anything is sent, where no place is free."""
        with self._place:
            await super().__call__(scope, receive, send)


async def attempt_events(
    services: Services, request: Request, session: Session, attempt_id: UUID, first: AttemptView
) -> AsyncIterator[bytes]:
    """The attempt's view now and whenever it changes, until it is final, the session ends, or the process stops."""
    tick_seconds = min(max(services.settings.block_time.total_seconds() / 2, TICK_SECONDS_MIN), TICK_SECONDS_MAX)
    view = first
    yield _event(view, retry=RETRY_MILLISECONDS)
    started = said = time.monotonic()
    check_at, read_at = started + SESSION_CHECK_SECONDS, started + _pause_seconds(view, tick_seconds)
    while view.client_status is ClientStatus.PENDING_VERIFICATION and time.monotonic() - started < STREAM_SECONDS_MAX:
        pause_seconds = min(check_at, read_at) - time.monotonic()
        if await _happens(services.stopping.wait, within_seconds=pause_seconds):
            return
        if time.monotonic() >= check_at:
            if not await _is_still_signed_in(services, request):
                return
            check_at = time.monotonic() + SESSION_CHECK_SECONDS
        if time.monotonic() < read_at:
            continue
        try:
            async with services.streams.reading():
                now = await services.payments.status(session.user_id, attempt_id)
        except (Unavailable, TimeoutError):
            now = view  # nothing new is known; it may be soon
        if _tells(now) != _tells(view):
            view, said = now, time.monotonic()
            yield _event(view)
        elif time.monotonic() - said >= KEEPALIVE_SECONDS:
            said = time.monotonic()
            yield format_sse_event(comment="waiting")
        read_at = time.monotonic() + _pause_seconds(view, tick_seconds)


def _pause_seconds(view: AttemptView, tick_seconds: float) -> float:
    is_unpaid = view.status is AttemptStatus.CREATED_INTENT
    return max(tick_seconds, UNPAID_TICK_SECONDS) if is_unpaid else tick_seconds


def _tells(view: AttemptView) -> AttemptView:
    """What is worth an event: not when the chain is looked at next."""
    return view.model_copy(update={"next_look_at": None})


def _event(view: AttemptView, *, retry: int | None = None) -> bytes:
    return format_sse_event(event="status", data_str=view.model_dump_json(by_alias=True), retry=retry)


async def _is_still_signed_in(services: Services, request: Request) -> bool:
    try:
        async with services.streams.reading():
            return await find_session(services, request) is not None
    except (Unavailable, TimeoutError):
        return True  # who cannot be asked after has not signed out, as far as is known


async def _happens(wait: Callable[[], Awaitable[object]], *, within_seconds: float) -> bool:
    try:
        async with asyncio.timeout(within_seconds):
            await wait()
    except TimeoutError:
        return False
    return True
