"""What an answer says of itself while it passes: usage, output so far, errors, its last event.

Nothing is changed here. A meter is given the answer's events, or its whole body, and says of each what to do with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from typing import Any, Final

from domain.billing.exact_json import NotJson, loads
from domain.billing.pricing import IMAGES
from domain.billing.requests import BYTES_PER_TOKEN
from domain.billing.usage import Dialect, ImplausibleUsage, Usage, merge_reports, read_usage
from gateway.sse import SseEvent

_DONE: Final = b"[DONE]"
_SEARCHES: Final[Mapping[str, str]] = {"web_search_call": "web_searches", "file_search_call": "storage_searches"}
_IMAGE_COMPLETED: Final = "image_generation.completed"
_LAST_TYPES: Final = frozenset(
    {
        *("response.completed", "response.incomplete", "response.failed"),
        "message_stop",
        *("image_generation.completed", "speech.audio.done", "transcript.text.done"),
    }
)
_OUTPUT_FIELDS: Final = frozenset(
    {"content", "reasoning", "reasoning_content", "refusal", "arguments", "partial_json", "text", "thinking", "delta"}
)
"""Fields of a delta whose text was written by the model."""


class Handling(Enum):
    """What to do with an event."""

    PASS = auto()
    DROP = auto()
    """The client did not ask for it."""
    HOLD = auto()
    """It may be the answer's end: it leaves with the next event, or after the charge where there is none."""
    LAST = auto()
    """The answer's end: it leaves after the charge is in the books."""


@dataclass(slots=True)
class Meter:
    """Reads one answer. `input_tokens_estimate` stands in where nothing is reported."""

    dialect: Dialect
    asks_for_usage: bool
    input_tokens_estimate: int
    other_units: Mapping[str, int] = field(default_factory=dict)
    """Units besides tokens that the call uses at most."""
    output_tokens_limit: int | None = None
    output_bytes: int = 0
    images: int = 0
    """Images that came."""
    searches: Mapping[str, int] = field(default_factory=dict)
    """Searches that the provider made for the answer: it bills them, and does not report them as usage."""
    has_ended: bool = False
    """The API's own last event came, or the whole body."""
    has_finished: bool = False
    """The model said why it stopped: what comes after it is not its output."""
    is_answer: bool = False
    """Something came that is of this API."""
    error: Mapping[str, Any] | None = None
    upstream_id: str | None = None
    _report: Mapping[str, Any] | None = None
    _is_report_final: bool = False
    """Anthropic's first event reports the input; the output it does not know yet."""
    _invalid_report: str | None = None

    @property
    def produced(self) -> Usage:
        """The gateway's own estimate of what was used so far; of the input what was reported, where that came first."""
        begun = self._read_report() if not self._is_report_final else None
        units = dict(begun.units) if isinstance(begun, Usage) else {"input_tokens": self.input_tokens_estimate}
        return Usage({**units, **self._produced_units})

    @property
    def _produced_units(self) -> Mapping[str, int]:
        written = -(-self.output_bytes // BYTES_PER_TOKEN)
        if self.dialect is Dialect.IMAGES:
            asked = self.other_units.get(IMAGES, 1)
            return {IMAGES: self.images, "output_tokens": (self.output_tokens_limit or 0) * self.images // asked}
        if self.dialect is Dialect.SPEECH:
            # Bytes of sound, which are many more than tokens.
            return {**self.other_units, "output_tokens": min(written, self.output_tokens_limit or 0)}
        return {**self.other_units, "output_tokens": written}

    @property
    def counted(self) -> Mapping[str, int]:
        """Units that are known exactly, whether or not the provider reports them."""
        if self.dialect is Dialect.IMAGES:
            return {IMAGES: self.images}
        if self.dialect is Dialect.RESPONSES:
            return self.searches
        return self.other_units if self.dialect is Dialect.SPEECH else {}

    @property
    def report(self) -> Usage | ImplausibleUsage | None:
        """What the provider reported of the whole call."""
        if self._invalid_report is not None:
            return ImplausibleUsage(self._invalid_report)
        return self._read_report() if self._is_report_final else None

    @property
    def is_complete(self) -> bool:
        """Whether the answer has come to its end. A connection can end without one, cleanly or not."""
        return self.has_ended or self.has_finished or self._is_report_final

    @property
    def is_error_only(self) -> bool:
        """Whether an error is all that came."""
        return self.error is not None and not self.output_bytes

    def _read_report(self) -> Usage | ImplausibleUsage | None:
        try:
            return read_usage(self.dialect, self._report)
        except ImplausibleUsage as error:
            return error

    def observe(self, event: SseEvent) -> Handling:
        """Read one event of a stream."""
        if event.data is None:
            return Handling.PASS
        if event.data.strip() == _DONE:
            self.has_ended = True
            return Handling.LAST
        document = self._read(event.data)
        if document is None:
            return Handling.PASS
        self._note(document)
        kind = document.get("type", event.name)
        if kind in _LAST_TYPES:
            self.has_ended = True
            return Handling.LAST
        if self.dialect in (Dialect.CHAT, Dialect.COMPLETIONS):
            return self._handle_chunk(document)
        return Handling.PASS

    def observe_body(self, body: bytes) -> None:
        """Read the whole body of an answer that was not streamed."""
        self.has_ended = True
        document = self._read(body)
        if document is not None:
            self._note(document)
        elif self._invalid_report is not None:
            # An answer, with a number that is none: how much of it is text cannot be read either.
            self.is_answer = True
            self.output_bytes = len(body)

    def _handle_chunk(self, chunk: Mapping[str, Any]) -> Handling:
        choices = chunk.get("choices")
        if isinstance(choices, list) and any(isinstance(c, Mapping) and c.get("finish_reason") for c in choices):
            self.has_finished = True
        is_usage_only = chunk.get("usage") is not None and not choices and not chunk.get("error")
        if not is_usage_only:
            return Handling.PASS
        return Handling.HOLD if self.asks_for_usage else Handling.DROP

    def _read(self, data: bytes) -> Mapping[str, Any] | None:
        try:
            document = loads(data)
        except NotJson as error:
            if b'"usage"' in data:
                self._invalid_report = f"the answer's usage cannot be read: {error}"
            return None
        return document if isinstance(document, Mapping) else None

    def _note(self, document: Mapping[str, Any]) -> None:
        self.is_answer = True
        # Of Anthropic's streams the first event carries the message, of Responses each carries the response.
        inner = document.get("message") if document.get("type") == "message_start" else document.get("response")
        parts = [document, *([inner] if isinstance(inner, Mapping) else [])]
        for part in parts:
            if isinstance(part.get("usage"), Mapping):
                self._report = merge_reports(self._report, part["usage"])
                self._is_report_final = document.get("type") != "message_start"
            elif part.get("usage") is not None:
                self._invalid_report = f"usage is {type(part['usage']).__name__}: expected an object"
            if isinstance(part.get("error"), Mapping):
                self.error = part["error"]
            elif part.get("error"):
                self.error = {"message": str(part["error"])[:500]}
            if self.dialect is Dialect.RESPONSES and isinstance(part.get("output"), list):
                self.searches = Counter(_searches(part["output"]))
            if self.upstream_id is None and _is_id(part.get("id")):
                self.upstream_id = part["id"][:200]
        self.output_bytes += sum(len(text.encode(errors="replace")) for text in _output_texts(document))
        if self.dialect is Dialect.IMAGES:
            images = document.get("data")
            self.images += len(images) if isinstance(images, list) else document.get("type") == _IMAGE_COMPLETED
        elif self.dialect is Dialect.TRANSCRIPTIONS and self._report is None and _is_number(document.get("duration")):
            # Older servers report the length beside the text only.
            self._report, self._is_report_final = {"type": "duration", "seconds": document["duration"]}, True

    def observe_sound(self, count: int) -> None:
        """So many bytes of speech came."""
        self.is_answer = True
        self.output_bytes += count


def _searches(items: Sequence[Any]) -> Iterator[str]:
    """The unit of each search among the items of a response. To open a page that was found costs nothing more."""
    for item in items:
        unit = _SEARCHES.get(str(item.get("type"))) if isinstance(item, Mapping) else None
        action = item.get("action") if unit else None
        if unit and (not isinstance(action, Mapping) or action.get("type", "search") == "search"):
            yield unit


def _is_id(value: object) -> bool:
    """Whether it names a call. PostgreSQL holds no NUL, and one statement renews the leases of all calls."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_number(value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _output_texts(document: Mapping[str, Any]) -> Iterator[str]:
    """The pieces of text that the model wrote, of an event or of a whole answer."""
    kind = document.get("type")
    if kind is None and isinstance(document.get("text"), str):
        yield document["text"]
    if isinstance(kind, str) and kind.startswith(("response.", "transcript.")):
        # Each piece is repeated by events of the whole part, item and response: the deltas alone are counted.
        delta = document.get("delta")
        if isinstance(delta, str):
            yield delta
        return
    for name in ("choices", "delta", "content_block", "content", "output"):
        yield from _texts_within(document.get(name), depth=0)


def _texts_within(value: Any, depth: int) -> Iterator[str]:
    if depth > 6:
        return
    if isinstance(value, list):
        for item in value:
            yield from _texts_within(item, depth + 1)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, str):
                if name in _OUTPUT_FIELDS:
                    yield inner
            else:
                yield from _texts_within(inner, depth + 1)
