"""How an answer is sent: at which pace, up to where, and what happens when the client hangs up."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict

from devstack.upstream.behaviour import Behaviour
from devstack.upstream.dialects import WIRES, Wire
from devstack.upstream.dialects.event import Event
from devstack.upstream.errors import HTML_PAGE, error_body, error_object
from devstack.upstream.framing import Framer, gzipped
from devstack.upstream.generation import Generation
from devstack.upstream.raw_json import dumps
from devstack.upstream.records import Call
from devstack.upstream.requests import Dialect
from devstack.upstream.usage import add_usage, usage_of

JSON: Final = "application/json"
SOUND: Final = "audio/mpeg"
STREAM: Final = "text/event-stream; charset=utf-8"
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Stopped(Exception):
    """The client hung up, and nothing more is produced."""


class Broken(Exception):
    """The connection was closed on purpose."""


def answer_headers(dialect: Dialect, generation_id: str) -> CIMultiDict[str]:
    """Headers of every answer of a dialect, as the provider sends them."""
    if dialect is Dialect.MESSAGES:
        return CIMultiDict(
            {
                "request-id": f"req_{generation_id}",
                "anthropic-organization-id": "devstack",
                "anthropic-ratelimit-requests-limit": "10000",
                "anthropic-ratelimit-requests-remaining": "9999",
                "X-Generation-Id": generation_id,
            }
        )
    return CIMultiDict(
        {
            "x-request-id": f"req_{generation_id}",
            "openai-organization": "devstack",
            "openai-processing-ms": "1",
            "openai-version": "2020-10-01",
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9999",
            "x-ratelimit-reset-requests": "6ms",
            "X-Generation-Id": generation_id,
        }
    )


class Delivery:
    """One answer on its way. `hang_up` is called when the client has hung up."""

    def __init__(self, request: web.Request, call: Call, generation: Generation, *, drains: bool) -> None:
        self._request = request
        self._call = call
        self._generation = generation
        self._behaviour: Behaviour = generation.asked.behaviour
        self._drains = self._behaviour.on_abort == "drain" if self._behaviour.on_abort else drains
        self._wire: Wire = WIRES[generation.asked.dialect]
        self._hung_up = asyncio.Event()

    def hang_up(self) -> None:
        """The client hung up: stop, or go on without it."""
        self._call.hung_up = True
        self._hung_up.set()

    async def run(self) -> web.StreamResponse | None:
        """Send the answer; None when there is no client left to get one."""
        try:
            await self._pause(self._behaviour.delay)
            early = self._early()
            if early is not None:
                return early
            self._call.is_billed = True
            return await (self._stream() if self._generation.asked.stream else self._whole())
        except Stopped:
            self._call.was_cancelled = True
            return None

    # -- what is no generation

    def _early(self) -> web.Response | None:
        behaviour = self._behaviour
        asked = self._generation.asked
        if behaviour.redirect is not None:
            return self._response(b"", JSON, behaviour.status or 302, {"Location": behaviour.redirect})
        if behaviour.html:
            return self._response(HTML_PAGE, "text/html; charset=utf-8", behaviour.status or 502)
        if behaviour.refuse_stream_options and "stream_options" in asked.body:
            message = "Unrecognized request argument supplied: stream_options"
            return self._error(400, error_object(asked.dialect, 400, message, "stream_options"))
        if behaviour.status is not None:
            return self._error(behaviour.status, error_object(asked.dialect, behaviour.status))
        if behaviour.error_in_200 and not asked.stream:
            return self._error(200, error_object(asked.dialect, 500))
        return None

    def _error(self, status: int, error: dict[str, Any]) -> web.Response:
        behaviour = self._behaviour
        body = error_body(self._generation.asked.dialect, error, f"req_{self._generation.id}")
        if behaviour.error_usage:
            self._call.is_billed = True
            add_usage(body, usage_of(self._generation))
        more = {} if behaviour.retry_after is None else {"Retry-After": str(behaviour.retry_after)}
        return self._response(dumps(body), JSON, status, more)

    # -- one document

    async def _whole(self) -> web.StreamResponse:
        behaviour = self._behaviour
        generation = self._generation
        whole = generation.whole.output
        if behaviour.stall_after is not None:
            await self._produce(min(behaviour.stall_after, whole))
            await self._stall()
        limit = whole if behaviour.break_after is None else min(behaviour.break_after, whole)
        await self._produce(limit)
        body = dumps(self._wire.document(generation))
        if behaviour.break_after is None:
            return self._response(body, JSON, 200)
        response = web.StreamResponse(status=200, headers=self._headers(JSON))
        response.content_length = len(body)
        self._call.status = 200
        await response.prepare(self._request)
        # The usage is near the end of the document: all but the last byte has it.
        length = len(body) - 1 if behaviour.usage_before_break else len(body) // 2
        with suppress(Broken):
            await self._write(response, body[:length])
            self._break_off()
        return response

    async def _produce(self, output: int) -> None:
        """Produce up to so many tokens, at the pace of the behaviour."""
        generation = self._generation
        rate = self._behaviour.tokens_per_second
        while rate is not None and generation.produced < output:
            await self._pause(1 / rate)
            generation.produced += 1
        generation.produced = output

    # -- a stream

    async def _stream(self) -> web.StreamResponse:
        body = self._generation.asked.body
        is_sound = self._generation.asked.dialect is Dialect.SPEECH and body.get("stream_format") != "sse"
        headers = self._headers(SOUND if is_sound else STREAM)
        headers["Cache-Control"] = "no-cache"
        if self._behaviour.gzip:
            headers["Content-Encoding"] = "gzip"
        response = web.StreamResponse(status=200, headers=headers)
        self._call.status = 200
        with suppress(ConnectionError):
            await response.prepare(self._request)
        framer = Framer(self._behaviour)
        with suppress(Broken):
            for event in self._events():
                if isinstance(event, float):
                    await self._pause(event)
                elif event is None:
                    await self._stall()
                else:
                    content = event.data if isinstance(event.data, bytes) else framer.frame(event)
                    for piece in framer.pieces(content):
                        await self._write(response, piece)
                    self._generation.produced += event.tokens
            for piece in framer.end():
                await self._write(response, piece)
        return response

    def _events(self) -> Iterator[Event | float | None]:
        """Events to send; seconds to wait before the next; None to stall. Raises `Broken` where that is asked for."""
        behaviour = self._behaviour
        generation = self._generation
        rate = behaviour.tokens_per_second
        if behaviour.error_in_200:
            self._call.is_billed = behaviour.error_usage
            yield from self._error_events(only=True)
            return
        stalls = behaviour.stall_after is not None
        for event in self._wire.events(generation):
            if stalls and self._has_reached(behaviour.stall_after, event):
                stalls = False
                yield None
            if self._has_reached(behaviour.error_after, event):
                yield from self._error_events()
                return
            if self._has_reached(behaviour.break_after, event):
                if behaviour.usage_before_break:
                    yield from self._wire.usage_events(generation)
                self._break_off()
            if rate is not None and event.tokens:
                yield event.tokens / rate
            if behaviour.done or not event.is_last:
                yield event

    def _has_reached(self, limit: int | None, event: Event) -> bool:
        # What opens a stream still leaves where nothing at all is to be produced.
        return limit is not None and self._generation.produced >= limit and (limit > 0 or event.tokens > 0)

    def _error_events(self, *, only: bool = False) -> Iterator[Event]:
        dialect = self._generation.asked.dialect
        error = error_object(dialect, 529 if dialect is Dialect.MESSAGES else 500)
        if only and dialect in (Dialect.CHAT, Dialect.COMPLETIONS):
            body = error_body(dialect, error, "")
            yield Event(add_usage(body, usage_of(self._generation)) if self._behaviour.error_usage else body)
            return
        for event in self._wire.error_events(self._generation, error):
            if self._behaviour.done or event.data != "[DONE]":
                yield event

    # -- the connection

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if self._hung_up.is_set():
            self._leave_or_go_on()
            return
        try:
            await response.write(data)
            if self._behaviour.chunk_bytes is not None:
                await asyncio.sleep(0)  # otherwise the pieces leave together
        except ConnectionError:
            self.hang_up()
            self._leave_or_go_on()

    async def _pause(self, seconds: float) -> None:
        """Wait; raises `Stopped` as soon as the client hangs up, unless the generation goes on without it."""
        if seconds <= 0:
            return
        if self._drains:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hung_up.wait()
                raise Stopped

    async def _stall(self) -> None:
        await self._hung_up.wait()
        self._leave_or_go_on()

    def _leave_or_go_on(self) -> None:
        if not self._drains:
            raise Stopped

    def _break_off(self) -> None:
        """Close the connection after what was written. Raises `Broken`."""
        transport = self._request.transport
        if transport is not None:
            if self._behaviour.reset:
                sock: socket.socket = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                transport.abort()
            else:
                transport.close()
        raise Broken

    def _response(
        self, body: bytes, content_type: str, status: int, more: dict[str, str] | None = None
    ) -> web.Response:
        headers = self._headers(content_type)
        headers.update(more or {})
        if self._behaviour.gzip:
            body = gzipped(body)
            headers["Content-Encoding"] = "gzip"
        self._call.status = status
        return web.Response(body=body, status=status, headers=headers)

    def _headers(self, content_type: str) -> CIMultiDict[str]:
        headers = answer_headers(self._generation.asked.dialect, self._generation.id)
        headers["Content-Type"] = content_type
        for name, value in self._behaviour.headers:
            headers.add(name, value)
        if self._behaviour.echo_key:
            sent = self._request.headers
            headers["X-Upstream-Key"] = sent.get("Authorization") or sent.get("x-api-key") or ""
        return headers
