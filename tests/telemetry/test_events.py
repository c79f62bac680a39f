"""Events as CloudEvents: to the log once, to a real HTTP receiver until it takes them."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from domain.errors import EventNotDelivered
from domain.operations.events import PlatformEvent
from telemetry.events import REMEMBERED_IDS_MAX, EventPublisher, cloudevent
from tests.support.sink import TOKEN, Sink, running_sink

EVENT = PlatformEvent(
    id="governance.heartbeat:beat/1",
    type="governance.heartbeat",
    subject="cogni_system",
    time=datetime(2026, 1, 2, 4, 5, 6, tzinfo=timezone(timedelta(hours=1))),
    data={"balanceCredits": 7, "at": datetime(2026, 1, 2, tzinfo=UTC)},
)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """An HTTP receiver."""
    async with running_sink() as receiver:
        yield receiver


def test_an_event_has_the_members_that_cloudevents_requires_and_no_others() -> None:
    assert cloudevent(EVENT, "https://pay.example.com") == {
        "specversion": "1.0",
        "id": "governance.heartbeat:beat/1",
        "source": "https://pay.example.com",
        "type": "governance.heartbeat",
        "subject": "cogni_system",
        "time": "2026-01-02T03:05:06Z",
        "datacontenttype": "application/json",
        "data": {"balanceCredits": 7, "at": "2026-01-02T00:00:00Z"},
    }


async def test_without_a_receiver_an_event_is_one_line_of_the_log() -> None:
    with capture_logs() as lines:
        async with EventPublisher() as publisher:
            await publisher.publish(EVENT)
            await publisher.publish(EVENT)
            await publisher.publish(EVENT.model_copy(update={"id": "another"}))
    assert [line["event"] for line in lines] == ["governance.heartbeat"] * 2
    assert lines[0]["cloudevent"] == cloudevent(EVENT, "urn:settle")


async def test_the_memory_of_what_was_logged_is_bounded() -> None:
    publisher = EventPublisher()
    with capture_logs() as lines:
        for number in range(REMEMBERED_IDS_MAX + 1):
            await publisher.publish(EVENT.model_copy(update={"id": str(number)}))
        await publisher.publish(EVENT.model_copy(update={"id": "0"}))
    assert len(lines) == REMEMBERED_IDS_MAX + 2


async def test_a_receiver_gets_the_event_in_structured_mode(sink: Sink) -> None:
    async with EventPublisher(sink.url, source="urn:test") as publisher:
        await publisher.publish(EVENT)
    assert sink.documents == [cloudevent(EVENT, "urn:test")]
    assert sink.content_types == ["application/cloudevents+json; charset=utf-8"]


@pytest.mark.parametrize(
    ("status", "arrived"), [(200, True), (204, True), (299, True), (302, False), (400, False), (500, False)]
)
async def test_what_is_not_2xx_is_not_delivered(sink: Sink, status: int, arrived: bool) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    sink.answer = answer
    async with EventPublisher(sink.url) as publisher:
        if arrived:
            await publisher.publish(EVENT)
        else:
            with pytest.raises(EventNotDelivered, match=f"event sink 127.0.0.1 answered {status}"):
                await publisher.publish(EVENT)
    assert len(sink.documents) == 1


async def test_a_slow_receiver_is_not_waited_for(sink: Sink) -> None:
    released = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    sink.answer = answer
    async with EventPublisher(sink.url, timeout_seconds=0.2) as publisher:
        with pytest.raises(EventNotDelivered, match="did not answer"):
            await publisher.publish(EVENT)
    released.set()


async def test_one_that_hangs_up_or_is_not_there_is_not_delivered_and_takes_the_next_one(sink: Sink) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    good, sink.answer = sink.answer, hang_up
    with capture_logs() as lines:
        async with EventPublisher(sink.url) as publisher:
            with pytest.raises(EventNotDelivered):
                await publisher.publish(EVENT)
            sink.answer = good
            await publisher.publish(EVENT)
    assert [document["id"] for document in sink.documents] == [EVENT.id] * 2
    assert len(lines) == 1, "it was handed over again, and not published again"


async def test_an_error_reveals_only_the_host_of_the_address() -> None:
    for url in (f"http://user:{TOKEN}@127.0.0.1:1/{TOKEN}?key={TOKEN}", f"http://[::1]:1/{TOKEN}"):
        async with EventPublisher(url) as publisher:
            with capture_logs() as lines, pytest.raises(EventNotDelivered) as caught:
                await publisher.publish(EVENT)
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert TOKEN not in str(lines)
        assert caught.value.__cause__ is None
