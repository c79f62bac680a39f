"""The listening side: aiohttp's server, with a time limit on a request's head, which it lacks."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from domain.errors import ConfigurationError
from gateway.policy import HEAD_SECONDS_MAX

KEEP_ALIVE_SECONDS: Final = 75.0
"""Longer than proxies keep an idle connection, usually 60 s: the proxy should close it."""

BACKLOG: Final = 1024


class BoundedHandler(web.RequestHandler):
    """A connection, closed where a head takes longer than `HEAD_SECONDS_MAX`: from the connection on, or from the first
    byte of a later one. Until then the connection's own limit on idleness applies.
    """

    __slots__ = ("_head_deadline",)

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the limit for the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Process the data, and check whether a head is still, or again, incomplete."""
        super().data_received(data)
        is_incomplete = self._waiter is not None and not self._waiter.done()
        if not is_incomplete:
            self._forget_head()
        elif self._head_deadline is None:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the limit."""
        self._forget_head()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_deadline = asyncio.get_running_loop().call_later(HEAD_SECONDS_MAX, self.force_close)

    def _forget_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


async def listen(runner: web.AppRunner, *, host: str, port: int) -> asyncio.Server:
    """Take connections for a runner that is set up. Raises `ConfigurationError` where the port cannot be bound."""
    loop = asyncio.get_running_loop()
    manager = runner.server
    assert manager is not None

    def connection() -> BoundedHandler:
        return BoundedHandler(manager, loop=loop, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)

    try:
        return await loop.create_server(connection, host, port, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"GATEWAY_PORT: got {port}, which cannot be bound on {host} ({error.strerror}); "
            "expected a free port, or 0 for any"
        ) from error
