"""`/v1/chat/completions` and `/v1/completions`.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from devstack.upstream.dialects.event import Event
from devstack.upstream.generation import Generation, ToolCall
from devstack.upstream.requests import Dialect
from devstack.upstream.tokens import count, pieces
from devstack.upstream.usage import OMITTED, add_usage, usage_of

DONE: Final = Event("[DONE]", is_last=True)
FINGERPRINT: Final = "fp_devstack"


def document(generation: Generation) -> dict[str, Any]:
    """The answer as one document."""
    is_chat = generation.asked.dialect is Dialect.CHAT
    choices = []
    for index in range(generation.asked.n):
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": generation.finish}
        if is_chat:
            choice["message"] = _message(generation)
        else:
            choice["text"] = generation.text
        choices.append(choice)
    answer = {**_head(generation, "chat.completion" if is_chat else "text_completion"), "choices": choices}
    return add_usage(answer, usage_of(generation))


def _head(generation: Generation, kind: str) -> dict[str, Any]:
    head = {
        "id": generation.shown_id,
        "object": kind,
        "created": generation.created,
        "model": generation.asked.model,
        "system_fingerprint": FINGERPRINT,
    }
    if generation.asked.dialect is Dialect.CHAT:
        head["service_tier"] = "default"
    return head


def _message(generation: Generation) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if generation.calls else generation.text,
        "refusal": None,
        "annotations": [],
    }
    if generation.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in generation.calls
        ]
    return message


def events(generation: Generation) -> Iterator[Event]:
    """The answer as a stream."""
    asked = generation.asked
    n = asked.n
    reasoning = generation.whole.reasoning // n
    if asked.dialect is Dialect.COMPLETIONS:
        for number, word in enumerate(generation.words):
            for index in range(n):
                yield _chunk(generation, index, text=word, tokens=1 + (reasoning if number == 0 else 0))
    else:
        for index in range(n):
            content = None if generation.calls else ""
            delta = {"role": "assistant", "content": content, "refusal": None}
            yield _chunk(generation, index, delta, tokens=reasoning)
        for word in generation.words:
            for index in range(n):
                yield _chunk(generation, index, {"content": word}, tokens=1)
        for number, call in enumerate(generation.calls):
            for index in range(n):
                yield from _call_chunks(generation, index, number, call)
    for index in range(n):
        yield _finish(generation, index)
    yield from usage_events(generation)
    yield DONE


def _call_chunks(generation: Generation, index: int, number: int, call: ToolCall) -> Iterator[Event]:
    head = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
    yield _chunk(generation, index, {"tool_calls": [{"index": number, **head}]}, tokens=count(call.name))
    for piece in pieces(call.arguments):
        delta = {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
        yield _chunk(generation, index, delta, tokens=1)


def _chunk(
    generation: Generation,
    index: int,
    delta: dict[str, Any] | None = None,
    *,
    text: str = "",
    finish: str | None = None,
    tokens: int = 0,
) -> Event:
    choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
    if generation.asked.dialect is Dialect.CHAT:
        choice["delta"] = {} if delta is None else delta
    else:
        choice["text"] = text
    chunk = {**_head(generation, _chunk_kind(generation)), "choices": [choice]}
    if generation.asked.behaviour.usage_chunk == "every_chunk":
        so_far = generation.whole.with_output(generation.produced + tokens)
        add_usage(chunk, usage_of(generation, tokens=so_far))
    elif generation.asked.wants_usage:
        chunk["usage"] = None
    return Event(chunk, tokens=tokens)


def _chunk_kind(generation: Generation) -> str:
    return "chat.completion.chunk" if generation.asked.dialect is Dialect.CHAT else "text_completion"


def _finish(generation: Generation, index: int) -> Event:
    event = _chunk(generation, index, finish=generation.finish)
    assert isinstance(event.data, dict)
    if generation.asked.behaviour.usage_chunk == "with_finish" and index == generation.asked.n - 1:
        add_usage(event.data, usage_of(generation))
    return event


def usage_events(generation: Generation) -> Iterator[Event]:
    """The chunk with the usage of what is produced so far, where one is due.

    Only some upstreams send it without being asked, those that send it in a form of their own.
    """
    asked = generation.asked
    form = asked.behaviour.usage_chunk
    is_due = asked.wants_usage or asked.behaviour.has("usage_chunk")
    usage = usage_of(generation)
    if not is_due or usage is OMITTED or form in ("with_finish", "every_chunk"):
        return
    choices = []
    if form == "one_choice":
        empty = {"delta": {"role": "assistant", "content": ""}} if asked.dialect is Dialect.CHAT else {"text": ""}
        choices = [{"index": 0, **empty, "logprobs": None, "finish_reason": None}]
    yield Event({**_head(generation, _chunk_kind(generation)), "choices": choices, "usage": usage})


def error_events(generation: Generation, error: dict[str, Any]) -> Iterator[Event]:
    """An error in mid-stream, which ends it."""
    event = _chunk(generation, 0, {"content": ""}, finish="error")
    assert isinstance(event.data, dict)
    yield Event({"error": error, **event.data})
    yield DONE
