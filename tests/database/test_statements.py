"""Connections for single statements: which are used again, and which never."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest

from db import statements
from db.driver import PromptConnection
from db.payments import attempts
from db.statements import Connection, StatementConnections
from devstack.processes import wait_until
from domain.errors import DatabaseUnavailable
from services.payments import lifecycle as payments
from tests.support.payments import SHARE, RolePair, transfer_for
from tests.support.postgres import Database
from tests.support.sql import scalar

Pool = Callable[..., StatementConnections]
LONG = 60.0


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    """Makes pools on one database; `opened` is in each how many connections it has made."""
    made: list[StatementConnections] = []

    async def connect() -> Connection:
        return await PromptConnection.connect(database.service_url, autocommit=True)

    def make(*, size: int = 2, idle_seconds_max: float = LONG, seconds_max: float = LONG) -> StatementConnections:
        made.append(
            StatementConnections(connect, size=size, idle_seconds_max=idle_seconds_max, seconds_max=seconds_max)
        )
        return made[-1]

    yield make
    for each in made:
        each.renew()


async def server_process(connections: StatementConnections) -> int:
    """Which server process answers the next statement."""
    async with connections.connection() as connection:
        return await pid_of(connection)


async def pid_of(connection: Connection) -> int:
    [pid] = await (await connection.execute("SELECT pg_backend_pid()")).fetchone() or (0,)
    return int(pid)


async def end(database: Database, pid: int) -> None:
    """The server ends a connection, and has done so."""
    assert await asyncio.to_thread(scalar, database.superuser_url, "SELECT pg_terminate_backend(%s, 5000)", pid)


async def wait_until_ended(database: Database, pid: int) -> None:
    """The server learns a moment later that its client has hung up."""

    async def is_ended() -> bool:
        count = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        return not await asyncio.to_thread(scalar, database.superuser_url, count, pid)

    await wait_until(is_ended, timeout_seconds=30, what=f"the end of process {pid}")


async def test_a_connection_is_used_again_and_each_statement_is_committed(pool: Pool, database: Database) -> None:
    connections = pool()
    first = await server_process(connections)
    async with connections.connection() as connection:
        await connection.execute("SELECT post_entry('cogni_system', 5::bigint, 'gift', 'x', 'cash:usdc', '{}')")
        balance = "SELECT balance_credits FROM billing_accounts WHERE id = 'cogni_system'"
        assert await asyncio.to_thread(scalar, database.service_url, balance) == 5
    assert await server_process(connections) == first


async def test_an_idle_one_whose_server_process_does_not_answer_is_given_up(
    pool: Pool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "ANSWER_SECONDS_MAX", 0.05)
    connections = pool(idle_seconds_max=0)
    pid = await server_process(connections)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert await asyncio.wait_for(server_process(connections), LONG) != pid
    finally:
        os.kill(pid, signal.SIGCONT)
    await wait_until_ended(database, pid)


async def test_no_more_than_so_many_are_open_and_the_next_waits_for_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "WAIT_SECONDS_MAX", 0.05)
    connections = pool(size=2)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(connections.connection())
        with pytest.raises(DatabaseUnavailable, match="connections are in use"):
            await server_process(connections)
        monkeypatch.setattr(statements, "WAIT_SECONDS_MAX", LONG)
        waiting = asyncio.create_task(server_process(connections))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


@asynccontextmanager
async def left_behind(connections: StatementConnections, statement: bytes | None) -> AsyncIterator[int]:
    """A use that leaves its connection in some state; the process that served it."""
    async with connections.connection() as connection:
        pid = await pid_of(connection)
        if statement is not None:
            await connection.execute(statement)
        yield pid


async def test_one_that_is_left_in_a_transaction_is_closed(pool: Pool, database: Database) -> None:
    connections = pool(size=1)
    async with left_behind(connections, b"BEGIN") as pid:
        pass
    assert await server_process(connections) != pid
    await wait_until_ended(database, pid)


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_one_whose_use_failed_is_closed_and_its_place_is_free(
    pool: Pool, error: type[BaseException], database: Database
) -> None:
    connections = pool(size=1)
    with pytest.raises(error):
        async with left_behind(connections, None) as pid:
            raise error
    assert await server_process(connections) != pid
    await wait_until_ended(database, pid)


async def test_after_an_error_of_the_driver_no_idle_one_is_used_again(pool: Pool, database: Database) -> None:
    """The address may lead to another server by then."""
    connections = pool(size=2)
    async with connections.connection() as first, connections.connection() as second:
        pids = {await pid_of(first), await pid_of(second)}
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with connections.connection() as connection:
            await connection.execute("SELECT * FROM nowhere")
    async with connections.connection() as first, connections.connection() as second:
        assert not pids & {await pid_of(first), await pid_of(second)}
    for pid in pids:
        await wait_until_ended(database, pid)


async def test_one_that_broke_while_it_was_idle_is_replaced_unnoticed(pool: Pool, database: Database) -> None:
    connections = pool(size=1, idle_seconds_max=0.0)
    pid = await server_process(connections)
    assert await server_process(connections) == pid
    await end(database, pid)
    assert await server_process(connections) != pid


async def test_one_that_the_server_ended_a_moment_ago_is_not_used(pool: Pool, database: Database) -> None:
    connections = pool(size=1)
    await end(database, await server_process(connections))
    assert await server_process(connections)


async def test_one_that_breaks_in_use_is_an_error_once(pool: Pool, database: Database) -> None:
    connections = pool(size=1)

    async def use() -> None:
        async with connections.connection() as connection:
            await end(database, await pid_of(connection))
            await pid_of(connection)

    with pytest.raises(psycopg.OperationalError):
        await use()
    assert await server_process(connections)


async def test_one_that_is_old_is_replaced(pool: Pool, database: Database) -> None:
    connections = pool(size=1, seconds_max=0.0)
    pid = await server_process(connections)
    assert await server_process(connections) != pid
    await wait_until_ended(database, pid)


async def test_a_server_that_cannot_be_reached_leaves_all_places_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect() -> Connection:
        return await psycopg.AsyncConnection.connect("postgresql://x:x@127.0.0.1:1/x")

    monkeypatch.setattr(statements, "WAIT_SECONDS_MAX", 0.05)
    connections = StatementConnections(connect, size=1, idle_seconds_max=LONG, seconds_max=LONG)
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            await server_process(connections)


async def count_attempts(connection: Connection) -> int:
    """Those that the connection sees."""
    [count] = await (await connection.execute("SELECT count(*) FROM payment_attempts")).fetchone() or (0,)
    return int(count)


async def test_a_tenants_scope_ends_with_its_statement(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    async with roles.settlement.statements(attempt.owner_user_id) as connection:
        assert await attempts.find_own_attempt(connection, attempt.id) == attempt
        pid = await pid_of(connection.driver)
        assert await count_attempts(connection.driver) == 0
        await payments.credit_buyer(connection, attempt.id, transfer_for(attempt), revenue_share=SHARE)
        assert await count_attempts(connection.driver) == 0
    async with roles.settlement.statements("another") as connection:
        assert await pid_of(connection.driver) == pid
        assert await attempts.find_own_attempt(connection, attempt.id) is None


async def test_a_step_whose_connection_breaks_is_a_domain_error_and_goes_through_when_repeated(
    roles: RolePair,
) -> None:
    first, second = [await roles.create_submitted(await roles.open_account(number), number) for number in (1, 2)]
    await roles.credit(first)

    async def use() -> None:
        async with roles.settlement.statements(first.owner_user_id) as connection:
            await end(roles.database, await pid_of(connection.driver))
            await pid_of(connection.driver)

    with pytest.raises(DatabaseUnavailable):
        await use()
    assert (await roles.credit(second)).changed


async def test_closing_the_database_closes_them(roles: RolePair) -> None:
    async with roles.service.statements() as connection:
        pid = await pid_of(connection.driver)
    await roles.service.dispose()
    await wait_until_ended(roles.database, pid)
