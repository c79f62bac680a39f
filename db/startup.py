"""What every process checks before it does anything: the schema, the system tenant, and its own rights."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import ServiceDatabase, TenantDatabase
from db.schema import SCHEMA_REVISION
from domain.errors import StartupCheckFailed
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID

RUN_MIGRATE: Final = "run: settle migrate"

_REVISION = text("SELECT version_num FROM alembic_version")

_RIGHTS = text(
    """
    SELECT current_user AS role, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication,
           EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
                      AND pg_has_role(current_user, c.relowner, 'MEMBER')) AS owns_tables,
           (SELECT string_agg(DISTINCT t || ' ' || p, ', ')
              FROM unnest(ARRAY['credit_ledger', 'journal_lines', 'payment_events', 'settled_transfers']) t,
                   unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) p
             WHERE (p <> 'INSERT' OR t IN ('credit_ledger', 'journal_lines'))
               AND (has_table_privilege(current_user, t, p)
                    OR (p IN ('INSERT', 'UPDATE') AND has_any_column_privilege(current_user, t, p)))) AS may_change,
           has_any_column_privilege(current_user, 'billing_accounts', 'INSERT, UPDATE') AS may_set_balance,
           has_function_privilege(
               current_user, 'post_entry(text, bigint, text, text, text, jsonb)', 'EXECUTE') AS may_post_to_all
      FROM pg_roles WHERE rolname = current_user
    """
)

_SYSTEM_TENANT = text("SELECT system_tenant_is_flagged()")


async def check_tenant_database(database: TenantDatabase) -> None:
    """Schema, system tenant, and no more rights than role settle_app has. Raises `StartupCheckFailed`."""
    async with database.unscoped() as connection:
        await _check_revision(connection)
        await _check_rights(connection, setting="DATABASE_URL", may_bypass_row_level_security=False)
        await _check_system_tenant(connection)


async def check_service_database(database: ServiceDatabase) -> None:
    """The same for role settle_service. Raises `StartupCheckFailed`."""
    async with database.transaction() as transaction:
        connection = transaction.connection
        await _check_revision(connection)
        await _check_rights(connection, setting="SERVICE_DATABASE_URL", may_bypass_row_level_security=True)
        await _check_system_tenant(connection)


async def _check_revision(connection: AsyncConnection) -> None:
    try:
        found = (await connection.execute(_REVISION)).scalar_one_or_none()
    except ProgrammingError:
        raise StartupCheckFailed(f"the database has no schema yet; {RUN_MIGRATE}") from None
    if found != SCHEMA_REVISION:
        raise StartupCheckFailed(f"the schema is at revision {found}, the code needs {SCHEMA_REVISION}; {RUN_MIGRATE}")


async def _check_rights(connection: AsyncConnection, *, setting: str, may_bypass_row_level_security: bool) -> None:
    row = (await connection.execute(_RIGHTS)).one()
    excess = [
        words
        for words, found in (
            ("is a superuser", row.rolsuper),
            ("may create roles", row.rolcreaterole),
            ("may create databases", row.rolcreatedb),
            ("may replicate", row.rolreplication),
            ("owns tables", row.owns_tables),
            ("bypasses row-level security", row.rolbypassrls and not may_bypass_row_level_security),
            (f"may change append-only tables ({row.may_change})", bool(row.may_change)),
            ("may set balances", row.may_set_balance),
            ("may post to every account", row.may_post_to_all and not may_bypass_row_level_security),
        )
        if found
    ]
    if excess:
        wanted = "settle_service" if may_bypass_row_level_security else "settle_app"
        raise StartupCheckFailed(
            f"{setting}: role {row.role} has more rights than it needs: it {', '.join(excess)}; "
            f"use role {wanted} as `settle migrate` makes it"
        )
    if may_bypass_row_level_security and not row.rolbypassrls:
        raise StartupCheckFailed(
            f"{setting}: role {row.role} is bound by row-level security and would see nothing; "
            f"as a superuser run: ALTER ROLE {row.role} BYPASSRLS"
        )


async def _check_system_tenant(connection: AsyncConnection) -> None:
    flagged = (await connection.execute(_SYSTEM_TENANT)).scalar_one()
    if flagged is None:
        raise StartupCheckFailed(f"the system tenant's account {SYSTEM_TENANT_ACCOUNT_ID} is missing; {RUN_MIGRATE}")
    if not flagged:
        raise StartupCheckFailed(
            f"account {SYSTEM_TENANT_ACCOUNT_ID} is not flagged as the system tenant; {RUN_MIGRATE}"
        )
