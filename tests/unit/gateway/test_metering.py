"""What is read of an answer, in each API's own terms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domain.billing.usage import Dialect, ImplausibleUsage, Usage
from gateway.metering import Handling, Meter
from gateway.sse import SseEvent, parse_event


def event(document: object, name: str | None = None) -> SseEvent:
    lines = [f"event: {name}"] if name else []
    text = document if isinstance(document, str) else json.dumps(document)
    return parse_event("\n".join([*lines, f"data: {text}", "", ""]).encode())


def meter(dialect: Dialect, *, asks_for_usage: bool = False) -> Meter:
    return Meter(dialect, asks_for_usage, input_tokens_estimate=9)


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], **fields}


USAGE = {"prompt_tokens": 10, "completion_tokens": 3}


@pytest.mark.parametrize("asks_for_usage", [True, False])
def test_a_stream_of_chat(asks_for_usage: bool) -> None:
    read = meter(Dialect.CHAT, asks_for_usage=asks_for_usage)
    deltas = [
        {"role": "assistant", "content": ""},
        {"content": "Hell"},
        {"content": "o, é"},
        {"reasoning_content": "hm"},
    ]
    for delta in deltas:
        assert read.observe(event(chunk(choices=[{"index": 0, "delta": delta}], usage=None))) is Handling.PASS
    call = {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a":1}'}}]}
    assert read.observe(event(chunk(choices=[{"index": 0, "delta": call}]))) is Handling.PASS
    assert read.produced == Usage({"input_tokens": 9, "output_tokens": 5})  # 4 + 5 + 2 + 7 bytes
    assert read.report is None
    assert read.observe(event(chunk(usage=USAGE))) is (Handling.HOLD if asks_for_usage else Handling.DROP)
    assert not read.has_ended
    assert read.observe(event("[DONE]")) is Handling.LAST
    assert read.has_ended
    assert read.report == Usage({"input_tokens": 10, "output_tokens": 3})
    assert read.upstream_id == "chatcmpl-1"


def test_usage_beside_output_is_passed_on() -> None:
    """Some upstreams put it on the last chunk of text, and OpenRouter beside a choice without content."""
    read = meter(Dialect.CHAT)
    assert read.observe(event(chunk(choices=[{"delta": {"content": "x"}}], usage=USAGE))) is Handling.PASS
    assert read.report == Usage({"input_tokens": 10, "output_tokens": 3})


def test_a_stream_of_messages() -> None:
    read = meter(Dialect.MESSAGES)
    start = {"type": "message_start", "message": {"id": "msg_1", "usage": {"input_tokens": 10, "output_tokens": 1}}}
    assert read.observe(event(start, "message_start")) is Handling.PASS
    for block in ({"type": "text_delta", "text": "abcd"}, {"type": "input_json_delta", "partial_json": "{}"}):
        delta = {"type": "content_block_delta", "index": 0, "delta": block}
        assert read.observe(event(delta, "content_block_delta")) is Handling.PASS
    assert read.produced.output_tokens == 2
    read.observe(event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}}, "message_delta"))
    assert read.observe(event({"type": "message_stop"}, "message_stop")) is Handling.LAST
    assert read.report == Usage({"input_tokens": 10, "output_tokens": 30})
    assert read.upstream_id == "msg_1"


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete", "response.failed"])
def test_a_stream_of_responses(last: str) -> None:
    read = meter(Dialect.RESPONSES)
    assert (
        read.observe(event({"type": "response.created", "response": {"id": "resp_1", "usage": None}})) is Handling.PASS
    )
    for kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
        assert read.observe(event({"type": kind, "delta": "abcd"})) is Handling.PASS
    done = {"type": "response.output_text.done", "text": "abcd"}
    assert read.observe(event(done)) is Handling.PASS
    assert read.produced.output_tokens == 2
    ended = {"type": last, "response": {"id": "resp_1", "usage": {"input_tokens": 10, "output_tokens": 3}}}
    assert read.observe(event(ended, last)) is Handling.LAST
    assert read.report == Usage({"input_tokens": 10, "output_tokens": 3})
    assert read.upstream_id == "resp_1"


@pytest.mark.parametrize(
    ("dialect", "body", "output_tokens"),
    [
        (Dialect.CHAT, {"id": "c", "choices": [{"message": {"content": "abcdefgh"}}], "usage": USAGE}, 2),
        (Dialect.COMPLETIONS, {"id": "c", "choices": [{"text": "abcdefgh"}], "usage": USAGE}, 2),
        (Dialect.MESSAGES, {"id": "c", "content": [{"type": "text", "text": "abcd"}]}, 1),
        (Dialect.RESPONSES, {"id": "c", "output": [{"content": [{"type": "output_text", "text": "abcd"}]}]}, 1),
        (Dialect.EMBEDDINGS, {"id": "c", "data": [{"embedding": [0.1, 0.2]}]}, 0),
    ],
)
def test_an_answer_that_is_not_streamed(dialect: Dialect, body: dict[str, Any], output_tokens: int) -> None:
    read = meter(dialect)
    read.observe_body(json.dumps(body).encode())
    assert read.has_ended
    assert read.produced.output_tokens == output_tokens
    assert (read.report is not None) == ("usage" in body)


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "overloaded", "code": 529}},
        {"error": "overloaded"},
        {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}},
        {"type": "response.failed", "response": {"error": {"message": "overloaded"}}},
    ],
)
def test_an_error_under_a_success_is_seen(document: dict[str, Any]) -> None:
    for dialect in Dialect:
        read = meter(dialect)
        read.observe(event(document))
        assert read.error is not None
        assert read.error["message"] == "overloaded"
        assert read.produced.output_tokens == 0


@pytest.mark.parametrize("usage", ['{"prompt_tokens": NaN, "completion_tokens": 1}', '"5"', "[1]", "7"])
def test_a_report_that_is_none_is_implausible(usage: str) -> None:
    read = meter(Dialect.CHAT)
    read.observe(event('{"choices": [], "usage": ' + usage + "}"))
    assert isinstance(read.report, ImplausibleUsage)


@pytest.mark.parametrize("data", ["", "not json", "[1, 2]", "7", "[" * 100_000, '{"choices": 7, "usage": null}'])
def test_what_is_not_understood_is_passed_on(data: str) -> None:
    read = meter(Dialect.CHAT)
    assert read.observe(event(data)) is Handling.PASS
    assert read.report is None
    assert read.observe(parse_event(b": PROCESSING\n\n")) is Handling.PASS


def test_before_the_end_the_input_is_what_was_reported_first() -> None:
    """Anthropic's first event has it. It is no report: the output is not known yet."""
    read = meter(Dialect.MESSAGES)
    read.observe(event({"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}))
    read.observe(event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "abcdefgh"}}))
    assert read.produced == Usage({"input_tokens": 25, "output_tokens": 2})
    assert read.report is None
    assert not read.is_complete
    read.observe(event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}}))
    assert read.is_complete
    assert read.produced == Usage({"input_tokens": 9, "output_tokens": 2})


def test_a_first_report_that_cannot_be_true_is_not_what_was_used() -> None:
    read = meter(Dialect.MESSAGES)
    read.observe(event({"type": "message_start", "message": {"usage": {"input_tokens": -25, "output_tokens": 1}}}))
    assert read.produced == Usage({"input_tokens": 9, "output_tokens": 0})


def test_the_end_of_a_stream_is_read_with_the_space_around_it() -> None:
    read = meter(Dialect.CHAT)
    assert read.observe(event("[DONE] ")) is Handling.LAST
    assert read.has_ended


@pytest.mark.parametrize("name", ["content", "reasoning", "reasoning_content", "refusal", "thinking", "text"])
def test_what_was_written_counts_under_each_of_its_names(name: str) -> None:
    read = meter(Dialect.CHAT)
    read.observe(event(chunk(choices=[{"delta": {name: "abcd", "role": "assistant"}}])))
    assert read.output_bytes == 4


def test_usage_without_choices_is_passed_on_where_the_api_has_none() -> None:
    ended = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}}
    assert meter(Dialect.MESSAGES).observe(event(ended, "message_delta")) is Handling.PASS


def test_an_event_without_a_type_is_of_its_name() -> None:
    read = meter(Dialect.MESSAGES)
    assert read.observe(event({}, "message_stop")) is Handling.LAST
    assert read.has_ended


@pytest.mark.parametrize(
    ("chunks", "is_complete"),
    [
        ([], False),
        ([chunk(choices=[{"delta": {"content": "x"}, "finish_reason": None}])], False),
        ([chunk(choices=[{"delta": {}, "finish_reason": "stop"}])], True),
        ([chunk(usage=USAGE)], True),
        (["[DONE]"], True),
    ],
)
def test_an_answer_is_whole_once_anything_says_so(chunks: list[Any], is_complete: bool) -> None:
    read = meter(Dialect.CHAT)
    for one in chunks:
        read.observe(event(one))
    assert read.is_complete is is_complete


def test_an_error_is_all_that_came_where_nothing_was_written() -> None:
    read = meter(Dialect.CHAT)
    assert not read.is_error_only
    read.observe(event({"error": {"message": "overloaded"}}))
    assert read.is_error_only
    read.observe(event(chunk(choices=[{"delta": {"content": "x"}}])))
    assert not read.is_error_only


@pytest.mark.parametrize("fields", [{}, {"usage": USAGE, "error": {"message": "overloaded"}}])
def test_a_chunk_that_is_more_or_less_than_usage_is_passed_on(fields: dict[str, Any]) -> None:
    assert meter(Dialect.CHAT).observe(event(chunk(**fields))) is Handling.PASS


def test_a_body_whose_usage_cannot_be_read_is_an_answer_of_its_length() -> None:
    read, body = meter(Dialect.CHAT), b'{"choices": [], "usage": {"prompt_tokens": NaN}}'
    read.observe_body(body)
    assert isinstance(read.report, ImplausibleUsage)
    assert (read.is_answer, read.output_bytes) == (True, len(body))
    other = meter(Dialect.CHAT)
    other.observe_body(b"<html>")
    assert (other.is_answer, other.output_bytes) == (False, 0)


def test_the_first_id_is_that_of_the_call() -> None:
    read = meter(Dialect.CHAT)
    for identifier in ("first", "second"):
        read.observe(event(chunk(id=identifier)))
    assert read.upstream_id == "first"


@pytest.mark.parametrize("identifier", ["", "gen\0", "gen\n", 7])
def test_an_id_that_no_database_holds_is_none(identifier: object) -> None:
    read = meter(Dialect.CHAT)
    read.observe(event(chunk(id=identifier)))
    assert read.upstream_id is None
    read.observe(event(chunk(id="g" * 300)))
    assert read.upstream_id == "g" * 200


@pytest.mark.parametrize(
    ("dialect", "more", "seconds"),
    [
        (Dialect.TRANSCRIPTIONS, {"duration": 7.5}, 8),
        (Dialect.TRANSCRIPTIONS, {"duration": True}, None),
        (Dialect.TRANSCRIPTIONS, {"duration": 7, "usage": {"type": "duration", "seconds": 3}}, 3),
        (Dialect.CHAT, {"duration": 7}, None),
    ],
)
def test_a_length_is_what_was_used_of_sound_where_nothing_else_is_said(
    dialect: Dialect, more: dict[str, Any], seconds: int | None
) -> None:
    read = meter(dialect)
    read.observe_body(json.dumps({"text": "x", **more}).encode())
    expected = None if seconds is None else Usage({"audio_seconds": seconds, "input_audio_seconds": seconds})
    assert read.report == expected


@pytest.mark.parametrize(
    ("action", "searches"), [({"type": "search"}, 1), ({}, 1), (None, 1), ("text", 1), ({"type": "open_page"}, 0)]
)
def test_a_search_is_counted_and_what_is_done_with_it_is_not(action: object, searches: int) -> None:
    read = meter(Dialect.RESPONSES)
    read.observe_body(json.dumps({"output": [{"type": "web_search_call", "action": action}]}).encode())
    assert sum(read.counted.values()) == searches


def test_speech_is_as_many_tokens_as_its_bytes_and_no_more_than_its_limit() -> None:
    read = Meter(Dialect.SPEECH, False, input_tokens_estimate=9, output_tokens_limit=100)
    read.observe_sound(8)
    assert read.produced.output_tokens == 2
    read.observe_sound(100_000)
    assert read.produced.output_tokens == 100


def test_text_is_read_in_few_levels_of_what_an_upstream_nests() -> None:
    read = meter(Dialect.CHAT)
    nested: Any = {"content": "abcd"}
    for _ in range(20):
        nested = [nested]
    read.observe(event({"choices": nested}))
    assert (read.is_answer, read.output_bytes) == (True, 0)
