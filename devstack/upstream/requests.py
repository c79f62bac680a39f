"""What a request asks for, in any dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from enum import StrEnum
from typing import Any, Final

from devstack.upstream.behaviour import PLAIN, Behaviour, split_message, split_model
from devstack.upstream.tokens import count


class Dialect(StrEnum):
    """Which API a request speaks."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    IMAGES = "images"
    SPEECH = "speech"
    TRANSCRIPTIONS = "transcriptions"


class RequestError(ValueError):
    """A request is invalid; `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    schema: Mapping[str, Any]


@dataclass(slots=True)
class Asked:
    """One request, read once."""

    dialect: Dialect
    body: Mapping[str, Any]
    model: str
    user_text: str
    """The last user message, without its directive."""
    prompt_tokens: int
    behaviour: Behaviour = PLAIN
    is_directed: bool = False
    """Whether the request itself names its behaviour."""
    stream: bool = False
    wants_usage: bool = False
    """Asks for the usage chunk of a chat stream."""
    max_tokens: int | None = None
    n: int = 1
    tools: list[Tool] = field(default_factory=list)
    """Those that it makes sense to call now."""
    inputs: list[str] = field(default_factory=list)
    """Texts to embed."""
    file_bytes: int = 0
    """Length of the recording to transcribe."""


_LIMITS: Final[Mapping[Dialect, tuple[str, ...]]] = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.COMPLETIONS: ("max_tokens",),
    Dialect.RESPONSES: ("max_output_tokens",),
    Dialect.MESSAGES: ("max_tokens",),
    Dialect.EMBEDDINGS: (),
    Dialect.IMAGES: (),
    Dialect.SPEECH: (),
    Dialect.TRANSCRIPTIONS: (),
}
_CONTENT: Final[Mapping[Dialect, str]] = {
    Dialect.CHAT: "messages",
    Dialect.COMPLETIONS: "prompt",
    Dialect.RESPONSES: "input",
    Dialect.MESSAGES: "messages",
    Dialect.EMBEDDINGS: "input",
    Dialect.IMAGES: "prompt",
    Dialect.SPEECH: "input",
    Dialect.TRANSCRIPTIONS: "prompt",
}
_SYSTEM: Final = ("system", "instructions")
_RESULT_TYPES: Final = frozenset({"function_call_output", "custom_tool_call_output"})


def read_request(dialect: Dialect, raw: bytes, content_type: str = "application/json") -> Asked:
    """Read a request's body. Raises `RequestError` and `BehaviourError`."""
    if dialect is Dialect.TRANSCRIPTIONS:
        body, file_bytes = _read_form(raw, content_type)
        body.setdefault("prompt", "a recording")
    else:
        body, file_bytes = _read_json(raw), 0
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("you must provide a model parameter", "model")
    content = body.get(_CONTENT[dialect])
    if content in (None, [], ""):
        raise RequestError(f"missing required parameter: '{_CONTENT[dialect]}'", _CONTENT[dialect])
    asked = Asked(dialect, body, model, "", 0, file_bytes=file_bytes)
    _read_texts(asked, content)
    _read_limits(asked)
    by_model, asked.model = split_model(model)
    if by_model is not None and not asked.is_directed:
        asked.behaviour, asked.is_directed = by_model, True
    # Speech is sent as it is made, with or without events.
    asked.stream = (
        body.get("stream") in (True, "true") and dialect is not Dialect.EMBEDDINGS
    ) or dialect is Dialect.SPEECH
    options = body.get("stream_options")
    asked.wants_usage = isinstance(options, dict) and options.get("include_usage") is True
    asked.tools = [] if _ends_with_result(content) else _read_tools(body)
    return asked


def _read_json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    return body


def _read_form(raw: bytes, content_type: str) -> tuple[dict[str, Any], int]:
    """A form's fields, and how long its file is."""
    form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw)
    if form.get_content_type() != "multipart/form-data" or not form.is_multipart():
        raise RequestError("the body is no form")
    fields: dict[str, Any] = {}
    file_bytes = 0
    for part in form.walk():
        content = part.get_payload(decode=True)
        if not isinstance(content, bytes):
            continue
        if part.get_filename() is not None:
            file_bytes += len(content)
        else:
            fields[str(part.get_param("name", header="content-disposition"))] = content.decode()
    if not file_bytes:
        raise RequestError("missing required parameter: 'file'", "file")
    return fields, file_bytes


def _read_texts(asked: Asked, content: Any) -> None:
    body = asked.body
    words = sum(count(text) for name in _SYSTEM for text in _texts(body.get(name)))
    last_user = ""
    if isinstance(content, str):
        items: list[Any] = [{"role": "user", "content": content}]
    elif isinstance(content, list) and not all(isinstance(item, dict) for item in content):
        # Several prompts or texts to embed; lists of token numbers are words of their own.
        items = [{"role": "user", "content": _as_text(item)} for item in content]
    elif isinstance(content, list):
        items = content
    else:
        raise RequestError(f"invalid type for '{_CONTENT[asked.dialect]}'", _CONTENT[asked.dialect])
    texts = [(item.get("role"), list(_texts(item))) for item in items]
    for role, parts in texts:
        if role == "user" and parts:
            last_user = "\n".join(parts)
    behaviour, asked.user_text = split_message(last_user)
    if behaviour is not None:
        asked.behaviour, asked.is_directed = behaviour, True
    words += sum(count(split_message(part)[1]) for _, parts in texts for part in parts)
    asked.prompt_tokens = words
    if asked.dialect is Dialect.EMBEDDINGS:
        asked.inputs = [split_message("\n".join(parts))[1] for _, parts in texts]


def _as_text(item: Any) -> str:
    return " ".join(map(str, item)) if isinstance(item, list) else str(item)


def _texts(value: Any) -> Iterator[str]:
    """Every text within a message, a system text or a tool's result."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        for name in ("content", "text", "output", "arguments"):
            yield from _texts(value.get(name))


def _read_limits(asked: Asked) -> None:
    for name in _LIMITS[asked.dialect]:
        value = asked.body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(f"invalid value for '{name}': {value!r}: expected an integer above 0", name)
        asked.max_tokens = value
        break
    else:
        if asked.dialect is Dialect.MESSAGES:
            raise RequestError("max_tokens: Field required", "max_tokens")
    n = asked.body.get("n", 1)
    if asked.dialect in (Dialect.CHAT, Dialect.COMPLETIONS, Dialect.IMAGES) and n is not None:
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 128:
            raise RequestError(f"invalid value for 'n': {n!r}: expected an integer from 1 to 128", "n")
        asked.n = n


def _ends_with_result(content: Any) -> bool:
    """Whether the last message is what a tool returned: it is time for an answer."""
    last = content[-1] if isinstance(content, list) else None
    if not isinstance(last, dict):
        return False
    parts = last.get("content")
    return (
        last.get("role") == "tool"
        or last.get("type") in _RESULT_TYPES
        or (isinstance(parts, list) and any(isinstance(p, dict) and p.get("type") == "tool_result" for p in parts))
    )


def _read_tools(body: Mapping[str, Any]) -> list[Tool]:
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none" or not isinstance(body.get("tools"), list):
        return []
    tools = [tool for tool in map(_read_tool, body["tools"]) if tool is not None]
    named = None
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else choice.get("name")
    return [tool for tool in tools if named in (None, tool.name)]


def _read_tool(tool: Any) -> Tool | None:
    if not isinstance(tool, dict):
        return None
    function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
    assert isinstance(function, dict)
    schema = function.get("parameters", function.get("input_schema"))
    name = function.get("name")
    return Tool(name, schema) if isinstance(name, str) and isinstance(schema, dict) else None
