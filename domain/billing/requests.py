"""A call's request: parsed once for what the gateway decides by, and otherwise passed on as it came, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from domain.billing.exact_json import DECODER, NotJson, require_json
from domain.billing.usage import Dialect

BYTES_PER_TOKEN: Final = 4
"""Of UTF-8, on average over languages and tokenizers; a hold needs no more than that."""

CHOICES_MAX: Final = 128
OUTPUT_LIMIT_FIELDS: Final[Mapping[Dialect, tuple[str, ...]]] = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.COMPLETIONS: ("max_tokens",),
    Dialect.RESPONSES: ("max_output_tokens",),
    Dialect.MESSAGES: ("max_tokens",),
    Dialect.EMBEDDINGS: (),
    Dialect.IMAGES: (),
    Dialect.SPEECH: (),
    Dialect.TRANSCRIPTIONS: (),
}
"""The fields that bound the output, the one that the API prefers first."""

REFUSED_FIELDS: Final = frozenset(
    {"api_base", "api_key", "api_version", "base_url", "custom_llm_provider", "extra_headers", "user_config"}
)
"""Fields with which proxies let the caller choose where a call goes and who pays for it. Not here."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")


class InvalidRequest(ValueError):
    """The request cannot be passed on; `param` is the field that is wrong, where it is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class _Field:
    value: Any
    start: int
    end: int


class RequestBody:
    """A JSON object whose fields can be read, and replaced without touching the text of any other."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fields, self._end = _read_fields(text)

    @classmethod
    def parse(cls, body: bytes) -> RequestBody:
        """Raises `InvalidRequest` for what is no JSON object in UTF-8, and for a field that is given twice.

        Of two fields with one name each parser takes another: what was checked would not be what is passed on.
        """
        try:
            return cls(require_json(body))
        except NotJson as error:
            raise InvalidRequest(f"The request body is invalid: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        """The field's value; None also where it is missing."""
        found = self._fields.get(name)
        return None if found is None else found.value

    def names(self) -> frozenset[str]:
        """The names of all fields."""
        return frozenset(self._fields)

    def replaced(self, values: Mapping[str, Any]) -> bytes:
        """The body's text with these fields set to other values, or added at its end."""
        pieces, at = [], 0
        for name, found in sorted(self._fields.items(), key=lambda item: item[1].start):
            if name in values:
                pieces += [self._text[at : found.start], json.dumps(values[name])]
                at = found.end
        pieces.append(self._text[at : self._end])
        added = [
            f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items() if name not in self._fields
        ]
        if added:
            pieces.append((", " if self._fields else "") + ", ".join(added))
        pieces.append(self._text[self._end :])
        return "".join(pieces).encode()


def _read_fields(text: str) -> tuple[dict[str, _Field], int]:
    """The fields of the object that the text, which is JSON, holds, and where its closing brace is."""
    fields: dict[str, _Field] = {}
    at = _skip_space(text, 0)
    if text[at] != "{":
        raise InvalidRequest("The request body is invalid: expected a JSON object")
    at = _skip_space(text, at + 1)
    while text[at] != "}":
        name, at = _decode(text, at)
        value_at = _skip_space(text, _skip_space(text, at) + len(":"))
        value, end = _decode(text, value_at)
        if name in fields:
            raise InvalidRequest(f"The request body is invalid: {name[:40]!r} is given twice", name[:40])
        fields[name] = _Field(value, value_at, end)
        at = _skip_space(text, end)
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    return fields, at


def _decode(text: str, at: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, at)
    except NotJson:
        raise
    except ValueError:
        # An integer of thousands of digits is refused by Python itself.
        raise NotJson("a number has too many digits") from None


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class Body(Protocol):
    """The body of a call."""

    def get(self, name: str) -> Any:
        """A field's value; None also where it is missing."""

    def replaced(self, values: Mapping[str, Any]) -> bytes:
        """The body with these fields set to other values."""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """What the gateway must know of a call before it is made."""

    dialect: Dialect
    model: str
    is_streamed: bool
    asks_for_usage: bool
    """Whether the client itself asked for usage in the stream; if not, it does not get it."""
    input_tokens_estimate: int
    output_tokens_limit: int | None
    """How many tokens the call may write at most, all choices together; None where it does not say."""
    body: Body
    other_units: Mapping[str, int] = field(default_factory=dict)
    """Units besides tokens that it is known, or assumed, to use at most, by their names in the price book."""

    @property
    def can_be_clamped(self) -> bool:
        """Whether the API has a field that bounds the output."""
        return bool(OUTPUT_LIMIT_FIELDS[self.dialect])

    def with_output(self, output_tokens_limit: int, other_units: Mapping[str, int]) -> CallRequest:
        """The same call with another bound of its output, and units besides tokens."""
        return replace(self, output_tokens_limit=output_tokens_limit, other_units=other_units)

    def upstream_body(self, *, asks_for_usage: bool = True, output_tokens_max: int | None = None) -> bytes:
        """The body to pass on: usage is always asked for where the API has a switch for it.

        `output_tokens_max` bounds the output of all choices together, where the caller's own bound is higher or none.
        """
        values: dict[str, Any] = {}
        if asks_for_usage and self.is_streamed and self.dialect in (Dialect.CHAT, Dialect.COMPLETIONS):
            options = self.body.get("stream_options")
            values["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
        if output_tokens_max is not None and self.can_be_clamped and not self._is_bounded_by(output_tokens_max):
            fields = OUTPUT_LIMIT_FIELDS[self.dialect]
            given = [name for name in fields if self.body.get(name) is not None]
            values |= dict.fromkeys(given or fields[-1:], max(1, output_tokens_max // choices_of(self.body)))
        return self.body.replaced(values)

    def _is_bounded_by(self, output_tokens: int) -> bool:
        return self.output_tokens_limit is not None and self.output_tokens_limit <= output_tokens


def parse_request(dialect: Dialect, body: bytes) -> CallRequest:
    """Parse a call's body. Raises `InvalidRequest`."""
    fields = RequestBody.parse(body)
    refused = sorted(REFUSED_FIELDS & fields.names())
    if refused:
        raise InvalidRequest(f"{refused[0]} is not accepted: the gateway chooses where a call goes", refused[0])
    model = model_of(fields)
    if dialect is Dialect.RESPONSES:
        for name in ("background", "previous_response_id"):
            if fields.get(name):
                raise InvalidRequest(f"{name} is not supported: each call is complete in itself", name)
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream is invalid: expected true or false", "stream")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise InvalidRequest("stream_options is invalid: expected an object", "stream_options")
    return CallRequest(
        dialect=dialect,
        model=model,
        is_streamed=bool(stream),
        asks_for_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        input_tokens_estimate=-(-len(body) // BYTES_PER_TOKEN),
        output_tokens_limit=_output_limit(dialect, fields),
        body=fields,
    )


def model_of(body: Body) -> str:
    """The model's name. Raises `InvalidRequest`."""
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 200:
        raise InvalidRequest("model is invalid: expected the name of a model", "model")
    return model


def _output_limit(dialect: Dialect, fields: RequestBody) -> int | None:
    """The lowest bound that the caller gives, times the choices."""
    if dialect is Dialect.EMBEDDINGS:
        return 0
    limits = []
    for name in OUTPUT_LIMIT_FIELDS[dialect]:
        limit = fields.get(name)
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise InvalidRequest(f"{name} is invalid: expected a whole number from 0", name)
        limits.append(limit)
    return min(limits) * choices_of(fields) if limits else None


def choices_of(fields: Body) -> int:
    """How many answers are written: `n`, or `best_of` where that is more. Raises `InvalidRequest`."""
    choices = 1
    for name in ("n", "best_of"):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= CHOICES_MAX:
            raise InvalidRequest(f"{name} is invalid: expected 1 to {CHOICES_MAX}", name)
        choices = max(choices, value)
    return choices
