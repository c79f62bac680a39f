"""Everything that can break about a call: who pays for it, at a real upstream that does it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from domain.errors import DatabaseUnavailable
from gateway import draining
from gateway.heartbeat import renew_all
from gateway.metering import Meter
from gateway.policy import DRAINS_MAX
from tests.gateway.support import MODEL, PATIENCE_SECONDS, Served, chat, faulty, served, until
from tests.support.payments import open_roles
from tests.support.postgres import Database
from tests.support.sql import connect, query

SLOW: dict[str, Any] = {"tokens": 400, "tokens_per_second": 200}


async def read_some(response: aiohttp.ClientResponse, events: int = 6) -> None:
    """The first events of a stream."""
    for _ in range(events):
        await response.content.readuntil(b"\n\n")


def counted(name: str, **labels: str) -> float:
    """A counter of the gateway, so far."""
    return REGISTRY.get_sample_value(f"settle_gateway_{name}_total", labels) or 0.0


async def hang_up_in_a_stream(gateway: Served, **behaviour: Any) -> None:
    async with gateway.client.open(faulty(stream=True, **behaviour)) as response:
        await read_some(response)
        response.close()
    await gateway.is_quiet()


async def test_what_is_refused_costs_nothing_and_never_reaches_the_upstream(database: Database) -> None:
    async with served(database, cents=0) as gateway:
        answer = await gateway.client.post(chat(max_tokens=10))
        assert answer.status == 402
        assert {name: answer.error[name] for name in ("code", "limit_source", "available", "held")} == {
            "code": "insufficient_credits",
            "limit_source": "balance",
            "available": 0,
            "held": 0,
        }
        assert answer.error["needed"] > 80
        assert answer.error["top_up_url"] == "https://pay.example.com/credits"
        assert (answer.headers["x-should-retry"], answer.headers.get("Retry-After")) == ("false", None)
        assert not gateway.calls()
        assert not gateway.books.holds()


async def test_an_upstream_that_cannot_be_reached_costs_nothing(database: Database) -> None:
    async with served(database, upstreams={"base_url": "http://127.0.0.1:9/v1"}) as gateway:
        answer = await gateway.client.post(chat())
        assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
        assert (answer.headers["X-Credits-Charged"], answer.headers["x-should-retry"]) == ("0", "true")
        assert answer.headers["X-Credits-Remaining"] == "10000000"
        assert gateway.books.states() == ["voided"]
        assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_an_error_of_the_upstream_is_passed_on_and_costs_nothing(gateway: Served, status: int) -> None:
    answer = await gateway.client.post(faulty(status=status, retry_after=7))
    assert answer.status == status
    assert "message" in answer.error
    assert (answer.headers["Retry-After"], answer.headers["X-Credits-Charged"]) == ("7", "0")
    assert gateway.books.states() == ["voided"]
    assert not gateway.books.receipts()


@pytest.mark.parametrize(
    "behaviour",
    [{"status": 401}, {"status": 402}, {"status": 407}, {"redirect": "http://127.0.0.1:9/"}, {"html": True}],
    ids=str,
)
async def test_what_concerns_the_platform_and_its_upstream_is_not_shown(
    gateway: Served, behaviour: dict[str, Any]
) -> None:
    answer = await gateway.client.post(faulty(**behaviour))
    assert answer.status == 502
    assert "location" not in answer.headers
    assert b"Incorrect API key" not in answer.body
    assert gateway.books.states() == ["voided"]


@asynccontextmanager
async def answered_by(
    database: Database, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Served]:
    """A gateway before an upstream that answers every call so."""
    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        async with served(database, upstreams={"base_url": url}) as gateway:
            yield gateway
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("status", "piece"), [(200, b"text"), (200, b"\n\n\n\n"), (400, b"text")])
async def test_who_hangs_up_in_a_whole_answer_pays_what_has_come_of_it(
    database: Database, status: int, piece: bytes
) -> None:
    written = 0

    async def drip(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            await response.write(piece)
            written += len(piece)
            await asyncio.sleep(0.005)
        return response

    async with answered_by(database, drip) as gateway:
        post = asyncio.create_task(gateway.client.post(chat()))
        await until(lambda: written >= 80)
        post.cancel()
        await gateway.is_quiet()
        if status == 200:
            receipt = gateway.books.receipt()
            assert receipt["charge_reason"] == "client_left"
            # Some providers keep the connection with empty lines until the answer is there.
            assert 0 < receipt["output_tokens"] <= written // 4 if piece.strip() else receipt["output_tokens"] == 0
            assert receipt["charged_credits"] == receipt["input_tokens"] * 2 + receipt["output_tokens"] * 8
        else:
            # An error is not charged for.
            assert gateway.books.states() == ["voided"]


async def test_a_page_in_place_of_an_answer_is_none(database: Database) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Welcome to the network</html>", content_type="text/html")

    async with answered_by(database, page) as gateway:
        speech = {"model": "tts-1", "voice": "alloy", "input": "one two three"}
        for body, path in ((chat(), "/v1/chat/completions"), (speech, "/v1/audio/speech")):
            answer = await gateway.client.post(body, path)
            assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
        assert gateway.books.states() == ["voided"] * 2


async def test_a_last_event_without_its_blank_line_is_the_end(database: Database) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n')
        await response.write(b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}')
        return response

    async with answered_by(database, stream) as gateway:
        unasked = await gateway.client.post(chat(stream=True))
        asked = await gateway.client.post({**chat(stream=True), "stream_options": {"include_usage": True}})
        assert (unasked.comment["charged"], asked.comment["charged"]) == ("18", "18")
        assert b"usage" not in unasked.body
        assert asked.body.endswith(b'"completion_tokens": 1}}\n\n')


async def test_text_of_an_upstream_that_the_database_cannot_hold_stops_no_charge(database: Database) -> None:
    may_end = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"id": "gen\\u0000", "choices": [{"delta": {"content": "hello"}}]}\n\n')
        await may_end.wait()
        await response.write(b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}\n\n')
        return response

    async with answered_by(database, stream) as gateway:
        async with gateway.client.open(chat(stream=True)) as response:
            await read_some(response, 1)
            try:
                # One statement renews the leases of all calls.
                await renew_all(gateway.gateway)
            finally:
                may_end.set()
            assert b": credits charged=18 " in await response.read()
        assert gateway.books.states() == ["captured"]
        assert gateway.books.receipt()["charge_reason"] == "completed"


async def test_an_answer_that_is_too_long_is_paid_by_the_platform(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.call.ANSWER_BYTES_MAX", 100)
    answer = await gateway.client.post(faulty())
    assert (answer.status, answer.headers["X-Credits-Charged"]) == (502, "0")
    assert gateway.books.receipt()["charge_reason"] == "upstream_broke"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_fault_of_the_gateway_is_paid_by_the_platform(
    gateway: Served, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as broken:
        broken.setattr(Meter, "observe", fail)
        broken.setattr(Meter, "observe_body", fail)
        if stream:
            with pytest.raises(aiohttp.ClientPayloadError):
                await gateway.client.post(faulty(stream=True))
        else:
            answer = await gateway.client.post(faulty())
            assert (answer.status, answer.headers["X-Credits-Charged"]) == (502, "0")
        await gateway.is_quiet()
    receipt = gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["charged_credits"]) == ("upstream_broke", 0)
    assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


async def test_what_an_error_costs_the_platform_bears(gateway: Served) -> None:
    before = counted("cost_credits"), counted("absorbed_credits")
    answer = await gateway.client.post(faulty(status=500, error_usage=True, prompt_tokens=1000))
    assert (answer.status, answer.headers["X-Credits-Charged"]) == (500, "0")
    assert (counted("cost_credits"), counted("absorbed_credits")) == (before[0] + 1_000, before[1] + 1_000)
    receipt = gateway.books.receipt()
    assert (receipt["charged_credits"], receipt["input_tokens"]) == (0, 1000)
    assert receipt["absorbed_cost_usd"] == receipt["provider_cost_usd"] == pytest.approx(0.0001)
    assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


async def test_who_hangs_up_pays_what_was_produced_where_the_upstream_stops(gateway: Served) -> None:
    await hang_up_in_a_stream(gateway, **SLOW)
    [call] = gateway.calls()
    await until(lambda: call.has_ended)
    assert call.was_cancelled
    receipt = gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["estimated"]) == ("client_left", True)
    assert 0 < receipt["output_tokens"] <= 2 * call.billed.output
    assert receipt["charged_credits"] == receipt["input_tokens"] * 2 + receipt["output_tokens"] * 8
    assert gateway.books.balance(gateway.account.id) == (10_000_000 - receipt["charged_credits"], 0)


async def test_who_hangs_up_on_anthropics_api_pays_the_input_as_it_was_reported(gateway: Served) -> None:
    directive = json.dumps({**SLOW, "prompt_tokens": 5000, "cached_tokens": 1000})
    body = {
        "model": MODEL,
        "max_tokens": 1000,
        "stream": True,
        "messages": [{"role": "user", "content": f"!upstream {directive} hello"}],
    }
    async with gateway.client.open(body, "/v1/messages") as response:
        await read_some(response)
        response.close()
    await gateway.is_quiet()
    receipt = gateway.books.receipt()
    assert (receipt["input_tokens"], receipt["cached_input_tokens"], receipt["estimated"]) == (5000, 1000, True)
    assert receipt["output_tokens"] < 100


async def test_who_hangs_up_pays_all_where_the_upstream_bills_all(database: Database) -> None:
    async with served(database, drains=True) as gateway:
        await hang_up_in_a_stream(gateway, tokens=100, tokens_per_second=400)
        [call] = gateway.calls()
        assert not call.was_cancelled
        receipt = gateway.books.receipt()
        assert (receipt["output_tokens"], receipt["estimated"]) == (call.billed.output, False)
        assert (receipt["charge_reason"], call.billed.output) == ("client_left", 100)
        assert gateway.gateway.drains.running == 0


async def test_only_so_many_answers_are_read_without_a_client(database: Database) -> None:
    async with served(database, drains=True) as gateway:
        gateway.gateway.drains.running = DRAINS_MAX
        await hang_up_in_a_stream(gateway, **SLOW)
        assert gateway.books.receipt()["estimated"]
        assert gateway.gateway.drains.running == DRAINS_MAX


@pytest.mark.parametrize("bound", ["DRAIN_SECONDS_MAX", "DRAIN_BYTES_MAX"])
async def test_and_only_for_so_long_and_so_far(database: Database, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(draining, bound, 0.1 if bound == "DRAIN_SECONDS_MAX" else 1_000)
    async with served(database, drains=True) as gateway:
        await hang_up_in_a_stream(gateway, tokens=100_000, tokens_per_second=200)
        assert gateway.books.receipt()["estimated"]
        assert gateway.gateway.drains.running == 0


async def test_who_hangs_up_before_the_answer_pays_the_input(gateway: Served) -> None:
    post = asyncio.create_task(gateway.client.post(faulty(delay=60)))
    await until(gateway.calls)
    post.cancel()
    await gateway.is_quiet()
    receipt = gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["output_tokens"], receipt["estimated"]) == ("client_left", 0, True)


@pytest.mark.parametrize("reset", [True, False])
async def test_an_upstream_that_breaks_off_without_usage_is_paid_by_the_platform(gateway: Served, reset: bool) -> None:
    answer = await gateway.client.post(faulty(stream=True, tokens=50, break_after=20, reset=reset))
    assert answer.status == 200
    assert answer.comment["charged"] == "0"
    *_, last = answer.events
    assert json.loads(last.data or b"")["error"]["code"] == "upstream_failed"
    receipt = gateway.books.receipt()
    assert (receipt["charged_credits"], receipt["charge_reason"], receipt["estimated"]) == (0, "upstream_broke", True)
    assert receipt["absorbed_cost_usd"] == receipt["provider_cost_usd"] > 0
    assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


async def test_an_upstream_that_breaks_off_with_usage_is_paid_by_the_user(gateway: Served) -> None:
    answer = await gateway.client.post(faulty(stream=True, tokens=50, break_after=20, usage_before_break=True))
    receipt = gateway.books.receipt()
    assert (receipt["output_tokens"], receipt["estimated"]) == (20, False)
    assert (receipt["charge_reason"], receipt["absorbed_cost_usd"]) == ("upstream_broke", 0)
    assert answer.comment["charged"] == str(receipt["charged_credits"])


@pytest.mark.parametrize("reset", [True, False])
async def test_a_whole_answer_that_breaks_off_is_paid_by_the_platform(gateway: Served, reset: bool) -> None:
    answer = await gateway.client.post(faulty(tokens=50, break_after=20, reset=reset))
    assert (answer.status, answer.headers["X-Credits-Charged"]) == (502, "0")
    receipt = gateway.books.receipt()
    assert receipt["absorbed_cost_usd"] > 0
    # A reset may discard what came before it.
    assert receipt["output_tokens"] > 0 or reset


async def test_a_stream_that_ends_early_and_cleanly_is_broken_off(gateway: Served) -> None:
    """Without its own last event, a reason to stop, or usage: nothing says that it was all."""
    answer = await gateway.client.post(faulty(stream=True, tokens=50, error_after=20))
    assert b"charged=0" in answer.body
    assert gateway.books.receipt()["charge_reason"] == "upstream_broke"


async def test_a_stream_whose_event_has_no_end_is_broken_off(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sse.EVENT_BYTES_MAX", 100)
    answer = await gateway.client.post(faulty(stream=True, chunk_bytes=50))
    assert (answer.status, answer.comment["charged"]) == (200, "0")
    assert gateway.books.receipt()["charge_reason"] == "upstream_broke"


async def test_a_silent_upstream_is_given_up(database: Database) -> None:
    async with served(database, read_timeout_seconds=0.3) as gateway:
        answer = await gateway.client.post(faulty(stream=True, tokens=50, stall_after=10))
        assert answer.comment["charged"] == "0"
        assert gateway.books.receipt()["charge_reason"] == "upstream_broke"
        silent = await gateway.client.post(faulty(delay=30))
        assert silent.status == 502
        assert gateway.books.states() == ["captured", "voided"]


@pytest.mark.parametrize("status", [401, 408, 429, 503])
async def test_the_leg_that_answered_is_paid(database: Database, status: int) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=status))
        answer = await gateway.client.post(chat("one two"))
        assert answer.status == 200
        assert (len(gateway.calls("first")), len(gateway.calls("second"))) == (1, 1)
        receipt = gateway.books.receipt()
        assert (receipt["provider"], receipt["absorbed_cost_usd"]) == ("second", 0)
        [(upstream,)] = query(database.service_url, "SELECT upstream FROM credit_holds")
        assert upstream == "second"


async def test_what_the_other_legs_cost_the_platform_bears(database: Database) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=500, error_usage=True, prompt_tokens=1000))
        answer = await gateway.client.post(chat("one two"))
        failed, paid = gateway.books.receipts()
        assert (failed["provider"], failed["charge_reason"], failed["charged_credits"]) == ("first", "failed_over", 0)
        assert failed["absorbed_cost_usd"] == pytest.approx(0.0001)
        assert (paid["provider"], paid["charge_reason"], paid["absorbed_cost_usd"]) == ("second", "completed", 0)
        assert failed["request_id"] == paid["request_id"] == answer.request_id
        assert answer.headers["X-Credits-Charged"] == str(paid["charged_credits"])
        assert gateway.books.balance(gateway.account.id) == (10_000_000 - paid["charged_credits"], 0)


@pytest.mark.parametrize("error_usage", [True, False])
async def test_nothing_of_a_leg_that_failed_is_read_of_the_answer_of_another(
    database: Database, error_usage: bool
) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=500, error_usage=error_usage, prompt_tokens=1000))
        answer = await gateway.client.post(chat("one two", stream=True))
        assert answer.body.endswith(b"data: [DONE]\n\n")
        *_, paid = gateway.books.receipts()
        assert (paid["provider"], paid["charge_reason"], paid["estimated"]) == ("second", "completed", False)
        assert int(answer.comment["charged"]) == paid["charged_credits"] > 0
        # No lease is renewed for the leg that was settled.
        await gateway.is_quiet()


@pytest.mark.parametrize(
    ("reported", "states"), [({"cost": "number"}, ["captured", "captured"]), ({}, ["captured"])], ids=["cost", "zero"]
)
async def test_a_leg_that_reports_nothing_but_its_cost_is_borne_by_the_platform(
    database: Database, reported: dict[str, Any], states: list[str]
) -> None:
    async with served(database, names=("first", "second")) as gateway:
        leg = behaviour(status=500, error_usage=True, usage="zero", prompt_tokens=1000, **reported)
        gateway.upstreams["first"].order(leg)
        assert (await gateway.client.post(chat("one two"))).status == 200
        assert gateway.books.states() == states
        if reported:
            failed = gateway.books.receipts()[0]
            assert (failed["provider"], failed["charge_reason"]) == ("first", "failed_over")
            assert failed["absorbed_cost_usd"] == failed["provider_cost_usd"] > 0


async def test_another_leg_needs_a_hold_of_its_own_where_the_first_has_cost_something(database: Database) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=500, error_usage=True, delay=0.2))
        post = asyncio.create_task(gateway.client.post(chat()))
        await until(lambda: gateway.calls("first"))
        with connect(database.superuser_url) as owner:
            owner.execute("UPDATE virtual_keys SET revoked_at = now()")
        answer = await post
        assert (answer.status, answer.headers["X-Credits-Charged"]) == (401, "0")
        assert answer.headers["X-Credits-Remaining"] == "10000000"
        assert not gateway.calls("second")
        assert gateway.books.states() == ["captured"]
        assert gateway.books.receipt()["charge_reason"] == "failed_over"
        assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


async def test_no_other_upstream_is_tried_that_the_database_does_not_know(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from db.billing import holds
    from domain.errors import DatabaseUnavailable

    async def lose_the_connection(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("the connection was lost")

    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=503))
        monkeypatch.setattr(holds, "move", lose_the_connection)
        answer = await gateway.client.post(chat())
        assert (answer.status, answer.headers["X-Credits-Charged"]) == (503, "0")
        assert answer.error["code"] == "unavailable"
        assert not gateway.calls("second")
        assert gateway.books.states() == ["voided"]


async def test_who_hangs_up_between_two_upstreams_pays_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from db.billing import holds

    move, is_moving, may_move = holds.move, asyncio.Event(), asyncio.Event()

    async def move_later(*given: Any, **named: Any) -> None:
        is_moving.set()
        await may_move.wait()
        await move(*given, **named)

    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=503))
        monkeypatch.setattr(holds, "move", move_later)
        post = asyncio.create_task(gateway.client.post(chat()))
        await is_moving.wait()
        [call] = gateway.gateway.calls
        post.cancel()
        await until(lambda: call._has_left)
        may_move.set()
        await gateway.is_quiet()
        assert not gateway.calls("second")
        assert gateway.books.states() == ["voided"]


async def test_no_other_upstream_is_tried_after_the_first_byte(database: Database) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(tokens=50, break_after=10))
        answer = await gateway.client.post(chat("one two", stream=True))
        assert answer.comment["charged"] == "0"
        assert not gateway.calls("second")


async def test_no_other_upstream_is_tried_for_a_request_that_is_wrong(database: Database) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=400))
        assert (await gateway.client.post(chat())).status == 400
        assert not gateway.calls("second")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_success_that_is_an_error_costs_the_user_nothing(gateway: Served, stream: bool) -> None:
    answer = await gateway.client.post(faulty(stream=stream, error_in_200=True, error_usage=True, prompt_tokens=1000))
    assert answer.status == 200
    receipt = gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["charged_credits"]) == ("error_only", 0)
    assert receipt["absorbed_cost_usd"] == pytest.approx(0.0001)


@pytest.mark.parametrize(
    "usage",
    ["negative", "nan", "infinity", "huge", "cached_over_prompt", "output_over_max", "fraction", "text", "list"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_absurd_usage_is_charged_as_an_estimate_within_the_hold(
    gateway: Served, usage: str, stream: bool
) -> None:
    await gateway.client.post({**faulty("one two three", stream=stream, usage=usage), "max_tokens": 100})
    receipt = gateway.books.receipt()
    [(_, held)] = gateway.books.holds()
    assert (receipt["doubt"], receipt["estimated"]) == ("implausible_usage", True)
    assert receipt["doubt_detail"]
    assert 0 < receipt["charged_credits"] <= held
    balance, _ = gateway.books.balance(gateway.account.id)
    assert balance == 10_000_000 - receipt["charged_credits"]


async def test_absent_usage_at_a_normal_end_is_estimated_and_charged(gateway: Served) -> None:
    await gateway.client.post(faulty("one two three", stream=True, usage="omit"))
    receipt = gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["estimated"], receipt["doubt"]) == ("completed", True, None)
    assert receipt["output_tokens"] > 0


async def test_zero_usage_for_tokens_that_came_is_not_believed(gateway: Served) -> None:
    await gateway.client.post(faulty("one two three", usage="zero"))
    receipt = gateway.books.receipt()
    assert (receipt["doubt"], receipt["estimated"]) == ("zero_usage", True)
    assert receipt["charged_credits"] > 0


async def test_zero_cost_with_a_known_price_is_priced_by_the_book(gateway: Served) -> None:
    await gateway.client.post(faulty("one two three", cost="zero"))
    receipt = gateway.books.receipt()
    assert receipt["doubt"] == "zero_cost"
    assert receipt["charged_credits"] == receipt["input_tokens"] * 2 + receipt["output_tokens"] * 8


async def test_a_hundred_calls_at_once_on_a_balance_for_one_give_one_answer(database: Database) -> None:
    async with served(database, cents=1) as gateway:
        body = {**faulty("hi", delay=1.0), "max_tokens": 12_000}
        answers = await asyncio.gather(*(gateway.client.post(body) for _ in range(100)))
        refused = [answer for answer in answers if answer.status == 402]
        assert sorted(answer.status for answer in answers) == [200, *[402] * 99]
        assert len(gateway.calls()) == 1
        assert {answer.error["limit_source"] for answer in refused} == {"in_flight"}
        assert all(answer.headers["Retry-After"] and answer.headers["x-should-retry"] == "false" for answer in refused)
        assert gateway.books.balance(gateway.account.id)[1] == 0


async def test_a_charge_may_exceed_its_hold_as_far_as_balance_and_grace(database: Database) -> None:
    async with served(database, cents=1, grace_credits=500) as gateway:
        before = counted("absorbed_credits")
        # No bound is given, and more is written than was assumed.
        answer = await gateway.client.post(faulty(tokens=20_000, prompt_tokens=10))
        receipt = gateway.books.receipt()
        assert receipt["charged_credits"] == 100_500
        assert receipt["uncollected_credits"] == 160_020 - 100_500
        assert answer.headers["X-Credits-Remaining"] == "-500"
        assert counted("absorbed_credits") == before + receipt["uncollected_credits"]


async def test_a_charge_that_is_refused_is_counted(gateway: Served) -> None:
    before = counted("refused_captures", outcome="voided")
    post = asyncio.create_task(gateway.client.post(faulty(delay=0.5)))
    await until(gateway.calls)
    [(hold_id,)] = query(gateway.books.database.service_url, "SELECT id::text FROM credit_holds")
    assert query(gateway.books.database.app_url, "SELECT void_hold(%s::uuid)", hold_id) == [(True,)]
    assert (await post).status == 200
    assert gateway.books.receipts() == []
    assert counted("refused_captures", outcome="voided") == before + 1


async def test_the_database_is_away_when_credits_are_held(database: Database) -> None:
    from tests.support.relay import relay_to, through

    relay = relay_to(database.app_url)
    await relay.open()
    account = None
    async with served(database, app_url=through(relay, database.app_url), account=account) as gateway:
        await relay.cut()
        answer = await gateway.client.post(chat())
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert answer.headers["x-should-retry"] == "true"
        assert not gateway.calls()
        await relay.open()
        assert (await gateway.client.post(chat())).status == 200
        await relay.cut()


async def test_the_database_is_away_between_answer_and_charge(database: Database) -> None:
    from tests.support.relay import relay_to, through

    relay = relay_to(database.app_url)
    await relay.open()
    async with served(database, app_url=through(relay, database.app_url)) as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=30, tokens_per_second=60)) as response:
            await read_some(response, 2)
            await relay.cut()
            # The end of the answer is held back until it is charged.
            seen = b""
            while b'finish_reason":"stop' not in seen:
                seen += await response.content.readuntil(b"\n\n")
            assert gateway.books.states() == ["held"]
            await relay.open()
            rest = await response.content.read()
            assert b": credits charged=" in rest
            assert rest.endswith(b"data: [DONE]\n\n")
        assert gateway.books.receipt()["charge_reason"] == "completed"
        assert gateway.books.states() == ["captured"]
    await relay.cut()


async def test_a_charge_that_stays_impossible_is_left_to_be_resolved(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway import books
    from tests.support.relay import relay_to, through

    monkeypatch.setattr(books, "CAPTURE_SECONDS_MAX", 0.5)
    relay = relay_to(database.app_url)
    await relay.open()
    async with served(database, app_url=through(relay, database.app_url)) as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=30, tokens_per_second=60)) as response:
            await read_some(response, 2)
            await relay.cut()
            rest = await response.content.read()
        assert f": credits charged=pending usage=/v1/usage/{response.headers['X-Request-Id']}".encode() in rest
        await gateway.is_quiet()
        # Open, and no longer renewed: it lapses.
        assert gateway.books.states() == ["held"]
        await relay.open()
    await relay.cut()


async def test_an_answer_whose_charge_fails_is_passed_on_and_left_to_be_resolved(database: Database) -> None:
    with connect(database.superuser_url) as owner:
        owner.execute("REVOKE EXECUTE ON FUNCTION capture_hold FROM settle_app")
    async with served(database) as gateway:
        whole = await gateway.client.post(chat("one two"))
        assert (whole.status, whole.json["choices"][0]["message"]["content"]) == (200, "You said: one two")
        assert "X-Credits-Charged" not in whole.headers
        stream = await gateway.client.post(chat(stream=True))
        assert b": credits charged=pending usage=/v1/usage/" in stream.body
        assert stream.body.endswith(b"data: [DONE]\n\n")
        await gateway.is_quiet()
        assert gateway.books.states() == ["held", "held"]


async def test_a_charge_that_is_not_answered_is_left_to_be_resolved(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connections stay open, and take every byte."""
    from gateway import books

    monkeypatch.setattr(books, "CAPTURE_SECONDS_MAX", 0.5)
    servers = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'settle_app'"
    async with served(database) as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=30, tokens_per_second=60)) as response:
            await read_some(response, 2)
            pids = [pid for (pid,) in query(database.superuser_url, servers)]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                rest = await asyncio.wait_for(response.content.read(), PATIENCE_SECONDS)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        assert b": credits charged=pending" in rest
        # It was sent, and is executed when the server goes on: once.
        await until(lambda: gateway.books.states() == ["captured"])
        assert len(gateway.books.receipts()) == 1


LEASES = "SELECT lease_until FROM credit_holds ORDER BY created_at"


@pytest.mark.parametrize("failure", [DatabaseUnavailable("the connection was lost"), ValueError("unforeseen")])
async def test_leases_are_renewed_again_after_the_database_was_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    from db.billing import holds

    renew, was_asked = holds.renew, asyncio.Event()

    async def lose_the_first(*given: Any, **named: Any) -> Any:
        if was_asked.is_set():
            return await renew(*given, **named)
        was_asked.set()
        raise failure

    monkeypatch.setattr(holds, "renew", lose_the_first)
    async with served(database, lease_seconds=2) as gateway:
        post = asyncio.create_task(gateway.client.post(faulty(delay=60)))
        await until(gateway.calls)
        [(first,)] = query(database.service_url, LEASES)
        await asyncio.wait_for(was_asked.wait(), PATIENCE_SECONDS)
        # It is renewed long before it lapses, so that one time that fails costs nothing.
        assert query(database.service_url, "SELECT lease_until > clock_timestamp() FROM credit_holds") == [(True,)]
        await until(lambda: query(database.service_url, LEASES)[0][0] > first)
        post.cancel()
        await gateway.is_quiet()


async def test_the_leases_of_all_calls_are_renewed_so_many_in_a_statement(
    gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from db.billing import holds

    renew, sizes = holds.renew, []

    async def renew_counted(connection: Any, progress: Any, **named: Any) -> Any:
        sizes.append(len(progress))
        return await renew(connection, progress, **named)

    url = gateway.books.database.service_url
    posts = [asyncio.create_task(gateway.client.post(faulty(delay=60))) for _ in range(3)]
    await until(lambda: len(gateway.calls()) == 3)
    before = query(url, LEASES)
    with monkeypatch.context() as changed:
        changed.setattr("gateway.heartbeat.BATCH_MAX", 2)
        changed.setattr(holds, "renew", renew_counted)
        await renew_all(gateway.gateway)
    assert sizes == [2, 1]
    assert all(after > first for (after,), (first,) in zip(query(url, LEASES), before, strict=True))
    for post in posts:
        post.cancel()
    await gateway.is_quiet()


async def test_a_hold_whose_answer_was_lost_is_released(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from db.billing import holds
    from domain.errors import DatabaseUnavailable

    async with served(database) as gateway:
        hold = holds.hold

        async def lose_the_answer(connection: Any, asked: Any) -> Any:
            await hold(connection, asked)
            raise DatabaseUnavailable("the connection was lost")

        monkeypatch.setattr(holds, "hold", lose_the_answer)
        assert (await gateway.client.post(chat())).status == 503
    # A process that ends has done so before.
    assert gateway.books.states() == ["voided"]
    assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)


@pytest.mark.slow
async def test_a_thousand_abandoned_streams_leave_no_hold(database: Database) -> None:
    async with served(database, cents=1_000) as gateway:
        for _ in range(10):
            await asyncio.gather(*(hang_up(gateway) for _ in range(100)))
        await gateway.is_quiet()
        states = gateway.books.states()
        assert (len(states), set(states)) == (1_000, {"captured"})
        assert gateway.books.balance(gateway.account.id)[1] == 0


async def hang_up(gateway: Served) -> None:
    async with gateway.client.open({**faulty(stream=True, **SLOW), "max_tokens": 100}) as response:
        await read_some(response, 2)
        response.close()


def behaviour(**fields: Any) -> Any:
    from devstack.upstream import Behaviour

    return Behaviour(**fields)


async def test_the_books_are_balanced_after_all_of_it(database: Database) -> None:
    async with served(database, names=("first", "second")) as gateway:
        gateway.upstreams["first"].order(behaviour(status=500, error_usage=True), requests=2)
        for body in (
            chat(),
            faulty(stream=True, break_after=3, tokens=9),
            faulty(usage="negative"),
            faulty(status=400),
        ):
            await gateway.client.post(body)
    async with open_roles(database, pool_size=2) as roles:
        assert await roles.books() == []
