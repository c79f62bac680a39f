"""What operators monitor continuously: the right numbers, by an index each."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import event

from db.engine import ServiceDatabase
from db.operations.gauges import Readings, read_gauges
from db.payments.finality import insert_finality
from devstack.processes import wait_until
from domain.errors import DatabaseUnavailable
from domain.payments.attempt import Purpose
from domain.payments.finality import FinalityLevel, FinalityPolicy
from services.operations.gauges import DatabaseGauges
from tests.support.payments import RolePair, transfer_for, tx_hash
from tests.support.spending import Spender
from tests.support.sql import connect

CHAIN_ID: Final = 31_337


async def read(roles: RolePair) -> Readings:
    """All gauges now."""
    async with roles.service.transaction() as connection:
        return await read_gauges(connection, chain_id=CHAIN_ID)


async def test_an_empty_system_has_numbers_too(roles: RolePair) -> None:
    assert await read(roles) == Readings(
        open_attempts={},
        pending_by_age={"under_1m": 0, "under_10m": 0, "under_1h": 0, "over_1h": 0},
        pending_oldest_seconds=0.0,
        open_findings={},
        cursors={},
        unread_blocks=0,
        system_tenant_balance_credits=0,
        last_heartbeat_at=None,
        last_reconciled_at=None,
        reconciliation_closes=None,
        books_violations={},
        books_checked_at=None,
    )


async def test_pending_payments_are_counted_by_their_age_on_both_sides_of_each_edge(roles: RolePair) -> None:
    now = datetime.now(UTC)
    intent = {"created_at": now, "expires_at": now + timedelta(minutes=30)}
    payer = await roles.open_account(1)
    for number in range(8):
        attempt = await roles.create(payer, **intent, purpose=Purpose.SYSTEM if number == 0 else Purpose.SELF)
        await roles.submit(attempt, tx_hash(number), at=now)
    await roles.create(payer, **intent)
    ages = ("0 s", "50 s", "70 s", "590 s", "610 s", "3590 s", "3610 s", "2 days")
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        for number, age in enumerate(ages):
            superuser.execute(
                "UPDATE payment_attempts SET submitted_at = now() - %s::interval WHERE tx_hash = %s",
                (age, tx_hash(number)),
            )
    readings = await read(roles)
    assert readings.pending_by_age == {"under_1m": 2, "under_10m": 2, "under_1h": 2, "over_1h": 2}
    assert 2 * 86_400 <= readings.pending_oldest_seconds < 2 * 86_400 + 600
    assert readings.open_attempts == {
        ("PENDING_UNVERIFIED", "self"): 7,
        ("PENDING_UNVERIFIED", "system"): 1,
        ("CREATED_INTENT", "self"): 1,
    }


async def test_findings_cursor_heartbeat_and_reconciliation_are_the_last_ones(roles: RolePair) -> None:
    await roles.settle(await roles.open_account(1), 1)
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO findings (key, kind, detail, value_raw, opened_at, resolved_at, resolution) VALUES"
            " ('a', 'surplus', 'x', 5, now() - interval '2 h', NULL, NULL),"
            " ('b', 'surplus', 'x', NULL, now() - interval '1 h', NULL, NULL),"
            " ('c', 'late_payment', 'x', 7, now(), now(), 'write_off')"
        )
        superuser.execute(
            "INSERT INTO chain_cursors"
            " (chain_id, token, to_address, first_block, block_number, head_number, updated_at)"
            " VALUES (31337, 'x', 'x', 0, 90, 100, now() - interval '1 h')"
        )
        superuser.execute(
            "INSERT INTO balance_assertions (chain_id, period_from, period_to, transfers, inflow_raw,"
            " purchases_credits, donations_credits, operator_credits, unapplied_raw, reversed_credits,"
            " ledger_debit_credits, ledger_credit_credits, differences, totals, closes)"
            " SELECT 31337, now() - n * interval '1 day' - interval '1 day', now() - n * interval '1 day',"
            " 0, 0, 0, 0, 0, 0, 0, 0, 0, '{}', '{}', n > 0 FROM generate_series(0, 1) n"
        )
        superuser.execute(
            "INSERT INTO books_violations (check_name, subject, detail, resolved_at) VALUES"
            " ('bonus_missing', 'a', 'x', NULL), ('bonus_missing', 'b', 'x', now())"
        )
    readings = await read(roles)
    assert readings.open_findings.keys() == {"surplus"}
    assert readings.open_findings["surplus"].findings == 2
    assert readings.open_findings["surplus"].value_raw == 5
    assert 7200 <= readings.open_findings["surplus"].oldest_seconds < 7800
    assert readings.cursors[CHAIN_ID].lag_blocks == 10
    assert 3600 <= readings.cursors[CHAIN_ID].age_seconds < 4200
    assert readings.reconciliation_closes is False
    assert readings.system_tenant_balance_credits == 750_000_000
    assert readings.books_violations == {"bonus_missing": 1}


async def test_a_retired_treasury_is_not_behind(roles: RolePair) -> None:
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO chain_cursors"
            " (chain_id, token, to_address, first_block, block_number, head_number, updated_at, retired_at)"
            " VALUES (31337, 'x', 'x', 0, 90, 100, now() - interval '1 h', now()),"
            "        (31337, 'x', 'y', 0, 99, 100, now(), NULL)"
        )
        superuser.execute(
            "INSERT INTO chain_gaps (chain_id, token, to_address, first_block, last_block, reason, read_at) VALUES"
            " (31337, 'x', 'y', 1, 10, 'pruned', NULL), (31337, 'x', 'y', 20, 29, 'pruned', now())"
        )
    readings = await read(roles)
    assert readings.cursors[CHAIN_ID].lag_blocks == 1
    assert readings.cursors[CHAIN_ID].age_seconds < 600
    assert readings.unread_blocks == 10


async def test_the_oldest_payment_that_is_not_final_is_reported_by_the_level_that_it_needs(roles: RolePair) -> None:
    def oldest(level: FinalityLevel) -> float:
        labels = {"chain": str(CHAIN_ID), "level": level.value}
        return REGISTRY.get_sample_value("settle_finality_oldest_seconds", labels) or 0.0

    policy = FinalityPolicy(level=FinalityLevel.SAFE, large_level=FinalityLevel.FINALIZED, large_from_usd_cents=50_000)
    gauges = DatabaseGauges(roles.service, chain_id=CHAIN_ID, finality=policy)
    payer = await roles.open_account(1)
    small = await roles.settle(payer, 1, cents=49_999)
    await roles.settle(payer, 2, cents=50_000)
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        for number, age in ((1, "3 h"), (2, "2 h")):
            superuser.execute(
                f"UPDATE settled_transfers SET created_at = now() - interval '{age}' WHERE tx_hash = %s",
                (tx_hash(number),),
            )
    for _ in range(2):
        await gauges.refresh()
        assert 3 * 3_600 <= oldest(FinalityLevel.SAFE) < 3 * 3_600 + 600
        assert 2 * 3_600 <= oldest(FinalityLevel.FINALIZED) < 2 * 3_600 + 600
    async with roles.service.transaction() as connection:
        transfer = transfer_for(small.model_copy(update={"tx_hash": tx_hash(1)}))
        await insert_finality(connection, small.id, transfer, FinalityLevel.SAFE, outcome="final")
    await gauges.refresh()
    assert oldest(FinalityLevel.SAFE) == 0
    assert oldest(FinalityLevel.FINALIZED) > 0
    await roles.settle(payer, 3, cents=100)
    await gauges.refresh()
    assert oldest(FinalityLevel.SAFE) > 0, "one that was credited after all were final"


async def test_holds_that_should_be_resolved_by_now_are_counted(roles: RolePair) -> None:
    spender = Spender.open(roles.database, credits=1_000)
    gauges = DatabaseGauges(roles.service, chain_id=CHAIN_ID)
    hold_id = spender.hold(10)
    for minutes, expected in ((9, 0), (11, 1)):
        with connect(roles.database.superuser_url) as superuser:
            superuser.execute(
                "UPDATE credit_holds SET lease_until = clock_timestamp() - make_interval(mins => %s)", (minutes,)
            )
        await gauges.refresh()
        assert REGISTRY.get_sample_value("settle_holds_lapsed") == expected
    spender.capture(hold_id, 5)
    await gauges.refresh()
    assert REGISTRY.get_sample_value("settle_holds_lapsed") == 0


# Of each table more pages than a gauge may read.
FILL: Final = """
    INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, status, error_code, created_at)
    SELECT 'x', '0x' || repeat('1', 40), 1, '0x' || repeat('2', 40), '0x' || repeat('3', 40), 1000000, 100, 'FAILED',
           'INTENT_EXPIRED', now() FROM generate_series(1, 5000) n;
    INSERT INTO findings (key, kind, detail, resolved_at, resolution)
    SELECT n, 'surplus', 'x', now(), 'write_off' FROM generate_series(1, 5000) n;
    INSERT INTO books_violations (check_name, subject, detail, resolved_at)
    SELECT 'x', n, 'x', now() FROM generate_series(1, 8000) n;
    ANALYZE;
"""


async def test_no_gauge_reads_what_is_over(roles: RolePair) -> None:
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(FILL)
    asked: list[tuple[str, dict[str, object]]] = []

    def note(_: object, cursor: object, statement: str, values: dict[str, object], *rest: object) -> None:
        asked.append((statement, values))

    event.listen(roles.service.engine.sync_engine, "before_cursor_execute", note)
    await read(roles)
    assert len(asked) == 10
    with psycopg.connect(roles.database.service_url) as connection:
        for statement, values in asked:
            plan = "\n".join(
                str(row[0]) for row in connection.execute(f"EXPLAIN (ANALYZE, BUFFERS) {statement}".encode(), values)
            )
            execution, _, _ = plan.partition("Planning:")
            buffers = [int(number) for number in re.findall(r"shared hit=(\d+)", execution)]
            assert max(buffers, default=0) < 50, plan


async def test_gauges_that_cannot_be_read_stay_as_they_are_and_grow_old(
    roles: RolePair, caplog: pytest.LogCaptureFixture
) -> None:
    def refreshed() -> float:
        return REGISTRY.get_sample_value("settle_gauges_refreshed_timestamp_seconds") or 0.0

    async with DatabaseGauges(roles.service, chain_id=CHAIN_ID, every_seconds=0.01).refreshing():
        before = refreshed()
        await wait_until(lambda: refreshed() > before, timeout_seconds=30, what="a fresh gauge")
    before = refreshed()
    gone = ServiceDatabase(roles.database.service_url.replace(roles.database.name, "not_there"))
    with pytest.raises(DatabaseUnavailable):
        await DatabaseGauges(gone, chain_id=CHAIN_ID).refresh()
    async with DatabaseGauges(gone, chain_id=CHAIN_ID, every_seconds=0.01).refreshing():
        await wait_until(lambda: "could not refresh" in caplog.text, timeout_seconds=30, what="a word about it")
    assert refreshed() == before
    await gone.dispose()
