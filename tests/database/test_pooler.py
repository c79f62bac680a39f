"""Connection poolers in transaction mode: what settle does through them, and what it refuses with a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import SESSION_SETTINGS, OperatorDatabase, ServiceDatabase, SettlementDatabase, TenantDatabase
from db.startup import (
    check_operator_database,
    check_service_database,
    check_settlement_database,
    check_tenant_database,
    check_writes,
)
from domain.errors import ConfigurationError, DatabaseBusy
from tests.support.payments import RolePair, open_roles
from tests.support.pooler import Pooler, pooled
from tests.support.postgres import Database, migrate_database
from tests.support.sql import connect

TIMES: Final = 7
"""More often than the driver needs to prepare a statement."""

AT_ONCE: Final = 5
LIMITS: Final = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in SESSION_SETTINGS))


@pytest.fixture(params=list(Pooler), ids=lambda kind: kind.value)
async def through_pooler(database: Database, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """The addresses of a migrated database through a pooler in transaction mode."""
    kind: Pooler = request.param
    if not kind.is_installed:
        pytest.skip("PgBouncer is not installed; ours stands in for it")
    async with pooled(database, kind, tmp_path) as behind:
        yield behind


@pytest.mark.slow
async def test_payments_are_settled_and_the_books_balance(through_pooler: Database) -> None:
    async with open_roles(through_pooler, pool_size=AT_ONCE) as roles:

        async def settle_some(number: int) -> None:
            payer = await roles.open_account(number)
            for round_ in range(TIMES):
                await roles.settle(payer, 100 * number + round_)

        await asyncio.gather(*(settle_some(number) for number in range(1, AT_ONCE + 1)))
        assert await roles.books() == []


@pytest.mark.slow(but=2)
async def test_every_transaction_has_its_limits(through_pooler: Database) -> None:
    tenants, service = TenantDatabase(through_pooler.app_url), ServiceDatabase(through_pooler.service_url)
    operators = OperatorDatabase(through_pooler.operator_url)
    expected = tuple(SESSION_SETTINGS.values())

    async def limits(opened: Any) -> tuple[str, ...]:
        async with opened as transaction:
            connection = transaction if isinstance(transaction, AsyncConnection) else transaction.connection
            return tuple((await connection.execute(LIMITS)).one())

    try:
        for _ in range(TIMES):
            for open_ in (tenants.unscoped, tenants.unscoped_statement, lambda: tenants.transaction("somebody")):
                assert await limits(open_()) == expected
            for begin in (service.transaction, service.snapshot, service.autocommit, operators.transaction):
                assert await limits(begin()) == expected
    finally:
        for database in (tenants, service, operators):
            await database.dispose()


async def test_a_lock_is_waited_for_as_long_as_without_one(
    through_pooler: Database, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION_SETTINGS, "lock_timeout", "50ms")
    service = ServiceDatabase(through_pooler.service_url)

    async def wait() -> None:
        async with service.autocommit() as connection:
            await connection.connection.execute(text("UPDATE books_checks SET is_only = is_only"))

    try:
        with connect(database.superuser_url) as holder:
            holder.execute("UPDATE books_checks SET is_only = is_only")
            with pytest.raises(DatabaseBusy):
                await wait()
        await wait()
    finally:
        await service.dispose()


@pytest.mark.slow(but=1)
async def test_one_tenants_scope_is_not_the_next_ones(through_pooler: Database) -> None:
    async with open_roles(through_pooler, pool_size=AT_ONCE) as roles:
        payers = [await roles.open_account(number) for number in range(1, AT_ONCE + 1)]

        async def look(roles: RolePair, index: int) -> None:
            async with roles.app.transaction(payers[index].user_id) as tenant:
                seen = (await tenant.connection.execute(text("SELECT id FROM users"))).scalars().all()
                assert seen == [payers[index].user_id]
            async with roles.app.unscoped() as connection:
                assert (await connection.execute(text("SELECT id FROM users"))).all() == []

        for _ in range(TIMES):
            await asyncio.gather(*(look(roles, index) for index in range(AT_ONCE)))


@pytest.mark.slow(but=1)
async def test_the_checks_of_every_process_pass(through_pooler: Database) -> None:
    tenants, service = TenantDatabase(through_pooler.app_url), ServiceDatabase(through_pooler.service_url)
    settlement = SettlementDatabase(through_pooler.url_as("settle_settlement"))
    operators = OperatorDatabase(through_pooler.operator_url)
    try:
        for _ in range(TIMES):
            await check_tenant_database(tenants)
            await check_settlement_database(settlement)
            await check_service_database(service)
            await check_operator_database(operators)
            await asyncio.gather(check_writes(tenants), check_writes(settlement), check_writes(service))
    finally:
        for database in (tenants, settlement, service, operators):
            await database.dispose()


async def test_a_migration_is_refused_because_it_needs_a_session(through_pooler: Database) -> None:
    with pytest.raises(ConfigurationError, match="MIGRATION_DATABASE_URL.*pooler") as caught:
        await migrate_database(through_pooler)
    assert "\n" not in caught.value.message


async def test_options_that_a_pooler_would_drop_are_refused(through_pooler: Database) -> None:
    tenants = TenantDatabase(f"{through_pooler.app_url}?options=-c%20statement_timeout%3D7s")
    try:
        with pytest.raises(ConfigurationError, match="options.*pooler"):
            await check_tenant_database(tenants)
    finally:
        await tenants.dispose()


async def test_an_address_without_a_pooler_is_taken_for_what_it_is(database: Database) -> None:
    tenants = TenantDatabase(f"{database.app_url}?options=-c%20statement_timeout%3D7s")
    try:
        async with tenants.unscoped_statement() as connection:
            assert (await connection.execute(text("SHOW statement_timeout"))).scalar_one() == "7s"
            assert (await connection.execute(text("SHOW lock_timeout"))).scalar_one() == "5s"
        assert not tenants._route.is_pooled
    finally:
        await tenants.dispose()
