"""What the Codex CLI sends to `/v1/responses`, and what it needs of the stream."""

from __future__ import annotations

import json
from typing import Any

from tests.upstream.conftest import Running
from tests.upstream.raw import Reply, ask

TOOLS = [
    {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object", "properties": {}}},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": ""}},
    {"type": "web_search"},
]


def text(role: str, said: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": said}]}


def turn(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "gpt-5",
        "instructions": "You are a coding agent.",
        "input": [text("developer", "Sandboxed."), text("user", "<environment/>"), *items],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "a-conversation",
    }


def read(reply: Reply) -> dict[str, list[Any]]:
    """Events by the `type` in their data, which alone counts; each is called the same."""
    found: dict[str, list[Any]] = {}
    for block in reply.body.strip().split(b"\n\n"):
        name, data = block.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        found.setdefault(event["type"], []).append(event)
    return found


async def test_a_turn_calls_a_tool_and_the_next_one_answers(running: Running) -> None:
    asked = turn(text("user", '!upstream {"reasoning_tokens": 8, "prompt_tokens": 90, "cached_tokens": 30} List it'))
    first = read(await ask(running, "responses", asked))
    reasoning, call = [event["item"] for event in first["response.output_item.done"]]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Thinking of an answer."}]
    assert first["response.reasoning_summary_text.delta"][0]["summary_index"] == 0
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "shell", "{}")
    completed = first["response.completed"][0]["response"]
    assert completed["id"] == first["response.created"][0]["response"]["id"]
    assert completed["usage"] == {
        "input_tokens": 90,
        "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 0},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 8},
        "total_tokens": 100,
    }
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "a.txt"}
    second = read(await ask(running, "responses", turn(text("user", "List it"), call, result)))
    [message] = [event["item"] for event in second["response.output_item.done"]]
    said = "".join(event["delta"] for event in second["response.output_text.delta"])
    assert message["content"][0]["text"] == said == "You said: List it"
    # Instructions 5, developer 1, environment 1, user 2, the call's arguments 1, its output 1.
    assert second["response.completed"][0]["response"]["usage"]["input_tokens"] == 11


async def test_a_tool_is_called_with_the_arguments_that_are_asked_for(running: Running) -> None:
    asked = turn(text("user", '!upstream {"tool_arguments": {"cmd": "cat note.txt"}} Read it'))
    [call] = [event["item"] for event in read(await ask(running, "responses", asked))["response.output_item.done"]]
    assert json.loads(call["arguments"]) == {"cmd": "cat note.txt"}


async def test_a_failed_turn_says_why(running: Running) -> None:
    asked = turn(text("user", '!upstream {"error_after": 0, "tool_calls": 0} Go'))
    failed = read(await ask(running, "responses", asked))
    assert "response.completed" not in failed
    [event] = failed["response.failed"]
    assert event["response"]["error"]["code"] == "server_error"
    assert event["response"]["error"]["message"]
