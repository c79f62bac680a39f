"""Connections for single statements that are hot enough to go past SQLAlchemy.

A checkout of SQLAlchemy's asynchronous pool takes longer than the statement's own way through the driver: it changes
greenlets, sets and resets the isolation level, and calls listeners. Here a connection is in autocommit as long as it
lives, and taken from a list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from db.driver import has_unread, takes_no_writes
from domain.errors import DatabaseUnavailable

Connection = psycopg.AsyncConnection[TupleRow]

WAIT_SECONDS_MAX: Final = 5.0
ANSWER_SECONDS_MAX: Final = 2.0
"""Of an idle connection that is tested: one whose server keeps it and says nothing is given up."""


class StatementConnections:
    """At most `size` connections, opened when they are needed. One that failed is not used again, nor one whose server
    takes no writes.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], *, size: int, idle_seconds_max: float, seconds_max: float
    ) -> None:
        """One that was idle for `idle_seconds_max` is tested before it is used; none gets older than `seconds_max`."""
        self._connect = connect
        self._places = asyncio.Semaphore(size)
        self._idle: list[tuple[Connection, float, float]] = []
        self._idle_seconds_max = idle_seconds_max
        self._seconds_max = seconds_max

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit. Raises `psycopg.Error`, `OSError`; `DatabaseUnavailable` where none is free."""
        if self._places.locked():
            try:
                async with asyncio.timeout(WAIT_SECONDS_MAX):
                    await self._places.acquire()
            except TimeoutError:
                raise DatabaseUnavailable(
                    "PostgreSQL cannot be reached: all of this process's connections are in use"
                ) from None
        else:
            await self._places.acquire()
        try:
            connection, opened = await self._take()
            is_sound = False
            try:
                yield connection
                is_sound = True
            except psycopg.Error:
                # Where the connection was lost, the others lead to the same server.
                self.renew()
                raise
            finally:
                is_idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
                if is_sound and is_idle and not takes_no_writes(connection):
                    self._idle.append((connection, opened, time.monotonic()))
                else:
                    connection.pgconn.finish()
        finally:
            self._places.release()

    def renew(self) -> None:
        """Use none of the idle connections again: where one failed, the server behind the address may be another."""
        idle, self._idle = self._idle, []
        for connection, _, _ in idle:
            connection.pgconn.finish()

    async def _take(self) -> tuple[Connection, float]:
        while self._idle:
            connection, opened, used = self._idle.pop()
            now = time.monotonic()
            is_young = now - opened < self._seconds_max and not has_unread(connection)
            if is_young and (now - used < self._idle_seconds_max or await _answers(connection)):
                return connection, opened
            connection.pgconn.finish()
        return await self._connect(), time.monotonic()


async def _answers(connection: Connection) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await connection.execute("")
    except (psycopg.Error, TimeoutError):
        return False
    return True
