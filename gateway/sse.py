"""Server-sent events as bytes: cut into whole events, each passed on exactly as it came.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""An image in an answer is one event; what is longer than this is no event."""

# Atomic, so that the two halves of one CRLF are never taken for two line ends.
_EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event is longer than `EVENT_BYTES_MAX`."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: `raw` is all of its bytes, the empty line included."""

    raw: bytes
    name: str | None
    """What its `event:` line says."""
    data: bytes | None
    """Its `data:` lines, joined by line feeds; None for a comment."""


class SseSplitter:
    """Cuts a stream into events, wherever its chunks begin and end."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that are whole now. Raises `EventTooLarge`."""
        self._buffer += chunk
        events = []
        while (end := self._find_end()) is not None:
            events.append(parse_event(bytes(self._buffer[:end])))
            del self._buffer[:end]
            self._searched = 0
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise EventTooLarge(f"an event is longer than {EVENT_BYTES_MAX} bytes")
        return events

    def flush(self) -> SseEvent | None:
        """What is left at the stream's end: an event without its empty line, which some upstreams leave out."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return parse_event(rest) if rest.strip() else None

    def _find_end(self) -> int | None:
        match = _EVENT_END.search(self._buffer, self._searched)
        if match is None:
            # An end may have begun in the last bytes.
            self._searched = max(0, len(self._buffer) - 3)
            return None
        if match.end() == len(self._buffer) and self._buffer[-1:] == b"\r":
            # Perhaps half of a CRLF, whose line feed belongs to this event.
            self._searched = match.start()
            return None
        return match.end()


def parse_event(raw: bytes) -> SseEvent:
    """Read an event's fields; other fields than `event` and `data` are only passed on."""
    name: str | None = None
    data: list[bytes] = []
    for line in _LINE_END.split(raw.removeprefix(_BYTE_ORDER_MARK)):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode(errors="replace")
    return SseEvent(raw, name, b"\n".join(data) if data else None)


def comment(text: str) -> bytes:
    """A comment, which every client ignores."""
    return f": {text}\n\n".encode()
