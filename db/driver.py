"""Direct use of psycopg past SQLAlchemy, and changes of its behaviour, each with the upstream reason.

`tests/database/test_cancelled.py` fails without `PromptConnection`, and with a release of the driver that changes what
it relies on.
"""

from __future__ import annotations

import asyncio
import select
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, Self, TypeVar

import psycopg
from psycopg.abc import AdaptContext, Buffer, PQGen
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import TupleRow
from psycopg.waiting import Wait, wait_async
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import PoolProxiedConnection

_T = TypeVar("_T")

EARLIEST: Final = datetime(1000, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""What is read of times that Python lacks. A thousand years within its bounds: adding to them overflows nothing."""


class BoundedTimeLoader(Loader):
    """Reads times with a time zone, those before year 1 and after year 9999 as `EARLIEST` and `LATEST`.

    The driver's own refuses them, `infinity` among them: a row that has one, which processes that people reach can
    write, would end every query that reads it among many.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        usual = psycopg.adapters.get_loader(oid, Format.TEXT)
        assert usual is not None, "the driver has one for the type"
        self._usual = usual(oid, context)

    def load(self, data: Buffer) -> datetime:
        """The time. Raises `psycopg.DataError` for what is none."""
        try:
            return self._usual.load(data)  # type: ignore[no-any-return]
        except psycopg.DataError:
            text = bytes(data)
            if text == b"-infinity" or text.endswith(b"BC"):
                return EARLIEST
            if text == b"infinity" or text.find(b"-") > 4:
                return LATEST
            raise


class PromptConnection(psycopg.AsyncConnection[TupleRow]):
    """The driver's connection, except that cancellation takes effect immediately, whatever the server does.

    The driver's own asks the server to cancel the statement and waits for its answer, five seconds for each, in the
    constants of `psycopg.AsyncConnection.wait` (https://github.com/psycopg/psycopg/issues/1371, fixed that far by 3.3):
    with a frozen server a time limit of one second would become eleven. Here the connection is closed instead, which
    SQLAlchemy does anyway after a cancellation. The outcome of what was sent is equally unknown: an unanswered COMMIT
    may have happened.

    Can be removed when the driver lets its callers set those times.

    It also reads times that Python lacks (`BoundedTimeLoader`).
    """

    @classmethod
    async def connect(cls, *args: Any, **options: Any) -> Self:
        """Connect, as the driver does; who does not wait for the end leaves no connection behind."""
        try:
            connection = await super().connect(*args, **options)
        except BaseException as error:
            # The driver leaves it to the frames that the error refers to, and so to the collector of garbage: till then
            # it takes one of the server's places, and no database can be created or dropped (authentication_timeout).
            traceback.clear_frames(error.__traceback__)
            raise
        # Not before: the driver replaces the adapters by those of its caller's context.
        connection.adapters.register_loader("timestamptz", BoundedTimeLoader)
        return connection

    async def wait(
        self,
        gen: PQGen[_T],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109 - as the driver has it
    ) -> _T:
        """Run one of the driver's steps to its end.

        A step that has nothing to wait for runs without a pause. The driver sometimes pauses after it, and a
        cancellation at that moment, while SQLAlchemy sets the isolation level of a connection just taken from the pool,
        loses the connection.
        """
        try:
            awaited = next(gen)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]
        try:
            return await wait_async(_resumed(gen, awaited), self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


def _resumed(gen: PQGen[_T], awaited: Wait) -> PQGen[_T]:
    """A step that has begun, from what it waits for now."""
    while True:
        ready = yield awaited
        try:
            awaited = gen.send(ready)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]


def driver_of(connection: PoolProxiedConnection) -> psycopg.AsyncConnection[TupleRow]:
    """The driver's connection under one of SQLAlchemy's."""
    driver = connection.driver_connection
    assert isinstance(driver, psycopg.AsyncConnection)
    return driver


def takes_no_writes(driver: psycopg.AsyncConnection[TupleRow]) -> bool:
    """The server is a standby, or allows only reading, as it reported by itself with the last answer (`GUC_REPORT`)."""
    reported = driver.pgconn.parameter_status
    return b"on" in (reported(b"in_hot_standby"), reported(b"default_transaction_read_only"))


def has_unread(driver: psycopg.AsyncConnection[TupleRow]) -> bool:
    """The server has sent something unasked to an idle connection: that it ends it, as a restart does to all.

    Asks the system and not the server. Of a session that goes on it may be a setting that was reloaded, which costs a
    connection and no request.
    """
    poll = select.poll()
    poll.register(driver.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


async def fetch_one_by_driver(
    connection: AsyncConnection, statement: LiteralString, values: Mapping[str, object]
) -> TupleRow | None:
    """Execute one statement by the driver directly, in the connection's transaction: for the few that are hot enough.

    SQLAlchemy's path through a greenlet, a compiled statement and a result takes several times as long. The parameters
    are the driver's (`%(name)s`), its errors too (`psycopg.Error`).
    """
    driver = driver_of(await connection.get_raw_connection())
    try:
        return await (await driver.execute(statement, values)).fetchone()
    except (psycopg.Error, asyncio.CancelledError):
        if driver.closed:
            await connection.invalidate()  # SQLAlchemy did not see it break and would reuse it
        raise
