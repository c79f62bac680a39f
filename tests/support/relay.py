"""A relay in front of a server, that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit, urlunsplit


class Relay:
    """Passes one TCP port on to another, until it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes_answers = asyncio.Event()
        self._passes_answers.set()
        self.port = 0

    async def open(self) -> None:
        """Listen, again on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Take no more connections and end those that are there."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def keep_answers(self) -> None:
        """Pass on what is asked, and no answers until `pass_answers`; a connection that ends then loses its answers."""
        self._passes_answers.clear()

    def pass_answers(self) -> None:
        """Pass answers on again."""
        self._passes_answers.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            self._writers |= {writer, other_writer}
            await asyncio.gather(_pipe(reader, other_writer), _pipe(other_reader, writer, self._passes_answers))
            self._writers -= {writer, other_writer}


async def _pipe(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event | None = None
) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(65_536):
            if passes is not None and not passes.is_set():
                # What was kept back is lost where the server is killed before it may pass.
                await passes.wait()
                if reader.at_eof():
                    break
            writer.write(content)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def relay_to(url: str) -> Relay:
    """A relay in front of the server that an address (or host and port) names; it is not open yet."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    return Relay(str(parts.hostname), int(parts.port or 0))


def through(relay: Relay, url: str) -> str:
    """The same address by way of a relay."""
    parts = urlsplit(url)
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{relay.port}"))
