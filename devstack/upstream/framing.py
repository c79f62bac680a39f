"""Events as bytes, in the ways that servers write them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from devstack.upstream.behaviour import Behaviour
from devstack.upstream.dialects.event import Event
from devstack.upstream.raw_json import dumps

COMMENT: Final = b": OPENROUTER PROCESSING"
_GZIP_WINDOW: Final = 31


class Framer:
    """Turns the events of one stream into the pieces that are written."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._line_end = b"\r\n" if behaviour.crlf else b"\n"
        self._comments = behaviour.comments
        self._multiline = behaviour.multiline
        self._chunk_bytes = behaviour.chunk_bytes
        self._gzip = zlib.compressobj(wbits=_GZIP_WINDOW) if behaviour.gzip else None
        self._is_usual = not (behaviour.crlf or behaviour.comments or behaviour.multiline)

    def frame(self, event: Event) -> bytes:
        """One event."""
        if self._is_usual:
            data = event.data.encode() if isinstance(event.data, str) else dumps(event.data)
            head = b"" if event.name is None else b"event: " + event.name.encode() + b"\n"
            return head + b"data: " + data + b"\n\n"
        lines = [COMMENT, b""] if self._comments else []
        if event.name is not None:
            lines.append(b"event: " + event.name.encode())
        if isinstance(event.data, str):
            lines.append(b"data: " + event.data.encode())
        else:
            encoded = dumps(event.data, indent=0 if self._multiline else None)
            lines += [b"data: " + line for line in encoded.split(b"\n")]
        return self._line_end.join([*lines, b"", b""])

    def pieces(self, framed: bytes) -> Iterator[bytes]:
        """What is written for an event, piece by piece."""
        data = framed
        if self._gzip is not None:
            data = self._gzip.compress(framed) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        return self._cut(data)

    def end(self) -> Iterator[bytes]:
        """What is written after the last event."""
        return self._cut(self._gzip.flush()) if self._gzip is not None else iter(())

    def _cut(self, data: bytes) -> Iterator[bytes]:
        size = self._chunk_bytes or len(data)
        return (data[start : start + size] for start in range(0, len(data), size))


def gzipped(body: bytes) -> bytes:
    """A whole body, compressed."""
    compressor = zlib.compressobj(wbits=_GZIP_WINDOW)
    return compressor.compress(body) + compressor.flush()
