"""What is asked for every payment does not get slower with the number of payments."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import event

from db.accounts.wallets import Payer
from db.payments import attempts
from domain.payments.attempt import OPEN_STATUSES
from tests.support.payments import RolePair
from tests.support.sql import connect

PAYMENTS: Final = 5_000

# Straight into the tables, with triggers off: only the number of rows matters here.
FILL: Final = f"""
    SET session_replication_role = replica;
    INSERT INTO users (id) SELECT 'user-' || n FROM generate_series(1, {PAYMENTS}) n;
    INSERT INTO billing_accounts (id, owner_user_id) SELECT 'account-' || n, 'user-' || n
      FROM generate_series(1, {PAYMENTS}) n;
    INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, expires_at)
    SELECT 'account-' || n, '0x' || repeat('1', 40), 1, '0x' || repeat('2', 40), '0x' || repeat('3', 40),
           1000000, 100, now() FROM generate_series(1, {PAYMENTS}) n;
    INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference)
    SELECT 'cogni_system', 1, n, 'platform_revenue_share', gen_random_uuid() FROM generate_series(1, {PAYMENTS}) n;
    INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference)
    SELECT 'account-' || n, 1, 1, 'credits_purchase', gen_random_uuid() FROM generate_series(1, {PAYMENTS}) n;
    SET session_replication_role = origin;
    ANALYZE;
"""


def plan_of(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> str:
    """The plan of a statement as text; the statement is not run."""
    return "\n".join(str(row[0]) for row in connection.execute(f"EXPLAIN {statement}"))


STATEMENTS_OF_A_TENANT: Final = (
    "SELECT * FROM payment_attempts",
    "SELECT * FROM credit_ledger",
    "SELECT * FROM virtual_keys",
    "INSERT INTO payment_events (attempt_id, event_type, to_status) VALUES (gen_random_uuid(), 'x', 'y')",
    "SELECT * FROM payment_events WHERE attempt_id = gen_random_uuid()",
    "SELECT * FROM settled_transfers WHERE attempt_id = gen_random_uuid()",
)


async def test_a_tenant_never_reads_everybodys_rows_and_a_posting_not_the_account_s_history(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(FILL)
    for statement in STATEMENTS_OF_A_TENANT:
        with connect(roles.database.app_url, user_id=payer.user_id) as app:
            plan = plan_of(app, statement)
        for table in ("payment_attempts", "billing_accounts", "credit_ledger"):
            assert f"Seq Scan on {table}" not in plan, f"{statement}: {plan}"
    with connect(roles.database.migration_url) as owner:
        owner.execute("SET plan_cache_mode = force_generic_plan")
        owner.execute(
            "PREPARE find_entry (text, text, text) AS SELECT id FROM credit_ledger e"
            " WHERE e.billing_account_id = $1 AND e.reference = $2 AND e.reason = $3"
        )
        plan = plan_of(owner, "EXECUTE find_entry ('cogni_system', 'x', 'platform_revenue_share')")
    assert "credit_ledger_by_reference" in plan


@pytest.mark.slow
async def test_a_page_of_payments_does_not_read_the_account_s_history(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,"
            " amount_usd_cents, expires_at, created_at) SELECT %s, '0x' || repeat('1', 40), 1, '0x' || repeat('2', 40),"
            " '0x' || repeat('3', 40), 1000000, 100, now(), now() - n * interval '1 s' FROM generate_series(1, %s) n",
            (payer.billing_account_id, PAYMENTS),
        )
    with connect(roles.database.superuser_url) as superuser:
        # Other accounts', and all newer.
        superuser.execute(FILL)
    asked: list[tuple[str, dict[str, object]]] = []

    def note(_: object, cursor: object, statement: str, values: dict[str, object], *rest: object) -> None:
        if "FROM payment_attempts" in statement:
            asked.append((statement, values))

    event.listen(roles.app.engine.sync_engine, "before_cursor_execute", note)
    for statuses, before in ((None, None), (OPEN_STATUSES, None), (None, await newest(roles, payer))):
        async with roles.app.transaction(payer.user_id) as connection:
            found = await attempts.page_attempts(
                connection, payer.billing_account_id, statuses=statuses, limit=21, before=before
            )
        assert len(found) == 21
    with psycopg.connect(roles.database.app_url) as app:
        app.execute("SELECT set_config('settle.user_id', %s, false)", (payer.user_id,))
        for statement, values in asked:
            plan = "\n".join(
                str(row[0]) for row in app.execute(f"EXPLAIN (ANALYZE, BUFFERS) {statement}".encode(), values)
            )
            assert "payment_attempts_by_account" in plan, plan
            [buffers] = re.findall(r"shared hit=(\d+)", plan.splitlines()[1])
            assert int(buffers) < 200, plan


async def newest(roles: RolePair, payer: Payer) -> UUID:
    """Id of an account's newest attempt."""
    async with roles.app.transaction(payer.user_id) as connection:
        [found] = await attempts.page_attempts(connection, payer.billing_account_id, limit=1)
    return found.id
