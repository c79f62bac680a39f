"""A cancelled caller leaves immediately, whether or not the server responds."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from sqlalchemy import text

from db.engine import ServiceConnection, ServiceDatabase
from db.ledger import entries as ledger
from devstack.processes import wait_until
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Posting, Reason
from tests.support.frozen import frozen
from tests.support.payments import RolePair
from tests.support.postgres import Cluster
from tests.support.sql import connect, scalar

LIMIT_SECONDS: Final = 0.5
SECONDS_MAX: Final = 6.0
"""The driver by itself would take ten more than the limit where the server stands still."""

PATIENCE_SECONDS: Final = 30.0
PAUSES_MAX: Final = 100
"""More than the driver makes in any of these."""

BONUS: Final = Posting(
    billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
    amount_credits=1,
    reason=Reason.PLATFORM_REVENUE_SHARE,
    reference="11111111-2222-4333-8444-555555555555",
    contra_account="expense:platform_revenue_share",
)
LOCK: Final = "SELECT 1 FROM billing_accounts WHERE id = 'cogni_system' FOR UPDATE"
AT_WORK: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'settle_service'"
    " AND state = 'active'"
)


async def by_the_driver(service: ServiceConnection) -> None:
    """As the product posts."""
    await ledger.post(service, BONUS, {})


async def by_sqlalchemy(service: ServiceConnection) -> None:
    """The same as a statement of SQLAlchemy's."""
    await service.connection.execute(text("SELECT post_entry('cogni_system', 1, 'x', 'y', 'cash:usdc', '{}')"))


@pytest.mark.parametrize("post", [by_the_driver, by_sqlalchemy])
async def test_a_frozen_server_blocks_no_caller_and_the_pool_recovers(
    roles: RolePair, cluster: Cluster, post: Callable[[ServiceConnection], Awaitable[None]]
) -> None:
    async def post_within_the_limit() -> None:
        async with asyncio.timeout(LIMIT_SECONDS), roles.service.transaction() as service:
            await post(service)

    async with roles.service.transaction():
        pass  # a connection in the pool: a new one could not even be opened
    async with frozen(cluster.server):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await post_within_the_limit()
        assert time.monotonic() - started < SECONDS_MAX
    assert roles.service.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with roles.service.transaction() as service:
        await post(service)


@pytest.mark.parametrize("post", [by_the_driver, by_sqlalchemy])
async def test_the_statement_of_one_who_left_does_not_go_on_waiting_for_a_lock(
    roles: RolePair, post: Callable[[ServiceConnection], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: list[int] = []

    async def post_until_cancelled() -> None:
        async with roles.service.transaction() as service:
            await service.connection.execute(text("SET LOCAL lock_timeout = 0"))
            await service.connection.execute(text("SET LOCAL statement_timeout = 0"))
            await post(service)

    async def works(wanted: int) -> bool:
        at_work.append(int(scalar(roles.database.superuser_url, AT_WORK)))
        return at_work[-1] == wanted

    with connect(roles.database.superuser_url) as holder:
        holder.execute(LOCK)
        posting = asyncio.create_task(post_until_cancelled())
        await wait_until(lambda: works(1), timeout_seconds=PATIENCE_SECONDS, what="a statement that waits")
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting
        await wait_until(lambda: works(0), timeout_seconds=PATIENCE_SECONDS, what="its end")
    async with roles.service.transaction() as service:
        await post(service)


async def test_a_connection_that_was_not_awaited_to_its_end_is_closed(roles: RolePair) -> None:
    opened, closed = asyncio.Event(), asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.set()
        await reader.read()
        closed.set()
        writer.close()

    async def use(service: ServiceDatabase) -> None:
        async with service.transaction():
            pass

    async with await asyncio.start_server(never_answers, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        service = ServiceDatabase(re.sub(r":\d+/", f":{port}/", roles.database.service_url))
        using = asyncio.create_task(use(service))
        await asyncio.wait_for(opened.wait(), PATIENCE_SECONDS)
        using.cancel()
        with pytest.raises(asyncio.CancelledError) as left:
            await using
        await asyncio.wait_for(closed.wait(), SECONDS_MAX)
        assert left.value, "the error, with what it refers to, is still there"
        await service.dispose()


async def in_a_scope(roles: RolePair) -> None:
    """As requests do."""
    async with roles.app.transaction("somebody") as tenant:
        await tenant.connection.execute(text("SELECT 1"))


async def in_no_scope(roles: RolePair) -> None:
    """As sign-in does."""
    async with roles.app.unscoped_statement() as connection:
        await connection.execute(text("SELECT 1"))


async def in_a_transaction(roles: RolePair) -> None:
    """As a worker credits."""
    async with roles.service.transaction() as service:
        await service.connection.execute(text("SELECT 1"))


async def in_a_single_statement(roles: RolePair) -> None:
    """As a worker polls."""
    async with roles.service.autocommit() as service:
        await service.connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("work", [in_a_scope, in_no_scope, in_a_transaction, in_a_single_statement])
async def test_a_cancelled_task_returns_its_connection_wherever_it_happens(
    roles: RolePair, work: Callable[[RolePair], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_left = 0

    async def pause(_: float) -> None:
        nonlocal pauses_left
        pauses_left -= 1
        task = asyncio.current_task()
        if pauses_left == 0 and task is not None:
            task.cancel()
        await asyncio.sleep(0)

    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0.0)  # the driver pauses wherever it may
    monkeypatch.setattr("psycopg.waiting.sleep", pause)
    pools = [database.engine.pool for database in (roles.app, roles.service)]
    for last_pause in range(1, PAUSES_MAX):
        pauses_left = 0
        await work(roles)  # so that a connection waits in the pool
        pauses_left = last_pause
        task = asyncio.ensure_future(work(roles))
        await asyncio.wait([task])
        assert [pool.checkedout() for pool in pools] == [0, 0], last_pause  # type: ignore[attr-defined]
        if not task.cancelled():
            break
    assert task.done() and not task.cancelled(), "it pauses more often than was tried"
