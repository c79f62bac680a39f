"""What the upstream is asked to do differently, and where a request says so.

A request is answered plainly unless one of these names a behaviour, the first one found:

1. the last user message, when it begins with `!upstream` and a JSON object; what follows the object is the message:
   `!upstream {"break_after": 3} Say something`
2. the model's name, after an exclamation mark: `dev-small!break_after=3,reset=true`; values are JSON, else text
3. the queue that `POST /_control` fills

The first two pass through any gateway, whatever it does with headers.
"""

from __future__ import annotations

import json
from datetime import date
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX: Final = "!upstream"
_MODEL_MARK: Final = "!"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BehaviourError(ValueError):
    """A behaviour cannot be read; the message says what is wrong with it."""


UsageLie = Literal[
    "omit",
    "null",
    "negative",
    "nan",
    "infinity",
    "huge",
    "cached_over_prompt",
    "output_over_max",
    "zero",
    "text",
    "fraction",
    "list",
]
CostStyle = Literal["number", "text", "exponent", "object", "byok", "zero", "negative", "nan", "huge", "null"]


class Behaviour(BaseModel):
    """What to do differently. Token counts are the upstream's own (`tokens.py`); times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # -- the answer
    text: str | None = None
    """The answer, instead of an echo."""
    tokens: Count | None = None
    """Answer with this many tokens."""
    prompt_tokens: Count | None = None
    """Count the request as this many tokens."""
    cached_tokens: Count = 0
    """Of the prompt, read from the cache."""
    cache_write_tokens: Count = 0
    """Of the prompt, written to the cache."""
    reasoning_tokens: Count = 0
    """Reasoning before the answer; part of its output tokens."""
    tool_calls: Count | None = None
    """How many tool calls to make where the request has tools."""
    tool_arguments: dict[str, Any] | None = None
    """Their arguments, instead of some that fit the tool's schema."""
    searches: Count = 0
    """Web searches made for the answer: Anthropic's API reports them as usage, that of responses as output items."""
    id: str | None = None
    """The answer's id: this text, or null. Two answers can have the same one."""

    # -- time
    delay: Seconds = 0
    """Before the first byte, headers included."""
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None

    # -- how it ends
    stall_after: Count | None = None
    """After this many tokens say nothing more until the client hangs up. Not streamed: say nothing at all."""
    break_after: Count | None = None
    """Close the connection after this many tokens. Not streamed: in the middle of the body."""
    usage_before_break: bool = False
    """Report what was produced before the connection is closed."""
    reset: bool = False
    """Close it with a TCP reset."""
    done: bool = True
    """False: end a stream without `[DONE]` or the dialect's own last event."""
    on_abort: Literal["stop", "drain"] | None = None
    """When the client hangs up: stop and bill what was produced, or go on to the end and bill all of it."""

    # -- usage and cost
    usage: UsageLie | None = None
    """What is reported; what is billed stays true."""
    usage_chunk: Literal["no_choices", "one_choice", "with_finish", "every_chunk"] = "no_choices"
    """Which chunk of a chat stream has the usage."""
    refuse_stream_options: bool = False
    """400 for a request with `stream_options`."""
    cost: CostStyle | None = None
    """State `usage.cost`, in this way."""

    # -- errors
    status: Annotated[int, Field(ge=300, le=599)] | None = None
    """Answer with this status and an error."""
    retry_after: Annotated[int, Field(ge=0)] | None = None
    error_usage: bool = False
    """An error reports, and bills, the prompt."""
    error_in_200: bool = False
    """200, and its only content is an error."""
    error_after: Count | None = None
    """In a stream, after this many tokens: an error event, which ends it."""
    html: bool = False
    """An HTML page as the body, with `status` or 502."""
    redirect: str | None = None
    """302 (or `status`) to this address."""

    # -- the bytes
    gzip: bool = False
    """Compress the body, whether or not the client accepts that."""
    crlf: bool = False
    comments: bool = False
    """A comment before every event."""
    multiline: bool = False
    """Each event's data on several `data:` lines."""
    chunk_bytes: Annotated[int, Field(ge=1)] | None = None
    """Send a stream in pieces of this many bytes, whatever they cut apart."""
    headers: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    """More headers: `[name, value]`; a name may come twice."""
    echo_key: bool = False
    """Return the request's own key in `X-Upstream-Key`."""

    # -- the provider's record
    record: bool = True
    """False: `/generation` and `/spend/logs` never have it."""
    record_misses: Count = 0
    """So many look-ups fail before the record is there."""
    record_delay: Seconds = 0
    """The record is there so long after the generation's end."""
    billed_on: str | None = None
    """The day (YYYY-MM-DD, UTC) it is billed on, instead of today."""

    def has(self, name: str) -> bool:
        """Whether the behaviour names a field, null included."""
        return name in self.model_fields_set

    def billing_day(self, today: date) -> date:
        """The day that the reports show."""
        return date.fromisoformat(self.billed_on) if self.billed_on else today


PLAIN: Final = Behaviour()


def behaviour_of(fields: Any) -> Behaviour:
    """Read a behaviour from JSON. Raises `BehaviourError`."""
    if not isinstance(fields, dict):
        raise BehaviourError(f"a behaviour is {type(fields).__name__}: expected an object")
    try:
        behaviour = Behaviour.model_validate(fields)
        behaviour.billing_day(date.min)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = f"; known: {', '.join(Behaviour.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise BehaviourError(f"behaviour {name}: {first['msg']}{known}") from None
    except ValueError as error:
        raise BehaviourError(f"behaviour billed_on: {error}") from None
    return behaviour


def split_message(text: str) -> tuple[Behaviour | None, str]:
    """The behaviour that a message begins with, and the message without it. Raises `BehaviourError`."""
    return _split_directive(text) if text.startswith(PREFIX) else (None, text)


@lru_cache(maxsize=256)
def _split_directive(text: str) -> tuple[Behaviour | None, str]:
    rest = text[len(PREFIX) :].lstrip()
    try:
        fields, end = json.JSONDecoder().raw_decode(rest)
    except ValueError as error:
        raise BehaviourError(f"after {PREFIX}: {error}: expected a JSON object") from None
    return behaviour_of(fields), rest[end:].lstrip()


@lru_cache(maxsize=1024)
def split_model(model: str) -> tuple[Behaviour | None, str]:
    """The behaviour in a model's name, and the name without it. Raises `BehaviourError`."""
    name, mark, rest = model.partition(_MODEL_MARK)
    if not mark:
        return None, model
    fields = {}
    for pair in rest.split(","):
        key, _, value = pair.partition("=")
        try:
            fields[key.strip()] = json.loads(value)
        except ValueError:
            fields[key.strip()] = value
    return behaviour_of(fields), name
