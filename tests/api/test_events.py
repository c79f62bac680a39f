"""`GET /api/v1/payments/attempts/{id}/events`: progress as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.http import sse as feed
from devstack.processes import wait_until
from tests.support.api import PATIENCE_SECONDS, RunningApi, Visitor
from tests.support.engine import MIN_CONFIRMATIONS


async def test_events_report_every_confirmation_and_end_with_the_credit(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent()
    engine = api.engine
    sent = await api.pay(intent)
    heard: list[dict[str, Any]] = []
    async with engine.worker():
        await payer.submit(intent["attemptId"], sent)
        listening = asyncio.create_task(listen(payer, intent["attemptId"], heard))
        await wait_until(lambda: bool(heard), timeout_seconds=PATIENCE_SECONDS, what="first event")
        await engine.chain.mine(1)
        await wait_until(
            lambda: heard[-1]["confirmations"] == 1, timeout_seconds=PATIENCE_SECONDS, what="1 confirmation"
        )
        await engine.chain.mine(1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listening
    assert heard[0]["confirmations"] == 0
    assert heard[-1]["status"] == "CREDITED"
    assert len(heard) == len({json.dumps(event) for event in heard}), "an event that says nothing new"


async def test_a_finished_payment_is_one_event(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent()
    async with api.engine.worker():
        sent = await api.pay(intent)
        await api.engine.chain.mine(MIN_CONFIRMATIONS)
        await payer.submit(intent["attemptId"], sent)
        await payer.ends(intent["attemptId"])
        heard: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listen(payer, intent["attemptId"], heard)
    assert [event["status"] for event in heard] == ["CREDITED"]


async def test_signing_out_ends_the_stream(api: RunningApi, payer: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SESSION_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(feed, "UNPAID_TICK_SECONDS", 0.1)
    intent = await payer.intent()
    heard: list[dict[str, Any]] = []
    listening = asyncio.create_task(listen(payer, intent["attemptId"], heard))
    await wait_until(lambda: bool(heard), timeout_seconds=PATIENCE_SECONDS, what="first event")
    await payer.post("/api/v1/auth/logout")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await listening


async def test_one_account_has_so_many_streams_and_no_more_and_gets_them_back(api: RunningApi, payer: Visitor) -> None:
    streams = api.services.streams
    streams.per_account_max = 2
    path = f"/api/v1/payments/attempts/{(await payer.intent())['attemptId']}/events"
    async with payer.session.get(path) as one, payer.session.get(path) as two:
        assert (one.status, two.status) == (200, 200)
        refused = await payer.get(path)
        assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        one.close()
        await wait_until(lambda: len(streams) == 1, timeout_seconds=PATIENCE_SECONDS, what="a place that is free")
        async with payer.session.get(path) as three:
            assert three.status == 200
    await wait_until(lambda: not len(streams), timeout_seconds=PATIENCE_SECONDS, what="all places that are free")


async def test_silence_is_kept_alive(payer: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "KEEPALIVE_SECONDS", 0.1)
    monkeypatch.setattr(feed, "UNPAID_TICK_SECONDS", 0.1)
    path = f"/api/v1/payments/attempts/{(await payer.intent())['attemptId']}/events"
    async with payer.session.get(path) as response, asyncio.timeout(PATIENCE_SECONDS):
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b":"):
                return
    pytest.fail("no comment came")


async def listen(visitor: Visitor, attempt_id: str, heard: list[dict[str, Any]]) -> None:
    """Collect a stream's events until it ends."""
    async with visitor.session.get(f"/api/v1/payments/attempts/{attempt_id}/events") as response:
        assert response.status == 200
        async for event in events_of(response):
            heard.append(event)  # noqa: PERF401 - seen while it grows


async def events_of(response: Any) -> AsyncIterator[dict[str, Any]]:
    """The data of a stream's `status` events."""
    names: list[str] = []
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            names.append(line.removeprefix("event: "))
        elif line.startswith("data: "):
            assert names[-1] == "status"
            yield json.loads(line.removeprefix("data: "))
