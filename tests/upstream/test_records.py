"""What was received and billed, the providers' records of it, and who decides how a request is answered."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from genai_prices import Usage, calc_price

from devstack.processes import quiet_port
from devstack.upstream import EmbeddedUpstream
from devstack.upstream.__main__ import main
from devstack.upstream.behaviour import BehaviourError, behaviour_of, split_message, split_model
from devstack.upstream.prices import PRICES, price_of
from devstack.upstream.tokens import Tokens
from tests.upstream.conftest import Running
from tests.upstream.raw import PATHS, ask, request_body

TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
CHAT = PATHS["chat"]


# -- who decides


def test_a_behaviour_is_read_from_a_message_or_a_models_name() -> None:
    behaviour, text = split_message('!upstream {"break_after": 3, "id": null} Say it')
    assert behaviour
    assert (behaviour.break_after, behaviour.has("id"), behaviour.id, text) == (3, True, None, "Say it")
    assert split_message("Say !upstream {}") == (None, "Say !upstream {}")
    behaviour, model = split_model("org/dev-small!break_after=3,reset=true,on_abort=drain")
    assert behaviour
    assert (behaviour.break_after, behaviour.reset, behaviour.on_abort, model) == (3, True, "drain", "org/dev-small")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"brake_after": 1}, "brake_after.*known: text, tokens"),
        ({"tokens": -1}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"status": 200}, "status"),
        ({"usage": "wrong"}, "usage"),
        ({"headers": [["one"]]}, "headers"),
        ({"billed_on": "2026-13-01"}, "billed_on"),
        ([], "expected an object"),
    ],
)
def test_a_wrong_behaviour_is_refused_by_name(fields: Any, problem: str) -> None:
    with pytest.raises(BehaviourError, match=problem):
        behaviour_of(fields)


async def test_the_message_decides_before_the_model_and_the_model_before_the_queue(running: Running) -> None:
    running.upstream.order(behaviour_of({"status": 503}))
    by_both = request_body("chat", status=401) | {"model": "dev-small!status=404"}
    assert (await ask(running, "chat", by_both)).status == 401
    assert (await ask(running, "chat", request_body("chat") | {"model": "dev-small!status=404"})).status == 404
    assert (await ask(running, "chat", request_body("chat"))).status == 503
    reply = await ask(running, "chat", request_body("chat"))
    assert (reply.status, json.loads(reply.body)["model"]) == (200, "dev-small")


async def test_the_queue_answers_as_many_requests_as_an_order_says(running: Running) -> None:
    orders = [
        {"behaviour": {"status": 500}, "requests": 2, "path": PATHS["messages"]},
        {"behaviour": {"status": 429}, "requests": None},
    ]
    for order in orders:
        assert (await running.post("/_control", order))[0] == 200
    statuses = [(await ask(running, dialect, request_body(dialect))).status for dialect in ("messages",) * 3]
    assert statuses == [500, 500, 429]
    assert (await ask(running, "chat", request_body("chat"))).status == 429
    async with running.session.delete(f"{running.url}/_control") as response:
        assert response.status == 200
    assert (await ask(running, "chat", request_body("chat"))).status == 200


@pytest.mark.parametrize(
    "order", [[], {}, {"behaviour": {}, "requests": 0}, {"behaviour": {}, "times": 1}, {"behaviour": {"x": 1}}]
)
async def test_a_wrong_order_is_refused(running: Running, order: Any) -> None:
    status, body = await running.post("/_control", order)
    assert status == 400
    assert json.loads(body)["error"]["message"]
    assert (await ask(running, "chat", request_body("chat"))).status == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, [], None),
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}, "model"),
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, {"model": "m", "messages": 1}, "messages"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "a"}], "n": 0}, "n"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, "max_tokens"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "!upstream {"}]}, None),
        ("/v1/none", {}, None),
    ],
)
async def test_an_invalid_request_is_refused_in_the_dialects_shape(
    running: Running, path: str, body: Any, param: str | None
) -> None:
    status, answer = await running.post(path, body)
    assert status == (404 if path == "/v1/none" else 400)
    error = json.loads(answer)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    status, answer = await running.post(PATHS["messages"], {"model": "m", "messages": [{"role": "user"}]})
    assert (status, json.loads(answer)["type"]) == (400, "error")
    assert (await running.json("/_billed"))["usd"] == "0"


# -- what was received and billed


async def test_calls_show_what_was_received_and_billed(running: Running) -> None:
    await ask(running, "chat", request_body("chat"))
    await ask(running, "messages", request_body("messages", status=500))
    calls = (await running.json("/_calls"))["calls"]
    first, second = calls
    assert ["Authorization", "Bearer sk-raw"] in first["headers"]
    assert first["body"]["model"] == first["model"] == "dev-small"
    assert (first["status"], first["billed_usd"], first["hung_up"], first["has_ended"]) == (
        200,
        "0.0000028",
        False,
        True,
    )
    assert first["tokens"] == {"prompt": 4, "cached": 0, "cache_write": 0, "output": 6, "reasoning": 0}
    assert (second["status"], second["billed_usd"], second["produced_tokens"]) == (500, "0", 0)
    assert (await running.json("/_calls", after=1))["calls"] == [second]
    billed = await running.json("/_billed")
    assert (billed["requests"], billed["usd"]) == (1, "0.0000028")
    await running.post("/_reset", {})
    assert (await running.json("/_calls"))["calls"] == []
    assert (await running.json("/_billed"))["requests"] == 0


@pytest.mark.parametrize("model", [name for name in PRICES if not name.startswith("dev-")])
def test_models_of_real_names_have_the_prices_that_their_providers_publish(model: str) -> None:
    tokens = Tokens(prompt=1000, cached=300, output=0 if "embedding" in model else 500)
    if PRICES[model].cached == PRICES[model].input:
        tokens = Tokens(prompt=1000, output=tokens.output)
    provider = "anthropic" if "claude" in model else "openai"
    usage = Usage(input_tokens=tokens.prompt, cache_read_tokens=tokens.cached, output_tokens=tokens.output)
    assert price_of(model).cost_usd(tokens) == calc_price(usage, model, provider_id=provider).total_price


# -- the providers' records


async def test_openrouters_record_is_missing_at_first_and_never_where_it_is_asked_so(running: Running) -> None:
    reply = await ask(running, "chat", request_body("chat", stream=True, record_misses=2, reasoning_tokens=3))
    ident = reply.data[0]["id"]
    assert f"X-Generation-Id: {ident}".encode() in reply.head
    missing = [await running.json("/generation", id=ident) for _ in range(2)]
    assert all(answer["error"]["code"] == 404 for answer in missing)
    record = (await running.json("/api/v1/generation", id=ident))["data"]
    assert (record["id"], record["model"], record["streamed"], record["cancelled"]) == (ident, "dev-small", True, False)
    assert (record["native_tokens_prompt"], record["native_tokens_completion"]) == (4, 9)
    assert record["native_tokens_reasoning"] == 3
    assert Decimal(str(record["total_cost"])) == Decimal("0.000004")
    for behaviour in ({"record": False}, {"record_delay": 60}, {"status": 500}):
        await ask(running, "chat", request_body("chat", **behaviour))
        generation = (await running.last_call()).generation
        assert generation
        assert "error" in await running.json("/generation", id=generation.id)


async def test_litellms_record_is_null_where_there_is_none(running: Running) -> None:
    reply = await ask(running, "chat", request_body("chat"))
    ident = json.loads(reply.body)["id"]
    [row] = await running.json("/spend/logs", request_id=ident)
    assert (row["request_id"], row["model"], row["total_tokens"]) == (ident, "dev-small", 10)
    assert Decimal(str(row["spend"])) == Decimal("0.0000028")
    assert await running.json("/spend/logs", request_id="none-such") == [None]
    await ask(running, "chat", request_body("chat", id="alike", tokens=1))
    await ask(running, "chat", request_body("chat", id="alike", tokens=2))
    [row] = await running.json("/spend/logs", request_id="alike")
    assert row["completion_tokens"] == 2


async def spend(running: Running) -> None:
    """Two days of calls: yesterday's cost 0.000108 USD each, today's 0.0000028."""
    on: Any = {"billed_on": YESTERDAY.isoformat(), "prompt_tokens": 1000, "cached_tokens": 200, "tokens": 65}
    await ask(running, "chat", request_body("chat", **on))
    await ask(running, "messages", request_body("messages", **on))
    await ask(running, "chat", request_body("chat", billed_on=TODAY.isoformat()))


@pytest.mark.slow
async def test_openais_costs_are_read_by_its_package(running: Running) -> None:
    import openai

    await spend(running)
    start = int(datetime.combine(YESTERDAY, datetime.min.time(), UTC).timestamp())
    async with openai.AsyncOpenAI(admin_api_key="sk-admin", base_url=f"{running.url}/v1") as client:
        costs = client.admin.organization.usage.costs
        whole = await costs(start_time=start)
        first = await costs(start_time=start, limit=1, group_by=["line_item"])
        second = await costs(start_time=start, limit=1, page=first.next_page or "")
    amounts = [[result.amount.value for result in bucket.results if result.amount] for bucket in whole.data]  # type: ignore[union-attr]
    assert amounts == [[0.000108], [0.0000028]]
    assert (whole.data[0].start_time, whole.data[0].end_time) == (start, start + 86400)
    assert (first.has_more, second.has_more) == (True, False)
    items = {result.line_item: result.amount.value for result in first.data[0].results}  # type: ignore[union-attr]
    assert items == {
        "dev-small, input": 0.00008,
        "dev-small, cached input": 0.000002,
        "dev-small, output": 0.000026,
    }
    assert second.data[0].start_time == start + 86400
    assert "error" in await running.json("/v1/organization/costs")


async def test_anthropics_costs_are_cents_as_text_and_of_messages_only(running: Running) -> None:
    await spend(running)
    path = "/v1/organizations/cost_report"
    report = await running.json(path, starting_at=f"{YESTERDAY}T00:00:00Z")
    assert [[result["amount"] for result in bucket["results"]] for bucket in report["data"]] == [["0.0108"], []]
    assert report["data"][0]["starting_at"] == f"{YESTERDAY}T00:00:00Z"
    assert report["data"][0]["ending_at"] == f"{TODAY}T00:00:00Z"
    query = {"starting_at": f"{YESTERDAY}T00:00:00Z", "ending_at": f"{TODAY}T00:00:00Z", "group_by[]": "description"}
    detailed = await running.json(path, **query)
    assert (len(detailed["data"]), detailed["has_more"], detailed["next_page"]) == (1, False, None)
    amounts = {result["token_type"]: result["amount"] for result in detailed["data"][0]["results"]}
    assert amounts == {
        "uncached_input_tokens": "0.008",
        "cache_read_input_tokens": "0.0002",
        "output_tokens": "0.0026",
    }
    assert (await running.json(path))["type"] == "error"


async def test_openrouters_activity_is_of_completed_days(running: Running) -> None:
    await spend(running)
    rows = (await running.json("/api/v1/activity"))["data"]
    assert {row["date"] for row in rows} == {YESTERDAY.isoformat()}
    assert sum(Decimal(str(row["usage"])) for row in rows) == Decimal("0.000216")
    assert [(row["requests"], row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(1, 1000, 65)] * 2
    assert (await running.json("/activity", date=TODAY.isoformat()))["data"] == []
    assert "error" in await running.json("/activity", date="today")


async def test_litellms_spend_by_day_ends_at_the_last_days_beginning(running: Running) -> None:
    await spend(running)
    tomorrow = TODAY + timedelta(days=1)
    days = await running.json("/spend/logs", start_date=str(YESTERDAY), end_date=str(tomorrow))
    assert [day["startTime"] for day in days] == [str(YESTERDAY), str(TODAY), str(tomorrow)]
    assert [Decimal(str(day["spend"])) for day in days] == [Decimal("0.000216"), Decimal("0.0000028"), 0]
    assert days[0]["models"] == {"dev-small": days[0]["spend"]}
    until_today = await running.json("/spend/logs", start_date=str(YESTERDAY), end_date=str(TODAY), summarize="false")
    assert len(until_today) == 2
    assert "error" in await running.json("/spend/logs", start_date="x", end_date="y")


# -- the process


@pytest.mark.slow
async def test_the_process_serves_on_loopback_and_ends_at_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "devstack.upstream", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        host, port = line.split("http://")[1].strip().split(":")
        assert host == "127.0.0.1"
        listening = [row.split() for row in _listening()]
        assert [row[1].split(":")[0] for row in listening if row[1].endswith(f":{int(port):04X}")] == ["0100007F"]
        # A stream in progress does not keep it.
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(request_body("chat", stream=True, stall_after=1)).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(reader.readuntil(b"You"), 10)
        await _refuses(port)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
        writer.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _refuses(port: str) -> None:
    """A second one on the port ends with one line."""
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "devstack.upstream", "--port", port, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(second.communicate(), 60)
    assert (second.returncode, said.count(b"\n")) == (1, 1)
    assert said.startswith(f"upstream: port {port}: ".encode())


def _listening() -> list[str]:
    with open("/proc/net/tcp", encoding="ascii") as table:
        return [row for row in table.readlines()[1:] if row.split()[3] == "0A"]


def test_the_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--port" in capsys.readouterr().out


@pytest.mark.slow
async def test_it_is_a_part_like_the_others(tmp_path: Path) -> None:
    part = EmbeddedUpstream(tmp_path, quiet_port(), drains=True)
    await part.start()
    try:
        async with aiohttp.ClientSession() as session, session.head(part.url) as response:
            assert response.status == 200
        assert part.is_running
    finally:
        await part.stop()
    assert not part.is_running


def test_a_day_is_todays_unless_it_is_named() -> None:
    day = date(2026, 1, 2)
    assert behaviour_of({}).billing_day(day) == day
    assert behaviour_of({"billed_on": "2026-01-01"}).billing_day(day) == date(2026, 1, 1)
