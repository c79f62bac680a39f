"""A payment's progress as server-sent events: one event per change, with keep-alive comments in between."""

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
"""Longest life of a stream, after which the browser reconnects; an unread stream does not stay indefinitely."""

KEEPALIVE_SECONDS: Final = 15.0
SESSION_CHECK_SECONDS: Final = 2.0
"""How long a stream may outlive its session. A check costs half a read (0.4 ms), and shares their limit."""

TICK_SECONDS_MIN: Final = 0.25
TICK_SECONDS_MAX: Final = 2.0
UNPAID_TICK_SECONDS: Final = 5.0
"""Poll interval before a hash is submitted: every change comes from the submitter's own requests."""

RETRY_MILLISECONDS: Final = 2_000
"""When the browser reconnects after a stream has ended without a final status."""


class EventStream(StreamingResponse):
    """Response of events that holds a stream slot while it is sent, and releases it in any case."""

    def __init__(self, events: AsyncIterator[bytes], place: AbstractContextManager[None]) -> None:
        # Proxies that buffer responses would delay the events.
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Raises `RateLimited` before the first byte where no slot is free."""
        with self._place:
            await super().__call__(scope, receive, send)


async def attempt_events(
    services: Services, request: Request, session: Session, attempt_id: UUID, first: AttemptView
) -> AsyncIterator[bytes]:
    """The attempt's view now and at every change, until it is final, the session ends, or the process stops."""
    tick_seconds = min(max(services.settings.block_time.total_seconds() / 2, TICK_SECONDS_MIN), TICK_SECONDS_MAX)
    view = first
    yield _event(view, retry=RETRY_MILLISECONDS)
    started = said = time.monotonic()
    check_at, read_at = started + SESSION_CHECK_SECONDS, started + _pause_seconds(view, tick_seconds)
    while view.client_status is ClientStatus.PENDING_VERIFICATION and time.monotonic() - started < STREAM_SECONDS_MAX:
        pause_seconds = min(check_at, read_at) - time.monotonic()
        if await happens(services.stopping.wait, within_seconds=pause_seconds):
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
            now = view  # no news; the next read may have some
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
    """The part of a view whose change is an event: not the time of the next poll."""
    return view.model_copy(update={"next_look_at": None})


def _event(view: AttemptView, *, retry: int | None = None) -> bytes:
    return format_sse_event(event="status", data_str=view.model_dump_json(by_alias=True), retry=retry)


async def _is_still_signed_in(services: Services, request: Request) -> bool:
    try:
        async with services.streams.reading():
            return await find_session(services, request) is not None
    except (Unavailable, TimeoutError):
        return True  # an unanswered check does not end the session


async def happens(wait: Callable[[], Awaitable[object]], *, within_seconds: float) -> bool:
    """Whether what is waited for happens in time."""
    try:
        async with asyncio.timeout(within_seconds):
            await wait()
    except TimeoutError:
        return False
    return True
