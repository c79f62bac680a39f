"""Connections that keep the gateway waiting: bounded in time, and no others with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from gateway import server
from tests.gateway.support import PATIENCE_SECONDS, Served, chat

ALIVE = b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.fixture
def head_seconds(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a head may take in the test."""
    seconds = 0.3
    monkeypatch.setattr(server, "HEAD_SECONDS_MAX", seconds)
    return seconds


@asynccontextmanager
async def connected(gateway: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which nothing has been sent."""
    url = urlsplit(gateway.client.url)
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """A whole answer; empty where the connection is closed without one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(int(length.split(b":")[1]))


async def another_is_given_up(gateway: Served) -> None:
    """The time that a head may take has passed once more."""
    async with connected(gateway) as (reader, _):
        assert await reader.read() == b""


@pytest.mark.usefixtures("head_seconds")
@pytest.mark.parametrize("before", [b"", ALIVE], ids=["the first", "the next"])
async def test_a_head_that_comes_byte_by_byte_is_given_up(gateway: Served, before: bytes) -> None:
    async with connected(gateway) as (reader, writer):
        if before:
            writer.write(before)
            assert b"200 OK" in await answer_of(reader)
        closed = asyncio.create_task(answer_of(reader))
        rest = list(b"POST /v1/chat/completions HTTP/1.1\r\nX-Filler: " + b"a" * 4_000)
        # Each byte comes long before the limit, and none extends it.
        while rest and not closed.done():
            writer.write(bytes([rest.pop(0)]))
            await asyncio.wait([closed], timeout=0.02)
        assert rest
        assert await closed == b""
    assert (await gateway.client.get("/livez")).status == 200


@pytest.mark.usefixtures("head_seconds")
async def test_a_connection_on_which_nothing_comes_is_given_up(gateway: Served) -> None:
    await another_is_given_up(gateway)


@pytest.mark.usefixtures("head_seconds")
async def test_an_idle_connection_between_requests_and_a_slow_body_have_their_own_limits(gateway: Served) -> None:
    body = json.dumps(chat()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {gateway.client.key}\r\n"
    async with connected(gateway) as (reader, writer):
        writer.write(ALIVE)
        assert b"200 OK" in await answer_of(reader)
        await another_is_given_up(gateway)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        await another_is_given_up(gateway)
        writer.write(body[10:])
        answer = await answer_of(reader)
    assert b"200 OK" in answer
    assert gateway.books.states() == ["captured"]
