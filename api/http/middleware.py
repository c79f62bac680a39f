"""Middleware around every request: request id, log line, time limits, cross-site protection."""

from __future__ import annotations

import asyncio
import re
import time
from email.utils import format_datetime
from secrets import token_hex
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import (
    BAD_REQUEST,
    BODY_TOO_LARGE,
    BODY_TOO_SLOW,
    CROSS_SITE_REQUEST,
    INTERNAL,
    OUT_OF_TIME,
    RETRY_AFTER_UNAVAILABLE_SECONDS,
    ProblemKind,
    problem_response,
)
from db.clock import estimated_now
from telemetry.metrics.api import REQUEST_SECONDS, REQUESTS

REQUEST_ID_HEADER: Final = "X-Request-ID"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

BODY_SECONDS_MAX: Final = 10.0
DRAINED_BYTES_MAX: Final = 2**20
DRAIN_SECONDS_MAX: Final = 2.0
ANSWER_SECONDS_MAX: Final = 25.0
"""Limit until the response's head: a concurrency slot takes up to 10 s, a submission waits 3 s for a worker, a lock 5
s, a dead node costs 8 s. Pages have a lower limit (`api.pages.credits`).
"""

CONTENT_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with that, a browser sends the origin "null" with a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin-allow-popups",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
}
HTTPS_ONLY: Final = "max-age=31536000"

log = structlog.get_logger(__name__)


class RequestContext:
    """Outermost middleware: assigns the request id, counts and logs the request, and answers uncaught errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app inside the request's context."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                REQUEST_SECONDS.labels(route=_route(scope)).observe(time.perf_counter() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request failed", method=scope["method"], route=_route(scope))
            if status is None:
                response = problem_response(INTERNAL, INTERNAL.title, request_id=request_id)
                await response(scope, receive, send_with_id)
        finally:
            # 499, as proxies log it: the client disconnected before the answer.
            answered = status or 499
            REQUESTS.labels(method=_method(scope), route=_route(scope), status=answered).inc()
            log.info(
                "request",
                method=_method(scope),
                route=_route(scope),
                status=answered,
                milliseconds=round((time.perf_counter() - started) * 1000, 1),
            )


def _route(scope: Scope) -> str:
    """The route's template, so that ids do not become metric labels."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "none"


def _method(scope: Scope) -> str:
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return scope["method"] if scope["method"] in known else "other"


class SecurityHeaders:
    """Headers of every response; without an explicit cache policy it is not stored."""

    def __init__(self, app: ASGIApp, *, is_secure: bool) -> None:
        self._app = app
        self._headers = SECURITY_HEADERS | ({"Strict-Transport-Security": HTTPS_ONLY} if is_secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, adding the headers to its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                # The page uses it, because intents expire by the database's clock, not this host's.
                headers["Date"] = format_datetime(estimated_now(), usegmt=True)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class SameOriginOnly:
    """Refuses cross-site requests that change state, whatever cookie they carry.

    Browsers send the origin of a request (`Sec-Fetch-Site`, else `Origin`); a program that sends neither has no other
    user's cookie.
    """

    def __init__(self, app: ASGIApp, *, origin: str) -> None:
        self._app = app
        self._origin = _origin(origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, or refuse."""
        if (
            scope["type"] == "http"
            and scope["method"] not in SAFE_METHODS
            and not self._is_allowed(Headers(scope=scope))
        ):
            await _refuse(CROSS_SITE_REQUEST, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        fetched_from = headers.get("sec-fetch-site")
        if fetched_from is not None and fetched_from not in {"same-origin", "none"}:
            return False
        origin = headers.get("origin")
        # The browser's own "same origin" counts although our name for it differs.
        return fetched_from == "same-origin" or origin is None or _origin(origin) == self._origin


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port; None for an invalid address, such as the origin "null"."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


class HeadAsGet:
    """Answers HEAD wherever GET is answered: the same status and headers, and no body.

    The response ends after its head. A handler that would go on writing, such as an event stream, sees a disconnect.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app as if it were GET."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        is_over = False

        async def send_head(message: Message) -> None:
            nonlocal is_over
            if message["type"] == "http.response.start":
                if message["status"] == 405:
                    _allow_head(MutableHeaders(scope=message))
                await send(message)
                if is_head:
                    is_over = True
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif not is_over:
                await send(message)

        async def receive_until_over() -> Message:
            return {"type": "http.disconnect"} if is_over else await receive()

        if not is_head:
            await self._app(scope, receive, send_head)
            return
        # In place: the router stores the route in it, by which the request is counted and logged.
        scope["method"] = "GET"
        try:
            await self._app(scope, receive_until_over, send_head)
        finally:
            scope["method"] = "HEAD"


def _allow_head(headers: MutableHeaders) -> None:
    allowed = [method.strip() for method in headers.get("Allow", "").split(",")]
    if "GET" in allowed and "HEAD" not in allowed:
        headers["Allow"] = ", ".join([*allowed, "HEAD"])


class ResponseTimeout:
    """Response timeout: bounds how long an answer may take to begin, whatever the handler does when it is cancelled.

    The timeout is answered concurrently with the handler, whose later messages are dropped. The handler may clean up in
    its own task for as long as it takes.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and answer in its place when the time is up."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answering: asyncio.Task[None] | None = None

        def answer_instead() -> None:
            nonlocal answering
            answering = asyncio.create_task(_refuse(OUT_OF_TIME, scope, receive, send))

        async def send_unless_late(message: Message) -> None:
            if answering is not None:
                return
            if message["type"] == "http.response.start":
                limit.reschedule(None)
                instead.cancel()
            await send(message)

        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        instead = loop.call_at(until, answer_instead)
        try:
            async with asyncio.timeout_at(until) as limit:
                await self._app(scope, receive, send_unless_late)
        except Exception as error:
            if answering is None:
                raise
            if not isinstance(error, TimeoutError):
                log.warning("request failed after its timeout", error=type(error).__name__)
        finally:
            instead.cancel()
            if answering is not None:
                await answering


class RequestLimits:
    """Bounds a body's announced size, and the time it may take.

    A body that exceeds its announced size, or has none, is stopped where it is read (`max_body_size` of the app).
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int, body_seconds: float) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app within the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # Two servers may disagree about where such a request ends (RFC 9112, 6.1).
            await _refuse(BAD_REQUEST, scope, receive, send, headers={"Connection": "close"})
            return
        declared = headers.get("content-length", "")
        has_body = declared not in {"", "0"} or "transfer-encoding" in headers
        loop = asyncio.get_running_loop()
        body_until = loop.time() + self._body_seconds
        has_begun = False
        is_slow_body = False

        async def receive_in_time() -> Message:
            nonlocal has_body, is_slow_body
            if not has_body:
                return await receive()
            try:
                async with asyncio.timeout_at(body_until):
                    message = await receive()
            except TimeoutError:
                is_slow_body = True
                raise
            has_body = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                if has_body and not await self._drain(receive_in_time):
                    # Otherwise the server would read an unread body without end, to reuse the connection.
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            if declared.isdecimal() and int(declared[:20]) > self._body_bytes:
                await _refuse(BODY_TOO_LARGE, scope, receive_in_time, send_and_note)
            else:
                await self._app(scope, receive_in_time, send_and_note)
        except TimeoutError:
            if has_begun or not is_slow_body:
                raise
            await _refuse(BODY_TOO_SLOW, scope, receive, send)

    async def _drain(self, receive: Receive) -> bool:
        """Drain the rest of a body that is answered already; False where it does not end soon.

        Closing a connection on which the other side still writes loses the answer.
        """
        left = DRAINED_BYTES_MAX
        try:
            async with asyncio.timeout(DRAIN_SECONDS_MAX):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return True
        except TimeoutError:
            pass
        return False


async def _refuse(
    kind: ProblemKind, scope: Scope, receive: Receive, send: Send, *, headers: dict[str, str] | None = None
) -> None:
    if kind.status == 503:
        headers = {"Retry-After": str(RETRY_AFTER_UNAVAILABLE_SECONDS)}
    response = problem_response(kind, kind.title, request_id=scope["state"]["request_id"], headers=headers)
    await response(scope, receive, send)
