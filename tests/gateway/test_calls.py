"""Calls that go well: what the client gets, what the upstream gets, and what is charged."""

from __future__ import annotations

import json
from decimal import Decimal
from math import ceil
from typing import Any

import pytest

from devstack.upstream import Behaviour
from devstack.upstream.records import Call
from tests.gateway.support import MODEL, UPSTREAM_KEY, Served, chat, faulty, served
from tests.support.postgres import Database
from tests.support.sql import query

MESSAGES = {"anthropic-version": "2023-06-01"}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": chat("one two three", max_tokens=50),
    "/v1/completions": {"model": MODEL, "prompt": "one two three", "max_tokens": 50},
    "/v1/responses": {"model": MODEL, "input": "one two three", "max_output_tokens": 50},
    "/v1/messages": {
        "model": MODEL,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "one two three"}],
    },
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "one two three"},
}
STREAMED = [path for path in BODIES if path != "/v1/embeddings"]


def sent_headers(call: Call) -> dict[str, str]:
    """What the upstream got."""
    return {name.decode().lower(): value.decode() for name, value in call.raw_headers}


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_is_charged_at_what_it_used(gateway: Served, path: str) -> None:
    answer = await gateway.client.post(BODIES[path], path)
    assert answer.status == 200, answer.body
    receipt = gateway.books.receipt()
    [call] = gateway.calls()
    assert (receipt["input_tokens"], receipt["output_tokens"]) == (call.billed.prompt, call.billed.output)
    # An embedding of three tokens costs 0.0000012 US dollars, and that is 1.2 credits: rounded up, once.
    assert receipt["charged_credits"] == ceil(call.billed_usd * 2 * 10_000_000)
    balance, held = gateway.books.balance(gateway.account.id)
    assert (balance, held) == (10_000_000 - receipt["charged_credits"], 0)
    assert answer.headers["X-Credits-Charged"] == str(receipt["charged_credits"])
    assert answer.headers["X-Credits-Remaining"] == str(balance)
    assert (receipt["request_id"], receipt["estimated"]) == (answer.request_id, False)


async def test_a_receipt_says_which_answer_was_charged_and_at_which_markup(gateway: Served) -> None:
    await gateway.client.post(faulty(id="gen-7"))
    receipt = gateway.books.receipt()
    assert (receipt["upstream_id"], receipt["unit_prices"]["markup_factor"]) == ("gen-7", "2")
    assert receipt["price_version"] is not None


@pytest.mark.parametrize(("path", "stream"), [("/v1/messages", True), ("/v1/chat/completions", False)])
async def test_a_hold_says_on_which_terms_its_call_is_made(gateway: Served, path: str, stream: bool) -> None:
    """Where the gateway dies, they are all that the call can be charged by."""
    answer = await gateway.client.post(chat(max_tokens=50, stream=stream), path)
    price = gateway.gateway.prices.find(MODEL)
    assert price is not None
    terms = (
        "SELECT request_id, dialect, model, upstream, is_streamed, markup_factor, price_version, rates,"
        " output_tokens_limit, input_tokens_estimate > 0, extract(epoch FROM lease_until - created_at)::int"
        " FROM credit_holds"
    )
    [(request_id, dialect, *rest)] = query(gateway.books.database.service_url, terms)
    assert (request_id, dialect) == (answer.request_id, "messages" if stream else "chat")
    rates = json.loads(price.rates_json)
    assert rest == [MODEL, "first", stream, 2, price.version, rates, 50, True, gateway.gateway.books.lease_seconds]


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_is_charged_before_its_last_event(gateway: Served, path: str) -> None:
    answer = await gateway.client.post({**BODIES[path], "stream": True}, path)
    assert answer.status == 200, answer.body
    assert int(answer.headers["X-Credits-Held"]) > 0
    *_, last_but_one, last = answer.events
    assert last.data == b"[DONE]" or last.name in ("response.completed", "message_stop")
    assert last_but_one.raw.startswith(b": credits charged=")
    receipt = gateway.books.receipt()
    assert answer.comment == {
        "charged": str(receipt["charged_credits"]),
        "remaining": str(gateway.books.balance(gateway.account.id)[0]),
    }
    [call] = gateway.calls()
    assert (receipt["input_tokens"], receipt["output_tokens"]) == (call.billed.prompt, call.billed.output)


async def test_a_client_that_hangs_up_at_the_last_event_has_been_charged(gateway: Served) -> None:
    async with gateway.client.open(chat(stream=True)) as response:
        async for line in response.content:
            if b"[DONE]" in line:
                break
        # The connection is still open, and the process has done nothing since.
        assert gateway.books.states() == ["captured"]


@pytest.mark.parametrize("asks", [True, False])
async def test_usage_is_asked_for_and_passed_on_only_to_who_asked(gateway: Served, asks: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asks else {}
    answer = await gateway.client.post(chat(stream=True, **options))
    chunks = [json.loads(event.data) for event in answer.events if event.data and event.data != b"[DONE]"]
    assert any(chunk.get("usage") for chunk in chunks) == asks
    # Clients crash on a chunk without choices that they did not ask for.
    assert all(chunk["choices"] for chunk in chunks) != asks
    assert json.loads(gateway.calls()[0].body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "behaviour",
    [
        {"chunk_bytes": 1},
        {"crlf": True, "chunk_bytes": 3},
        {"comments": True, "multiline": True},
        {"gzip": True},
        {"done": False},
        {"usage_chunk": "with_finish"},
        {"usage_chunk": "every_chunk"},
    ],
    ids=str,
)
@pytest.mark.parametrize("asks", [True, False])
async def test_however_a_stream_is_framed_it_is_charged_the_same(
    gateway: Served, behaviour: dict[str, Any], asks: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if asks else {}
    answer = await gateway.client.post({**faulty("größer als 世界", stream=True, **behaviour), **options})
    assert answer.status == 200
    assert "Content-Encoding" not in answer.headers
    receipt = gateway.books.receipt()
    [call] = gateway.calls()
    assert (receipt["input_tokens"], receipt["output_tokens"]) == (call.billed.prompt, call.billed.output)
    assert (receipt["charge_reason"], receipt["estimated"]) == ("completed", False)
    text = "".join(
        choice["delta"].get("content") or ""
        for event in answer.events
        if event.data and event.data != b"[DONE]"
        for choice in json.loads(event.data)["choices"]
    )
    assert text == "You said: größer als 世界"
    assert int(answer.comment["charged"]) == receipt["charged_credits"]


async def test_the_usage_chunk_waits_for_the_charge_where_no_last_event_comes(gateway: Served) -> None:
    body = {**faulty(stream=True, done=False), "stream_options": {"include_usage": True}}
    events = (await gateway.client.post(body)).events
    assert events[-2].raw.startswith(b": credits ")
    assert json.loads(events[-1].data or b"")["usage"]


async def test_unknown_fields_and_numbers_pass_as_they_came(gateway: Served) -> None:
    body = b'{"model":"%s", "messages":[{"role":"user","content":"hi"}],"temperature":1.0, "x_new": [1E2, {"a":null}]}'
    answer = await gateway.client.post(body % MODEL.encode())
    assert answer.status == 200, answer.body
    assert gateway.calls()[0].body == body % MODEL.encode()


async def test_neither_key_crosses_the_gateway(gateway: Served) -> None:
    more = [["Set-Cookie", "a=b"], ["X-Internal", "1"], ["openai-organization", "org-platform"]]
    answer = await gateway.client.post(
        faulty(echo_key=True, headers=more),
        Cookie="c=d",
        X_Forwarded_For="10.0.0.1",
        OpenAI_Organization="org-client",
        OpenAI_Beta="assistants=v2",
        User_Agent="tests/1",
    )
    got = sent_headers(gateway.calls()[0])
    assert got["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert (got["openai-beta"], got["user-agent"], got["accept-encoding"]) == ("assistants=v2", "tests/1", "identity")
    assert got.keys().isdisjoint({"cookie", "x-forwarded-for", "openai-organization", "x-api-key"})
    assert gateway.account.key not in str(got)
    names = {name.lower() for name in answer.headers}
    assert names.isdisjoint({"set-cookie", "x-internal", "x-upstream-key", "openai-organization", "x-generation-id"})
    assert UPSTREAM_KEY not in str(answer.headers) + answer.body.decode()
    assert answer.headers.getall("X-Request-Id") == [answer.request_id]  # type: ignore[attr-defined]


async def test_messages_are_passed_on_with_the_headers_of_their_api(gateway: Served) -> None:
    path = "/v1/messages?beta=true"
    sent = {"anthropic_version": "2023-06-01", "anthropic_beta": "tools-1", "x_api_key": gateway.account.key}
    async with gateway.client.session.post(
        gateway.client.url + path,
        data=json.dumps(BODIES["/v1/messages"]),
        headers={name.replace("_", "-"): value for name, value in sent.items()},
    ) as response:
        assert response.status == 200
        assert response.headers["request-id"] == response.headers["X-Request-Id"]
    got = sent_headers(gateway.calls()[0])
    assert (got["x-api-key"], got["anthropic-version"], got["anthropic-beta"]) == (
        UPSTREAM_KEY,
        "2023-06-01",
        "tools-1",
    )
    assert "authorization" not in got


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_the_scheme_is_read_in_any_case(gateway: Served, scheme: str) -> None:
    async with gateway.client.session.post(
        f"{gateway.client.url}/v1/chat/completions",
        data=json.dumps(chat()),
        headers={"Authorization": f"{scheme} {gateway.account.key}"},
    ) as response:
        assert response.status == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_searches_of_the_provider_are_charged(gateway: Served, path: str, stream: bool) -> None:
    gateway.upstream.order(Behaviour(searches=3, tokens=1))
    model = "gpt-5" if path == "/v1/responses" else "claude-sonnet-4-5"
    body = {**BODIES[path], "model": model, "stream": stream}
    assert (await gateway.client.post(body, path, **MESSAGES)).status == 200
    [line] = [one for one in gateway.books.receipt()["unit_prices"]["lines"] if one["unit"] == "web_searches"]
    assert (line["count"], Decimal(line["usd"]), line["per"]) == (3, Decimal(10), 1_000)


async def test_the_rate_limit_is_shown_and_enforced(database: Database) -> None:
    from gateway.policy import RateLimits

    async with served(database, rate_limits=RateLimits(chat=2, embeddings=60, images=60, audio=60)) as gateway:
        first, second, third = [await gateway.client.post(chat()) for _ in range(3)]
        assert [first.status, second.status, third.status] == [200, 200, 429]
        assert [first.headers[f"x-ratelimit-{n}-requests"] for n in ("limit", "remaining", "reset")] == [
            *("2", "1", "30000ms"),
        ]
        assert second.headers["x-ratelimit-remaining-requests"] == "0"
        assert 20 <= int(third.headers["Retry-After"]) <= 30
        assert third.headers["x-should-retry"] == "true"
        assert third.error["code"] == "rate_limit_exceeded"
        assert len(gateway.calls()) == 2
        # Embeddings have their own.
        assert (await gateway.client.post(BODIES["/v1/embeddings"], "/v1/embeddings")).status == 200


async def test_strict_mode_lowers_the_bound_to_what_can_be_held(database: Database) -> None:
    async with served(database, cents=1, clamps_output=True) as gateway:
        answer = await gateway.client.post(chat(max_tokens=1_000_000))
        assert answer.status == 200, answer.body
        [(_, held)] = gateway.books.holds()
        assert held == 100_000
        passed = json.loads(gateway.calls()[0].body)["max_tokens"]
        assert 8 * passed <= held < 8 * (passed + 20)
        without = await gateway.client.post(chat())
        assert without.status == 200
        assert json.loads(gateway.calls()[1].body)["max_tokens"] == 4096


DEAR: dict[str, Any] = {MODEL: {"input_per_million_usd": "100", "output_per_million_usd": "250"}}
"""2,000 credits for a token of input, and 5,000 for one of output."""


async def test_strict_mode_makes_no_call_that_could_pay_for_no_answer(database: Database) -> None:
    async with served(database, cents=1, clamps_output=True, prices=DEAR) as gateway:
        for bound, least in ((None, 16), (1_000, 16), (12, 12)):
            body = chat("hi", max_tokens=bound)
            answer = await gateway.client.post(body)
            assert (answer.status, answer.error["code"]) == (402, "insufficient_credits")
            of_input = 2_000 * ceil(len(json.dumps(body)) / 4)
            # 16 tokens alone could be paid for.
            assert answer.error["needed"] == of_input + 5_000 * least > 100_000 == answer.error["available"]
        assert not gateway.calls()
        assert not gateway.books.holds()
        assert (await gateway.client.post(chat("hi", max_tokens=3))).status == 200


async def test_strict_mode_believes_no_output_far_over_its_own_bound(database: Database) -> None:
    async with served(database, cents=3, clamps_output=True, prices=DEAR) as gateway:
        await gateway.client.post(faulty(usage="output_over_max"))
        receipt = gateway.books.receipt()
        assert (receipt["doubt"], receipt["estimated"]) == ("implausible_usage", True)
        assert receipt["charged_credits"] <= gateway.books.holds()[0][1] == 300_000


async def test_what_is_held_for_a_call_without_a_price_is_a_setting(database: Database) -> None:
    stating = {"usage_lookup": "openrouter"}
    async with served(database, cents=1, upstreams=stating, unpriced_hold_credits=100_001) as gateway:
        answer = await gateway.client.post(faulty(model="unheard-of", cost="number"))
        assert (answer.status, answer.error["needed"]) == (402, 100_001)
        assert not gateway.calls()
    account = gateway.account
    async with served(database, account=account, upstreams=stating, unpriced_hold_credits=100_000) as gateway:
        assert (await gateway.client.post(faulty(model="unheard-of", cost="number"))).status == 200
        assert gateway.books.holds() == [("captured", 100_000)]


async def test_a_model_without_a_price_goes_only_to_who_states_costs(database: Database) -> None:
    async with served(database) as gateway:
        refused = await gateway.client.post(chat(model="unheard-of"))
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        assert not gateway.calls()
    async with served(database, account=gateway.account, upstreams={"usage_lookup": "openrouter"}) as gateway:
        answer = await gateway.client.post(faulty(model="unheard-of", cost="exponent"))
        assert answer.status == 200
        receipt = gateway.books.receipt()
        assert receipt["charged_credits"] == ceil(gateway.calls()[0].billed_usd * 20_000_000)
        assert receipt["price_version"] is None
