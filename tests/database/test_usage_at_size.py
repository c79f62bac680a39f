"""A report over ten million calls takes under a second, because it reads the sums of days by their index."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

import pytest
from sqlalchemy import text

from db.billing.reports import page_calls, report_sql, total_of, usage_report
from domain.billing.reports import UsageBy, UsagePeriod
from tests.support.payments import RolePair
from tests.support.sql import connect

CALLS: Final = 10_000_000
DAYS: Final = 90
KEYS: Final = 50
MODELS: Final = 20
TENANTS: Final = 2
"""Accounts that each key's calls are attributed to, the own one included."""

ROWS: Final = DAYS * KEYS * MODELS * TENANTS
OTHER_ACCOUNTS: Final = 10
"""Whose rows are beside this account's, four tenths as many each."""

SECONDS_MAX: Final = 1.0
TODAY: Final = datetime.now(UTC).date()
PERIOD: Final = UsagePeriod(TODAY - timedelta(days=DAYS - 1), TODAY)

# Straight into the sums, with triggers off: each row is what the charges of its calls would have added up to.
FILL: Final = f"""
    SET session_replication_role = replica;
    INSERT INTO users (id) SELECT 'other-' || a FROM generate_series(1, {OTHER_ACCOUNTS}) a;
    INSERT INTO billing_accounts (id, owner_user_id) SELECT 'other-' || a, 'other-' || a
      FROM generate_series(1, {OTHER_ACCOUNTS}) a;
    CREATE TEMPORARY TABLE new_keys AS SELECT gen_random_uuid() AS id, k FROM generate_series(1, {KEYS}) k;
    INSERT INTO virtual_keys (id, billing_account_id, label, created_by_user_id)
    SELECT n.id, %(account)s, 'Key ' || k, %(user)s FROM new_keys n;
    INSERT INTO usage_by_day (day, billing_account_id, virtual_key_id, model, attributed_to, calls, charged_credits,
                              provider_cost_usd, absorbed_cost_usd, input_tokens, cached_input_tokens, output_tokens)
    SELECT %(today)s::date - d, %(account)s, n.id, 'provider/model-' || m,
           CASE t WHEN 0 THEN '' ELSE 'tenant-' || t END,
           {CALLS // ROWS} + (d * {KEYS * MODELS * TENANTS} + (n.k - 1) * {MODELS * TENANTS} + (m - 1) * {TENANTS} + t
                              < {CALLS % ROWS})::int,
           1234567 + m * d, 0.0617283518375012 * m, 0.000123 * t, 812345, 102345, 212345
      FROM generate_series(0, {DAYS - 1}) d, new_keys n, generate_series(1, {MODELS}) m,
           generate_series(0, {TENANTS - 1}) t;
    INSERT INTO usage_by_day (day, billing_account_id, virtual_key_id, model, calls, charged_credits)
    SELECT %(today)s::date - d, 'other-' || a, gen_random_uuid(), 'provider/model-' || m, 3, 100
      FROM generate_series(0, {DAYS - 1}) d, generate_series(1, {OTHER_ACCOUNTS}) a,
           generate_series(1, {ROWS * 4 // 10 // DAYS}) m;
    SET session_replication_role = origin;
"""


@pytest.mark.slow
async def test_a_report_over_ten_million_calls_takes_under_a_second(roles: RolePair) -> None:
    owner = await roles.open_account(1)
    with connect(roles.database.superuser_url) as superuser:
        values = {"account": owner.billing_account_id, "user": owner.user_id, "today": TODAY}
        for statement in FILL.split(";"):
            if statement.strip():
                superuser.execute(statement.encode(), values if "%(" in statement else None)
        superuser.execute("ANALYZE usage_by_day")
    seconds: dict[UsageBy, float] = {}
    for by in UsageBy:
        async with roles.app.transaction(owner.user_id) as connection:
            started = time.perf_counter()
            rows = await usage_report(connection, by, PERIOD, billing_account_id=owner.billing_account_id)
            seconds[by] = time.perf_counter() - started
            arguments = {
                "account": owner.billing_account_id,
                "first": PERIOD.first,
                "last": PERIOD.last,
                "limit": 10_000,
            }
            query = f"EXPLAIN {report_sql(by, of_account=True)}"
            plan = "\n".join(row[0] for row in await connection.connection.execute(text(query), arguments))
        assert total_of(rows).calls == CALLS
        assert "usage_by_day_pkey" in plan, plan
        assert "Seq Scan on usage_by_day" not in plan, plan
    print(  # noqa: T201 - what was measured
        f"\n{ROWS:,} rows of {CALLS:,} calls; seconds by grouping:",
        {by.value: round(s, 2) for by, s in seconds.items()},
    )
    assert max(seconds.values()) < SECONDS_MAX, seconds


RECEIPTS: Final = 200_000

FILL_RECEIPTS: Final = """
    INSERT INTO charge_receipts (request_id, billing_account_id, virtual_key_id, charged_credits, provider_cost_usd,
                                 user_cost_usd, absorbed_cost_usd, source_system, source_reference, charge_reason,
                                 model, provider, unit_prices, called_at, created_at)
    SELECT 'req-' || n, %(account)s, %(key)s::uuid, 1, 0, 0, 0, 'test', %(key)s::text || n, 'completed', 'o3', 'openai',
           '{}', now(), now() - n * interval '30 seconds'
      FROM generate_series(1, %(receipts)s) n
"""


@pytest.mark.slow
async def test_a_page_of_calls_is_read_by_the_index_however_many_there_are(roles: RolePair) -> None:
    owner = await roles.open_account(1)
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        for account in (owner.billing_account_id, "another"):
            values = {"account": account, "key": str(uuid4()), "receipts": RECEIPTS}
            superuser.execute(FILL_RECEIPTS, values)
        superuser.execute("ANALYZE charge_receipts")
    before = None
    slowest = 0.0
    async with roles.app.transaction(owner.user_id) as connection:
        for _ in range(5):
            started = time.perf_counter()
            page = await page_calls(connection, owner.billing_account_id, limit=100, before=before)
            slowest = max(slowest, time.perf_counter() - started)
            assert len(page) == 100
            before = page[-1].position
    print(f"\n{2 * RECEIPTS:,} receipts; the slowest page of 100 took {slowest:.3f} s")  # noqa: T201
    assert slowest < SECONDS_MAX
