"""Append-only tables refuse change from every role, the tables' owner and a superuser included."""

from __future__ import annotations

import pytest
from psycopg import sql
from psycopg.errors import RestrictViolation

from tests.database.conftest import TwoTenants
from tests.support.sql import connect, query, refused, scalar

TABLES = ("credit_ledger", "journal_lines", "payment_events", "settled_transfers")
CHANGES = {
    "update": "UPDATE {} SET created_at = created_at",
    "update of no row": "UPDATE {} SET created_at = created_at WHERE false",
    "delete": "DELETE FROM {}",
    "truncate": "TRUNCATE {} CASCADE",
}


@pytest.mark.slow(but=tuple(f"owner-{table}-{change}" for table in TABLES for change in CHANGES))
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_an_append_only_table_refuses_change(two_tenants: TwoTenants, role: str, table: str, change: str) -> None:
    url = two_tenants.database.migration_url if role == "owner" else two_tenants.database.superuser_url
    statement = CHANGES[change].replace("created_at", "id") if table == "journal_lines" else CHANGES[change]
    if table == "journal_lines" and change.startswith("update"):
        statement = statement.replace("SET id = id", "SET amount = amount")
    before = scalar(two_tenants.database.service_url, f"SELECT count(*) FROM {table}")
    with refused(RestrictViolation, match=f"{table} is append-only"), connect(url) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(table)))
    assert scalar(two_tenants.database.service_url, f"SELECT count(*) FROM {table}") == before > 0


OTHERS = {
    *("balance_assertions", "charge_receipts", "charge_references", "general_entries", "operator_actions"),
    *("swept_transfers", "transfer_credits"),
}
HELD = """
    SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger
     WHERE tgfoid = 'refuse_change'::regproc AND tgparentid = 0 AND (tgtype & 24) <> 0
"""
"""Tables whose rows are neither changed nor deleted."""


def test_so_do_all_others_to_a_superuser(two_tenants: TwoTenants) -> None:
    database = two_tenants.database
    assert {table for (table,) in query(database.superuser_url, HELD)} >= OTHERS
    with connect(database.superuser_url) as connection:
        for table in sorted(OTHERS):
            column = "source_reference" if table == "charge_references" else "created_at"
            for statement in (f"UPDATE {table} SET {column} = {column} WHERE false", f"DELETE FROM {table}"):
                with refused(RestrictViolation, match="append-only"), connection.transaction():
                    connection.execute(statement.encode())


@pytest.mark.parametrize("table", ["billing_accounts", "payment_attempts", "users", "ledger_accounts", "virtual_keys"])
def test_emptying_a_table_that_the_books_refer_to_is_refused_too(two_tenants: TwoTenants, table: str) -> None:
    with refused(RestrictViolation, match="append-only"), connect(two_tenants.database.migration_url) as owner:
        owner.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.Identifier(table)))


def test_appending_is_what_remains(two_tenants: TwoTenants) -> None:
    statement = "INSERT INTO payment_events (attempt_id, event_type, to_status) VALUES (%s, 'note', 'CREDITED')"
    with connect(two_tenants.database.migration_url) as owner:
        assert owner.execute(statement, (two_tenants.alice.credited.id,)).rowcount == 1
