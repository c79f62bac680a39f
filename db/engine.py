"""Database connections, one type per role: what may run in a tenant's scope differs by type from what may not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from db.address import has_several_hosts, parse_address
from db.driver import PromptConnection, driver_of, fetch_one_by_driver, has_unread, takes_no_writes
from db.outages import as_unavailable
from db.pooler import Route, limits_sql
from db.schema import TENANT_SETTING
from db.statements import Connection, StatementConnections
from domain.errors import DatabaseUnavailable

CONNECT_TIMEOUT_SECONDS: Final = 5

CONNECTION_SECONDS_MAX: Final = 600
"""Maximum age of a pooled connection: after another server has taken over the address, the pool follows."""

SESSION_SETTINGS: Final = {
    # A lock held for longer is a fault: fail, and let the activity's retry come back.
    "lock_timeout": "5s",
    "statement_timeout": "20s",
    # A paused process must not hold the system tenant's row indefinitely.
    "idle_in_transaction_session_timeout": "30s",
    # A cancelled caller closes its connection (`PromptConnection`): its statement must not go on waiting for a lock, or
    # holding one.
    "client_connection_check_interval": "1s",
}


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


@dataclass(frozen=True, slots=True)
class RelayConnection:
    """A transaction of role settle_relay, which reads no table and calls the relay's functions only."""

    connection: AsyncConnection


@dataclass(frozen=True, slots=True)
class SettlementStatements:
    """Role settle_settlement by the driver: each statement is a transaction of its own, and sets its scope itself."""

    driver: Connection
    user_id: str


@dataclass(frozen=True, slots=True)
class ServiceStatements:
    """Role settle_service by the driver: each statement is a transaction of its own."""

    driver: Connection


AnyConnection = TenantConnection | ServiceConnection | OperatorConnection
ReadAllConnection = ServiceConnection | OperatorConnection
"""Sees the rows of all tenants."""


ADDRESS_IN_ARGUMENTS: Final = URL.create("postgresql+psycopg")
"""For SQLAlchemy, whose own parser supports neither sockets nor all of libpq's forms of several hosts."""


def connection_arguments(url: str, *, application_name: str) -> dict[str, Any]:
    """Connection arguments for `url`; the address's own parameters take precedence over ours.

    Of several servers it is the one that accepts writes.
    """
    found = parse_address(url)
    several = {"target_session_attrs": "read-write"} if has_several_hosts(found) else {}
    return {"application_name": application_name, "connect_timeout": CONNECT_TIMEOUT_SECONDS, **several, **found}


def _engine(
    url: str,
    *,
    application_name: str,
    pool_size: int,
    ping_after_idle_seconds: float | None,
    only_reads: bool = False,
    **options: Any,
) -> tuple[AsyncEngine, Route]:
    """An engine. Idle connections are tested before they are reused. One that `only_reads` may lead to a standby."""
    connect_args = connection_arguments(url, application_name=application_name)
    route = Route(PromptConnection, connect_args.get("options", ""))
    engine = create_async_engine(
        ADDRESS_IN_ARGUMENTS,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        pool_recycle=CONNECTION_SECONDS_MAX,
        connect_args={**_with_session_settings(connect_args), "async_creator_fn": route.connect},
        # An error must not carry an address or a payload into a log.
        hide_parameters=True,
        # Each new engine would ask the server for a type that we do not use.
        use_native_hstore=False,
        **options,
    )
    if ping_after_idle_seconds is not None:
        _ping_idle_connections(engine, ping_after_idle_seconds)
    if not only_reads:
        _use_connections_that_take_no_writes_once(engine, route)
    return engine, route


def _with_session_settings(connect_args: Mapping[str, Any]) -> dict[str, Any]:
    settings = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    return {**connect_args, "options": f"{settings} {connect_args.get('options', '')}".strip()}


def _use_connections_that_take_no_writes_once(engine: AsyncEngine, route: Route) -> None:
    """A server that takes over the address, or allows writing again, is found by the next use of each connection.

    A pooler reports what its server said once, which may no longer be so.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def replace_before_the_next_use(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        # None: it was lost.
        if dbapi_connection is not None and not route.is_pooled and takes_no_writes(dbapi_connection.driver_connection):
            record.invalidate(soft=True)


IDLE_SECONDS_MAX: Final = 1.0
"""SQLAlchemy's own ping runs at every checkout, a third of a request's statements. A connection that worked a moment
ago is reused unless the server has said that it ends it; a request that finds it broken gets a 503, and the pool is
renewed.
"""


def _ping_idle_connections(engine: AsyncEngine, after_seconds: float) -> None:
    @event.listens_for(engine.sync_engine, "checkin")
    def note_the_time(_: object, record: ConnectionPoolEntry) -> None:
        record.info["checked_in"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def ping(dbapi_connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        if has_unread(dbapi_connection.driver_connection):
            raise InvalidatePoolError
        if time.monotonic() - record.info.get("checked_in", 0.0) < after_seconds:
            return
        dialect = engine.sync_engine.dialect
        try:
            dialect.do_ping(dbapi_connection)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


@asynccontextmanager
async def _unavailable_as_domain_error() -> AsyncIterator[None]:
    """Turn errors that mean an outage into `DatabaseUnavailable`; leave every other error unchanged."""
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        unavailable = as_unavailable(error)
        if unavailable is None:
            raise
        raise unavailable from error
    except PoolTimeoutError as error:
        raise DatabaseUnavailable(
            "PostgreSQL cannot be reached: all of this process's connections are in use"
        ) from error
    except OSError as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be reached: {error}") from error


class _Database:
    """Connections of one role. Through a pooler the session limits are set in each transaction."""

    def __init__(self, engine: AsyncEngine, route: Route) -> None:
        self.engine = engine
        self._transactional = engine
        self._route = route
        self._limits = limits_sql(SESSION_SETTINGS)

    @asynccontextmanager
    async def _begin(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with _unavailable_as_domain_error(), engine.begin() as connection:
            if self._route.is_pooled:
                # By the driver, which sends several statements at once where they have no parameters.
                await driver_of(await connection.get_raw_connection()).execute(self._limits)
            yield connection

    @asynccontextmanager
    async def _statements(self, single: AsyncEngine, transactional: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Autocommit, except through a pooler, where only a transaction has limits."""
        if not self._route.is_pooled:
            async with _unavailable_as_domain_error(), single.connect() as connection:
                if not self._route.is_pooled:  # the first connection finds out
                    yield connection
                    return
        async with self._begin(transactional) as connection:
            yield connection

    async def dispose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


class _HotDatabase(_Database):
    """The same, and connections of the driver's own for the hottest statements (`db.statements`)."""

    def __init__(self, url: str, *, application_name: str, pool_size: int, pre_ping: bool, **options: Any) -> None:
        engine, route = _engine(
            url,
            application_name=application_name,
            pool_size=pool_size,
            ping_after_idle_seconds=IDLE_SECONDS_MAX if pre_ping else None,
            **options,
        )
        super().__init__(engine, route)
        self._connect_args = _with_session_settings(connection_arguments(url, application_name=application_name))
        self._hot = StatementConnections(
            self._connect, size=pool_size, idle_seconds_max=IDLE_SECONDS_MAX, seconds_max=CONNECTION_SECONDS_MAX
        )

    async def _connect(self) -> Connection:
        connection = await self._route.connect(**self._connect_args)
        await connection.set_autocommit(True)
        return connection

    @asynccontextmanager
    async def hot_statement(self) -> AsyncIterator[Connection]:
        """The driver's own connection, without a user: each statement is a transaction of its own (`db.statements`)."""
        async with _unavailable_as_domain_error():
            if not self._route.is_pooled:
                async with self._hot.connection() as connection:
                    if not self._route.is_pooled:  # the first connection finds out
                        yield connection
                        return
            async with self._begin(self._transactional) as through_pooler:
                yield driver_of(await through_pooler.get_raw_connection())

    async def dispose(self) -> None:
        """Close all connections."""
        self._hot.renew()
        await super().dispose()


class TenantDatabase(_HotDatabase):
    """Role settle_app: every transaction runs inside one user's scope."""

    def __init__(
        self, url: str, *, application_name: str = "settle", pool_size: int = 5, pre_ping: bool = True
    ) -> None:
        super().__init__(url, application_name=application_name, pool_size=pool_size, pre_ping=pre_ping)
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def transaction(self, user_id: str) -> AsyncIterator[TenantConnection]:
        """One transaction in the scope of `user_id`; commits at the end, rolls back on an error."""
        async with self._scoped(user_id) as connection:
            yield TenantConnection(connection, user_id)

    @asynccontextmanager
    async def _scoped(self, user_id: str) -> AsyncIterator[AsyncConnection]:
        async with self._begin(self.engine) as connection:
            await fetch_one_by_driver(connection, _SET_TENANT, {"name": TENANT_SETTING, "user_id": user_id})
            yield connection

    @asynccontextmanager
    async def unscoped(self) -> AsyncIterator[AsyncConnection]:
        """One transaction without a user: row-level security shows it no rows."""
        async with self._begin(self.engine) as connection:
            yield connection

    @asynccontextmanager
    async def unscoped_statement(self) -> AsyncIterator[AsyncConnection]:
        """The same in autocommit: each statement is a transaction of its own."""
        async with self._statements(self._single, self.engine) as connection:
            yield connection


_SET_TENANT: Final[LiteralString] = "SELECT set_config(%(name)s, %(user_id)s, true)"


class SettlementDatabase(TenantDatabase):
    """Role settle_settlement, of workers: the tenants' scopes, and the right to credit a purchase in them."""

    @asynccontextmanager
    async def transaction(self, user_id: str) -> AsyncIterator[SettlementConnection]:
        """One transaction in the scope of `user_id`; commits at the end, rolls back on an error."""
        async with self._scoped(user_id) as connection:
            yield SettlementConnection(connection, user_id)

    @asynccontextmanager
    async def statements(self, user_id: str) -> AsyncIterator[SettlementStatements]:
        """Single statements in the scope of `user_id`, each a transaction of its own."""
        async with self.hot_statement() as connection:
            yield SettlementStatements(connection, user_id)


class ServiceDatabase(_HotDatabase):
    """Role settle_service: for workers and operators' commands."""

    def __init__(
        self, url: str, *, application_name: str = "settle", pool_size: int = 5, pre_ping: bool = True
    ) -> None:
        # Workers mostly run single statements: these get connections already in autocommit.
        super().__init__(
            url,
            application_name=application_name,
            pool_size=pool_size,
            pre_ping=pre_ping,
            isolation_level="AUTOCOMMIT",
        )
        self._transactional = self.engine.execution_options(isolation_level="READ COMMITTED")
        self._one_moment = self.engine.execution_options(isolation_level="REPEATABLE READ")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[ServiceConnection]:
        """One transaction; commits at the end, rolls back on an error."""
        async with self._begin(self._transactional) as connection:
            yield ServiceConnection(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[ServiceConnection]:
        """One read-only transaction with a single snapshot, however long it reads."""
        async with self._begin(self._one_moment) as connection:
            await connection.execute(_READ_ONLY)
            yield ServiceConnection(connection)

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[ServiceConnection]:
        """Autocommit: each statement is a transaction of its own, without BEGIN and COMMIT while a lock is held."""
        async with self._statements(self.engine, self._transactional) as connection:
            yield ServiceConnection(connection)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[ServiceStatements]:
        """The same by the driver's own connections, for the hottest statements."""
        async with self.hot_statement() as connection:
            yield ServiceStatements(connection)


class OperatorDatabase(_Database):
    """Role settle_operator, for the operators' pages: a process that faces the internet must not have the service's
    role.
    """

    def __init__(self, url: str, *, application_name: str = "settle", pool_size: int = 2) -> None:
        engine, route = _engine(
            url,
            application_name=application_name,
            pool_size=pool_size,
            ping_after_idle_seconds=0.0,
            only_reads=True,
            isolation_level="REPEATABLE READ",
        )
        super().__init__(engine, route)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[OperatorConnection]:
        """One read-only transaction with a single snapshot."""
        async with self._begin(self.engine) as connection:
            await connection.execute(_READ_ONLY)
            yield OperatorConnection(connection)


class RelayDatabase(_Database):
    """Role settle_relay, for the one process that holds a key."""

    def __init__(self, url: str, *, application_name: str = "settle relay", pool_size: int = 3) -> None:
        engine, route = _engine(
            url, application_name=application_name, pool_size=pool_size, ping_after_idle_seconds=IDLE_SECONDS_MAX
        )
        super().__init__(engine, route)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[RelayConnection]:
        """One transaction; commits at the end, rolls back on an error."""
        async with self._begin(self.engine) as connection:
            yield RelayConnection(connection)


async def fetch_one(
    connection: AnyConnection | SettlementStatements | ServiceStatements,
    statement: LiteralString,
    values: Mapping[str, object],
) -> TupleRow | None:
    """The one row of a statement that is hot enough to go to the driver. Its parameters and errors are the driver's."""
    if isinstance(connection, SettlementStatements | ServiceStatements):
        return await (await connection.driver.execute(statement, values)).fetchone()
    return await fetch_one_by_driver(connection.connection, statement, values)


_READ_ONLY = text("SET TRANSACTION READ ONLY")
