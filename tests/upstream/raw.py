"""A client that sees every byte: what the connection brought, and how it ended."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.upstream.conftest import Running

TEXT = "Count these words please"
SAID = f"You said: {TEXT}"
"""Six tokens for four."""
TIMEOUT_SECONDS = 10

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
STREAMED = ("chat", "completions", "responses", "messages")
LAST = {
    "chat": b"[DONE]",
    "completions": b"[DONE]",
    "responses": b"response.completed",
    "messages": b"message_stop",
}


def request_body(dialect: str, *, text: str = TEXT, stream: bool = False, more: Any = None, **behaviour: Any) -> Any:
    """A request in the dialect that asks for a behaviour."""
    directed = f"!upstream {json.dumps(behaviour)} {text}" if behaviour else text
    body: dict[str, Any] = {"model": "dev-small", "stream": stream}
    if dialect in ("chat", "messages"):
        body["messages"] = [{"role": "user", "content": directed}]
    else:
        body["prompt" if dialect == "completions" else "input"] = directed
    if dialect == "messages":
        body["max_tokens"] = 1000
    if dialect == "embeddings":
        del body["stream"]
    if stream and dialect in ("chat", "completions"):
        body["stream_options"] = {"include_usage": True}
    return body | (more or {})


@dataclass(slots=True)
class Reply:
    """What one connection brought."""

    status: int
    head: bytes
    chunks: list[bytes]
    """HTTP chunks, or the body as one."""
    is_whole: bool
    """The body came to its regular end."""
    was_reset: bool = False

    @property
    def body(self) -> bytes:
        """The body."""
        return b"".join(self.chunks)

    @property
    def data(self) -> list[Any]:
        """The JSON of a stream's events."""
        lines = [line.removeprefix(b"data: ") for line in self.body.splitlines() if line.startswith(b"data: {")]
        return [json.loads(line) for line in lines]


class Connection:
    """One request on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = b""

    @classmethod
    async def open(cls, running: Running, dialect: str, body: Any) -> Connection:
        """Connect, and send the request."""
        host, port = running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        data = json.dumps(body).encode()
        head = f"POST {PATHS[dialect]} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer sk-raw\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        return cls(reader, writer)

    async def until(self, what: bytes) -> None:
        """Read until these bytes have come."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while what not in self.received:
                more = await self._reader.read(65536)
                assert more, f"the connection ended without {what!r}: {self.received!r}"
                self.received += more

    async def reply(self) -> Reply:
        """Read to the end."""
        was_reset = False
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while more := await self._reader.read(65536):
                    self.received += more
        except ConnectionResetError:
            was_reset = True
        self.close()
        return _parse(self.received, was_reset=was_reset)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def _parse(received: bytes, *, was_reset: bool) -> Reply:
    head, _, rest = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    lower = head.lower()
    if b"transfer-encoding: chunked" not in lower:
        length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        return Reply(status, head, [rest], len(rest) == length, was_reset)
    chunks: list[bytes] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return Reply(status, head, chunks, True, was_reset)
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return Reply(status, head, chunks, False, was_reset)


async def ask(running: Running, dialect: str, body: Any) -> Reply:
    """One request, to its end."""
    return await (await Connection.open(running, dialect, body)).reply()
