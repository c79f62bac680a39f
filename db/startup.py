"""Start-up checks of every process: the schema, the system tenant, and the process's own rights."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from db import functions, rights
from db.engine import OperatorDatabase, RelayDatabase, ServiceDatabase, SettlementDatabase, TenantDatabase
from db.schema import EXPANDED_REVISION, KNOWN_REVISIONS, SCHEMA_REVISION
from db.tables import Base
from domain.errors import DatabaseUnavailable, StartupCheckFailed
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations import governance

RUN_MIGRATE: Final = "run: settle migrate"

NO_SCHEMA: Final = f"the database has no schema yet; {RUN_MIGRATE}"
TENANT_MISSING: Final = f"the system tenant's account {SYSTEM_TENANT_ACCOUNT_ID} is missing; {RUN_MIGRATE}"
TENANT_NOT_FLAGGED: Final = f"{governance.TENANT_NOT_FLAGGED}; {RUN_MIGRATE}"
INSTALL_NEWER: Final = "install the version that created it"
MORE_RIGHTS: Final = "has more rights than it needs"

SHOWN_MAX: Final = 6
"""Most excessive rights that a message lists."""

PROOF_SECONDS_MAX: Final = 30.0
"""Each role proves every five seconds that it can write; older proofs mean that it cannot."""

_REVISION = text("SELECT version_num FROM alembic_version")
_COMPATIBLE_FROM = text("SELECT schema_compatible_from(:revision)")
_PROVE_WRITES = text("SELECT prove_writes()")

# Of the role itself, and of every role that it can become: a member has its group's rights, or takes them by SET ROLE.
_RIGHTS = text(
    """
    WITH acting AS (
        SELECT oid, rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
          FROM pg_roles WHERE pg_has_role(current_user, oid, 'MEMBER')),
    own_tables AS (
        SELECT oid, relname, relowner FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p'))
    SELECT current_user AS role, (SELECT rolbypassrls FROM acting WHERE rolname = current_user) AS sees_all,
           bool_or(rolsuper) AS rolsuper, bool_or(rolcreaterole) AS rolcreaterole, bool_or(rolcreatedb) AS rolcreatedb,
           bool_or(rolreplication) AS rolreplication, bool_or(rolbypassrls) AS rolbypassrls,
           EXISTS (SELECT 1 FROM own_tables t WHERE pg_has_role(current_user, t.relowner, 'MEMBER')) AS owns_tables,
           bool_or(has_schema_privilege(oid, 'public', 'CREATE')
                   OR has_database_privilege(oid, current_database(), 'CREATE')) AS may_create,
           (SELECT string_agg(m.rolname, ', ' ORDER BY m.rolname) FROM acting m
             WHERE m.rolname <> current_user
               AND (m.rolname = ANY (CAST(:roles AS text[])) OR starts_with(m.rolname, 'pg_'))
               AND m.rolname <> ALL (CAST(:harmless AS text[]))) AS may_become,
           ARRAY(
               SELECT DISTINCT t.relname || ' ' || p
                 FROM acting a, own_tables t, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) p
                WHERE has_table_privilege(a.oid, t.oid, p)
                UNION
               SELECT DISTINCT t.relname || '.' || c.attname || ' ' || p
                 FROM acting a, own_tables t
                 JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum > 0 AND NOT c.attisdropped
                      AND c.attacl IS NOT NULL,  -- most columns have no rights of their own, and each costs a look-up
                      unnest(ARRAY['INSERT', 'UPDATE']) p
                WHERE has_column_privilege(a.oid, t.oid, c.attnum, p) AND NOT has_table_privilege(a.oid, t.oid, p)
                UNION
               SELECT DISTINCT f.proname || '()'
                 FROM acting a, pg_proc f
                WHERE f.pronamespace = 'public'::regnamespace AND f.proname = ANY (CAST(:reserved AS text[]))
                  AND has_function_privilege(a.oid, f.oid, 'EXECUTE')
                ORDER BY 1) AS may_do
      FROM acting
    """
)

HARMLESS_ROLES: Final = (
    "pg_monitor",
    "pg_read_all_settings",
    "pg_read_all_stats",
    "pg_stat_scan_tables",
    "pg_use_reserved_connections",
)
"""PostgreSQL's own roles that allow monitoring or reserved connections, but see and change no rows."""

_SWITCHED_OFF = text(
    """
    SELECT (SELECT string_agg(c.relname, ', ') FROM pg_class c
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
               AND c.relname <> 'alembic_version' AND NOT (c.relrowsecurity AND c.relforcerowsecurity)) AS unprotected,
           (SELECT string_agg(DISTINCT c.relname, ', ') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
             WHERE c.relnamespace = 'public'::regnamespace AND t.tgenabled = 'D') AS unchecked
    """
)

_MISSING_FUNCTIONS = text(
    """
    SELECT name FROM unnest(CAST(:names AS text[])) name
     WHERE NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = name)
     ORDER BY name
    """
)

_SYSTEM_TENANT = text("SELECT system_tenant_is_flagged()")


def more_rights(setting: str, role: str) -> str:
    """How the message begins that refuses a role with excessive rights."""
    return f"{setting}: role {role} {MORE_RIGHTS}"


def use_role(role: str) -> str:
    """What to do about it."""
    return f"use role {role} as `settle migrate` makes it"


def unknown_revision(found: str) -> str:
    """The message about a schema that a later version made."""
    return (
        f"the schema is at revision {found}, which this version does not know (it needs {SCHEMA_REVISION}); "
        f"{INSTALL_NEWER}"
    )


async def check_tenant_database(database: TenantDatabase) -> None:
    """Schema, system tenant, and no more rights than role settle_app has. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_rights(connection, setting="DATABASE_URL", role=rights.APP_ROLE)
        await _check_protection(connection)
        await _check_system_tenant(connection)


async def check_settlement_database(database: SettlementDatabase) -> None:
    """The same for role settle_settlement. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_rights(connection, setting="SETTLEMENT_DATABASE_URL", role=rights.SETTLEMENT_ROLE)
        await _check_protection(connection)
        await _check_system_tenant(connection)


async def check_answers(database: TenantDatabase) -> None:
    """The server answers, and its role has no more rights than it needs. Raises `SettleError`."""
    async with database.unscoped() as connection:
        await _check_rights(connection, setting="DATABASE_URL", role=rights.APP_ROLE)


async def check_schema(database: TenantDatabase) -> None:
    """The schema is at the code's revision, and its protection is enabled. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_protection(connection)


async def check_system_tenant(database: TenantDatabase) -> None:
    """The system tenant exists and is flagged. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_system_tenant(connection)


async def check_operator_database(database: OperatorDatabase) -> None:
    """Schema, and no more rights than role settle_operator has, which is read-only. Raises `StartupCheckFailed`."""
    async with database.transaction() as transaction:
        connection = transaction.connection
        await _check_revision(connection)
        await _check_rights(connection, setting="OPERATOR_DATABASE_URL", role=rights.OPERATOR_ROLE)


async def check_relay_database(database: RelayDatabase) -> None:
    """Schema, and no more rights than role settle_relay has. Raises `StartupCheckFailed`."""
    async with database.transaction() as transaction:
        connection = transaction.connection
        await _check_revision(connection)
        await _check_rights(connection, setting="RELAY_DATABASE_URL", role=rights.RELAY_ROLE)


async def check_service_database(database: ServiceDatabase) -> None:
    """The same for role settle_service. Raises `StartupCheckFailed`."""
    async with database.transaction() as transaction:
        connection = transaction.connection
        await _check_revision(connection)
        await _check_rights(connection, setting="SERVICE_DATABASE_URL", role=rights.SERVICE_ROLE)
        await _check_protection(connection)
        await _check_system_tenant(connection)


async def check_writes(database: TenantDatabase | ServiceDatabase) -> None:
    """The role's commits reach the disk, as proved within the last seconds. Raises `DatabaseUnavailable`."""
    opened = database.transaction() if isinstance(database, ServiceDatabase) else database.unscoped()
    async with opened as transaction:
        connection = transaction if isinstance(transaction, AsyncConnection) else transaction.connection
        age_seconds = float((await connection.execute(_PROVE_WRITES)).scalar_one())
    if age_seconds > PROOF_SECONDS_MAX:
        raise DatabaseUnavailable(f"PostgreSQL has confirmed no write for {age_seconds:.0f} s")


async def find_misfit(connection: AsyncConnection) -> str | None:
    """Why this code must not run with the current schema, in one line; None where it may.

    A newer schema says itself from which revision of the code on it may be used.
    """
    try:
        found: str | None = (await connection.execute(_REVISION)).scalar_one_or_none()
    except ProgrammingError:
        return NO_SCHEMA
    if found is None or (found in KNOWN_REVISIONS and found < EXPANDED_REVISION):
        return f"the schema is at revision {found}, the code needs {SCHEMA_REVISION}; {RUN_MIGRATE}"
    if found in KNOWN_REVISIONS:
        return None
    try:
        compatible_from = (await connection.execute(_COMPATIBLE_FROM, {"revision": found})).scalar_one()
    except ProgrammingError:
        compatible_from = None
    if compatible_from is None:
        return unknown_revision(found)
    if compatible_from > SCHEMA_REVISION:
        return (
            f"the schema is at revision {found}, which is for code of revision {compatible_from} or newer, and this is "
            f"{SCHEMA_REVISION}; {INSTALL_NEWER}"
        )
    return None


async def _check_revision(connection: AsyncConnection) -> None:
    misfit = await find_misfit(connection)
    if misfit is not None:
        raise StartupCheckFailed(misfit)
    # A migration was stopped before its functions, or was not run because the revision is the same.
    missing = (await connection.execute(_MISSING_FUNCTIONS, {"names": list(rights.FUNCTIONS)})).scalars().all()
    if missing:
        raise StartupCheckFailed(
            f"the schema lacks functions that this version calls ({', '.join(missing)}); {RUN_MIGRATE}"
        )


async def _check_rights(connection: AsyncConnection, *, setting: str, role: str) -> None:
    may_bypass_row_level_security = role == rights.SERVICE_ROLE
    reserved = [name for name in functions.load() if rights.EVERYBODY not in rights.FUNCTIONS.get(name, ())]
    asked = {"roles": list(rights.ROLES), "harmless": list(HARMLESS_ROLES), "reserved": reserved}
    row = (await connection.execute(_RIGHTS, asked)).one()
    may_do = await _excess(connection, role, row.may_do)
    may_change = [right for right in may_do if not right.endswith("()")]
    may_call = [right for right in may_do if right.endswith("()") and right != "post_entry()"]
    excess = [
        description
        for description, found in (
            ("is a superuser", row.rolsuper),
            ("may create roles", row.rolcreaterole),
            ("may create databases", row.rolcreatedb),
            ("may replicate", row.rolreplication),
            ("owns tables", row.owns_tables),
            ("bypasses row-level security", row.rolbypassrls and not may_bypass_row_level_security),
            ("may create tables and functions", row.may_create),
            (f"may become {row.may_become}", bool(row.may_become) and not row.rolsuper),
            (f"has excessive rights to change ({', '.join(may_change[:SHOWN_MAX])})", bool(may_change)),
            ("may post to every account", "post_entry()" in may_do),
            (f"has excessive rights to call ({', '.join(may_call)})", bool(may_call)),
            ("may write", bool(may_change) and role == rights.OPERATOR_ROLE),
        )
        if found
    ]
    if excess:
        raise StartupCheckFailed(f"{more_rights(setting, row.role)}: it {', '.join(excess)}; {use_role(role)}")
    if may_bypass_row_level_security and not row.sees_all:
        fix = (
            f"as a superuser run: ALTER ROLE {row.role} BYPASSRLS"
            if row.role == rights.SERVICE_ROLE
            else use_role(rights.SERVICE_ROLE)
        )
        raise StartupCheckFailed(
            f"{setting}: role {row.role} is bound by row-level security and would see nothing; {fix}"
        )


async def _excess(connection: AsyncConnection, role: str, may_do: list[str]) -> list[str]:
    """Excessive rights of the role."""
    allowed = rights.written(role)
    excess = [right for right in may_do if right not in allowed]
    if not excess:
        return []
    revision = (await connection.execute(_REVISION)).scalar_one_or_none()
    if revision not in KNOWN_REVISIONS:
        # A newer version has updated the schema: its additions are for its own start-up check.
        return [right for right in excess if _is_known(right)]
    if revision == EXPANDED_REVISION and set(excess) <= rights.written_before_contract(role):
        # Between the two halves of an upgrade; after the contracting revision they are excessive.
        return []
    return excess


def _is_known(right: str) -> bool:
    """Whether this version has the table, column or function that a right is to."""
    if right.endswith("()"):
        return True
    table, _, column = right.partition(" ")[0].partition(".")
    return table in rights.TABLES and (not column or column in Base.metadata.tables[table].columns)


async def _check_protection(connection: AsyncConnection) -> None:
    row = (await connection.execute(_SWITCHED_OFF)).one()
    if row.unprotected:
        raise StartupCheckFailed(
            f"row-level security is not forced on {row.unprotected}; as the owner run, for each: "
            "ALTER TABLE ... ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        )
    if row.unchecked:
        raise StartupCheckFailed(
            f"triggers are disabled on {row.unchecked}; as the owner run, for each: "
            "ALTER TABLE ... ENABLE TRIGGER ALL, then: settle doctor"
        )


async def _check_system_tenant(connection: AsyncConnection) -> None:
    flagged = (await connection.execute(_SYSTEM_TENANT)).scalar_one()
    if flagged is None:
        raise StartupCheckFailed(TENANT_MISSING)
    if not flagged:
        raise StartupCheckFailed(TENANT_NOT_FLAGGED)
