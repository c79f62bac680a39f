"""PostgreSQL that cannot work now: what is unavailability, what is a fault of ours, and how pools come back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

from db.engine import ServiceConnection, ServiceDatabase, TenantDatabase
from db.ledger import entries as ledger
from db.outages import as_unavailable
from db.startup import check_service_database, check_tenant_database, check_writes
from devstack.processes import quiet_port
from domain.errors import DatabaseBusy, DatabaseUnavailable
from tests.database.test_engine import BONUS
from tests.support.payments import RolePair
from tests.support.postgres import Cluster, Database
from tests.support.sql import connect, query, scalar

UNAVAILABLE = (
    "08000", "08003", "08006", "25006", "25P03", "53000", "53100", "53200", "53300", "53400", "57000", "57014", "57P01",
    "57P02", "57P03", "57P05", "58000", "58030", "58P01",
)  # fmt: skip
BUSY = ("40001", "40P01", "55P03")
FAULTS = ("22001", "23505", "26000", "42501", "42P01", "P0001", "XX000")


@pytest.mark.parametrize("sqlstate", UNAVAILABLE)
def test_the_server_cannot_work(sqlstate: str) -> None:
    unavailable = as_unavailable(psycopg.errors.lookup(sqlstate)("as it says"))
    assert unavailable is not None
    assert not isinstance(unavailable, DatabaseBusy)
    assert "\n" not in unavailable.message


@pytest.mark.parametrize("sqlstate", BUSY)
def test_the_server_is_busy(sqlstate: str) -> None:
    assert isinstance(as_unavailable(psycopg.errors.lookup(sqlstate)("as it says")), DatabaseBusy)


@pytest.mark.parametrize("sqlstate", FAULTS)
def test_a_fault_of_ours_is_none(sqlstate: str) -> None:
    assert as_unavailable(psycopg.errors.lookup(sqlstate)("as it says")) is None


@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.InterfaceError])
def test_a_connection_that_is_lost_or_was_never_made_is_unavailability(error: type[psycopg.Error]) -> None:
    assert as_unavailable(error("closed\nsecond line")) is not None


# -- a server that takes no writes


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    """New sessions may only read, as on a standby; those that were there are ended."""
    name = sql.Identifier(database.name)
    with psycopg.connect(database.superuser_url, autocommit=True) as superuser:
        superuser.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            (database.name,),
        )
        yield
        superuser.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


async def post_by_the_driver(service: ServiceConnection) -> None:
    """As the product posts."""
    await ledger.post(service, BONUS, {})


async def post_by_sqlalchemy(service: ServiceConnection) -> None:
    """The same as a statement of SQLAlchemy's, whose errors are other ones."""
    await service.connection.execute(text("SELECT post_entry('cogni_system', 1, 'x', 'y', 'cash:usdc', '{}')"))


@pytest.mark.parametrize("post", [post_by_the_driver, post_by_sqlalchemy])
async def test_no_connection_to_a_server_that_takes_no_writes_is_lent_again(
    roles: RolePair, post: Callable[[ServiceConnection], Awaitable[None]]
) -> None:
    service = ServiceDatabase(roles.database.service_url, pool_size=1, pre_ping=False)

    async def write() -> None:
        async with service.transaction() as connection:
            await post(connection)

    try:
        with read_only(roles.database), pytest.raises(DatabaseUnavailable, match="read-only"):
            await write()
        await write()  # the pool's one connection would still be read-only
    finally:
        await service.dispose()


async def test_the_probe_renews_all_connections(roles: RolePair) -> None:
    tenants = TenantDatabase(roles.database.app_url, pool_size=2, pre_ping=False)
    try:
        with read_only(roles.database):
            async with tenants.unscoped(), tenants.unscoped():
                pass  # two connections that may only read
            await check_tenant_database(tenants)
            with pytest.raises(DatabaseUnavailable, match="read-only"):
                await check_writes(tenants)
        async with tenants.unscoped() as one, tenants.unscoped() as two:
            for connection in (one, two):
                assert (await connection.execute(text("SHOW transaction_read_only"))).scalar_one() == "off"
    finally:
        await tenants.dispose()


@pytest.mark.parametrize("pre_ping", [True, False])
async def test_a_connection_made_while_the_server_took_no_writes_is_used_once(roles: RolePair, pre_ping: bool) -> None:
    """Else each of them would refuse one request after the server takes writes again."""
    service = ServiceDatabase(roles.database.service_url, pool_size=2, pre_ping=pre_ping)
    all_are_open = asyncio.Barrier(4)

    async def is_read_only(opened: AbstractAsyncContextManager[ServiceConnection]) -> str:
        async with opened as connection:
            await all_are_open.wait()
            return str((await connection.connection.execute(text("SHOW transaction_read_only"))).scalar_one())

    async def hot_is_read_only() -> str:
        async with service.hot_statement() as connection:
            await all_are_open.wait()
            [found] = await (await connection.execute("SHOW transaction_read_only")).fetchone() or ()
            return str(found)

    async def all_of_them() -> set[str]:
        pooled = (is_read_only(service.transaction()), is_read_only(service.transaction()))
        return set(await asyncio.gather(*pooled, hot_is_read_only(), hot_is_read_only()))

    try:
        with read_only(roles.database):
            assert await all_of_them() == {"on"}
        assert await all_of_them() == {"off"}
        before = scalar(roles.database.superuser_url, CONNECTIONS)
        assert await all_of_them() == {"off"}
        assert scalar(roles.database.superuser_url, CONNECTIONS) == before, "those that take writes are used again"
    finally:
        await service.dispose()


CONNECTIONS = (
    "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity"
    " WHERE usename = 'settle_service' AND datname = current_database()"
)


# -- what proves that writing works


async def test_many_probes_are_one_write_in_five_seconds(roles: RolePair) -> None:
    for _ in range(5):
        await check_writes(roles.app)
    first = scalar(roles.database.superuser_url, "SELECT written_at FROM write_probes")
    await check_writes(roles.app)
    assert scalar(roles.database.superuser_url, "SELECT written_at FROM write_probes") == first


async def test_a_probe_that_is_due_writes(roles: RolePair) -> None:
    await check_writes(roles.app)
    make_probes_due(roles.database)
    await check_writes(roles.app)
    age = "SELECT clock_timestamp() - written_at < interval '5 seconds' FROM write_probes"
    assert scalar(roles.database.superuser_url, age)


async def test_a_disk_that_takes_no_new_blocks_is_noticed_though_a_row_can_be_updated(roles: RolePair) -> None:
    await check_writes(roles.app)
    make_probes_due(roles.database)
    limit = sql.SQL("ALTER ROLE settle_app IN DATABASE {} SET temp_file_limit = '0'").format(
        sql.Identifier(roles.database.name)
    )
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(limit)
    tenants = TenantDatabase(roles.database.app_url)
    try:
        with pytest.raises(DatabaseUnavailable, match="temporary file size exceeds"):
            await check_writes(tenants)
    finally:
        await tenants.dispose()


async def test_a_commit_without_confirmation_is_noticed_by_those_who_wait_for_it(roles: RolePair) -> None:
    await check_writes(roles.app)
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE write_probes SET written_at = now() - interval '40 seconds'")
    with connect(roles.database.superuser_url) as stuck:
        stuck.execute("SELECT 1 FROM write_probes FOR UPDATE")
        with pytest.raises(DatabaseUnavailable, match="confirmed no write for"):
            await check_writes(roles.app)
    await check_writes(roles.app)


def make_probes_due(database: Database) -> None:
    """As if the last proof were ten seconds old."""
    with connect(database.superuser_url) as superuser:
        superuser.execute("UPDATE write_probes SET written_at = written_at - interval '10 seconds'")


# -- connections


async def test_a_server_without_a_free_connection_is_unavailable(cluster: Cluster, roles: RolePair) -> None:
    await cluster.run(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0").format(sql.Identifier(roles.database.name)))
    service = ServiceDatabase(roles.database.service_url)
    try:
        with pytest.raises(DatabaseUnavailable, match="too many connections"):
            await check_service_database(service)
    finally:
        await service.dispose()
        await cluster.run(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(sql.Identifier(roles.database.name)))


async def test_a_statement_whose_connection_an_administrator_ends_is_unavailable(roles: RolePair) -> None:
    superuser = ServiceDatabase(roles.database.superuser_url)
    try:
        with pytest.raises(DatabaseUnavailable):
            async with superuser.autocommit() as service:
                await service.connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    finally:
        await superuser.dispose()


@pytest.mark.parametrize("is_hot", [False, True])
async def test_none_is_used_that_the_server_has_ended_however_little_it_was_idle(roles: RolePair, is_hot: bool) -> None:
    """As a restart does: those that were used a moment ago would refuse a request each."""
    service = ServiceDatabase(roles.database.service_url, pool_size=2)
    both_are_open = asyncio.Barrier(2)

    async def one() -> int:
        if is_hot:
            async with service.hot_statement() as driver:
                await both_are_open.wait()
                return int((await (await driver.execute("SELECT 1")).fetchone() or (0,))[0])
        async with service.autocommit() as connection:
            await both_are_open.wait()
            return int((await connection.connection.execute(text("SELECT 1"))).scalar_one())

    try:
        assert {*await asyncio.gather(one(), one())} == {1}
        query(roles.database.superuser_url, END_ALL)
        assert {*await asyncio.gather(one(), one())} == {1}
    finally:
        await service.dispose()


END_ALL = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    " WHERE usename = 'settle_service' AND datname = current_database() AND application_name = 'settle'"
)


async def test_of_several_hosts_the_one_that_answers_and_takes_writes_is_used(roles: RolePair) -> None:
    there = roles.database.host
    url = roles.database.app_url.replace(there, f"127.0.0.1:{quiet_port()},{there}")

    async def check() -> None:
        tenants = TenantDatabase(url)
        try:
            await check_tenant_database(tenants)
        finally:
            await tenants.dispose()

    await check()
    with read_only(roles.database), pytest.raises(DatabaseUnavailable, match="read-only"):
        await check()
