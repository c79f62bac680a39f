"""When a call may be interrupted, and by what: a client that leaves or takes nothing, and a process that ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest

from devstack.upstream.records import Call
from domain.billing.charges import CallEnd
from gateway import call as call_module
from gateway import draining
from gateway import process as process_module
from gateway.process import let_calls_end
from gateway.upstream_client import UpstreamClient
from tests.gateway.support import PATIENCE_SECONDS, Served, chat, faulty, served, until
from tests.support.postgres import Database
from tests.support.sql import scalar

SLOW: dict[str, Any] = {"tokens": 2_000, "tokens_per_second": 200}

WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%' || %s || '%%'"


@asynccontextmanager
async def account_locked(gateway: Served) -> AsyncIterator[None]:
    """Another transaction has the account's row while the block runs: no hold and no charge ends in it."""
    database = gateway.books.database
    async with await psycopg.AsyncConnection.connect(database.superuser_url) as blocker:
        await blocker.execute("SELECT FROM billing_accounts WHERE id = %s FOR UPDATE", (gateway.account.id,))
        yield


async def waits_for(gateway: Served, function: str) -> None:
    """A call has come as far as this statement, and waits."""
    await until(lambda: scalar(gateway.books.database.superuser_url, WAITS, function))


async def read_some(response: aiohttp.ClientResponse, events: int = 3) -> None:
    """The first events of a stream."""
    for _ in range(events):
        await response.content.readuntil(b"\n\n")


async def test_who_hangs_up_while_credits_are_held_has_asked_no_upstream(gateway: Served) -> None:
    async with account_locked(gateway):
        post = asyncio.create_task(gateway.client.post(chat()))
        await waits_for(gateway, "hold_credits")
        post.cancel()
        await until(lambda: all(call._has_left for call in gateway.gateway.calls) and post.done())
    await gateway.is_quiet()
    assert not gateway.calls()
    assert gateway.books.states() in ([], ["voided"])
    assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


async def test_who_hangs_up_during_the_charge_is_charged(gateway: Served) -> None:
    post = asyncio.create_task(gateway.client.post(faulty(delay=0.3)))
    await until(gateway.calls)
    async with account_locked(gateway):
        await waits_for(gateway, "capture_hold")
        [call] = gateway.gateway.calls
        post.cancel()
        await until(lambda: call._has_left)
    await gateway.is_quiet()
    assert gateway.books.states() == ["captured"]
    assert gateway.books.receipt()["charge_reason"] == "completed"


async def take_nothing(gateway: Served) -> Call:
    """A client that stays, and reads nothing of its stream; what its upstream has got."""
    url = urlsplit(gateway.client.url)
    # Repeated word by word: more than all buffers between the two take.
    body = chat(" ".join(["w" * 65_000] * 200), stream=True, max_tokens=400)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect((url.hostname, url.port))
        await asyncio.to_thread(client.sendall, request_of(gateway, "POST", "/v1/chat/completions", body))
        await until(gateway.calls)
        await gateway.is_quiet()
        [call] = gateway.calls()
        await until(lambda: call.has_ended)
    return call


async def test_who_takes_nothing_has_left(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "CLIENT_WRITE_SECONDS_MAX", 0.2)
    call = await take_nothing(gateway)
    assert call.was_cancelled
    receipt = gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["estimated"]) == ("client_left", True)
    assert gateway.books.balance(gateway.account.id) == (10_000_000 - receipt["charged_credits"], 0)


async def test_who_takes_nothing_pays_all_where_the_upstream_bills_all(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_module, "CLIENT_WRITE_SECONDS_MAX", 0.2)
    async with served(database, drains=True) as gateway:
        call = await take_nothing(gateway)
        assert not call.was_cancelled
        receipt = gateway.books.receipt()
        assert (receipt["charge_reason"], receipt["estimated"]) == ("client_left", False)
        assert receipt["output_tokens"] == call.billed.output
        assert gateway.gateway.drains.running == 0


async def test_the_first_reason_to_end_a_call_counts(gateway: Served) -> None:
    async with gateway.client.open(faulty(stream=True, **SLOW)) as response:
        await read_some(response)
        [call] = gateway.gateway.calls
        call.leave()
        call.interrupt(CallEnd.GATEWAY_DIED)
        await gateway.is_quiet()
    assert gateway.books.receipt()["charge_reason"] == "client_left"


async def test_an_answer_with_a_client_has_no_bound_of_bytes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "DRAIN_BYTES_MAX", 1_000)
    async with served(database, drains=True) as gateway:
        answer = await gateway.client.post(faulty(stream=True, tokens=100))
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert gateway.books.receipt()["charge_reason"] == "completed"


async def test_who_leaves_twice_takes_one_place(database: Database) -> None:
    async with served(database, drains=True) as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=50, tokens_per_second=200)) as response:
            await read_some(response)
            [call] = gateway.gateway.calls
            call.leave()
            assert gateway.gateway.drains.running == 1
            # As by a write that fails before the connection is seen to be closed.
            response.close()
            call.leave()
            assert gateway.gateway.drains.running == 1
        await gateway.is_quiet()
        assert gateway.gateway.drains.running == 0


async def test_what_no_upstream_has_got_is_not_waited_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    is_connecting = asyncio.Event()

    async def connect(*_: object, **__: object) -> aiohttp.ClientResponse:
        is_connecting.set()
        await asyncio.Event().wait()
        raise AssertionError("interrupted before")

    monkeypatch.setattr(UpstreamClient, "send", connect)
    async with served(database, drains=True) as gateway:
        post = asyncio.create_task(gateway.client.post(chat()))
        await is_connecting.wait()
        post.cancel()
        await gateway.is_quiet()
        assert gateway.books.states() == ["voided"]


async def test_a_stream_with_an_idempotency_key_is_not_produced_without_a_client(gateway: Served) -> None:
    async with gateway.client.open(faulty(stream=True, **SLOW), Idempotency_Key="order-7") as response:
        await read_some(response)
        response.close()
    await gateway.is_quiet()
    [call] = gateway.calls()
    await until(lambda: call.has_ended)
    assert call.was_cancelled
    assert gateway.books.receipt()["charge_reason"] == "client_left"


# -- the process ends


async def test_open_calls_may_end_and_others_are_charged_for_what_was_produced(gateway: Served) -> None:
    short = asyncio.create_task(gateway.client.post(faulty(delay=0.3)))
    async with gateway.client.open(faulty(stream=True, tokens=100_000, tokens_per_second=100)) as response:
        await read_some(response)
        await asyncio.wait_for(let_calls_end(gateway.gateway, seconds=1.0), PATIENCE_SECONDS)
        assert gateway.gateway.tasks == set()
        assert gateway.books.states() == ["captured", "captured"]
        rest = await response.content.read()
    assert b"The gateway is stopping" in rest
    assert (await short).status == 200
    assert sorted(receipt["charge_reason"] for receipt in gateway.books.receipts()) == ["completed", "gateway_died"]


async def test_charges_that_take_too_long_are_left_to_be_resolved(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "SHUTDOWN_CHARGES_SECONDS", 0.1)
    post = asyncio.create_task(gateway.client.post(faulty(delay=60)))
    await until(gateway.calls)
    async with account_locked(gateway):
        await asyncio.wait_for(let_calls_end(gateway.gateway, seconds=0.05), 10)
        assert gateway.books.states() == ["held"]
    await post
    await gateway.is_quiet()


async def test_a_process_that_ends_refuses_calls_on_connections_that_are_open(database: Database) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(served(database))
        url = urlsplit(gateway.client.url)
        (reader, writer), (kept_reader, kept_writer) = [
            await asyncio.open_connection(url.hostname, url.port) for _ in range(2)
        ]
        kept_writer.write(request_of(gateway, "GET", "/livez"))
        await kept_reader.readuntil(b'"ok"}')
        writer.write(request_of(gateway, "POST", "/v1/chat/completions", faulty(delay=1.0)))
        await until(gateway.calls)
        ending = asyncio.create_task(stack.aclose())
        await until(lambda: gateway.gateway.is_stopping)
        kept_writer.write(request_of(gateway, "POST", "/v1/chat/completions", chat()))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await kept_reader.readuntil(b"\r\n")).split()[1] == b"503"
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
            await ending
        assert len(gateway.calls()) == 1
        assert gateway.books.states() == ["captured"]
        for one in (writer, kept_writer):
            one.close()


def request_of(gateway: Served, method: str, path: str, body: Any = None) -> bytes:
    """A request's bytes."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {gateway.client.key}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
