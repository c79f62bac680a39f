"""Connections: bounded in number, and those that keep the gateway waiting in time, and no others with them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from devstack.upstream import Behaviour
from domain.billing.upstreams import read_upstreams
from domain.errors import ConfigurationError
from gateway import server
from gateway.process import GatewayOptions, run_gateway
from tests.gateway.support import PATIENCE_SECONDS, POLICY, Served, chat, served, until, upstreams_document
from tests.support.postgres import Database

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
        with suppress(ConnectionResetError):  # a byte was on its way when the gateway closed
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


def request_of(gateway: Served, path: str = "/v1/chat/completions", **fields: Any) -> bytes:
    """A call as it goes over the connection."""
    body = json.dumps(chat(**fields)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {gateway.client.key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def full(database: Database) -> AsyncIterator[tuple[Served, asyncio.StreamWriter]]:
    """A gateway with as many calls as it may have connections, which is two; and the connection of one of them."""
    async with (
        served(database, connections_max=2) as gateway,
        connected(gateway) as (_, writer),
        connected(gateway) as (_, other),
    ):
        gateway.upstream.order(Behaviour(stall_after=0), requests=2)
        for caller in (writer, other):
            caller.write(request_of(gateway))
        await until(lambda: len(gateway.calls()) == 2)
        yield gateway, writer


async def test_a_request_beyond_the_limit_of_connections_is_refused_in_the_shape_of_its_api(database: Database) -> None:
    async with full(database) as (gateway, _):
        for path, kind in (("/v1/chat/completions", "api_error"), ("/v1/messages", "overloaded_error")):
            async with connected(gateway) as (reader, writer):
                writer.write(request_of(gateway, path))
                answer = await answer_of(reader)
                assert await reader.read() == b""
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\n" in head
            assert b"\r\nx-should-retry: true\r\n" in head
            error = json.loads(body)["error"]
            assert (error["type"], error["code"]) == (kind, "too_many_connections")
        assert len(gateway.calls()) == 2


async def test_a_full_gateway_still_says_that_it_is_alive(database: Database) -> None:
    async with full(database) as (gateway, _), connected(gateway) as (reader, writer):
        writer.write(ALIVE)
        assert b"200 OK" in await answer_of(reader)
        # And then makes room for who asks next.
        assert await reader.read() == b""


async def test_when_one_connection_ends_the_next_one_is_served(database: Database) -> None:
    async with full(database) as (gateway, writer):
        writer.close()
        await until(lambda: len(gateway.gateway.tasks) == 1)
        async with connected(gateway) as (reader, again):
            again.write(request_of(gateway))
            assert b"200 OK" in await answer_of(reader)


async def test_a_new_connection_takes_the_place_of_the_one_that_is_idle_for_longest(database: Database) -> None:
    async with (
        served(database, connections_max=2) as gateway,
        connected(gateway) as (longest, first),
        connected(gateway) as (shorter, second),
    ):
        for reader, writer in ((longest, first), (shorter, second)):
            writer.write(ALIVE)
            assert b"200 OK" in await answer_of(reader)
        async with connected(gateway) as (newest, third):
            assert await longest.read() == b""
            for reader, writer in ((newest, third), (shorter, second)):
                writer.write(request_of(gateway))
                assert b"200 OK" in await answer_of(reader)


async def test_a_connection_whose_request_is_on_its_way_is_not_idle(database: Database) -> None:
    async with (
        served(database, connections_max=2) as gateway,
        connected(gateway) as (beginning, first),
        connected(gateway) as (idle, second),
    ):
        first.write(ALIVE[:10])
        second.write(ALIVE)
        assert b"200 OK" in await answer_of(idle)
        async with connected(gateway):
            assert await idle.read() == b""
            first.write(ALIVE[10:])
            assert b"200 OK" in await answer_of(beginning)


async def test_what_is_far_beyond_the_limit_is_closed_without_an_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SURPLUS_MAX", 1)
    async with full(database) as (gateway, _), connected(gateway) as (surplus, writer):
        async with connected(gateway) as (reader, _):
            assert await reader.read() == b""
        writer.write(request_of(gateway))
        assert b"503" in await answer_of(surplus)
        assert await surplus.read() == b""
        # Its place is free again.
        async with connected(gateway) as (again, other):
            other.write(request_of(gateway))
            assert b"503" in await answer_of(again)


FILES = """
import resource
from domain.errors import ConfigurationError
from gateway.server import allow_files
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 3_000))
allow_files(1_000)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
try:
    allow_files(2_000)
except ConfigurationError as error:
    print(error)
"""


async def test_a_process_that_may_not_open_enough_files_does_not_start() -> None:
    options = GatewayOptions(
        database_url="postgresql://127.0.0.1:9/none",
        host="127.0.0.1",
        port=0,
        connections_max=10**9,
        policy=POLICY,
        upstreams=read_upstreams(upstreams_document({"first": "http://127.0.0.1:9"}), where="the test"),
        api_keys={},
    )
    with pytest.raises(ConfigurationError, match="GATEWAY_MAX_CONNECTIONS: got"):
        await run_gateway(options)


def test_the_process_may_open_as_many_files_as_its_connections_need() -> None:
    ran = subprocess.run([sys.executable, "-c", FILES], capture_output=True, text=True, timeout=60, check=True)
    limits, refused = ran.stdout.splitlines()
    assert limits == "2300 3000"
    assert refused.startswith("GATEWAY_MAX_CONNECTIONS: got 2000, ")
