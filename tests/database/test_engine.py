"""What PostgreSQL says, as errors of the domain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from db.driver import EARLIEST, LATEST, fetch_one_by_driver
from db.engine import ServiceConnection, TenantDatabase
from db.ledger import entries as ledger
from domain.errors import DatabaseBusy, DatabaseUnavailable
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Posting, Reason
from tests.support.payments import RolePair
from tests.support.sql import connect, query

BONUS = Posting(
    billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
    amount_credits=1,
    reason=Reason.PLATFORM_REVENUE_SHARE,
    reference="11111111-2222-4333-8444-555555555555",
    contra_account="expense:platform_revenue_share",
)
LOCK = "SELECT 1 FROM billing_accounts WHERE id = 'cogni_system' FOR UPDATE"


async def post_by_the_driver(service: ServiceConnection) -> None:
    """As the product posts."""
    await ledger.post(service, BONUS, {})


async def post_by_sqlalchemy(service: ServiceConnection) -> None:
    """The same as a statement of SQLAlchemy's, whose errors are other ones."""
    await service.connection.execute(text("SELECT post_entry('cogni_system', 1, 'x', 'y', 'cash:usdc', '{}')"))


@pytest.mark.parametrize("post", [post_by_the_driver, post_by_sqlalchemy])
async def test_a_lock_that_is_held_too_long_is_busy_and_worth_another_try(
    roles: RolePair, post: Callable[[ServiceConnection], Awaitable[None]]
) -> None:
    async def wait_briefly() -> None:
        async with roles.service.transaction() as service:
            await service.connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
            await post(service)

    with connect(roles.database.superuser_url) as holder:
        holder.execute(LOCK)
        with pytest.raises(DatabaseBusy, match="PostgreSQL is busy"):
            await wait_briefly()
    await wait_briefly()


async def test_a_fault_of_ours_stays_what_it_is(roles: RolePair) -> None:
    with pytest.raises(ProgrammingError):
        async with roles.service.transaction() as service:
            await service.connection.execute(text("SELECT nonsense"))


async def test_a_connection_that_broke_while_it_was_idle_is_not_lent(
    roles: RolePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.engine.IDLE_SECONDS_MAX", 0.0)
    database = TenantDatabase(roles.database.app_url)
    async with database.unscoped():
        pass
    end_backends(roles)
    async with database.unscoped() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await database.dispose()


async def test_one_that_breaks_in_use_is_unavailable_once(roles: RolePair) -> None:
    async def use() -> None:
        async with roles.app.unscoped() as connection:
            await connection.execute(text("SELECT 1"))
            end_backends(roles)
            await connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        await use()
    async with roles.app.unscoped() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


async def test_a_page_of_the_ledger_ends_at_another_accounts_entry(roles: RolePair) -> None:
    one, two = await roles.open_account(1), await roles.open_account(2)
    for number, payer in enumerate((one, two, one)):
        await roles.settle(payer, number + 1)
    async with roles.service.transaction() as service:
        [theirs] = await ledger.page_entries(service, two.billing_account_id, limit=5)
        assert await ledger.page_entries(service, one.billing_account_id, limit=5, before=theirs.id) == []


def end_backends(roles: RolePair) -> None:
    """As a restart of the server does."""
    query(
        roles.database.superuser_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename IN ('settle_app', 'settle_service')",
    )


WRITTEN_TIMES = {
    "infinity": LATEST,
    "10000-01-01T00:00:00Z": LATEST,
    "9999-12-31T12:00:00Z": datetime(9999, 12, 31, 12, tzinfo=UTC),
    "0001-01-02T00:00:00Z": datetime(1, 1, 2, tzinfo=UTC),
    "0044-03-15 BC": EARLIEST,
    "-infinity": EARLIEST,
}


async def test_times_that_python_lacks_are_read_as_its_own(roles: RolePair) -> None:
    """One row with such a time, which the API may write, would end each query that reads it among others."""
    columns = ", ".join(f"'{written}'::timestamptz" for written in WRITTEN_TIMES)
    read: tuple[datetime, ...]
    async with roles.service.autocommit() as connection:
        read = tuple((await connection.connection.execute(text(f"SELECT {columns}"))).one())
        assert read == tuple(WRITTEN_TIMES.values())
        by_driver = await fetch_one_by_driver(connection.connection, f"SELECT {columns}", {})
    assert by_driver == read
