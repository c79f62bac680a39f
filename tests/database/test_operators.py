"""The operators' queries: what the filters find, in pages, and a balance that leads back from what it is now."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import event

from db.engine import OperatorDatabase
from db.operations import operator_pages as operators
from db.operations.operator_pages import AttemptFilter, AttemptsPage, BalanceHistory
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.payments.attempt import AttemptStatus, Purpose
from tests.database.conftest import TwoTenants
from tests.support.payments import NOW, RolePair, tx_hash
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database
from tests.support.sql import connect


@pytest.fixture
async def reader(two_tenants: TwoTenants) -> AsyncIterator[OperatorDatabase]:
    """The operators' role on the database of `two_tenants`."""
    async with _opened(two_tenants.database) as opened:
        yield opened


@asynccontextmanager
async def _opened(database: Database) -> AsyncIterator[OperatorDatabase]:
    opened = OperatorDatabase(database.operator_url)
    try:
        yield opened
    finally:
        await opened.dispose()


async def _page(reader: OperatorDatabase, wanted: AttemptFilter | None = None, **options: Any) -> AttemptsPage:
    async with reader.transaction() as connection:
        return await operators.page_attempts(connection, wanted or AttemptFilter(), **{"limit": 100} | options)


def _ids(page: AttemptsPage) -> set[UUID]:
    return {attempt.id for attempt in page.attempts}


# -- filters


async def test_without_a_filter_every_tenants_attempts_are_listed_newest_first(
    two_tenants: TwoTenants, reader: OperatorDatabase
) -> None:
    page = await _page(reader)
    assert {attempt.billing_account_id for attempt in page.attempts} == {
        two_tenants.alice.account,
        two_tenants.bob.account,
    }
    assert len(page.attempts) == 12
    assert page.attempts == sorted(page.attempts, key=lambda attempt: (attempt.created_at, attempt.id), reverse=True)
    assert (page.older, page.newer, page.was_cut) == (None, None, False)


async def test_each_filter_finds_what_it_names_and_nothing_else(
    two_tenants: TwoTenants, reader: OperatorDatabase
) -> None:
    alice, bob = two_tenants.alice, two_tenants.bob
    found = [
        (AttemptFilter(status=AttemptStatus.REJECTED), {alice.rejected.id, bob.rejected.id}),
        (AttemptFilter(status=AttemptStatus.CREATED_INTENT), {alice.intent.id, bob.intent.id}),
        (AttemptFilter(status=AttemptStatus.FAILED), set()),
        (
            AttemptFilter(purpose=Purpose.SYSTEM),
            {tenant.donated.id for tenant in (alice, bob)} | {tenant.pending_donation.id for tenant in (alice, bob)},
        ),
        (AttemptFilter(tx_hash=alice.pending.tx_hash), {alice.pending.id}),
        (AttemptFilter(tx_hash=tx_hash(999)), set()),
        (AttemptFilter(billing_account_id="nobody"), set()),
        (AttemptFilter(billing_account_id=bob.account, purpose=Purpose.SYSTEM, status=AttemptStatus.CREDITED),
         {bob.donated.id}),
        (AttemptFilter(billing_account_id=bob.account, tx_hash=alice.pending.tx_hash), set()),
        (AttemptFilter(tx_hash=alice.pending.tx_hash, status=AttemptStatus.CREDITED), set()),
    ]  # fmt: skip
    for wanted, ids in found:
        assert _ids(await _page(reader, wanted)) == ids, wanted
    own = await _page(reader, AttemptFilter(billing_account_id=alice.account))
    assert len(own.attempts) == 6
    assert {attempt.billing_account_id for attempt in own.attempts} == {alice.account}


async def test_a_listed_attempt_is_what_the_database_has(two_tenants: TwoTenants, reader: OperatorDatabase) -> None:
    [listed] = (await _page(reader, AttemptFilter(tx_hash=two_tenants.bob.rejected.tx_hash))).attempts
    assert listed.id == two_tenants.bob.rejected.id
    assert (listed.status, listed.error_code, listed.purpose) == ("REJECTED", "INSUFFICIENT_AMOUNT", "self")
    assert (listed.amount_usd_cents, listed.billing_account_id) == (10_000, two_tenants.bob.account)
    assert (listed.from_address, listed.chain_id) == (two_tenants.bob.payer.wallet_address, 31_337)
    assert (listed.created_at, listed.tx_hash) == (NOW, two_tenants.bob.rejected.tx_hash)


async def test_each_status_is_counted(reader: OperatorDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reader.transaction() as connection:
        assert await operators.count_by_status(connection) == {
            "CREATED_INTENT": 2, "PENDING_UNVERIFIED": 4, "CREDITED": 4, "REJECTED": 2, "FAILED": 0, "REVERSED": 0,
        }  # fmt: skip
        monkeypatch.setattr(operators, "COUNTED_MAX", 2)
        assert max((await operators.count_by_status(connection)).values()) == 3


# -- pages


async def _make(roles: RolePair, number: int, **values: Any) -> list[UUID]:
    """Attempts, oldest first: three at each second, because nothing says that two are never made at once."""
    payer = await roles.open_account(1)
    made = [await roles.create(payer, created_at=NOW + timedelta(seconds=n // 3), **values) for n in range(number)]
    return [attempt.id for attempt in sorted(made, key=lambda attempt: (attempt.created_at, attempt.id))]


async def test_paging_older_and_back_meets_every_attempt_once(roles: RolePair) -> None:
    newest_first = (await _make(roles, 10))[::-1]
    async with _opened(roles.database) as reader:
        first = await _page(reader, limit=4)
        second = await _page(reader, limit=4, before=first.older)
        third = await _page(reader, limit=4, before=second.older)
        assert [len(page.attempts) for page in (first, second, third)] == [4, 4, 2]
        assert [attempt.id for page in (first, second, third) for attempt in page.attempts] == newest_first
        assert third.older is None
        assert first.newer is None
        back = await _page(reader, limit=4, after=third.newer)
        assert back.attempts == second.attempts
        assert await _page(reader, limit=4, before=back.older) == third
        again = await _page(reader, limit=4, after=back.newer)
        assert again.attempts == first.attempts
        assert again.newer is None


async def test_an_attempt_that_is_made_concurrently_moves_no_page(roles: RolePair) -> None:
    newest_first = (await _make(roles, 6))[::-1]
    async with _opened(roles.database) as reader:
        first = await _page(reader, limit=3)
        await roles.create(await roles.open_account(2), created_at=NOW + timedelta(hours=1))
        second = await _page(reader, limit=3, before=first.older)
    assert [attempt.id for attempt in second.attempts] == newest_first[3:]


async def test_a_page_that_is_just_full_has_no_next(roles: RolePair) -> None:
    await _make(roles, 4)
    async with _opened(roles.database) as reader:
        assert (await _page(reader, limit=4)).older is None
        assert (await _page(reader, limit=3)).older is not None


async def test_after_an_attempt_that_is_not_there_comes_nothing(
    two_tenants: TwoTenants, reader: OperatorDatabase
) -> None:
    assert (await _page(reader, before=uuid4())).attempts == []
    assert (await _page(reader, after=uuid4())).attempts == []


@pytest.mark.parametrize("purpose", [Purpose.SYSTEM, Purpose.SELF])
async def test_a_rare_combination_is_searched_a_window_at_a_time(
    roles: RolePair, monkeypatch: pytest.MonkeyPatch, purpose: Purpose
) -> None:
    """No index serves it, so it must not read on until it has found a whole page."""
    monkeypatch.setattr(operators, "SCANNED_MAX", 4)
    payer = await roles.open_account(1)
    other = Purpose.SELF if purpose is Purpose.SYSTEM else Purpose.SYSTEM
    wanted = (await roles.create(payer, purpose=purpose, created_at=NOW - timedelta(days=1))).id
    await _make(roles, 9, purpose=other)
    async with _opened(roles.database) as reader:
        pages = [await _page(reader, AttemptFilter(purpose=purpose), limit=2)]
        while pages[-1].older:
            pages.append(await _page(reader, AttemptFilter(purpose=purpose), limit=2, before=pages[-1].older))
        assert [[attempt.id for attempt in page.attempts] for page in pages] == [[], [], [wanted]]
        assert [page.was_cut for page in pages] == [True, True, False]
        # The way back is as long.
        back = await _page(reader, AttemptFilter(purpose=purpose), limit=2, after=wanted)
        assert (back.attempts, back.was_cut, back.older) == ([], True, wanted)
        assert back.newer is not None
        again = await _page(reader, AttemptFilter(purpose=purpose), limit=2, after=back.newer)
        assert (again.attempts, again.was_cut) == ([], True)


# -- the balance

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)


def _post(database: Database, *entries: tuple[timedelta, int, str]) -> None:
    """Entries of the system tenant at these times after `START`, posted by the function, then moved there."""
    for at, amount, reason in entries:
        reference = str(uuid4())
        with connect(database.service_url) as service:
            contra = "expense:platform_revenue_share" if reason == "platform_revenue_share" else "cash:usdc"
            service.execute(
                "SELECT * FROM post_entry('cogni_system', %s, %s, %s, %s, '{}')", (amount, reason, reference, contra)
            )
        with connect(database.superuser_url, triggers=False) as superuser:
            superuser.execute("UPDATE credit_ledger SET created_at = %s WHERE reference = %s", (START + at, reference))


async def _history(database: Database, hours: int = 24, **options: Any) -> BalanceHistory:
    values: dict[str, Any] = {"start": START, "end": START + hours * HOUR, "width": HOUR} | options
    async with _opened(database) as reader, reader.transaction() as connection:
        return await operators.balance_history(connection, SYSTEM_TENANT_ACCOUNT_ID, **values)


async def test_a_balance_over_time_leads_from_what_it_was_to_what_it_is(database: Database) -> None:
    _post(
        database,
        (-HOUR, 1_000, "system_donation"),  # before the period
        (0 * HOUR, 70, "platform_revenue_share"),  # its very first moment
        (HOUR - timedelta(microseconds=1), 30, "system_donation"),
        (HOUR, 5, "platform_revenue_share"),
        (3 * HOUR, -400, "usage"),
        (24 * HOUR, 9_000, "system_donation"),  # after it
    )
    history = await _history(database)
    assert (history.opening_credits, history.current_credits) == (1_000, 9_705)
    assert [
        (step.at - START, step.bonus_credits, step.donation_credits, step.other_credits, step.balance_credits)
        for step in history.steps
    ] == [
        (0 * HOUR, 70, 30, 0, 1_100),
        (1 * HOUR, 5, 0, 0, 1_105),
        (3 * HOUR, 0, 0, -400, 705),
    ]
    assert (history.bonus_credits, history.donation_credits, history.other_credits) == (75, 30, -400)


async def test_other_accounts_do_not_count(two_tenants: TwoTenants) -> None:
    now = datetime.now(UTC)
    history = await _history(two_tenants.database, start=now - HOUR, end=now + HOUR)
    assert history.current_credits == history.bonus_credits + history.donation_credits == 3_500_000_000
    assert (history.bonus_credits, history.opening_credits) == (1_500_000_000, 0)


async def test_a_ledger_without_entries_is_a_flat_balance(database: Database) -> None:
    history = await _history(database)
    assert (history.steps, history.opening_credits, history.current_credits) == ([], 0, 0)


@pytest.mark.parametrize("changes", [{"end": START + 201 * HOUR}, {"end": START}, {"width": timedelta(seconds=1)}])
async def test_more_points_than_a_picture_has_are_refused(database: Database, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at most 200"):
        await _history(database, **changes)


# -- plans: what is asked for every page does not get slower with the number of payments

PAYMENTS: Final = 10_000
DAYS: Final = 300

# Straight into the tables, with triggers off, over most of a year. One payment in a thousand is a donation, one in five
# thousand rejected; of the oldest tenth all are one account's, and half have failed: frequent, but not lately.
FILL: Final = f"""
    SET session_replication_role = replica;
    INSERT INTO users (id) SELECT 'user-' || n FROM generate_series(1, 1000) n;
    INSERT INTO billing_accounts (id, owner_user_id) SELECT 'account-' || n, 'user-' || n
      FROM generate_series(1, 1000) n;
    INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, purpose, status, error_code, tx_hash, submitted_at, revenue_share,
                                  expires_at, created_at)
    SELECT 'account-' || CASE WHEN n < {PAYMENTS} / 10 THEN 1 ELSE n % 900 + 10 END, '0x' || repeat('1', 40), 1,
           '0x' || repeat('2', 40), '0x' || repeat('3', 40), 1000000, 100,
           CASE WHEN n % 1000 = 0 THEN 'system' ELSE 'self' END,
           status, CASE WHEN status IN ('REJECTED', 'FAILED') THEN 'SENDER_MISMATCH' END,
           '0x' || lpad(n::text, 64, '0'), now(),
           CASE WHEN status = 'CREDITED' AND n % 1000 <> 0 THEN 0.75 END, NULL,
           '2026-01-01Z'::timestamptz + n * interval '{DAYS} days' / {PAYMENTS}
      FROM (SELECT n, CASE WHEN n % 5000 = 1 THEN 'REJECTED' WHEN n < {PAYMENTS} / 10 AND n % 2 = 0 THEN 'FAILED'
                           WHEN n % 7 = 0 THEN 'PENDING_UNVERIFIED' ELSE 'CREDITED' END AS status
              FROM generate_series(1, {PAYMENTS}) n) all_of_them;
    INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference, created_at)
    SELECT CASE WHEN n % 2 = 0 THEN 'cogni_system' ELSE 'account-' || n % 1000 + 1 END, 1, n,
           CASE WHEN n % 2 = 0 THEN 'platform_revenue_share' ELSE 'credits_purchase' END, gen_random_uuid(),
           '2026-01-01Z'::timestamptz + n * interval '{DAYS} days' / {2 * PAYMENTS}
      FROM generate_series(1, {2 * PAYMENTS}) n;
    SET session_replication_role = origin;
"""


@pytest.fixture(scope="module")
async def full_template(cluster: Cluster) -> Database:
    """A database with many payments."""
    database = await cluster.create(template=MIGRATED_TEMPLATE, name="full_of_payments")
    with connect(database.superuser_url) as superuser:
        superuser.execute(FILL)
    # As autovacuum does: it is what adds new pages to the index of times.
    with psycopg.connect(database.superuser_url, autocommit=True) as superuser:
        superuser.execute("VACUUM ANALYZE")
    return database


@contextmanager
def _noted(reader: OperatorDatabase) -> Iterator[list[tuple[str, Any]]]:
    """The statements that run in the block, as they are sent."""
    noted: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, _x: object, _many: bool) -> None:
        noted.append((statement, parameters))

    event.listen(reader.engine.sync_engine, "before_cursor_execute", note)
    yield noted
    event.remove(reader.engine.sync_engine, "before_cursor_execute", note)


async def _plans(reader: OperatorDatabase, statements: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The plans of queries, run and measured."""
    plans = []
    async with reader.transaction() as connection:
        for statement, parameters in statements:
            if "FROM" in statement and "set_config" not in statement:
                explained = await connection.connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
                )
                found = explained.scalar_one()
                plans.append((json.loads(found) if isinstance(found, str) else found)[0]["Plan"])
    return plans


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _rows_read(plan: dict[str, Any]) -> int:
    """The most rows that any one step of a plan has read from a table or an index."""
    return max(
        int((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for node in _nodes(plan)
        if "Relation Name" in node
    )


SCANNED: Final = 100
"""Instead of `SCANNED_MAX`, which is a good part of these few payments."""

REJECTED_EARLY: Final = tx_hash(0)[:-5] + "05001"


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize(
    ("wanted", "rows_max"),
    [
        (AttemptFilter(), 51),
        (AttemptFilter(status=AttemptStatus.CREDITED), 51),
        (AttemptFilter(status=AttemptStatus.REJECTED), 51),
        (AttemptFilter(status=AttemptStatus.FAILED), 51),
        (AttemptFilter(status=AttemptStatus.CREATED_INTENT), 51),
        (AttemptFilter(billing_account_id="account-1"), 51),
        (AttemptFilter(billing_account_id="account-70"), 51),
        (AttemptFilter(billing_account_id="nobody"), 51),
        (AttemptFilter(tx_hash=REJECTED_EARLY), 51),
        (AttemptFilter(tx_hash="0x" + "f" * 64), 51),
        (AttemptFilter(purpose=Purpose.SYSTEM), SCANNED),
        (AttemptFilter(purpose=Purpose.SYSTEM, status=AttemptStatus.CREDITED), SCANNED),
        (AttemptFilter(purpose=Purpose.SYSTEM, status=AttemptStatus.REJECTED), 51),
        (AttemptFilter(billing_account_id="account-1", status=AttemptStatus.REJECTED), SCANNED),
        (AttemptFilter(billing_account_id="account-1", status=AttemptStatus.FAILED), SCANNED),
        (AttemptFilter(billing_account_id="account-1", purpose=Purpose.SYSTEM), SCANNED),
        (AttemptFilter(tx_hash=REJECTED_EARLY, purpose=Purpose.SYSTEM, status=AttemptStatus.FAILED), 51),
    ],
)
@pytest.mark.parametrize("direction", ["newest", "before", "after"])
async def test_a_page_of_attempts_does_not_read_the_table(
    full_template: Database, wanted: AttemptFilter, rows_max: int, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "SCANNED_MAX", SCANNED)
    async with _opened(full_template) as reader:
        middle = (await _page(reader, AttemptFilter(tx_hash=tx_hash(0)[:-5] + "05000"))).attempts[0].id
        with _noted(reader) as noted:
            await _page(reader, wanted, limit=50, **({} if direction == "newest" else {direction: middle}))
        plans = await _plans(reader, noted)
    assert plans
    for plan in plans:
        # A few more: those of the same moment are sorted together.
        assert _rows_read(plan) <= rows_max + 10, json.dumps(plan, indent=1)


async def test_counting_does_not_read_the_table(full_template: Database) -> None:
    async with _opened(full_template) as reader:
        with _noted(reader) as noted:
            async with reader.transaction() as connection:
                counts = await operators.count_by_status(connection)
        [plan] = await _plans(reader, noted)
    assert counts[AttemptStatus.CREDITED] == operators.COUNTED_MAX + 1
    assert _rows_read(plan) <= len(AttemptStatus) * (operators.COUNTED_MAX + 1)


async def test_the_picture_of_a_day_reads_a_day_and_not_the_ledger(full_template: Database) -> None:
    end = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=DAYS, hours=1)
    with connect(full_template.superuser_url) as superuser:
        [(pages,)] = superuser.execute("SELECT pg_relation_size('credit_ledger') / 8192").fetchall()
    async with _opened(full_template) as reader:
        with _noted(reader) as noted:
            async with reader.transaction() as connection:
                history = await operators.balance_history(
                    connection,
                    SYSTEM_TENANT_ACCOUNT_ID,
                    start=end - timedelta(days=1),
                    end=end,
                    width=timedelta(minutes=10),
                )
        plan = (await _plans(reader, noted))[-1]
    assert history.bonus_credits == pytest.approx(PAYMENTS / DAYS, rel=0.1)
    assert history.current_credits - history.opening_credits == history.bonus_credits
    assert any(node.get("Index Name") == "credit_ledger_by_time" for node in _nodes(plan)), json.dumps(plan, indent=1)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < pages / 3
