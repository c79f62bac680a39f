"""The server under the HTTP interface: uvicorn, with a bound on everything that a connection may leave undone."""

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
"""Longer than proxies keep a connection for reuse, usually 60 s: it is theirs to close."""

GRACEFUL_SHUTDOWN_SECONDS: Final = 10
CONNECTIONS_MAX: Final = 5_000
SPARE_FILES: Final = 128
"""Files of the process that are no client's connection: to PostgreSQL, Temporal and the chain, the log."""

BACKLOG: Final = 128
"""asyncio accepts as many in one go, and complains about each when the process has no files left."""

log = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for a request's head."""

    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Go on, and see whether a head is still, or again, incomplete."""
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._forget_head()
        elif self._head_deadline is None and self.timeout_keep_alive_task is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """The next head is waited for by the keep-alive's clock, until its first byte."""
        self._forget_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._forget_head()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_deadline = self.loop.call_later(HEAD_SECONDS_MAX, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


class _Server(uvicorn.Server):
    """uvicorn without its handling of signals: having drained, it would raise SIGTERM once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def http_server(app: ASGIApp) -> uvicorn.Server:
    """The server of an app, to be told where to listen."""
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        # Applied in `api.app.build_app`, so that whoever embeds the app has it too.
        "proxy_headers": False,
        "server_header": False,
        # `api.http.middleware.SecurityHeaders` says the database's time.
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
    """How many files the process may have open, after it has asked for as many as it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"API_PORT: got {port}, on which {host} cannot be listened on ({error.strerror}); "
            "wants a free port, or 0 for any"
        ) from error
    # Accepted connections inherit it. asyncio sets it on sockets that name their protocol, which this one does not, and
    # without it every answer on a kept connection waits 40 ms for the client's acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
