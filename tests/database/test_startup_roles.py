"""The start-up check, by role: a process that holds more than its role has, or could take more, stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product

import pytest
from psycopg import sql

from db import startup
from db.engine import ServiceDatabase, SettlementDatabase, TenantDatabase
from db.migrate import migrate
from db.schema import EXPANDED_REVISION
from db.startup import check_service_database, check_settlement_database, check_tenant_database
from domain.errors import StartupCheckFailed
from tests.support.postgres import Cluster, Database
from tests.support.sql import connect

TENANT_ROLES = ("settle_app", "settle_settlement")


async def _check(role: str, url: str) -> str | None:
    """What the check of a role's process says of an address; None when all is well."""
    database: TenantDatabase | ServiceDatabase
    try:
        match role:
            case "settle_service":
                database = ServiceDatabase(url)
                await check_service_database(database)
            case "settle_settlement":
                database = SettlementDatabase(url)
                await check_settlement_database(database)
            case _:
                database = TenantDatabase(url)
                await check_tenant_database(database)
    except StartupCheckFailed as error:
        return "SEVERAL LINES" if "\n" in error.message else error.message
    finally:
        await database.dispose()
    return None


@pytest.mark.parametrize("role", [*TENANT_ROLES, "settle_service"])
async def test_each_role_passes_its_own_check(database: Database, role: str) -> None:
    assert await _check(role, database.url_as(role)) is None


@pytest.mark.parametrize("used", ["settle_settlement", "settle_service", "settle_owner"])
async def test_an_api_with_a_stronger_role_stops(database: Database, used: str) -> None:
    said = await _check("settle_app", database.url_as(used))
    assert said is not None
    assert said.startswith(f"DATABASE_URL: role {used} has more rights")


@pytest.mark.parametrize("used", ["settle_app", "settle_service", "settle_owner"])
async def test_a_workers_tenant_connection_with_another_role_stops(database: Database, used: str) -> None:
    said = await _check("settle_settlement", database.url_as(used))
    assert said is not None
    assert said.startswith(startup.more_rights("SETTLEMENT_DATABASE_URL", used))


MINTS = [
    "INSERT ON settled_transfers",
    "INSERT (attempt_id) ON settled_transfers",
    "INSERT ON payment_events",
    "INSERT (id) ON payment_events",
    "UPDATE (revenue_share) ON payment_attempts",
    "EXECUTE ON FUNCTION post_own_purchase",
    "EXECUTE ON FUNCTION post_entry",
    "EXECUTE ON FUNCTION prune_expired",
    "TRIGGER ON payment_attempts",
]


async def _each_stops(database: Database, role: str, rights: list[str]) -> None:
    for right in rights:
        with connect(database.migration_url) as owner:
            owner.execute(sql.SQL(f"GRANT {right} TO {role}"))
        said = await _check(role, database.url_as(role))
        assert said is not None, right
        assert startup.MORE_RIGHTS in said
        with connect(database.migration_url) as owner:
            owner.execute(sql.SQL(f"REVOKE {right} FROM {role}"))
    assert await _check(role, database.url_as(role)) is None, "each was refused for itself"


async def test_an_api_whose_role_was_given_what_mints_stops(database: Database) -> None:
    await _each_stops(database, "settle_app", MINTS)


async def test_a_worker_whose_tenant_role_was_given_the_apis_rights_stops(database: Database) -> None:
    await _each_stops(
        database, "settle_settlement", ["INSERT (id) ON payment_attempts", "EXECUTE ON FUNCTION open_session"]
    )


@pytest.fixture
async def group(cluster: Cluster) -> AsyncIterator[str]:
    """A role of the server that others may be made members of; dropped afterwards."""
    name = "settle_group"
    await cluster.run(sql.SQL("CREATE ROLE settle_group"))
    yield name
    await cluster.run(sql.SQL("DROP OWNED BY settle_group; DROP ROLE settle_group"))


async def test_a_right_that_comes_by_a_group_stops_the_process(
    cluster: Cluster, database: Database, group: str
) -> None:
    """Also where it is not inherited: SET ROLE takes it."""
    for role, options in product(TENANT_ROLES, ("", "WITH INHERIT FALSE")):
        await cluster.run(sql.SQL(f"GRANT {group} TO {role} {options}"))
        assert await _check(role, database.url_as(role)) is None, "a group without rights is none of our business"
        with connect(database.superuser_url) as superuser:
            superuser.execute(sql.SQL(f"GRANT UPDATE (balance_credits) ON billing_accounts TO {group}"))
        said = await _check(role, database.url_as(role))
        with connect(database.superuser_url) as superuser:
            superuser.execute(sql.SQL(f"REVOKE ALL ON billing_accounts FROM {group}"))
            superuser.execute(sql.SQL(f"REVOKE UPDATE (balance_credits) ON billing_accounts FROM {group}"))
        await cluster.run(sql.SQL(f"REVOKE {group} FROM {role}"))
        assert said is not None, (role, options)
        assert "(billing_accounts.balance_credits UPDATE)" in said


@pytest.mark.parametrize(
    ("role", "other"),
    [
        ("settle_app", "settle_settlement"),
        ("settle_app", "settle_service"),
        ("settle_settlement", "settle_app"),
        ("settle_app", "pg_write_all_data"),
        ("settle_service", "pg_execute_server_program"),
    ],
)
async def test_a_process_that_can_become_another_role_stops(
    cluster: Cluster, database: Database, role: str, other: str
) -> None:
    await cluster.run(sql.SQL(f"GRANT {other} TO {role} WITH INHERIT FALSE"))
    try:
        said = await _check(role, database.url_as(role))
    finally:
        await cluster.run(sql.SQL(f"REVOKE {other} FROM {role}"))
    assert said is not None
    assert f"may become {other}" in said


async def test_a_process_that_may_read_the_servers_health_continues(cluster: Cluster, database: Database) -> None:
    await cluster.run(sql.SQL("GRANT pg_monitor TO settle_service"))
    try:
        assert await _check("settle_service", database.service_url) is None
    finally:
        await cluster.run(sql.SQL("REVOKE pg_monitor FROM settle_service"))


@pytest.mark.slow
async def test_between_the_two_halves_of_an_upgrade_processes_start(cluster: Cluster) -> None:
    """settle_app has what old workers use until the contracting half: that is no fault of the process."""
    async with cluster.temporary() as empty:
        expanded = await asyncio.to_thread(
            migrate,
            empty.migration_url,
            app_url=empty.app_url,
            settlement_url=empty.settlement_url,
            service_url=empty.service_url,
            expand_only=True,
        )
        assert expanded.revision == EXPANDED_REVISION
        for role in (*TENANT_ROLES, "settle_service"):
            assert await _check(role, empty.url_as(role)) is None
        with connect(empty.migration_url) as owner:
            owner.execute("GRANT EXECUTE ON FUNCTION post_entry TO settle_app")
        said = await _check("settle_app", empty.app_url)
        assert said is not None
        assert "post to every account" in said
