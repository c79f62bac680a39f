"""Connections, one type for each role: what may run in a tenant's scope differs by type from what may not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.waiting import Wait, wait_async
from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from db.schema import TENANT_SETTING
from domain.errors import DatabaseBusy, DatabaseUnavailable

CONNECT_TIMEOUT_SECONDS: Final = 5

SESSION_SETTINGS: Final = {
    # A lock that somebody else holds for longer is a fault: fail, and let the activity's retry come back.
    "lock_timeout": "5s",
    "statement_timeout": "20s",
    # A paused process must not hold the system tenant's row for ever.
    "idle_in_transaction_session_timeout": "30s",
    # Whoever is cancelled closes the connection and is gone (`PromptConnection`): its statement must not go on waiting
    # for a lock, or holding one.
    "client_connection_check_interval": "1s",
}

_T = TypeVar("_T")


class PromptConnection(psycopg.AsyncConnection[TupleRow]):
    """The driver's connection, whose caller is gone as soon as it is cancelled, whatever the server does.

    The driver's own asks the server to cancel the statement and waits for its word, five seconds each: a server that
    stands still would make a time limit of one second one of eleven. Here the connection is closed instead, which
    SQLAlchemy does with it anyway after a cancellation. What was sent is as unknown either way: a COMMIT that was not
    answered may have happened.
    """

    async def wait(
        self,
        gen: PQGen[_T],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109 - as the driver has it
    ) -> _T:
        """Run one of the driver's steps to its end.

        A step that has nothing to wait for is done without a pause. The driver makes one after it now and then, and
        whoever is cancelled in it while SQLAlchemy sets the isolation level of a connection that it has just taken
        from the pool takes the connection along.
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


@dataclass(frozen=True, slots=True)
class TenantConnection:
    """A transaction of role settle_app inside one user's scope."""

    connection: AsyncConnection
    user_id: str


@dataclass(frozen=True, slots=True)
class SettlementConnection(TenantConnection):
    """The same of role settle_settlement, which may end a payment and credit its buyer."""


@dataclass(frozen=True, slots=True)
class ServiceConnection:
    """A transaction of role settle_service; row-level security does not apply."""

    connection: AsyncConnection


@dataclass(frozen=True, slots=True)
class OperatorConnection:
    """A transaction of role settle_operator, which sees every payment and can change none."""

    connection: AsyncConnection


AnyConnection = TenantConnection | ServiceConnection | OperatorConnection
ReadAllConnection = ServiceConnection | OperatorConnection
"""Sees the rows of all tenants."""


async def fetch_one_by_driver(
    connection: AnyConnection, statement: LiteralString, values: Mapping[str, object]
) -> TupleRow | None:
    """One statement by the driver alone, in the connection's transaction: for the few that are worth it.

    Its parameters are the driver's (`%(name)s`), its errors too (`psycopg.Error`).
    """
    driver = (await connection.connection.get_raw_connection()).driver_connection
    assert isinstance(driver, psycopg.AsyncConnection)
    try:
        return await (await driver.execute(statement, values)).fetchone()
    except (psycopg.OperationalError, asyncio.CancelledError):
        if driver.closed:
            await connection.connection.invalidate()  # SQLAlchemy did not see it break and would lend it again
        raise


def psycopg_url(url: str) -> URL:
    """SQLAlchemy's form of a plain `postgresql://` address, with the psycopg 3 driver."""
    return make_url(url).set(drivername="postgresql+psycopg")


def _engine(
    url: str, *, application_name: str, pool_size: int, ping_after_idle_seconds: float | None, **options: Any
) -> AsyncEngine:
    """An engine. Connections that nobody used for that long are asked whether they are there before they are lent."""
    settings = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    connect_args: dict[str, Any] = {
        "async_creator_fn": PromptConnection.connect,
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "options": settings,
    }
    engine = create_async_engine(
        psycopg_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        connect_args=connect_args,
        # An error must not carry an address or a payload into a log.
        hide_parameters=True,
        **options,
    )
    if ping_after_idle_seconds is not None:
        _ping_idle_connections(engine, ping_after_idle_seconds)
    return engine


IDLE_SECONDS_MAX: Final = 1.0
"""SQLAlchemy's own ping asks at every checkout, which was a third of what a request said to the server. A connection
that worked a moment ago is lent as it is; whoever finds it broken all the same gets a 503, and the pool is renewed."""


def _ping_idle_connections(engine: AsyncEngine, after_seconds: float) -> None:
    @event.listens_for(engine.sync_engine, "checkin")
    def note_the_time(_: object, record: ConnectionPoolEntry) -> None:
        record.info["checked_in"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def ping(dbapi_connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - record.info.get("checked_in", 0.0) < after_seconds:
            return
        dialect = engine.sync_engine.dialect
        try:
            dialect.do_ping(dbapi_connection)
        except dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error


# Errors of the server itself carry an SQLSTATE; class 57 is a shutdown, 53 too many connections.
_LOST: Final = frozenset({"57", "53", "08"})
# Deadlock, serialization failure, lock time-out: the server is well, and the same transaction may go through next.
_BUSY: Final = frozenset({"40P01", "40001", "55P03"})


@asynccontextmanager
async def _unavailable_as_domain_error() -> AsyncIterator[None]:
    """Turn "PostgreSQL is not there" into `DatabaseUnavailable`; leave every other error alone."""
    try:
        yield
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate in _BUSY:
            raise DatabaseBusy(f"PostgreSQL is busy: {str(error.orig).splitlines()[0]}") from error
        lost = isinstance(error, OperationalError | InterfaceError) and (sqlstate or "57")[:2] in _LOST
        if error.connection_invalidated or lost:
            raise DatabaseUnavailable(f"PostgreSQL does not answer: {str(error.orig).splitlines()[0]}") from error
        raise
    except psycopg.OperationalError as error:
        if error.sqlstate in _BUSY:
            raise DatabaseBusy(f"PostgreSQL is busy: {str(error).splitlines()[0]}") from error
        if (error.sqlstate or "57")[:2] in _LOST:
            raise DatabaseUnavailable(f"PostgreSQL does not answer: {str(error).splitlines()[0]}") from error
        raise
    except PoolTimeoutError as error:
        raise DatabaseUnavailable(
            "PostgreSQL cannot be reached: all of this process's connections are in use"
        ) from error
    except OSError as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be reached: {error}") from error


class TenantDatabase:
    """Role settle_app: every transaction runs inside one user's scope."""

    def __init__(
        self, url: str, *, application_name: str = "settle", pool_size: int = 5, pre_ping: bool = True
    ) -> None:
        self.engine = _engine(
            url,
            application_name=application_name,
            pool_size=pool_size,
            ping_after_idle_seconds=IDLE_SECONDS_MAX if pre_ping else None,
        )
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def transaction(self, user_id: str) -> AsyncIterator[TenantConnection]:
        """One transaction in the scope of `user_id`; commits at the end, rolls back on an error."""
        async with self._scoped(user_id) as connection:
            yield TenantConnection(connection, user_id)

    @asynccontextmanager
    async def _scoped(self, user_id: str) -> AsyncIterator[AsyncConnection]:
        async with _unavailable_as_domain_error(), self.engine.begin() as connection:
            await connection.execute(_SET_TENANT, {"name": TENANT_SETTING, "user_id": user_id})
            yield connection

    @asynccontextmanager
    async def unscoped(self) -> AsyncIterator[AsyncConnection]:
        """One transaction that belongs to nobody: row-level security shows it no rows."""
        async with _unavailable_as_domain_error(), self.engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def unscoped_statement(self) -> AsyncIterator[AsyncConnection]:
        """The same for single statements: each is a transaction of its own."""
        async with _unavailable_as_domain_error(), self._single.connect() as connection:
            yield connection

    async def dispose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


_SET_TENANT = text("SELECT set_config(:name, :user_id, true)")


class SettlementDatabase(TenantDatabase):
    """Role settle_settlement, of workers: the tenants' scopes, and the right to credit a purchase in them."""

    @asynccontextmanager
    async def transaction(self, user_id: str) -> AsyncIterator[SettlementConnection]:
        """One transaction in the scope of `user_id`; commits at the end, rolls back on an error."""
        async with self._scoped(user_id) as connection:
            yield SettlementConnection(connection, user_id)


class ServiceDatabase:
    """Role settle_service: for workers and operators' commands."""

    def __init__(
        self, url: str, *, application_name: str = "settle", pool_size: int = 5, pre_ping: bool = True
    ) -> None:
        # Single statements are what a worker does all day: they get connections that need not be switched.
        self.engine = _engine(
            url,
            application_name=application_name,
            pool_size=pool_size,
            ping_after_idle_seconds=IDLE_SECONDS_MAX if pre_ping else None,
            isolation_level="AUTOCOMMIT",
        )
        self._transactional = self.engine.execution_options(isolation_level="READ COMMITTED")
        self._one_moment = self.engine.execution_options(isolation_level="REPEATABLE READ")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[ServiceConnection]:
        """One transaction; commits at the end, rolls back on an error."""
        async with _unavailable_as_domain_error(), self._transactional.begin() as connection:
            yield ServiceConnection(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[ServiceConnection]:
        """One read-only transaction that sees one moment, however long it reads."""
        async with _unavailable_as_domain_error(), self._one_moment.begin() as connection:
            await connection.execute(_READ_ONLY)
            yield ServiceConnection(connection)

    @asynccontextmanager
    async def single_statement(self) -> AsyncIterator[ServiceConnection]:
        """Each statement is a transaction of its own: no BEGIN and COMMIT to wait for while a lock is held."""
        async with _unavailable_as_domain_error(), self.engine.connect() as connection:
            yield ServiceConnection(connection)

    async def dispose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


class OperatorDatabase:
    """Role settle_operator, for the operators' pages: a process that faces the internet must not hold the service's."""

    def __init__(self, url: str, *, application_name: str = "settle", pool_size: int = 2) -> None:
        self.engine = _engine(
            url,
            application_name=application_name,
            pool_size=pool_size,
            ping_after_idle_seconds=0.0,
            isolation_level="REPEATABLE READ",
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[OperatorConnection]:
        """One read-only transaction that sees one moment."""
        async with _unavailable_as_domain_error(), self.engine.begin() as connection:
            await connection.execute(_READ_ONLY)
            yield OperatorConnection(connection)

    async def dispose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


_READ_ONLY = text("SET TRANSACTION READ ONLY")
