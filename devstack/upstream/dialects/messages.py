"""`/v1/messages`.

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from devstack.upstream.dialects.event import Event, named
from devstack.upstream.generation import Generation
from devstack.upstream.tokens import count, pieces
from devstack.upstream.usage import add_usage, usage_of

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def document(generation: Generation) -> dict[str, Any]:
    """The answer as one document."""
    content: list[dict[str, Any]] = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in generation.calls
    ]
    if not generation.calls:
        content = [{"type": "text", "text": generation.text}]
    answer = {**_head(generation), "content": content, "stop_reason": _STOP_REASONS[generation.finish]}
    return add_usage(answer, usage_of(generation))


def _head(generation: Generation) -> dict[str, Any]:
    return {
        "id": generation.shown_id,
        "type": "message",
        "role": "assistant",
        "model": generation.asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def events(generation: Generation) -> Iterator[Event]:
    """The answer as a stream."""
    at_first = generation.whole.with_output(min(1, generation.whole.output))
    start = add_usage(_head(generation), usage_of(generation, tokens=at_first))
    yield named({"type": "message_start", "message": start}, generation.whole.reasoning)
    if not generation.calls:
        yield _block_start(0, {"type": "text", "text": ""})
        yield named({"type": "ping"})
        for word in generation.words:
            yield _block_delta(0, {"type": "text_delta", "text": word}, 1)
        yield _block_stop(0)
    for index, call in enumerate(generation.calls):
        yield _block_start(index, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if index == 0:
            yield named({"type": "ping"})
        yield _block_delta(index, {"type": "input_json_delta", "partial_json": ""}, count(call.name))
        for piece in pieces(call.arguments):
            yield _block_delta(index, {"type": "input_json_delta", "partial_json": piece}, 1)
        yield _block_stop(index)
    yield from usage_events(generation)
    yield named({"type": "message_stop"}, is_last=True)


def _block_start(index: int, block: dict[str, Any]) -> Event:
    return named({"type": "content_block_start", "index": index, "content_block": block})


def _block_delta(index: int, delta: dict[str, Any], tokens: int) -> Event:
    return named({"type": "content_block_delta", "index": index, "delta": delta}, tokens)


def _block_stop(index: int) -> Event:
    return named({"type": "content_block_stop", "index": index})


def usage_events(generation: Generation) -> Iterator[Event]:
    """The event with the usage of what is produced so far."""
    delta = {"stop_reason": _STOP_REASONS[generation.finish], "stop_sequence": None}
    usage = usage_of(generation)
    if isinstance(usage, dict):
        usage = {name: value for name, value in usage.items() if name not in ("service_tier", "cache_creation")}
    yield named(add_usage({"type": "message_delta", "delta": delta}, usage))


def error_events(generation: Generation, error: dict[str, Any]) -> Iterator[Event]:
    """An error in mid-stream, which ends it."""
    yield named({"type": "error", "error": error}, is_last=True)
