"""`/v1/responses`: typed events, numbered within the stream.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from devstack.upstream.dialects.event import Event, named
from devstack.upstream.generation import Generation, ToolCall
from devstack.upstream.tokens import count, pieces
from devstack.upstream.usage import OMITTED, usage_of

REASONING_SUMMARY: Final = "Thinking of an answer."
_ECHOED: Final[dict[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""Fields that return what the request has, and what they are otherwise."""


def document(generation: Generation) -> dict[str, Any]:
    """The answer as one document."""
    return _response(generation, "incomplete" if generation.finish == "length" else "completed", _output(generation))


def _response(
    generation: Generation, status: str, output: list[dict[str, Any]], error: dict[str, Any] | None = None
) -> dict[str, Any]:
    body = generation.asked.body
    response = {
        "id": generation.shown_id,
        "object": "response",
        "created_at": generation.created,
        "status": status,
        "completed_at": generation.created if status == "completed" else None,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": generation.asked.model,
        "output": output,
        **{name: default if (value := body.get(name)) is None else value for name, default in _ECHOED.items()},
        "usage": None,
    }
    if status != "in_progress":
        response["usage"] = usage_of(generation)
    if response["usage"] is OMITTED:
        del response["usage"]
    return response


def _item_id(generation: Generation, prefix: str, index: int) -> str:
    return f"{prefix}_{generation.id.removeprefix('resp_')}{index}"


def _reasoning_item(generation: Generation) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": REASONING_SUMMARY}]
    return {"id": _item_id(generation, "rs", 0), "type": "reasoning", "summary": summary}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _message_item(generation: Generation, index: int, status: str) -> dict[str, Any]:
    content = [] if status == "in_progress" else [_text_part(generation.text)]
    return {
        "id": _item_id(generation, "msg", index),
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def _call_item(generation: Generation, index: int, call: ToolCall, status: str) -> dict[str, Any]:
    return {
        "id": _item_id(generation, "fc", index),
        "type": "function_call",
        "status": status,
        "arguments": "" if status == "in_progress" else call.arguments,
        "call_id": call.id,
        "name": call.name,
    }


def _output(generation: Generation) -> list[dict[str, Any]]:
    items = [_reasoning_item(generation)] if generation.whole.reasoning else []
    for number in range(generation.asked.behaviour.searches):
        action = {"type": "search", "query": f"query {number}", "sources": []}
        opened = {"type": "open_page", "url": "https://example.com"}
        items += [
            {"id": f"ws_{number}{kind}", "type": "web_search_call", "status": "completed", "action": done}
            for kind, done in enumerate((action, opened))
        ]
    if generation.calls:
        first = len(items)
        items += [_call_item(generation, first + i, call, "completed") for i, call in enumerate(generation.calls)]
    else:
        status = "incomplete" if generation.finish == "length" else "completed"
        items.append(_message_item(generation, len(items), status))
    return items


def events(generation: Generation) -> Iterator[Event]:
    """The answer as a stream."""
    for number, event in enumerate(_unnumbered(generation)):
        assert isinstance(event.data, dict)
        event.data["sequence_number"] = number
        yield event


def _unnumbered(generation: Generation) -> Iterator[Event]:
    yield named({"type": "response.created", "response": _response(generation, "in_progress", [])})
    yield named({"type": "response.in_progress", "response": _response(generation, "in_progress", [])})
    index = 0
    if generation.whole.reasoning:
        yield from _reasoning_events(generation)
        index = 1
    if not generation.calls:
        yield from _message_events(generation, index)
    for call in generation.calls:
        yield from _call_events(generation, index, call)
        index += 1
    kind = "incomplete" if generation.finish == "length" else "completed"
    response = _response(generation, kind, _output(generation))
    yield named({"type": f"response.{kind}", "response": response}, is_last=True)


def _reasoning_events(generation: Generation) -> Iterator[Event]:
    item = _reasoning_item(generation)
    at: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "summary_index": 0}
    part = {"type": "summary_text", "text": REASONING_SUMMARY}
    prefix = "response.reasoning_summary"
    yield named({"type": "response.output_item.added", "output_index": 0, "item": {**item, "summary": []}})
    yield named({"type": f"{prefix}_part.added", **at, "part": {**part, "text": ""}})
    yield named({"type": f"{prefix}_text.delta", **at, "delta": REASONING_SUMMARY}, generation.whole.reasoning)
    yield named({"type": f"{prefix}_text.done", **at, "text": REASONING_SUMMARY})
    yield named({"type": f"{prefix}_part.done", **at, "part": part})
    yield named({"type": "response.output_item.done", "output_index": 0, "item": item})


def _message_events(generation: Generation, index: int) -> Iterator[Event]:
    status = "incomplete" if generation.finish == "length" else "completed"
    item = _message_item(generation, index, status)
    at: dict[str, Any] = {"item_id": item["id"], "output_index": index, "content_index": 0}
    added = _message_item(generation, index, "in_progress")
    yield named({"type": "response.output_item.added", "output_index": index, "item": added})
    yield named({"type": "response.content_part.added", **at, "part": _text_part("")})
    for word in generation.words:
        yield named({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}, 1)
    yield named({"type": "response.output_text.done", **at, "text": generation.text, "logprobs": []})
    yield named({"type": "response.content_part.done", **at, "part": _text_part(generation.text)})
    yield named({"type": "response.output_item.done", "output_index": index, "item": item})


def _call_events(generation: Generation, index: int, call: ToolCall) -> Iterator[Event]:
    item = _call_item(generation, index, call, "completed")
    at: dict[str, Any] = {"item_id": item["id"], "output_index": index}
    prefix = "response.function_call_arguments"
    added = _call_item(generation, index, call, "in_progress")
    yield named({"type": "response.output_item.added", "output_index": index, "item": added}, count(call.name))
    for piece in pieces(call.arguments):
        yield named({"type": f"{prefix}.delta", **at, "delta": piece}, 1)
    yield named({"type": f"{prefix}.done", **at, "arguments": call.arguments, "name": call.name})
    yield named({"type": "response.output_item.done", "output_index": index, "item": item})


def usage_events(generation: Generation) -> Iterator[Event]:
    """An end with the usage of what is produced so far."""
    yield named({"type": "response.incomplete", "response": _response(generation, "incomplete", [])})


def error_events(generation: Generation, error: dict[str, Any]) -> Iterator[Event]:
    """An error in mid-stream, which ends it."""
    failed = _response(generation, "failed", [], {"code": "server_error", "message": error["message"]})
    yield named({"type": "response.failed", "response": failed}, is_last=True)
