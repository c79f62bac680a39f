"""Connection poolers in transaction mode: PgBouncer, where it is installed, and one of our own that behaves as it does.

Ours gives each transaction another server connection than the one before, invents the numbers of server processes, and
refuses or drops the `options` of a start-up packet. So whatever relies on a session fails at the first try.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from db.rights import APP_ROLE, OPERATOR_ROLE, SERVICE_ROLE, SETTLEMENT_ROLE
from devstack.processes import quiet_port, wait_until
from tests.support.postgres import OWNER_ROLE, ROLE_PASSWORD, Database

SERVERS_PER_POOL: Final = 3
PATIENCE_SECONDS: Final = 30.0
_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_CANCEL_REQUEST: Final = 80877102
_SAID_BY_SERVER: Final = {
    "server_version": "18.0",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
}
ROLES: Final = (APP_ROLE, SETTLEMENT_ROLE, SERVICE_ROLE, OPERATOR_ROLE, OWNER_ROLE)


class Pooler(StrEnum):
    """Which one, and what it does with `options`."""

    OURS_REFUSES = "ours, refuses options"
    OURS_DROPS = "ours, drops options"
    PGBOUNCER_REFUSES = "PgBouncer, refuses options"
    PGBOUNCER_DROPS = "PgBouncer, drops options"

    @property
    def is_installed(self) -> bool:
        """Whether this machine has it."""
        return self.name.startswith("OURS") or shutil.which("pgbouncer") is not None


def through_port(url: str, port: int) -> str:
    """The same address on another port of this machine."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))


@asynccontextmanager
async def pooled(database: Database, kind: Pooler, folder: Path) -> AsyncIterator[Database]:
    """The addresses of a database through a pooler, for the length of the block."""
    running = _pgbouncer(database, kind, folder) if kind.name.startswith("PGBOUNCER") else _ours(database, kind)
    async with running as port:
        yield Database(database.name, f"127.0.0.1:{port}", through_port(database.superuser_url, port))


# -- PgBouncer


@asynccontextmanager
async def _pgbouncer(database: Database, kind: Pooler, folder: Path) -> AsyncIterator[int]:
    port = quiet_port()
    host, _, server_port = database.host.partition(":")
    folder = folder / "pgbouncer"
    folder.mkdir()
    (folder / "users").write_text("".join(f'"{role}" "{ROLE_PASSWORD}"\n' for role in ROLES))
    ignored = "ignore_startup_parameters = options,extra_float_digits\n" if kind is Pooler.PGBOUNCER_DROPS else ""
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {folder}/users\npool_mode = transaction\n"
        f"server_round_robin = 1\n{ignored}"
    )
    as_root = os.geteuid() == 0  # which PgBouncer refuses to be
    if as_root:
        for path in (folder, *folder.iterdir(), *folder.parents):
            with suppress(OSError):
                path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else 0o644)
    process = subprocess.Popen(
        ["pgbouncer", str(folder / "pgbouncer.ini")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user="nobody" if as_root else None,
    )
    try:
        await wait_until(lambda: _listens(port), timeout_seconds=PATIENCE_SECONDS, what="PgBouncer")
        yield port
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- ours


@dataclass
class _Server:
    """One connection to the real server, logged in by the driver and then spoken on in bytes."""

    driver: psycopg.AsyncConnection[Any]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def close(self) -> None:
        self.writer.close()
        await self.driver.close()


@dataclass
class _Pool:
    """The server connections of one role to one database; the one idle longest is next."""

    url: str
    idle: asyncio.Queue[_Server] = field(default_factory=asyncio.Queue)
    opened: list[_Server] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take(self) -> _Server:
        async with self.lock:
            while len(self.opened) < SERVERS_PER_POOL:
                driver = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
                copied = socket.socket(fileno=os.dup(driver.pgconn.socket))
                reader, writer = await asyncio.open_connection(sock=copied)
                self.opened.append(_Server(driver, reader, writer))
                self.idle.put_nowait(self.opened[-1])
        return await self.idle.get()


@asynccontextmanager
async def _ours(database: Database, kind: Pooler) -> AsyncIterator[int]:
    pools: dict[str, _Pool] = {}
    numbers = itertools.count(1_000_000)
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            parameters = await _read_startup(reader, writer)
            if parameters is not None and "options" in parameters and kind is Pooler.OURS_REFUSES:
                writer.write(_message(b"E", b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"))
                await writer.drain()
            elif parameters is not None:
                url = database.url_as(parameters["user"])
                pool = pools.setdefault(url, _Pool(url))
                _welcome(writer, next(numbers))
                await _relay(reader, writer, pool)
        writer.close()
        writers.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        for pool in pools.values():
            for opened in pool.opened:
                await opened.close()


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!i", len(content) + 4) + content


async def _read_startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, str] | None:
    while True:
        [length] = struct.unpack("!i", await reader.readexactly(4))
        content = await reader.readexactly(length - 4)
        [code] = struct.unpack("!i", content[:4])
        if code == _CANCEL_REQUEST:
            return None
        if code not in {_SSL_REQUEST, _GSS_REQUEST}:
            words = [word.decode() for word in content[4:].split(b"\0")]
            return dict(zip(words[::2], words[1::2], strict=False))
        writer.write(b"N")


def _welcome(writer: asyncio.StreamWriter, number: int) -> None:
    writer.write(_message(b"R", struct.pack("!i", 0)))
    for name, value in _SAID_BY_SERVER.items():
        writer.write(_message(b"S", f"{name}\0{value}\0".encode()))
    writer.write(_message(b"K", struct.pack("!ii", number, 42)) + _message(b"Z", b"I"))


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    content = await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
    return head[:1], head + content


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pool: _Pool) -> None:
    """One client's messages: each transaction goes to the server connection that is next."""
    while True:
        kind, message = await _read_message(reader)
        if kind == b"X":
            return
        server = await pool.take()
        server.writer.write(message)
        answers = asyncio.create_task(_answer(server, writer))
        awaited = 1 if kind in b"QS" else 0
        status = b"I"
        try:
            while True:
                if awaited:
                    status = await answers
                    awaited -= 1
                    if status == b"I" and not awaited:
                        break
                    answers = asyncio.create_task(_answer(server, writer))
                    continue
                kind, message = await _read_message(reader)
                if kind == b"X":
                    return
                server.writer.write(message)
                awaited += kind in b"QS"
        finally:
            answers.cancel()
            if status != b"I" or awaited:  # the client left in the middle
                pool.opened.remove(server)
                await server.close()
            else:
                pool.idle.put_nowait(server)


async def _answer(server: _Server, writer: asyncio.StreamWriter) -> bytes:
    """Pass on what the server says until it is ready; the state of the transaction then."""
    while True:
        kind, message = await _read_message(server.reader)
        writer.write(message)
        if kind == b"Z":
            await writer.drain()
            return message[-1:]
