"""One generation: what the upstream answers, and how much of it has been produced."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from devstack.upstream.requests import Asked, Dialect, Tool
from devstack.upstream.tokens import Tokens, count, pieces

_PREFIXES: Final[Mapping[Dialect, str]] = {
    Dialect.CHAT: "chatcmpl-",
    Dialect.COMPLETIONS: "cmpl-",
    Dialect.RESPONSES: "resp_",
    Dialect.MESSAGES: "msg_",
    Dialect.EMBEDDINGS: "embd-",
    Dialect.IMAGES: "img-",
    Dialect.SPEECH: "tts-",
    Dialect.TRANSCRIPTIONS: "stt-",
}
# Unique over processes by the first half, within one by the second; drawing all of it each time costs more.
_process = secrets.token_hex(8)
_numbers = itertools.count(1)

RECORDING_BYTES_PER_TOKEN: Final = 100
"""Of a recording, as it is counted here; a second of it is ten tokens."""
TOKENS_PER_SECOND: Final = 10

_EXAMPLES: Final[Mapping[str, Any]] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model makes; the arguments are JSON."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Generation:
    """An answer in the making."""

    asked: Asked
    id: str
    """What the upstream's records call it."""
    created: int
    """Unix seconds."""
    words: list[str]
    """The answer's tokens; together they are its text."""
    calls: list[ToolCall]
    finish: str
    """stop, length or tool_calls."""
    whole: Tokens
    """What all of it uses."""
    produced: int = 0
    """Output tokens so far, reasoning included."""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.words)

    @property
    def shown_id(self) -> str | None:
        """The id that the answer has."""
        behaviour = self.asked.behaviour
        return behaviour.id if behaviour.has("id") else self.id

    @property
    def tokens(self) -> Tokens:
        """What is used so far."""
        return self.whole.with_output(self.produced)


def new_id(dialect: Dialect) -> str:
    """A fresh id in the dialect's form."""
    return f"{_PREFIXES[dialect]}{_process}{next(_numbers):08x}"


def generate(asked: Asked) -> Generation:
    """Decide the answer: tool calls where there are tools to call, else an echo of the last user message."""
    behaviour = asked.behaviour
    ident = new_id(asked.dialect)
    calls = _tool_calls(asked, ident)
    words = [] if calls or asked.dialect is Dialect.EMBEDDINGS else _answer(asked)
    if asked.dialect is Dialect.TRANSCRIPTIONS:
        asked.prompt_tokens = -(-asked.file_bytes // RECORDING_BYTES_PER_TOKEN)
    limit = asked.max_tokens
    reasoning = behaviour.reasoning_tokens if limit is None else min(behaviour.reasoning_tokens, limit)
    finish = "tool_calls" if calls else "stop"
    if limit is not None and len(words) > limit - reasoning:
        words, finish = words[: limit - reasoning], "length"
    visible = len(words) + sum(count(call.name) + count(call.arguments) for call in calls)
    prompt = asked.prompt_tokens if behaviour.prompt_tokens is None else behaviour.prompt_tokens
    whole = Tokens(
        prompt=prompt,
        cached=min(behaviour.cached_tokens, prompt),
        cache_write=min(behaviour.cache_write_tokens, max(0, prompt - behaviour.cached_tokens)),
        output=(reasoning + visible) * asked.n,
        reasoning=reasoning * asked.n,
    )
    return Generation(asked, ident, int(time.time()), words, calls, finish, whole)


def echo_of(text: str) -> str:
    """What is answered where nothing else is asked for."""
    return f"You said: {text}"


def _answer(asked: Asked) -> list[str]:
    behaviour = asked.behaviour
    if behaviour.tokens is not None:
        # Words of different lengths, so that a cut in the wrong place shows.
        return [f"{' ' if number else ''}word{number + 1}" for number in range(behaviour.tokens)]
    return pieces(echo_of(asked.user_text) if behaviour.text is None else behaviour.text)


def _tool_calls(asked: Asked, ident: str) -> list[ToolCall]:
    behaviour = asked.behaviour
    wanted = behaviour.tool_calls
    if wanted is None:
        wanted = 1 if behaviour.text is None and behaviour.tokens is None else 0
    if not asked.tools or asked.dialect in (Dialect.COMPLETIONS, Dialect.EMBEDDINGS):
        return []
    prefix = "toolu_" if asked.dialect is Dialect.MESSAGES else "call_"
    unique = ident.rpartition("-")[2].rpartition("_")[2]
    chosen = itertools.islice(itertools.cycle(asked.tools), wanted)
    arguments = None if behaviour.tool_arguments is None else json.dumps(behaviour.tool_arguments)
    return [ToolCall(f"{prefix}{unique}{i}", tool.name, arguments or _arguments(tool)) for i, tool in enumerate(chosen)]


def _arguments(tool: Tool) -> str:
    """Arguments that fit the tool's schema; a text is its own parameter's name, which does no harm where it runs."""
    properties = tool.schema.get("properties")
    if not isinstance(properties, dict):
        return "{}"
    return json.dumps({name: _example(name, schema) for name, schema in properties.items()})


def _example(name: str, schema: Any) -> Any:
    if not isinstance(schema, dict):
        return name
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    return _EXAMPLES.get(kind, name) if isinstance(kind, str) else name
