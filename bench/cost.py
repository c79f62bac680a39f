"""What one settlement costs, counted: events in its history, requests and statements on their way."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

BILLED_EVENTS: Final = frozenset(
    {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        EventType.EVENT_TYPE_TIMER_STARTED,
        EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
    }
)
"""Events that Temporal's price list counts as one action each. An activity's retries are actions too (see below)."""

_PROTOCOL_3: Final = 196_608
"""Version number in the message that opens a conversation with PostgreSQL; requests for encryption come before it."""

_PUMP_BYTES: Final = 2**16


@dataclass(frozen=True, slots=True)
class HistoryCost:
    """One workflow's history. `billed_actions` is an estimate: the price list is Temporal's and may change."""

    events: int
    bytes: int
    workflow_tasks: int
    activities: int
    billed_actions: int
    event_types: tuple[str, ...]

    def same_shape_as(self, other: HistoryCost) -> bool:
        """Whether both did the same operations, however these were batched into workflow tasks."""

        def operations(cost: HistoryCost) -> Counter[str]:
            return Counter(name for name in cost.event_types if not name.startswith("WORKFLOW_TASK_"))

        return operations(self) == operations(other)


async def read_history(client: Client, workflow_id: str) -> HistoryCost:
    """What a completed workflow left behind."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    types = [item.event_type for item in history.events]
    retries = sum(
        item.activity_task_started_event_attributes.attempt - 1
        for item in history.events
        if item.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    )
    return HistoryCost(
        events=len(types),
        bytes=sum(item.ByteSize() for item in history.events),
        workflow_tasks=types.count(EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED),
        activities=types.count(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED),
        billed_actions=sum(kind in BILLED_EVENTS for kind in types) + retries,
        event_types=tuple(EventType.Name(kind).removeprefix("EVENT_TYPE_") for kind in types),
    )


@dataclass(slots=True)
class RpcCount:
    """HTTP requests to the chain node, and the JSON-RPC calls in them."""

    requests: int = 0
    calls: int = 0


@asynccontextmanager
async def counting_node(url: str, count: RpcCount) -> AsyncIterator[str]:
    """A chain node's address that hands everything on to `url` and counts it: seen from the wire, not from our code."""
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            document = json.loads(body)
            count.requests += 1
            count.calls += len(document) if isinstance(document, list) else 1
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

        app = web.Application()
        app.router.add_post("/", forward)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@dataclass(slots=True)
class SqlCount:
    """What goes to PostgreSQL. `statements` are those of ours: without BEGIN and COMMIT."""

    statements: int = 0
    transactions: int = 0
    round_trips: int = 0


class _Conversation:
    """One connection's messages as they pass: a statement outside BEGIN and COMMIT is a transaction by itself."""

    def __init__(self, count: SqlCount) -> None:
        self._count = count
        self._pending = bytearray()
        self._started = False
        self._in_transaction = False

    def feed(self, data: bytes) -> None:
        self._pending += data
        while True:
            # Messages of the start have no kind, only a length; everything after them has both.
            head = 1 if self._started else 0
            if len(self._pending) < head + 4:
                return
            length = head + int.from_bytes(self._pending[head : head + 4])
            if len(self._pending) < length:
                return
            message = bytes(self._pending[:length])
            del self._pending[:length]
            if self._started:
                self._note(message[:1], message[5:])
            elif int.from_bytes(message[4:8]) == _PROTOCOL_3:
                self._started = True

    def _note(self, kind: bytes, body: bytes) -> None:
        count = self._count
        if kind in {b"Q", b"S"}:  # a simple query, or the end of an extended one: now the client waits
            count.round_trips += 1
        if kind == b"E":
            count.statements += 1
            count.transactions += not self._in_transaction
        elif kind == b"Q":
            words = body.upper()
            if words.startswith(b"BEGIN"):
                self._in_transaction = True
            elif words.startswith((b"COMMIT", b"ROLLBACK")):
                self._in_transaction = False
                count.transactions += words.startswith(b"COMMIT")
            else:
                count.statements += 1
                count.transactions += not self._in_transaction


@asynccontextmanager
async def counting_postgres(host: str, port: int, count: SqlCount) -> AsyncIterator[int]:
    """A port that hands everything on to a PostgreSQL server on the same machine and counts it."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[bytes], None]) -> None:
        try:
            while data := await reader.read(_PUMP_BYTES):
                seen(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # either end was closed, and with it the conversation
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, port)
        conversation = _Conversation(count)
        for job in (pump(reader, server_writer, conversation.feed), pump(server_reader, writer, lambda _: None)):
            task = asyncio.create_task(job)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
