"""`db.migrate`: from empty, again, twice at once, and what it restores or says when it cannot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import Engine, create_engine

from db.engine import ADDRESS_IN_ARGUMENTS, connection_arguments
from db.migrate import Migrated, _ensure_role, _RoleAddress, migrate
from db.rights import APP_ROLE, SERVICE_ROLE
from db.schema import EXPANDED_REVISION, LAST_CONTRACT, SCHEMA_REVISION
from db.tables import Base
from domain.errors import ConfigurationError, DatabaseUnavailable, StartupCheckFailed
from tests.cli.command import settle
from tests.database.test_rolling_deploy import upgrade_to
from tests.support.oracle import check_books
from tests.support.postgres import ROLE_PASSWORD, Cluster, Database, migrate_database
from tests.support.sql import connect, new_session, query, scalar


def engine_on(url: str) -> Engine:
    """An engine of SQLAlchemy's own kind, as migrations have."""
    return create_engine(ADDRESS_IN_ARGUMENTS, connect_args=connection_arguments(url, application_name="settle tests"))


@pytest.fixture
async def empty(cluster: Cluster) -> AsyncIterator[Database]:
    """A database without a schema."""
    async with cluster.temporary() as database:
        yield database


def _migrate(database: Database) -> Migrated:
    return _migrate_from(database.migration_url, database)


def _migrate_from(migration_url: str, database: Database, **options: Any) -> Migrated:
    return migrate(
        migration_url,
        app_url=database.app_url,
        settlement_url=database.settlement_url,
        service_url=database.service_url,
        **options,
    )


SEEDS = """
    SELECT (SELECT array_agg((id, wallet_address IS NULL)::text) FROM users),
           (SELECT array_agg((id, owner_user_id, balance_credits, is_system_tenant)::text) FROM billing_accounts),
           (SELECT array_agg((billing_account_id, is_default, active)::text) FROM virtual_keys),
           (SELECT array_agg(code ORDER BY code) FROM ledger_accounts)
"""

SEEDED = [
    (
        ["(cogni_system_principal,t)"],
        ["(cogni_system,cogni_system_principal,0,t)"],
        ["(cogni_system,t,t)"],
        [
            *(
                "cash:usdc",
                "cash:usdc:deposits",
                "credits:cogni_system",
                "expense:absorbed",
                "expense:platform_revenue_share",
            ),
            *("expense:providers", "payable:providers", "revenue:usage"),
        ],
    )
]


async def test_one_migration_of_an_empty_database_says_what_it_does_and_leaves_everything_seeded(
    empty: Database, tmp_path: Path
) -> None:
    """By the command, whose second run says that nothing was left to do."""
    variables = {
        "DATABASE_URL": empty.app_url,
        "SETTLEMENT_DATABASE_URL": empty.settlement_url,
        "SERVICE_DATABASE_URL": empty.service_url,
        "MIGRATION_DATABASE_URL": empty.migration_url,
    }
    for before in (None, SCHEMA_REVISION):
        answer = await asyncio.to_thread(settle, ("migrate", "--json"), variables, tmp_path)
        assert answer.exit_code == 0
        assert answer.json() == {"revisionBefore": before, "revision": SCHEMA_REVISION, "rolesCreated": []}
        assert answer.stderr and ROLE_PASSWORD not in answer.stdout + answer.stderr
        if before is None:
            schema, functions, prices, seeds = answer.stderr.splitlines()
            assert schema.endswith(SCHEMA_REVISION)
            assert re.fullmatch(r"functions .*: \w+(, \w+)*", functions)
            assert "price book" in prices
            assert "seeded" in seeds
            assert query(empty.service_url, SEEDS) == SEEDED
            assert await check_books(empty.service_url) == []


async def test_a_second_migration_changes_nothing(database: Database) -> None:
    before = query(database.service_url, SEEDS)
    migrated = await asyncio.to_thread(_migrate, database)
    assert migrated.revision_before == migrated.revision == SCHEMA_REVISION
    assert query(database.service_url, SEEDS) == before == SEEDED


async def test_concurrent_migrations_are_serialized(empty: Database) -> None:
    done = await asyncio.gather(*(asyncio.to_thread(_migrate, empty) for _ in range(3)))
    assert sorted(str(migrated.revision_before) for migrated in done) == [SCHEMA_REVISION] * 2 + ["None"]
    assert query(empty.service_url, SEEDS) == SEEDED


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE billing_accounts SET is_system_tenant = false",
        "DELETE FROM virtual_keys",
        "DELETE FROM ledger_accounts WHERE code = 'cash:usdc'",
        "DELETE FROM virtual_keys; DELETE FROM billing_accounts; DELETE FROM ledger_accounts; DELETE FROM users",
    ],
)
async def test_a_migration_restores_what_is_missing(database: Database, damage: str) -> None:
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute(damage)
    assert query(database.service_url, SEEDS) != SEEDED
    await migrate_database(database)
    assert query(database.service_url, SEEDS) == SEEDED


async def test_a_migration_keeps_the_system_tenants_credits(database: Database) -> None:
    with connect(database.service_url) as service:
        service.execute("SELECT * FROM post_entry('cogni_system', 5, 'adjustment', NULL, 'cash:usdc', '{}')")
    await migrate_database(database)
    assert scalar(database.service_url, "SELECT balance_credits FROM billing_accounts") == 5


async def test_another_flagged_account_is_reported_in_one_line(database: Database) -> None:
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE billing_accounts SET is_system_tenant = false")
        superuser.execute(
            "INSERT INTO billing_accounts (id, owner_user_id, is_system_tenant)"
            " VALUES ('usurper', 'cogni_system_principal', true)"
        )
    with pytest.raises(StartupCheckFailed) as caught:
        await migrate_database(database)
    assert "billing_accounts_one_system_tenant" in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_database_of_a_newer_version_is_reported_in_one_line(database: Database) -> None:
    with connect(database.superuser_url) as superuser:
        superuser.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupCheckFailed, match="9999") as caught:
        await migrate_database(database)
    assert "\n" not in caught.value.message


async def test_a_role_that_may_not_make_tables_is_reported_in_one_line(empty: Database) -> None:
    with pytest.raises(StartupCheckFailed, match="permission denied") as caught:
        await asyncio.to_thread(_migrate_from, empty.app_url, empty)
    assert "\n" not in caught.value.message


async def test_no_server_is_reported_as_unavailable(database: Database) -> None:
    nowhere = "postgresql://settle_owner:x@127.0.0.1:1/settle"
    with pytest.raises(DatabaseUnavailable, match="PostgreSQL") as caught:
        await asyncio.to_thread(_migrate_from, nowhere, database)
    assert "\n" not in caught.value.message


# -- roles


@pytest.fixture
async def spare_role(cluster: Cluster) -> AsyncIterator[str]:
    """The name of a role that does not exist before and after."""
    yield "settle_spare"
    await cluster.run(sql.SQL("DROP ROLE IF EXISTS settle_spare"))


def _make_role(admin_url: str, role: str, role_url: str, *, bypass: bool = False) -> bool:
    engine = engine_on(admin_url)
    try:
        with engine.connect() as connection:
            address = _RoleAddress(role, "SPARE_URL", role_url, bypass_row_level_security=bypass)
            return _ensure_role(connection, address, on_progress=lambda _: None)
    finally:
        engine.dispose()


@pytest.mark.parametrize("bypass", [False, True])
async def test_a_missing_role_is_made_with_the_password_of_its_address(
    empty: Database, spare_role: str, bypass: bool
) -> None:
    url = empty.url_as(spare_role, "a-password")
    assert _make_role(empty.migration_url, spare_role, url, bypass=bypass) is True
    assert _make_role(empty.migration_url, spare_role, empty.url_as(spare_role, "another"), bypass=bypass) is False
    attributes = "SELECT rolbypassrls, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user"
    assert query(url, attributes) == [(bypass, False, False)]


def test_a_role_without_a_password_in_its_address_is_a_mistake_of_configuration(
    empty_url: Database, spare_role: str
) -> None:
    with pytest.raises(ConfigurationError, match=spare_role):
        _make_role(empty_url.migration_url, spare_role, f"postgresql://{spare_role}@127.0.0.1/x")


@pytest.fixture
def empty_url(empty: Database) -> Database:
    """The same as `empty`, for tests that are not coroutines."""
    return empty


async def test_a_migration_without_the_right_to_make_roles_says_what_to_run(empty: Database, spare_role: str) -> None:
    with pytest.raises(StartupCheckFailed, match=f"CREATE ROLE {spare_role} LOGIN NOBYPASSRLS"):
        _make_role(empty.app_url, spare_role, empty.url_as(spare_role, "a-password"))


async def test_two_migrations_of_one_server_may_make_the_same_role_at_once(empty: Database, spare_role: str) -> None:
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE ROLE%'"
    async with await psycopg.AsyncConnection.connect(empty.superuser_url) as first:
        await first.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(spare_role)))
        second = asyncio.create_task(
            asyncio.to_thread(_make_role, empty.migration_url, spare_role, empty.url_as(spare_role, "a-password"))
        )
        async with await psycopg.AsyncConnection.connect(empty.superuser_url, autocommit=True) as watcher:
            while (await (await watcher.execute(waits)).fetchall()) == [(0,)]:
                await asyncio.sleep(0)
        await first.commit()
        assert await second is False


# -- in two steps


@pytest.fixture(scope="module")
async def expanded_template(cluster: Cluster) -> AsyncIterator[tuple[Database, Migrated]]:
    """The database that `expanded` copies, and what the migration of it has answered."""
    async with cluster.temporary() as database:
        yield database, await asyncio.to_thread(_migrate_from, database.migration_url, database, expand_only=True)


@pytest.fixture
async def expanded(cluster: Cluster, expanded_template: tuple[Database, Migrated]) -> AsyncIterator[Database]:
    """A database that was migrated from empty by a migration that only adds."""
    async with cluster.temporary(template=expanded_template[0].name) as database:
        yield database


# -- passwords of roles that exist


@pytest.fixture
async def own_password(cluster: Cluster) -> AsyncIterator[None]:
    """Roles are the server's: whatever a test makes of settle_app's password, the other tests get it back."""
    yield
    await cluster.run(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(APP_ROLE), sql.Literal(ROLE_PASSWORD)))


def _with_app_url(database: Database, app_url: str, **options: Any) -> Migrated:
    return migrate(
        database.migration_url,
        app_url=app_url,
        settlement_url=database.settlement_url,
        service_url=database.service_url,
        **options,
    )


async def test_another_password_for_a_role_that_exists_is_said_and_not_set(database: Database) -> None:
    other = database.url_as(APP_ROLE, "another-password")
    with pytest.raises(StartupCheckFailed) as caught:
        await asyncio.to_thread(_with_app_url, database, other)
    assert f"role {APP_ROLE} does not accept" in caught.value.message
    assert "settle migrate --set-passwords" in caught.value.message
    assert "SETTLEMENT_DATABASE_URL" not in caught.value.message
    assert "another-password" not in caught.value.message
    assert scalar(database.app_url, "SELECT 1") == 1


async def test_the_schema_is_upgraded_although_a_password_is_another(expanded: Database) -> None:
    with pytest.raises(StartupCheckFailed, match="does not accept"):
        await asyncio.to_thread(_with_app_url, expanded, expanded.url_as(APP_ROLE, "another-password"))
    assert scalar(expanded.service_url, "SELECT version_num FROM alembic_version") == SCHEMA_REVISION


@pytest.mark.usefixtures("own_password")
async def test_passwords_are_set_where_that_is_asked_for_and_they_differ(database: Database) -> None:
    other = database.url_as(APP_ROLE, "another%20p%40ssword%20%3F%25")
    said: list[str] = []
    migrated = await asyncio.to_thread(_with_app_url, database, other, set_passwords=True, on_progress=said.append)
    assert migrated.passwords_set == (APP_ROLE,)
    assert [line for line in said if APP_ROLE in line and "password of DATABASE_URL" in line]
    assert scalar(other, "SELECT current_user::text") == APP_ROLE
    with pytest.raises(psycopg.OperationalError), new_session(database.app_url):
        pass
    again = await asyncio.to_thread(_with_app_url, database, other, set_passwords=True)
    assert again.passwords_set == ()


@pytest.mark.usefixtures("own_password")
async def test_a_password_that_may_not_be_set_says_what_to_run(cluster: Cluster, database: Database) -> None:
    role = sql.Identifier("settle_weak_owner")
    await cluster.run(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(ROLE_PASSWORD)))
    try:
        with pytest.raises(StartupCheckFailed, match=f"ALTER ROLE {APP_ROLE} PASSWORD"):
            await asyncio.to_thread(
                migrate,
                database.url_as("settle_weak_owner"),
                app_url=database.url_as(APP_ROLE, "another-password"),
                settlement_url=database.settlement_url,
                service_url=database.service_url,
                set_passwords=True,
            )
    finally:
        await cluster.run(sql.SQL("DROP ROLE {}").format(role))


async def test_an_address_that_is_not_reached_from_here_is_no_refusal(database: Database) -> None:
    """A role's address may be for other machines: a pooler's, inside their network."""
    said: list[str] = []
    elsewhere = f"postgresql://{APP_ROLE}:x@127.0.0.1:1/settle"
    migrated = await asyncio.to_thread(_with_app_url, database, elsewhere, on_progress=said.append)
    assert migrated.revision == SCHEMA_REVISION
    [line] = [line for line in said if line.startswith("DATABASE_URL")]
    assert "cannot be reached" in line


async def test_a_database_that_is_not_there_is_no_refusal_of_a_password(database: Database) -> None:
    said: list[str] = []
    nowhere = database.app_url.replace(database.name, "no_such_database")
    await asyncio.to_thread(_with_app_url, database, nowhere, on_progress=said.append)
    [line] = [line for line in said if line.startswith("DATABASE_URL")]
    assert "no_such_database" in line


async def test_an_address_of_another_role_is_refused(database: Database) -> None:
    with pytest.raises(StartupCheckFailed, match=f"DATABASE_URL .* {SERVICE_ROLE}: expected {APP_ROLE}"):
        await asyncio.to_thread(_with_app_url, database, database.service_url)


# -- in two steps, under processes of the version before


async def test_an_upgrade_that_only_adds_goes_to_the_newest_revision_that_removes_nothing(
    expanded: Database, expanded_template: tuple[Database, Migrated]
) -> None:
    assert expanded_template[1].revision == EXPANDED_REVISION
    again = await asyncio.to_thread(_migrate, expanded)
    assert (again.revision_before, again.revision) == (EXPANDED_REVISION, SCHEMA_REVISION)


@pytest.mark.slow(but=("0004",))
@pytest.mark.parametrize("landed", ["0003", "0004"])
async def test_an_upgrade_that_only_adds_does_not_pass_a_revision_that_removes(empty: Database, landed: str) -> None:
    await asyncio.to_thread(upgrade_to, empty, landed)
    with pytest.raises(ConfigurationError, match=f"revision {LAST_CONTRACT} removes"):
        await asyncio.to_thread(_migrate_from, empty.migration_url, empty, expand_only=True)
    assert scalar(empty.superuser_url, "SELECT version_num FROM alembic_version") == landed
    whole = await asyncio.to_thread(_migrate, empty)
    assert (whole.revision_before, whole.revision) == (landed, SCHEMA_REVISION)


# -- the models


# SQLAlchemy cannot reflect a constraint that is NOT VALID without this warning.
@pytest.mark.filterwarnings("ignore:Can't validate argument 'dialect_options'")
def test_the_models_and_the_migrated_schema_are_the_same_to_alembic(migrated: Database) -> None:
    engine = engine_on(migrated.migration_url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={"compare_type": True, "compare_server_default": True, "include_name": _is_no_partition},
            )
            assert compare_metadata(context, Base.metadata) == []
    finally:
        engine.dispose()


def _is_no_partition(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or not str(name).startswith("charge_receipts_")


@pytest.fixture
def migrated(database: Database) -> Database:
    """The same as `database`, for tests that are not coroutines."""
    return database


COLUMNS = """
    SELECT table_name::text, column_name::text, data_type::text, numeric_precision::text, is_nullable::text,
           column_default::text, is_identity::text, identity_generation::text
      FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
       AND NOT (SELECT relispartition FROM pg_class WHERE oid = format('%I', table_name)::regclass)
     ORDER BY table_name, column_name
"""
INDEXES = """
    SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
       AND NOT (SELECT relispartition FROM pg_class WHERE oid = format('%I', tablename)::regclass) ORDER BY 1
"""
KEYS = """
    SELECT conrelid::regclass::text, contype::text, pg_get_constraintdef(oid) FROM pg_constraint
     WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f')
       AND conrelid <> coalesce(to_regclass('alembic_version'), 0) AND conparentid = 0
       AND NOT (SELECT relispartition FROM pg_class WHERE oid = conrelid) ORDER BY 1, 2, 3
"""


def test_tables_made_from_the_models_are_those_of_the_migrations(migrated: Database, empty_url: Database) -> None:
    """Stricter than Alembic, which does not compare the conditions of partial indexes."""
    engine = engine_on(empty_url.superuser_url)
    try:
        Base.metadata.create_all(engine)
    finally:
        engine.dispose()
    for catalogue in (COLUMNS, INDEXES, KEYS):
        made: list[Any] = query(empty_url.superuser_url, catalogue)
        assert made == query(migrated.superuser_url, catalogue) != []
