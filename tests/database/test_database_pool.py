"""The databases that tests are given: nothing of one test is left for the next."""

from __future__ import annotations

from contextlib import AsyncExitStack

import psycopg
import pytest

from db.ledger import entries as ledger
from domain.errors import DatabaseUnavailable
from tests.support.database_pool import Content, DatabasePool
from tests.support.payments import RolePair
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster
from tests.support.sql import connect, query, scalar


@pytest.fixture
def pool(cluster: Cluster) -> DatabasePool:
    """A pool of its own: no other test has used its databases."""
    return DatabasePool(cluster, MIGRATED_TEMPLATE)


async def contents(roles: RolePair) -> list[object]:
    """Every row and the place of every sequence."""
    url = roles.database.superuser_url
    tables = query(url, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 ORDER BY 1")
    rows = [(name, sorted(map(str, query(url, f"SELECT * FROM {name}")))) for (name,) in tables]
    return [*rows, *query(url, "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1")]


async def test_rows_and_numbers_are_put_back_and_the_database_is_used_again(pool: DatabasePool) -> None:
    async with pool.database() as roles:
        before, name = await contents(roles), roles.database.name
        await roles.settle(await roles.open_account(1), 1)
        assert await contents(roles) != before
    async with pool.database() as roles:
        assert roles.database.name == name
        assert await contents(roles) == before
        assert await roles.books() == []
    await pool.close()


@pytest.mark.slow
async def test_rows_are_put_back_into_tables_that_were_emptied(roles: RolePair) -> None:
    url = roles.database.superuser_url
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as superuser:
        empty, emptied = await Content.read(superuser), await contents(roles)
        await roles.settle(await roles.open_account(1), 1)
        filled, full = await Content.read(superuser), await contents(roles)
        for content, expected in ((empty, emptied), (filled, full), (empty, emptied)):
            assert await content.restore(superuser)
            assert await contents(roles) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM model_prices",
        "UPDATE model_prices SET rates = '{}' WHERE ctid = (SELECT max(ctid) FROM model_prices)",
    ],
)
async def test_a_large_table_is_put_back_where_it_was_changed(pool: DatabasePool, change: str) -> None:
    async with pool.database() as roles:
        before, name = await contents(roles), roles.database.name
    for _ in range(2):
        async with pool.database() as roles:
            assert roles.database.name == name
            assert await contents(roles) == before
            with connect(roles.database.superuser_url) as superuser:
                superuser.execute("SET session_replication_role = replica")
                superuser.execute(change.encode())
            assert await contents(roles) != before
    await pool.close()


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX payment_attempts_hash_held_by_account",
        "GRANT EXECUTE ON FUNCTION post_entry TO settle_app",
        "ALTER TABLE credit_ledger DISABLE TRIGGER ALL",
        "CREATE OR REPLACE FUNCTION check_own_wallet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "ANALYZE users",
    ],
)
async def test_a_database_whose_schema_was_changed_is_not_used_again(pool: DatabasePool, change: str) -> None:
    async with pool.database() as roles:
        name = roles.database.name
        with connect(roles.database.superuser_url) as superuser:
            superuser.execute(change.encode())
    async with pool.database() as roles:
        assert roles.database.name != name
        exists = scalar(roles.database.superuser_url, "SELECT count(*) FROM pg_database WHERE datname = %s", name)
        assert exists == 0
    await pool.close()


@pytest.mark.slow
async def test_a_database_with_an_open_transaction_is_not_used_again(pool: DatabasePool) -> None:
    left = AsyncExitStack()
    async with pool.database() as roles:
        name = roles.database.name
        connection = await left.enter_async_context(roles.service.transaction())
        await ledger.list_entries(connection, "x")
    async with pool.database() as roles:
        assert roles.database.name != name
    with pytest.raises(DatabaseUnavailable):
        await left.aclose()
    await pool.close()


@pytest.mark.slow
async def test_a_database_whose_connections_were_ended_is_not_used_again(pool: DatabasePool) -> None:
    async with pool.database() as roles:
        name = roles.database.name
        await roles.open_account(1)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'settle_app' AND datname = %s"
        assert query(roles.database.superuser_url, ended, name) == [(True,)]
    async with pool.database() as roles:
        assert roles.database.name != name
        await roles.open_account(1)
    await pool.close()


@pytest.mark.slow
async def test_several_can_be_used_at_once(pool: DatabasePool) -> None:
    async with pool.database() as one, pool.database() as other:
        await one.settle(await one.open_account(1), 1)
        assert one.database.name != other.database.name
        assert scalar(other.database.superuser_url, "SELECT count(*) FROM settled_transfers") == 0
    await pool.close()
