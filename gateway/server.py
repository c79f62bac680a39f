"""The listening side: aiohttp's server, with a limit on connections and one on a request's head, which it lacks."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, Final

from aiohttp import web

from domain.errors import ConfigurationError
from gateway.policy import HEAD_SECONDS_MAX
from telemetry.metrics import gateway as metrics

KEEP_ALIVE_SECONDS: Final = 75.0
"""Longer than proxies keep an idle connection, usually 60 s: the proxy should close it."""

BACKLOG: Final = 1024

SURPLUS_MAX: Final = 100
"""Connections beyond the limit that are kept until they have been answered; more are closed without an answer."""

OWN_FILES: Final = 200
"""Open files of the process besides its clients' and upstreams' connections."""


class Connections:
    """The open connections of a process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[BoundedHandler] = set()
        self._surplus: set[BoundedHandler] = set()

    def admit(self, connection: BoundedHandler) -> None:
        """Count a new connection. At the limit it takes the place of the one that has been idle for longest; where none
        is, it is surplus: its first request is refused, or it is closed at once.
        """
        if len(self._open) >= self._limit:
            idle = [other for other in self._open if other.idle_since is not None]
            if idle:
                longest = min(idle, key=lambda other: other.idle_since or 0.0)
                self._open.discard(longest)
                longest.force_close()
        if len(self._open) < self._limit:
            self._open.add(connection)
            metrics.OPEN_CONNECTIONS.set(len(self._open))
            return
        metrics.REFUSED_CONNECTIONS.inc()
        if len(self._surplus) < SURPLUS_MAX:
            self._surplus.add(connection)
        else:
            connection.force_close()

    def forget(self, connection: BoundedHandler) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._surplus.discard(connection)
        metrics.OPEN_CONNECTIONS.set(len(self._open))

    def is_surplus(self, connection: object) -> bool:
        """Whether its request is to be refused."""
        return connection in self._surplus


class BoundedHandler(web.RequestHandler):
    """A connection, counted, and closed where a head takes longer than `HEAD_SECONDS_MAX`: from the connection on, or
    from the first byte of a later one. Until then the connection's own limit on idleness applies.
    """

    __slots__ = ("_connections", "_head_deadline", "_last_data")

    def __init__(self, manager: web.Server, connections: Connections, **options: Any) -> None:
        super().__init__(manager, **options)
        self._connections = connections
        self._head_deadline: asyncio.TimerHandle | None = None
        self._last_data = 0.0

    @property
    def idle_since(self) -> float | None:
        """When the last request on it came, by the loop's clock, if that has been answered and no other has begun."""
        return self._last_data if self._awaits_request and self._head_deadline is None else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the limit for the first head."""
        super().connection_made(transport)
        self._await_head()
        self._connections.admit(self)

    def data_received(self, data: bytes) -> None:
        """Process the data, and check whether a head is still, or again, incomplete."""
        super().data_received(data)
        self._last_data = asyncio.get_running_loop().time()
        if not self._awaits_request:
            self._forget_head()
        elif self._head_deadline is None:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the limit."""
        self._forget_head()
        self._connections.forget(self)
        super().connection_lost(exc)

    @property
    def _awaits_request(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _await_head(self) -> None:
        self._head_deadline = asyncio.get_running_loop().call_later(HEAD_SECONDS_MAX, self.force_close)

    def _forget_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


async def listen(runner: web.AppRunner, connections: Connections, *, host: str, port: int) -> asyncio.Server:
    """Take connections for a runner that is set up. Raises `ConfigurationError` where the port cannot be bound."""
    loop = asyncio.get_running_loop()
    manager = runner.server
    assert manager is not None

    def connection() -> BoundedHandler:
        return BoundedHandler(manager, connections, loop=loop, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)

    try:
        return await loop.create_server(connection, host, port, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"GATEWAY_PORT: got {port}, which cannot be bound on {host} ({error.strerror}); "
            "expected a free port, or 0 for any"
        ) from error


def allow_files(connections_max: int) -> None:
    """Raise the process's limit on open files to what so many clients' connections need, each with one to an upstream.

    Raises `ConfigurationError` where the machine's limit is lower.
    """
    needed = 2 * connections_max + SURPLUS_MAX + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"GATEWAY_MAX_CONNECTIONS: got {connections_max}, which needs {needed} open files; "
            f"this process may have {hard}: expected a lower number, or a higher limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
