"""The HTTP server: uvicorn, with time limits on incomplete request heads and a bound on connections."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from domain.errors import ConfigurationError

HEAD_SECONDS_MAX: Final = 10.0
"""From the connection, or from the first byte of a later request, to the end of a request's head."""

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than proxies keep an idle connection, usually 60 s: the proxy should close it."""

GRACEFUL_SHUTDOWN_SECONDS: Final = 10
CONNECTIONS_MAX: Final = 5_000
SPARE_FILES: Final = 128
"""File descriptors for other uses than client connections: PostgreSQL, Temporal, the chain, the log."""

BACKLOG: Final = 128
"""asyncio accepts as many in one batch, and logs an error for each when the process has no descriptors left."""

log = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a time limit on the request's head, which it lacks."""

    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the limit for the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Process the data, and check whether a head is still, or again, incomplete."""
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._forget_head()
        elif self._head_deadline is None and self.timeout_keep_alive_task is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """The keep-alive limit applies until the next request's first byte."""
        self._forget_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the limit."""
        self._forget_head()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_deadline = self.loop.call_later(HEAD_SECONDS_MAX, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: having drained, it would raise SIGTERM once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not install signal handlers."""
        yield


def http_server(app: ASGIApp) -> uvicorn.Server:
    """The server of an app; the caller passes the sockets."""
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        # Applied in `api.app.build_app`, so that an application embedding it has it too.
        "proxy_headers": False,
        "server_header": False,
        # `api.http.middleware.SecurityHeaders` sends the database's time.
        "date_header": False,
        "lifespan": "off",
        "ws": "none",
        "http": BoundedProtocol,
    }
    return _Server(
        uvicorn.Config(
            app,
            limit_concurrency=min(CONNECTIONS_MAX, max(_files_max() - SPARE_FILES, 1)),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            **options,
        )
    )


def _files_max() -> int:
    """Raise the limit of open files as far as possible, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` where the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"API_PORT: got {port}, which cannot be bound on {host} ({error.strerror}); "
            "expected a free port, or 0 for any"
        ) from error
    # Accepted connections inherit it. asyncio sets it on sockets that name their protocol, which this one does not;
    # without it every answer on a kept connection waits 40 ms for the client's acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
