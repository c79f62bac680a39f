"""The start-up check: a process with the wrong database or too many rights stops with one clear line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from psycopg import sql

from db import startup
from db.engine import OperatorDatabase, ServiceDatabase, TenantDatabase
from db.schema import SCHEMA_REVISION
from db.startup import check_operator_database, check_service_database, check_tenant_database, check_writes
from domain.errors import DatabaseUnavailable, StartupCheckFailed
from tests.support.payments import RolePair
from tests.support.postgres import ROLE_PASSWORD, Cluster, Database
from tests.support.sql import connect, no_write_is_proved, query


async def _check(
    app_url: str | None = None, service_url: str | None = None, operator_url: str | None = None
) -> str | None:
    """What the check says, or None when all is well: a message of two lines comes back as what it should not be."""
    try:
        if app_url is not None:
            tenants = TenantDatabase(app_url)
            try:
                await check_tenant_database(tenants)
            finally:
                await tenants.dispose()
        if service_url is not None:
            service = ServiceDatabase(service_url)
            try:
                await check_service_database(service)
            finally:
                await service.dispose()
        if operator_url is not None:
            operators = OperatorDatabase(operator_url)
            try:
                await check_operator_database(operators)
            finally:
                await operators.dispose()
    except StartupCheckFailed as error:
        return "SEVERAL LINES" if "\n" in error.message else error.message
    return None


async def test_both_roles_pass_on_a_migrated_database(database: Database) -> None:
    assert await _check(database.app_url, database.service_url) is None


@pytest.mark.parametrize("setting", ["DATABASE_URL", "SERVICE_DATABASE_URL"])
async def test_a_superuser_is_refused(database: Database, setting: str) -> None:
    url = database.superuser_url
    said = await (_check(url) if setting == "DATABASE_URL" else _check(service_url=url))
    assert said is not None
    assert said.startswith(startup.more_rights(setting, "postgres"))
    assert "is a superuser" in said


@pytest.mark.parametrize("setting", ["DATABASE_URL", "SERVICE_DATABASE_URL"])
async def test_the_tables_owner_is_refused(database: Database, setting: str) -> None:
    url = database.migration_url
    said = await (_check(url) if setting == "DATABASE_URL" else _check(service_url=url))
    assert said is not None
    assert "owns tables" in said
    assert "settle_owner" in said


async def test_a_tenants_process_that_bypasses_row_level_security_is_refused(database: Database) -> None:
    said = await _check(app_url=database.service_url)
    assert said is not None
    assert "it bypasses row-level security" in said
    assert startup.use_role("settle_app") in said


async def test_a_service_that_is_bound_by_row_level_security_is_refused(database: Database) -> None:
    with connect(database.superuser_url) as superuser:
        superuser.execute("GRANT EXECUTE ON FUNCTION post_entry TO settle_app")
    said = await _check(service_url=database.app_url)
    assert said is not None
    assert startup.use_role("settle_service") in said


CHANGES = ("UPDATE", "DELETE", "TRUNCATE")
APPEND_ONLY = ("credit_ledger", "journal_lines", "payment_events", "settled_transfers")


RIGHTS_TO_THE_LEDGER = (
    *((f"{right} ON {table}", f"({table} {right})") for table in APPEND_ONLY for right in CHANGES),
    ("INSERT ON credit_ledger", "(credit_ledger INSERT)"),
    ("INSERT ON journal_lines", "(journal_lines INSERT)"),
    ("UPDATE (amount) ON credit_ledger", "(credit_ledger.amount UPDATE)"),
    ("UPDATE (balance_credits) ON billing_accounts", "(billing_accounts.balance_credits UPDATE)"),
    ("UPDATE ON billing_accounts", "(billing_accounts UPDATE)"),
    ("INSERT ON billing_accounts", "(billing_accounts INSERT)"),
    ("UPDATE (purpose) ON payment_attempts", "(payment_attempts.purpose UPDATE)"),
    ("DELETE ON payment_attempts", "(payment_attempts DELETE)"),
    ("UPDATE ON users", "(users UPDATE)"),
    ("CREATE ON SCHEMA public", "may create tables and functions"),
)


@pytest.mark.parametrize("role", ["settle_app", "settle_service"])
async def test_a_right_to_write_the_ledger_directly_is_refused(database: Database, role: str) -> None:
    for grant, words in RIGHTS_TO_THE_LEDGER:
        with connect(database.migration_url) as owner:
            owner.execute(sql.SQL(f"GRANT {grant} TO {role}"))
        said = await (_check(database.app_url) if role == "settle_app" else _check(service_url=database.service_url))
        assert said is not None, grant
        assert words in said
        assert role in said
        with connect(database.migration_url) as owner:
            owner.execute(sql.SQL(f"REVOKE {grant} FROM {role}"))
    said = await (_check(database.app_url) if role == "settle_app" else _check(service_url=database.service_url))
    assert said is None, "each was refused for itself"


async def test_a_tenants_process_that_may_post_to_every_account_is_refused(database: Database) -> None:
    with connect(database.migration_url) as owner:
        owner.execute("GRANT EXECUTE ON FUNCTION post_entry TO settle_app")
    said = await _check(database.app_url)
    assert said is not None
    assert "post to every account;" in said


@pytest.fixture
async def odd_role(cluster: Cluster) -> AsyncIterator[str]:
    """A role that a test makes; named before the database that depends on it, so that it goes after it."""
    yield "settle_odd"
    await cluster.run(sql.SQL("DROP ROLE IF EXISTS settle_odd"))


async def test_any_other_power_of_a_role_is_refused(cluster: Cluster, odd_role: str, database: Database) -> None:
    for attributes, words in (
        ("CREATEROLE", "may create roles"),
        ("CREATEDB", "may create databases"),
        ("REPLICATION", "may replicate"),
        ("IN ROLE settle_owner", "owns tables"),
        ("NOINHERIT IN ROLE settle_owner", "owns tables"),
    ):
        await cluster.run(sql.SQL(f"CREATE ROLE {odd_role} LOGIN PASSWORD '{ROLE_PASSWORD}' {attributes}"))
        with connect(database.superuser_url) as superuser:
            superuser.execute(sql.SQL(f"GRANT SELECT ON alembic_version TO {odd_role}"))
        said = await _check(database.url_as(odd_role))
        assert said is not None, attributes
        assert words in said
        with connect(database.superuser_url) as superuser:
            superuser.execute(sql.SQL(f"DROP OWNED BY {odd_role}"))
        await cluster.run(sql.SQL(f"DROP ROLE {odd_role}"))


# -- schema and system tenant


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE billing_accounts SET is_system_tenant = false", "is not flagged as the system tenant"),
        ("DELETE FROM billing_accounts", "the system tenant's account cogni_system is missing"),
        (
            "UPDATE alembic_version SET version_num = '0000'",
            "is at revision 0000, which this version does not know",
        ),
        ("DELETE FROM alembic_version", f"the schema is at revision None, the code needs {SCHEMA_REVISION}"),
    ],
)
async def test_a_database_that_is_not_what_the_code_needs_is_refused(
    database: Database, damage: str, words: str
) -> None:
    await _refused_after(database, damage, words)


async def test_a_schema_that_is_not_what_the_code_needs_is_refused(database: Database) -> None:
    for damage, repair, words in (
        (
            "ALTER TABLE alembic_version RENAME TO lost",
            "ALTER TABLE lost RENAME TO alembic_version",
            "the database has no schema yet",
        ),
        (
            "ALTER FUNCTION prune_expired RENAME TO lost",
            "ALTER FUNCTION lost RENAME TO prune_expired",
            "lacks functions that this version calls (prune_expired); run: settle migrate",
        ),
        (
            "ALTER TABLE payment_attempts DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE payment_attempts ENABLE ROW LEVEL SECURITY",
            "row-level security is not forced on payment_a",
        ),
        (
            "ALTER TABLE users NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE users FORCE ROW LEVEL SECURITY",
            "row-level security is not forced on users",
        ),
        (
            "ALTER TABLE credit_ledger DISABLE TRIGGER USER",
            "ALTER TABLE credit_ledger ENABLE TRIGGER USER",
            "triggers are disabled on credit_ledger",
        ),
    ):
        await _refused_after(database, damage, words)
        with connect(database.superuser_url, triggers=False) as superuser:
            superuser.execute(sql.SQL(repair))
    for said in (await _check(app_url=database.app_url), await _check(service_url=database.service_url)):
        assert said is None, "each was refused for itself"


async def _refused_after(database: Database, damage: str, words: str) -> None:
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute(sql.SQL(damage))
    for said in (await _check(app_url=database.app_url), await _check(service_url=database.service_url)):
        assert said is not None, damage
        assert words in said
        assert re.search(f"{startup.RUN_MIGRATE}$|{startup.INSTALL_NEWER}$|for each: ALTER", said)


async def test_an_empty_database_is_refused(cluster: Cluster) -> None:
    async with cluster.temporary() as empty:
        for said in (await _check(app_url=empty.app_url), await _check(service_url=empty.service_url)):
            assert said == startup.NO_SCHEMA


async def test_a_database_that_is_not_there_is_unavailable(cluster: Cluster) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        await _check(app_url=cluster.database("nowhere").app_url)


# -- the operators' pages


async def test_the_operators_role_passes_on_a_migrated_database(database: Database) -> None:
    assert await _check(operator_url=database.operator_url) is None


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("settle_app", ["may write"]),
        ("settle_service", ["bypasses row-level security", "may post to every account", "may write"]),
        ("settle_owner", ["owns tables", "may create roles", "may write"]),
        ("postgres", ["is a superuser", "may write"]),
    ],
)
async def test_operators_with_any_other_role_are_refused(database: Database, role: str, words: list[str]) -> None:
    url = database.superuser_url if role == "postgres" else database.url_as(role)
    said = await _check(operator_url=url)
    assert said is not None
    assert said.startswith(startup.more_rights("OPERATOR_DATABASE_URL", role))
    assert said.endswith(startup.use_role("settle_operator"))
    for word in words:
        assert word in said


async def test_an_operators_role_that_may_write_is_refused(database: Database) -> None:
    for grant, words in (
        ("INSERT ON payment_events", "may write"),
        ("INSERT ON settled_transfers", "may write"),
        ("INSERT ON idempotency_keys", "may write"),
        ("UPDATE (status) ON payment_attempts", "may write"),
        ("INSERT (id) ON payment_attempts", "may write"),
        ("DELETE ON sessions", "(sessions DELETE)"),
        ("UPDATE ON billing_accounts", "(billing_accounts UPDATE)"),
        ("EXECUTE ON FUNCTION post_entry", "may post to every account"),
        ("CREATE ON SCHEMA public", "may create tables and functions"),
    ):
        with connect(database.migration_url) as owner:
            owner.execute(sql.SQL(f"GRANT {grant} TO settle_operator"))
        said = await _check(operator_url=database.operator_url)
        assert said is not None, grant
        assert said.startswith(startup.more_rights("OPERATOR_DATABASE_URL", "settle_operator")), grant
        assert words in said
        with connect(database.migration_url) as owner:
            owner.execute(sql.SQL(f"REVOKE {grant} FROM settle_operator"))
    assert await _check(operator_url=database.operator_url) is None, "each was refused for itself"


async def test_an_operators_database_that_was_not_migrated_for_it_says_what_to_run(
    cluster: Cluster, database: Database
) -> None:
    with connect(database.migration_url) as owner:
        owner.execute("REVOKE SELECT ON alembic_version FROM settle_operator")
    async with cluster.temporary() as empty:
        for url in (database.operator_url, empty.operator_url):
            said = await _check(operator_url=url)
            assert said is not None
            assert said.endswith("; run: settle migrate")


async def test_each_role_proves_its_own_writes_at_most_every_five_seconds(roles: RolePair) -> None:
    def proofs() -> dict[str, object]:
        return dict(query(roles.database.superuser_url, "SELECT role_name, written_at FROM write_probes"))

    for database in (roles.app, roles.service):
        await check_writes(database)
    first = proofs()
    assert first.keys() == {"settle_app", "settle_service"}
    await check_writes(roles.app)
    assert proofs() == first
    with no_write_is_proved(roles.database.superuser_url):
        for database in (roles.app, roles.service):
            with pytest.raises(DatabaseUnavailable, match="no write"):
                await check_writes(database)
    before = proofs()
    await check_writes(roles.app)
    after = proofs()
    assert after["settle_app"] != before["settle_app"]
    assert after["settle_service"] == before["settle_service"]
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE write_probes SET written_at = now() + interval '1 hour'")
    ahead = proofs()
    await check_writes(roles.app)
    assert proofs()["settle_app"] != ahead["settle_app"], "a proof of the future is none"
