"""Each fault, as it is on the wire, and what is billed for it."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest

from tests.upstream.conftest import Running
from tests.upstream.raw import LAST, SAID, STREAMED, Connection, ask, request_body


def reported(data: list[Any]) -> Any:
    """The last usage in a stream's events."""
    found = None
    for event in data:
        for part in (event, event.get("response") or {}, event.get("message") or {}):
            found = part.get("usage") or found
    return found


def output_tokens(usage: Any) -> Any:
    return usage.get("completion_tokens", usage.get("output_tokens"))


# -- how it ends


@pytest.mark.parametrize("dialect", STREAMED)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_stream_breaks_off_after_so_many_tokens(running: Running, dialect: str, reset: bool) -> None:
    connection = await Connection.open(running, dialect, request_body(dialect, stream=True, break_after=2, reset=reset))
    if reset:
        # A reset may overtake what was sent before it; a close does not.
        reply = await connection.reply()
        assert reply.was_reset
    else:
        await connection.until(b" said:")
        reply = await connection.reply()
        assert not reply.was_reset
        assert b" Count" not in reply.body
    assert not reply.is_whole
    assert LAST[dialect] not in reply.body
    call = await running.last_call()
    assert (call.billed.prompt, call.billed.output) == (4, 2)


@pytest.mark.parametrize("dialect", STREAMED)
async def test_a_stream_breaks_off_with_its_usage_sent(running: Running, dialect: str) -> None:
    body = request_body(dialect, stream=True, break_after=2, usage_before_break=True)
    reply = await ask(running, dialect, body)
    assert not reply.is_whole
    assert LAST[dialect] not in reply.body
    assert output_tokens(reported(reply.data)) == 2
    without = await ask(running, dialect, request_body(dialect, stream=True, break_after=2))
    assert output_tokens(reported(without.data) or {}) in (None, 1)  # 1: Anthropic's first event


@pytest.mark.parametrize(("with_usage", "has_usage"), [(False, False), (True, True)])
async def test_a_document_breaks_off_in_its_middle(running: Running, with_usage: bool, has_usage: bool) -> None:
    reply = await ask(running, "chat", request_body("chat", break_after=2, usage_before_break=with_usage))
    assert (reply.status, reply.is_whole) == (200, False)
    assert (b'"completion_tokens":2' in reply.body) is has_usage
    assert (await running.last_call()).billed.output == 2


@pytest.mark.parametrize("dialect", STREAMED)
async def test_a_stream_ends_without_its_last_event(running: Running, dialect: str) -> None:
    reply = await ask(running, dialect, request_body(dialect, stream=True, done=False))
    assert reply.is_whole
    assert b"please" in reply.body
    assert LAST[dialect] not in reply.body
    whole = await ask(running, dialect, request_body(dialect, stream=True))
    assert LAST[dialect] in whole.body


@pytest.mark.parametrize("dialect", STREAMED)
async def test_a_stalled_stream_says_nothing_more_until_the_client_hangs_up(running: Running, dialect: str) -> None:
    connection = await Connection.open(running, dialect, request_body(dialect, stream=True, stall_after=3))
    await connection.until(b" Count")
    [call] = running.upstream.records.calls()
    assert not call.has_ended
    assert b" these" not in connection.received
    connection.close()
    call = await running.last_call()
    assert (call.hung_up, call.was_cancelled, call.billed.output) == (True, True, 3)


async def test_a_stalled_document_never_begins(running: Running) -> None:
    body = request_body("chat", stall_after=2, tokens_per_second=1000)
    connection = await Connection.open(running, "chat", body)
    await _until_produced(running, 2)
    connection.close()
    call = await running.last_call()
    assert connection.received == b""
    assert call.hung_up
    assert call.billed.output == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_that_stops_on_abort_bills_what_was_produced(running: Running, stream: bool) -> None:
    body = request_body("chat", stream=stream, tokens=100_000, tokens_per_second=200, on_abort="stop")
    connection = await Connection.open(running, "chat", body)
    await _until_produced(running, 3)
    connection.close()
    call = await running.last_call()
    assert (call.hung_up, call.was_cancelled) == (True, True)
    assert call.generation
    assert 3 <= call.billed.output == call.generation.produced < 100_000
    assert call.billed.prompt == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_that_ignores_aborts_goes_on_and_bills_all(running: Running, stream: bool) -> None:
    body = request_body("chat", stream=stream, tokens=50, tokens_per_second=500, on_abort="drain")
    connection = await Connection.open(running, "chat", body)
    await _until_produced(running, 3)
    connection.close()
    call = await running.last_call()
    assert (call.hung_up, call.was_cancelled, call.billed.output) == (True, False, 50)


async def _until_produced(running: Running, tokens: int) -> None:
    while True:
        for call in running.upstream.records.calls():
            if call.generation and call.generation.produced >= tokens:
                return
        await running.json("/_billed")


async def test_nothing_is_billed_when_the_client_hangs_up_before_the_generation(running: Running) -> None:
    connection = await Connection.open(running, "chat", request_body("chat", delay=60))
    while not list(running.upstream.records.calls()):
        await running.json("/_billed")
    connection.close()
    call = await running.last_call()
    assert call.was_cancelled
    assert call.billed_usd == 0


# -- time


async def test_the_first_byte_is_delayed_and_tokens_come_at_their_rate(running: Running) -> None:
    started = time.monotonic()
    connection = await Connection.open(running, "chat", request_body("chat", stream=True, delay=0.1))
    await connection.until(b"HTTP/1.1 200")
    assert time.monotonic() - started >= 0.1
    connection.close()
    for stream in (True, False):
        started = time.monotonic()
        await ask(running, "chat", request_body("chat", stream=stream, tokens=10, tokens_per_second=100))
        assert time.monotonic() - started >= 0.1


# -- usage

LIES: dict[str, bytes] = {
    "negative": b'"completion_tokens":-5,',
    "nan": b'"completion_tokens":NaN,',
    "infinity": b'"completion_tokens":Infinity,',
    "huge": b'"completion_tokens":1e400,',
    "cached_over_prompt": b'"cached_tokens":1004,',
    "output_over_max": b'"completion_tokens":100006,',
    "zero": b'"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,',
    "text": b'"prompt_tokens":"4","completion_tokens":"6",',
    "fraction": b'"completion_tokens":6.5,',
    "list": b'"usage":[]',
    "null": b'"usage":null',
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_reported_usage_is_a_lie_and_what_is_billed_is_not(running: Running, lie: str, stream: bool) -> None:
    reply = await ask(running, "chat", request_body("chat", stream=stream, usage=lie))
    assert reply.status == 200
    assert LIES[lie] in reply.body
    call = await running.last_call()
    assert (call.billed.prompt, call.billed.output) == (4, 6)


@pytest.mark.parametrize("dialect", ["responses", "messages"])
@pytest.mark.parametrize(
    ("lie", "field"),
    [("negative", b'"output_tokens":-5'), ("nan", b'"output_tokens":NaN'), ("huge", b'"output_tokens":1e400')],
)
async def test_the_other_dialects_lie_too(running: Running, dialect: str, lie: str, field: bytes) -> None:
    for stream in (False, True):
        assert field in (await ask(running, dialect, request_body(dialect, stream=stream, usage=lie))).body


@pytest.mark.parametrize("dialect", [*STREAMED, "embeddings"])
async def test_usage_is_left_out(running: Running, dialect: str) -> None:
    for stream in (False, True):
        reply = await ask(running, dialect, request_body(dialect, stream=stream, usage="omit"))
        assert b"_tokens" not in reply.body.replace(b"max_output_tokens", b"")


COSTS: dict[str, bytes] = {
    "number": b'"cost":0.0000028',
    "text": b'"cost":"0.0000028"',
    "exponent": b'"cost":2.8e-6',
    "object": b'"total_cost":0.0000028',
    "byok": b'"cost":0.00000014,"is_byok":true,"cost_details":{"upstream_inference_cost":0.0000028}',
    "zero": b'"cost":0}',
    "negative": b'"cost":-0.0000028',
    "nan": b'"cost":NaN',
    "huge": b'"cost":1e400',
    "null": b'"cost":null',
}


@pytest.mark.parametrize("style", COSTS)
async def test_the_cost_is_stated_in_every_way(running: Running, style: str) -> None:
    """dev-small: 4 tokens at 0.10 USD a million, and 6 at 0.40."""
    reply = await ask(running, "chat", request_body("chat", cost=style))
    assert COSTS[style] in reply.body
    assert str((await running.last_call()).billed_usd) == "0.0000028"


@pytest.mark.parametrize(
    ("form", "choices", "position"),
    [("no_choices", 0, -1), ("one_choice", 1, -1), ("with_finish", 1, -1), ("every_chunk", 1, 1)],
)
async def test_usage_comes_in_every_form(running: Running, form: str, choices: int, position: int) -> None:
    body = request_body("chat", stream=True, usage_chunk=form, more={"stream_options": None})
    data = (await ask(running, "chat", body)).data
    assert len(data[position]["choices"]) == choices
    assert data[position]["usage"]["completion_tokens"] == (1 if form == "every_chunk" else 6)
    assert data[-1]["usage"]["completion_tokens"] == 6
    assert bool(data[-1]["choices"] and data[-1]["choices"][0]["finish_reason"]) is (
        form in ("with_finish", "every_chunk")
    )


async def test_stream_options_are_refused(running: Running) -> None:
    reply = await ask(running, "chat", request_body("chat", stream=True, refuse_stream_options=True))
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == "stream_options"
    body = request_body("chat", stream=True, refuse_stream_options=True)
    del body["stream_options"]
    assert (await ask(running, "chat", body)).status == 200


@pytest.mark.parametrize("ident", [None, "None", "chatcmpl-424"])
async def test_ids_are_null_or_alike(running: Running, ident: str | None) -> None:
    replies = [await ask(running, "chat", request_body("chat", id=ident)) for _ in range(2)]
    assert [json.loads(reply.body)["id"] for reply in replies] == [ident, ident]
    stream = await ask(running, "chat", request_body("chat", stream=True, id=ident))
    assert {event["id"] for event in stream.data} == {ident}


# -- errors


@pytest.mark.parametrize("with_usage", [False, True])
async def test_an_error_bills_its_usage_or_nothing(running: Running, with_usage: bool) -> None:
    reply = await ask(running, "chat", request_body("chat", status=429, retry_after=7, error_usage=with_usage))
    assert reply.status == 429
    assert b"\r\nRetry-After: 7\r\n" in reply.head
    body = json.loads(reply.body)
    assert body["error"]["code"] == "rate_limit_exceeded"
    call = await running.last_call()
    assert ("usage" in body) is with_usage
    assert (call.billed.prompt, call.billed.output) == ((4, 0) if with_usage else (0, 0))


@pytest.mark.parametrize("dialect", STREAMED)
async def test_a_200_has_only_an_error(running: Running, dialect: str) -> None:
    whole = await ask(running, dialect, request_body(dialect, error_in_200=True))
    assert whole.status == 200
    assert json.loads(whole.body)["error"]["message"]
    stream = await ask(running, dialect, request_body(dialect, stream=True, error_in_200=True))
    assert (stream.status, stream.is_whole, len(stream.data)) == (200, True, 1)
    [event] = stream.data
    assert event.get("error") or event["response"]["error"]
    assert all(call.billed_usd == 0 for call in running.upstream.records.calls())


async def test_an_error_comes_in_mid_stream(running: Running) -> None:
    reply = await ask(running, "chat", request_body("chat", stream=True, error_after=2))
    last = reply.data[-1]
    assert last["error"]["message"]
    assert last["choices"][0]["finish_reason"] == "error"
    assert (await running.last_call()).billed.output == 2
    messages = await ask(running, "messages", request_body("messages", stream=True, error_after=2))
    assert b"event: error\n" in messages.body
    assert messages.data[-1]["error"]["type"] == "overloaded_error"


async def test_an_html_page_instead_of_json(running: Running) -> None:
    reply = await ask(running, "chat", request_body("chat", html=True))
    assert reply.status == 502
    assert b"\r\nContent-Type: text/html" in reply.head
    assert reply.body.startswith(b"<html>")


async def test_a_redirect_is_answered_and_the_rest_is_not_done(running: Running) -> None:
    reply = await ask(running, "chat", request_body("chat", redirect="http://127.0.0.1:9/elsewhere"))
    assert reply.status == 302
    assert b"\r\nLocation: http://127.0.0.1:9/elsewhere\r\n" in reply.head
    assert (await running.last_call()).billed_usd == 0


# -- the bytes


async def test_bodies_and_streams_are_compressed_unasked(running: Running) -> None:
    for stream in (False, True):
        reply = await ask(running, "chat", request_body("chat", stream=stream, gzip=True))
        assert b"\r\nContent-Encoding: gzip\r\n" in reply.head
        assert b'"completion_tokens":6' in gzip.decompress(reply.body)


async def test_events_are_framed_in_odd_ways(running: Running) -> None:
    crlf = await ask(running, "messages", request_body("messages", stream=True, crlf=True))
    assert crlf.body.count(b"\n") == crlf.body.count(b"\r\n")
    assert crlf.body.endswith(b"\r\n\r\n")
    comments = await ask(running, "chat", request_body("chat", stream=True, comments=True))
    assert comments.body.count(b": OPENROUTER PROCESSING\n\ndata: ") == comments.body.count(b"data: ")
    lines = await ask(running, "chat", request_body("chat", stream=True, multiline=True))
    assert b'data: "completion_tokens": 6,\n' in lines.body
    first = lines.body.split(b"\n\n")[0]
    assert json.loads(first.replace(b"data: ", b""))["object"] == "chat.completion.chunk"


@pytest.mark.parametrize("size", [1, 7])
async def test_events_and_characters_are_cut_apart(running: Running, size: int) -> None:
    body = request_body("chat", text="wörld", stream=True, chunk_bytes=size)
    reply = await ask(running, "chat", body)
    assert reply.is_whole
    assert max(map(len, reply.chunks)) == size
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in reply.data[:-1]) == "You said: wörld"
    if size == 1:
        assert "ö".encode()[:1] in reply.chunks


@pytest.mark.slow
async def test_the_openai_package_reads_every_framing(running: Running) -> None:
    import openai

    odd: Any = {"crlf": True, "comments": True, "multiline": True, "chunk_bytes": 3, "gzip": True}
    message: Any = request_body("chat", **odd)["messages"]
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=f"{running.url}/v1") as client:
        stream = await client.chat.completions.create(model="dev-small", messages=message, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == SAID


async def test_headers_come_twice_and_the_key_comes_back(running: Running) -> None:
    pairs = [["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["X-Twice", "1"], ["X-Twice", "2"]]
    for stream in (False, True):
        reply = await ask(running, "chat", request_body("chat", stream=stream, headers=pairs, echo_key=True))
        assert reply.head.count(b"\r\nSet-Cookie: ") == 2
        assert reply.head.count(b"\r\nX-Twice: ") == 2
        assert b"\r\nX-Upstream-Key: Bearer sk-raw\r\n" in reply.head
