"""What every process checks before it does anything: the schema, the system tenant, and its own rights."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import OperatorDatabase, ServiceDatabase, TenantDatabase
from db.schema import KNOWN_REVISIONS, SCHEMA_REVISION
from domain.errors import StartupCheckFailed
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID

RUN_MIGRATE: Final = "run: settle migrate"

TENANT_WRITES: Final[dict[str, tuple[str, ...]]] = {
    "payment_events": ("INSERT",),
    "settled_transfers": ("INSERT",),
    "idempotency_keys": ("INSERT",),
}
"""The rights on whole tables that role settle_app has beside reading; every other one is too much."""

SERVICE_WRITES: Final[dict[str, tuple[str, ...]]] = {
    "payment_events": ("INSERT",),
    "settled_transfers": ("INSERT",),
    "transfer_finality": ("INSERT",),
    "observed_transfers": ("INSERT", "UPDATE", "DELETE"),
    "orphaned_transfers": ("INSERT",),
    "chain_cursors": ("INSERT", "UPDATE", "DELETE"),
    "watched_blocks": ("INSERT", "UPDATE", "DELETE"),
    "findings": ("INSERT", "UPDATE"),
    "operator_actions": ("INSERT",),
    "transfer_credits": ("INSERT",),
    "balance_assertions": ("INSERT",),
    "books_checkpoints": ("UPDATE",),
    "books_checks": ("UPDATE",),
    "books_violations": ("INSERT", "UPDATE"),
    "governance_heartbeats": ("INSERT", "UPDATE"),
}
"""The same for role settle_service."""

_WRITES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "settle_app": TENANT_WRITES,
    "settle_service": SERVICE_WRITES,
    "settle_operator": {},
}

_REVISION = text("SELECT version_num FROM alembic_version")

_RIGHTS = text(
    """
    SELECT current_user AS role, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication,
           EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
                      AND pg_has_role(current_user, c.relowner, 'MEMBER')) AS owns_tables,
           has_schema_privilege(current_user, 'public', 'CREATE') AS may_create,
           (SELECT string_agg(excess, ', ') FROM (
               SELECT c.relname || ' ' || p AS excess
                 FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                  AND has_table_privilege(current_user, c.oid, p)
                  AND NOT (c.relname || ' ' || p) = ANY (CAST(:allowed AS text[]))
                UNION ALL
               SELECT c.relname || '.' || a.attname || ' ' || p
                 FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,
                      unnest(ARRAY['INSERT', 'UPDATE']) p
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                  AND has_column_privilege(current_user, c.oid, a.attnum, p)
                  AND NOT has_table_privilege(current_user, c.oid, p)
                  AND NOT (c.relname = 'payment_attempts' AND (p = 'INSERT' OR a.attname IN (
                      'status', 'tx_hash', 'error_code', 'expires_at', 'submitted_at', 'submission_count',
                      'revenue_share')))
                ORDER BY 1 LIMIT 6) AS excesses) AS may_change,
           has_function_privilege(
               current_user, 'post_entry(text, bigint, text, text, text, jsonb)', 'EXECUTE') AS may_post_to_all,
           EXISTS (SELECT 1 FROM pg_class c
                    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                      AND has_any_column_privilege(current_user, c.oid, 'INSERT, UPDATE')) AS may_write
      FROM pg_roles WHERE rolname = current_user
    """
)

_SWITCHED_OFF = text(
    """
    SELECT (SELECT string_agg(c.relname, ', ') FROM pg_class c
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
               AND c.relname <> 'alembic_version' AND NOT (c.relrowsecurity AND c.relforcerowsecurity)) AS unprotected,
           (SELECT string_agg(DISTINCT c.relname, ', ') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
             WHERE c.relnamespace = 'public'::regnamespace AND t.tgenabled = 'D') AS unchecked
    """
)

_SYSTEM_TENANT = text("SELECT system_tenant_is_flagged()")


async def check_tenant_database(database: TenantDatabase) -> None:
    """Schema, system tenant, and no more rights than role settle_app has. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_rights(connection, setting="DATABASE_URL", role="settle_app")
        await _check_protection(connection)
        await _check_system_tenant(connection)


async def check_answers(database: TenantDatabase) -> None:
    """The server is there, and its role has no more rights than it needs. Raises `SettleError`."""
    async with database.unscoped() as connection:
        await _check_rights(connection, setting="DATABASE_URL", role="settle_app")


async def check_schema(database: TenantDatabase) -> None:
    """The schema is at the code's revision, and its protection is switched on. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_protection(connection)


async def check_system_tenant(database: TenantDatabase) -> None:
    """The system tenant is there and flagged. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_system_tenant(connection)


async def check_operator_database(database: OperatorDatabase) -> None:
    """Schema, and no more rights than role settle_operator has: it changes nothing. Raises `StartupCheckFailed`."""
    async with database.transaction() as transaction:
        connection = transaction.connection
        await _check_revision(connection)
        await _check_rights(connection, setting="OPERATOR_DATABASE_URL", role="settle_operator")


async def check_service_database(database: ServiceDatabase) -> None:
    """The same for role settle_service. Raises `StartupCheckFailed`."""
    async with database.transaction() as transaction:
        connection = transaction.connection
        await _check_revision(connection)
        await _check_rights(connection, setting="SERVICE_DATABASE_URL", role="settle_service")
        await _check_protection(connection)
        await _check_system_tenant(connection)


async def _check_revision(connection: AsyncConnection) -> None:
    try:
        found = (await connection.execute(_REVISION)).scalar_one_or_none()
    except ProgrammingError:
        raise StartupCheckFailed(f"the database has no schema yet; {RUN_MIGRATE}") from None
    if found is not None and found not in KNOWN_REVISIONS:
        raise StartupCheckFailed(
            f"the schema is at revision {found}, which this version does not know (it needs {SCHEMA_REVISION}); "
            "install the version that made it"
        )
    if found != SCHEMA_REVISION:
        raise StartupCheckFailed(f"the schema is at revision {found}, the code needs {SCHEMA_REVISION}; {RUN_MIGRATE}")


async def _check_rights(connection: AsyncConnection, *, setting: str, role: str) -> None:
    may_bypass_row_level_security = role == "settle_service"
    allowed = [f"{table} {right}" for table, rights in _WRITES[role].items() for right in rights]
    row = (await connection.execute(_RIGHTS, {"allowed": allowed})).one()
    excess = [
        words
        for words, found in (
            ("is a superuser", row.rolsuper),
            ("may create roles", row.rolcreaterole),
            ("may create databases", row.rolcreatedb),
            ("may replicate", row.rolreplication),
            ("owns tables", row.owns_tables),
            ("bypasses row-level security", row.rolbypassrls and not may_bypass_row_level_security),
            ("may create tables and functions", row.may_create),
            (f"may change what it should not ({row.may_change})", bool(row.may_change)),
            ("may post to every account", row.may_post_to_all and not may_bypass_row_level_security),
            ("may write", row.may_write and role == "settle_operator"),
        )
        if found
    ]
    if excess:
        raise StartupCheckFailed(
            f"{setting}: role {row.role} has more rights than it needs: it {', '.join(excess)}; "
            f"use role {role} as `settle migrate` makes it"
        )
    if may_bypass_row_level_security and not row.rolbypassrls:
        mend = (
            f"as a superuser run: ALTER ROLE {row.role} BYPASSRLS"
            if row.role == "settle_service"
            else "use role settle_service as `settle migrate` makes it"
        )
        raise StartupCheckFailed(
            f"{setting}: role {row.role} is bound by row-level security and would see nothing; {mend}"
        )


async def _check_protection(connection: AsyncConnection) -> None:
    row = (await connection.execute(_SWITCHED_OFF)).one()
    if row.unprotected:
        raise StartupCheckFailed(
            f"row-level security is not forced on {row.unprotected}; as the owner run, for each: "
            "ALTER TABLE ... ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        )
    if row.unchecked:
        raise StartupCheckFailed(
            f"triggers are switched off on {row.unchecked}; as the owner run, for each: "
            "ALTER TABLE ... ENABLE TRIGGER ALL, then: settle doctor"
        )


async def _check_system_tenant(connection: AsyncConnection) -> None:
    flagged = (await connection.execute(_SYSTEM_TENANT)).scalar_one()
    if flagged is None:
        raise StartupCheckFailed(f"the system tenant's account {SYSTEM_TENANT_ACCOUNT_ID} is missing; {RUN_MIGRATE}")
    if not flagged:
        raise StartupCheckFailed(
            f"account {SYSTEM_TENANT_ACCOUNT_ID} is not flagged as the system tenant; {RUN_MIGRATE}"
        )
