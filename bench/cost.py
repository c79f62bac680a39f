"""What one settlement costs, counted: events in its history, requests and statements on their way."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import aiohttp
from aiohttp import web
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

BILLED_EVENTS: Final = frozenset(
    {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        EventType.EVENT_TYPE_TIMER_STARTED,
    }
)
"""Events that Temporal's price list counts as one action each. More actions than these: `billed_actions`."""

VERSION_ATTRIBUTE: Final = "TemporalChangeVersion"
"""The search attribute that the SDK sets by itself where a workflow is patched; setting it is free."""

LOCAL_ACTIVITY_MARKER: Final = "core_local_activity"

_PROTOCOL_3: Final = 196_608
"""Version number in the message that opens a conversation with PostgreSQL; requests for encryption come before it."""

_PUMP_BYTES: Final = 2**16
_BODY_BYTES_MAX: Final = 2**24


@dataclass(frozen=True, slots=True)
class HistoryCost:
    """One workflow's history. `billed_actions` is an estimate: the price list is Temporal's and may change.

    `activities` run by way of the server, `local_activities` within a workflow task. `polls` are the attempts of each
    activity, by its name.
    """

    events: int
    bytes: int
    workflow_tasks: int
    activities: int
    local_activities: int
    billed_actions: int
    polls: Mapping[str, int]

    @classmethod
    def of(cls, events: Sequence[HistoryEvent]) -> HistoryCost:
        """What the events cost."""
        types = [event.event_type for event in events]
        return cls(
            events=len(types),
            bytes=sum(event.ByteSize() for event in events),
            workflow_tasks=types.count(EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED),
            activities=types.count(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED),
            local_activities=sum(map(_is_local_activity, events)),
            billed_actions=billed_actions(events),
            polls=_attempts(events),
        )


def billed_actions(events: Sequence[HistoryEvent]) -> int:
    """Actions by the price list.

    An activity's retries are one each; the local activities of one workflow task are one together; an upsert of search
    attributes is one, but for the SDK's own when a workflow is patched. Not in a history, and so not counted:
    heartbeats and queries.
    """
    upserts = sum(
        event.event_type == EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
        and set(event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields)
        != {VERSION_ATTRIBUTE}
        for event in events
    )
    with_local = {
        event.marker_recorded_event_attributes.workflow_task_completed_event_id
        for event in events
        if _is_local_activity(event)
    }
    retries = sum(
        event.activity_task_started_event_attributes.attempt - 1
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    )
    return sum(event.event_type in BILLED_EVENTS for event in events) + upserts + len(with_local) + retries


def _is_local_activity(event: HistoryEvent) -> bool:
    return (
        event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED
        and event.marker_recorded_event_attributes.marker_name == LOCAL_ACTIVITY_MARKER
    )


def _attempts(events: Sequence[HistoryEvent]) -> dict[str, int]:
    names = {
        event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    }
    attempts: Counter[str] = Counter()
    for event in events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started = event.activity_task_started_event_attributes
            attempts[names[started.scheduled_event_id]] += started.attempt
    return dict(attempts)


async def read_history(client: Client, workflow_id: str, run_id: str | None = None) -> HistoryCost:
    """What a workflow has left behind so far."""
    history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    return HistoryCost.of(history.events)


class RpcKind(StrEnum):
    """Whom a request to a chain node is for, as its methods say."""

    PAYMENTS = "payments"
    """Receipts, and what is asked with them."""
    FINALITY = "finality"
    """Tagged blocks, and blocks whose hash is compared."""
    TOKEN = "token"
    """Whether the token is what it should be: asked as of a block, for all payments up to it."""
    WATCHER = "watcher"
    """Heights, and ranges of logs."""

    @classmethod
    def of(cls, calls: Sequence[Mapping[str, Any]]) -> RpcKind:
        """The kind of one HTTP request, which may be a batch of calls."""
        methods = {call["method"] for call in calls}
        if "eth_getTransactionReceipt" in methods:
            return cls.PAYMENTS
        if methods & {"eth_getLogs", "eth_blockNumber"}:
            return cls.WATCHER
        if "eth_getBlockByNumber" in methods:
            return cls.FINALITY
        return cls.TOKEN


@dataclass(slots=True)
class RpcCount:
    """HTTP requests to the chain node, and the JSON-RPC calls in them, by whom they are for."""

    requests: Counter[RpcKind] = field(default_factory=Counter)
    calls: Counter[RpcKind] = field(default_factory=Counter)

    def clear(self) -> None:
        """Begin again."""
        self.requests.clear()
        self.calls.clear()


@asynccontextmanager
async def counting_node(url: str, count: RpcCount) -> AsyncIterator[str]:
    """A chain node's address that hands everything on to `url` and counts it: seen from the wire, not from our code."""
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            document = json.loads(body)
            batch = document if isinstance(document, list) else [document]
            kind = RpcKind.of(batch)
            count.requests[kind] += 1
            count.calls[kind] += len(batch)
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

        app = web.Application(client_max_size=_BODY_BYTES_MAX)
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

    def clear(self) -> None:
        """Begin again."""
        self.statements = self.transactions = self.round_trips = 0


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
