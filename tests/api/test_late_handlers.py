"""The limit of an answer's time holds whatever a handler does on its way out."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from api.http.middleware import RequestContext, ResponseTimeout
from api.server import http_server, listen
from devstack.processes import wait_until

ANSWER_SECONDS: Final = 0.3
SECONDS_MAX: Final = 10.0
PATIENCE_SECONDS: Final = 30.0
FINE: Final[list[dict[str, Any]]] = [
    {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]},
    {"type": "http.response.body", "body": b"fine"},
]


class Handler:
    """Sleeps, and when it is cancelled goes on until it is let go; then it does something more."""

    def __init__(self, then: Callable[[Send], Awaitable[None]]) -> None:
        self.let_go = asyncio.Event()
        self.has_ended = asyncio.Event()
        self._then = then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once at `/fast`."""
        if scope["path"] == "/fast":
            await say(send, 200)
            return
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await self.let_go.wait()
            await self._then(send)
        finally:
            self.has_ended.set()


async def say(send: Send, status: int) -> None:
    """A whole answer."""
    await send({**FINE[0], "status": status})
    await send(FINE[1])


async def answers(send: Send) -> None:
    """As if nothing had happened."""
    await say(send, 201)


async def breaks(_: Send) -> None:
    """With a fault of its own."""
    raise ZeroDivisionError("late")


async def ends(_: Send) -> None:
    """Quietly."""


async def is_cancelled(_: Send) -> None:
    """At last."""
    raise asyncio.CancelledError


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """The product's server under an app."""
    with listen("127.0.0.1", 0) as listening:
        server = http_server(app)
        task = asyncio.create_task(server.serve([listening]))
        await wait_until(lambda: server.started, timeout_seconds=PATIENCE_SECONDS, what="server")
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@pytest.mark.parametrize("then", [answers, breaks, ends, is_cancelled])
async def test_the_answer_comes_in_time_and_once_and_what_the_handler_does_later_is_nobodys_news(
    then: Callable[[Send], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler(then)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    app = RequestContext(ResponseTimeout(handler, seconds=ANSWER_SECONDS))
    with capture_logs() as logged:
        # One connection: a second answer to the first request would be taken for the second request's.
        async with served(app) as url, aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=1)) as session:
            started = time.monotonic()
            async with session.get("/") as response:
                assert (response.status, (await response.json(content_type=None))["code"]) == (503, "OUT_OF_TIME")
                assert response.headers["Retry-After"]
            assert time.monotonic() - started < SECONDS_MAX
            assert not handler.has_ended.is_set()
            for _ in range(2):
                async with session.get("/fast") as response:
                    assert (response.status, await response.read()) == (200, b"fine")
                handler.let_go.set()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await handler.has_ended.wait()
    gc.collect()
    asyncio.get_running_loop().set_exception_handler(None)
    assert complaints == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert [line["status"] for line in logged if line["event"] == "request"].count(503) == 1
    assert not [line for line in logged if line["log_level"] == "error"]
    late = [line["error"] for line in logged if line["event"] == "request failed after its timeout"]
    assert late == (["ZeroDivisionError"] if then is breaks else [])


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    may_end = asyncio.Event()

    async def slow(_: Scope, __: Receive, send: Send) -> None:
        await send(FINE[0])
        await may_end.wait()
        await send(FINE[1])

    app = RequestContext(ResponseTimeout(slow, seconds=ANSWER_SECONDS))
    async with served(app) as url, aiohttp.ClientSession(url) as session, session.get("/") as response:
        asyncio.get_running_loop().call_later(4 * ANSWER_SECONDS, may_end.set)
        assert (response.status, await response.read()) == (200, b"fine")


async def test_a_handlers_own_time_limit_is_its_own_fault() -> None:
    async def gives_up(_: Scope, __: Receive, ___: Send) -> None:
        raise TimeoutError

    app = RequestContext(ResponseTimeout(gives_up, seconds=60))
    async with served(app) as url, aiohttp.ClientSession(url) as session, session.get("/") as response:
        assert (response.status, (await response.json(content_type=None))["code"]) == (500, "INTERNAL")
