"""The integrity scan checks what is new, misses nothing of it, and remembers what was wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import psycopg
import pytest
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.ledger import integrity_scan as bookkeeping
from activities.ledger.integrity_scan import BookkeepingActivities, check_all_books, check_books
from activities.ledger.signatures import BooksToCheck
from bench.books import Ledger
from db.engine import ServiceConnection
from db.ledger import integrity_scan as books_check
from db.ledger.integrity_scan import ROWS_MAX, Round
from db.ledger.invariants import CHECK_NAMES, find_violations
from domain.payments.attempt import PaymentAttempt, Purpose
from tests.support.database_pool import DatabasePool
from tests.support.payments import RolePair, open_roles, tx_hash
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database
from tests.support.spending import Spender
from tests.support.sql import Connection, connect, lent, query, scalar

PENDING_MAX: Final = timedelta(days=1)
LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)

CHECKPOINTS: Final = "SELECT stream, checked_to FROM books_checkpoints"
NEWEST: Final = """
    SELECT 'entries', coalesce(max(entry_seq), 0) FROM credit_ledger
     UNION ALL SELECT 'lines', coalesce(max(id), 0) FROM journal_lines
     UNION ALL SELECT 'events', coalesce(max(id), 0) FROM payment_events
"""


@pytest.fixture(autouse=True)
def nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds a checkpoint up here does so on purpose."""
    monkeypatch.setattr(bookkeeping, "HELD_SECONDS", 0.0)
    monkeypatch.setattr(bookkeeping, "HELD_TRIES", 3)


async def check(roles: RolePair, *, rows_max: int = ROWS_MAX) -> set[str]:
    """One run over what is new; the names of the checks that have a violation on record."""
    await check_books(roles.service, pending_max=PENDING_MAX, rows_max=rows_max)
    return on_record(roles.database)


async def check_everything(roles: RolePair, *, rows_max: int = ROWS_MAX) -> set[str]:
    """A run over what is new, and one over all rows."""
    await check_books(roles.service, pending_max=PENDING_MAX, rows_max=rows_max)
    await check_all_books(roles.service, pending_max=PENDING_MAX, rows_max=rows_max)
    return on_record(roles.database)


def on_record(database: Database) -> set[str]:
    """The names of the checks with open violations."""
    return {
        name
        for (name,) in query(database.service_url, "SELECT check_name FROM books_violations WHERE resolved_at IS NULL")
    }


def found_last(database: Database) -> set[str]:
    """Those that were found since `forget`, and are open."""
    statement = "SELECT check_name FROM books_violations WHERE resolved_at IS NULL AND last_seen_at > %s"
    return {name for (name,) in query(database.service_url, statement, LONG_AGO)}


def age(database: Database) -> None:
    """Let everything that was written so far have happened an hour ago: nothing that follows it is still to come."""
    at_once(
        database,
        "UPDATE payment_events SET created_at = created_at - interval '1 hour'",
        "UPDATE credit_ledger SET created_at = created_at - interval '1 hour'",
        "UPDATE payment_attempts SET updated_at = updated_at - interval '1 hour'",
    )


def forget(database: Database) -> None:
    """Let nothing have been checked; what is on record was found long ago."""
    at_once(
        database,
        f"UPDATE books_violations SET last_seen_at = '{LONG_AGO}'",
        "UPDATE books_checkpoints SET checked_to = 0, safe_to = 0, mark = 0",
        "UPDATE books_checks SET mark_xid = 0, debits = 0, credits = 0, round = '{}'",
    )


def at_once(database: Database, *statements: str) -> None:
    """Statements of the superuser in one transaction, and one message, without triggers and foreign keys."""
    with lent(database.superuser_url) as superuser:
        superuser.execute(
            "; ".join(("BEGIN; SET LOCAL session_replication_role = replica", *statements, "COMMIT")).encode()
        )


def checkpoints(database: Database) -> dict[str, int]:
    """How far each stream is checked."""
    return dict(query(database.service_url, CHECKPOINTS))


def newest(database: Database) -> dict[str, int]:
    """The number of each stream's last row."""
    return dict(query(database.service_url, NEWEST))


@dataclass(frozen=True, slots=True)
class Shop:
    """A database with one attempt of each outcome, all long ago."""

    roles: RolePair
    bought: PaymentAttempt
    donated: PaymentAttempt
    reversed: PaymentAttempt
    intent: PaymentAttempt
    pending: PaymentAttempt

    @property
    def database(self) -> Database:
        """Where it all is."""
        return self.roles.database


@pytest.fixture(scope="session")
async def shop_template(cluster: Cluster) -> Shop:
    """The database that `shop` copies."""
    database = await cluster.create(template=MIGRATED_TEMPLATE, name="shop_template")
    async with open_roles(database) as roles:
        return await _open_shop(roles)


@pytest.fixture(scope="module")
async def shops(shop_template: Shop, cluster: Cluster) -> AsyncIterator[DatabasePool]:
    """Where `shop` comes from."""
    pool = DatabasePool(cluster, shop_template.database.name)
    yield pool
    await pool.close()


@pytest.fixture
async def shop(shop_template: Shop, shops: DatabasePool) -> AsyncIterator[Shop]:
    """Nothing in it has been checked, and nothing is wrong."""
    async with shops.database() as roles:
        yield replace(shop_template, roles=roles)


async def _open_shop(roles: RolePair) -> Shop:
    now = datetime.now(UTC)
    intent = {"created_at": now, "expires_at": now + timedelta(minutes=30)}
    payer = await roles.open_account(1)
    bought = await roles.settle(payer, 1)
    donated = await roles.settle(payer, 2, purpose=Purpose.SYSTEM)
    gone = await roles.settle(payer, 3)
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(REVERSE, {"attempt_id": gone.id, "reference": str(gone.id)})
        superuser.execute(OPERATORS_CREDIT, {"account": payer.billing_account_id})
        superuser.execute(SWEPT_METHOD)
        superuser.execute(SWEEP, {"account": payer.billing_account_id})
    pending = await roles.create(payer, **intent)
    await roles.submit(pending, tx_hash(4), at=now)
    shop = Shop(roles, bought, donated, gone, await roles.create(payer, **intent), pending)
    _spend(Spender(roles.database, payer.billing_account_id))
    age(roles.database)
    return shop


def _spend(buyer: Spender) -> None:
    """A call that was charged, one whose cost the platform bears, one that cost nothing, and one that is in flight."""
    buyer.create_key()
    buyer.capture(buyer.hold(), 700)
    absorbed = Decimal("0.00001")
    buyer.capture(buyer.hold(), 0, provider_cost_usd=absorbed, absorbed_cost_usd=absorbed)
    buyer.void(buyer.hold())
    buyer.hold()


REVERSE: Final = """
    WITH given AS (
        SELECT * FROM credit_ledger WHERE reference = %(reference)s
    ), taken AS (
        SELECT g.*, p.* FROM given g, LATERAL post_entry(
            g.billing_account_id, -g.amount, 'payment_reversal', g.reference,
            CASE g.reason WHEN 'credits_purchase' THEN 'cash:usdc' ELSE 'expense:platform_revenue_share' END, '{}') p
    ), gone AS (
        INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash,
                                       level)
        SELECT attempt_id, 'reversed', chain_id, tx_hash, log_index, block_number, block_hash, 'safe'
          FROM settled_transfers WHERE attempt_id = %(attempt_id)s
    )
    UPDATE payment_attempts SET status = 'REVERSED' WHERE id = %(attempt_id)s AND (SELECT count(*) FROM taken) = 2
"""

SWEPT_METHOD: Final = """
    INSERT INTO payment_methods (id, chain_id, token, address, decimals, kind, scheme)
    VALUES ('USDC:test', 1, 'USDC', '0x' || repeat('c', 40), 6, 'erc20', 'create2')
"""
SWEEP: Final = """
    WITH address AS (
        INSERT INTO deposit_addresses (chain_id, address, scheme, salt, treasury, billing_account_id)
        VALUES (1, '0x' || repeat('d', 40), 'create2', '0x' || repeat('0', 64), '0x' || repeat('e', 40), %(account)s)
        RETURNING id, treasury
    )
    SELECT book_swept_transfer(1, '0x' || repeat('f', 64), 0, a.id, 'USDC:test', a.treasury, 5, 50, 1,
                               '0x' || repeat('b', 64))
      FROM address a
"""

OPERATORS_CREDIT: Final = """
    WITH found AS (
        INSERT INTO findings (key, kind, detail) VALUES ('x', 'transfer_without_intent', 'x') RETURNING id
    ), credited AS (
        INSERT INTO transfer_credits (chain_id, tx_hash, log_index, part, block_number, block_hash, from_address,
                                      finding_id, billing_account_id, value_raw, amount_credits, revenue_share,
                                      reference)
        SELECT 1, h, 0, 'whole', 1, h, '0x' || repeat('1', 40), id, %(account)s, 1000, 10000, 0.5,
               'transfer:1:' || h || ':0'
          FROM found, (SELECT '0x' || repeat('a', 64) AS h) hashes RETURNING reference
    )
    SELECT post_entry(%(account)s, 10000, 'operator_credit', reference, 'cash:usdc', '{}'),
           post_entry('cogni_system', 5000, 'platform_revenue_share', reference, 'expense:platform_revenue_share', '{}')
      FROM credited
"""

# What can be done to the tables with the triggers switched off.
BREAK: Final[dict[str, str]] = {
    "trial_balance": "UPDATE journal_lines SET amount = amount + 1 WHERE side = 'debit'",
    "line_without_entry": "UPDATE journal_lines SET entry_id = gen_random_uuid() WHERE id = 1",
    "entry_balanced": "UPDATE journal_lines SET amount = 1 WHERE entry_id = (SELECT id FROM credit_ledger LIMIT 1)",
    "general_entry_balanced": "UPDATE journal_lines SET amount = amount + 1 WHERE account_code = 'expense:absorbed'",
    "sweep_without_transfer": "UPDATE swept_transfers SET credits = credits + 1",
    "held_credits": "UPDATE billing_accounts SET held_credits = held_credits + 1 WHERE held_credits > 0",
    "usage_without_receipt": "DELETE FROM charge_receipts",
    "running_balance": "UPDATE credit_ledger SET balance_after = balance_after + 1 WHERE entry_seq = 1",
    "account_balance": "UPDATE billing_accounts SET balance_credits = balance_credits + 1",
    "credited_attempt": "DELETE FROM settled_transfers WHERE attempt_id = '{bought}'",
    "reversed_attempt": "UPDATE credit_ledger SET amount = amount - 1"
    " WHERE reference = '{reversed}' AND reason = 'payment_reversal'",
    "bonus_without_purchase": "UPDATE credit_ledger SET reference = gen_random_uuid()"
    " WHERE reference = '{bought}' AND reason = 'platform_revenue_share'",
    "bonus_amount": "UPDATE payment_attempts SET revenue_share = 0.7 WHERE id = '{bought}'",
    "bonus_missing": "UPDATE credit_ledger SET reason = 'gift'"
    " WHERE reference = '{bought}' AND reason = 'platform_revenue_share'",
    "operator_bonus_missing": "UPDATE credit_ledger SET reason = 'gift'"
    " WHERE reference LIKE 'transfer:%' AND reason = 'platform_revenue_share'",
    "intent_overdue": "UPDATE payment_attempts SET expires_at = now() - interval '11 minutes' WHERE id = '{intent}'",
    "pending_overdue": "UPDATE payment_attempts SET created_at = now() - interval '2 days',"
    " submitted_at = now() - interval '1 day 1 minute' WHERE id = '{pending}'",
}

# The same in other ways: whose entry it is, of how much, and which way round.
BREAK_OTHERWISE: Final[dict[str, list[str]]] = {
    "general_entry_balanced": [
        "WITH e AS (INSERT INTO general_entries (reason, reference) VALUES ('absorbed_cost', 'x') RETURNING id)"
        " INSERT INTO journal_lines (entry_id, account_code, side, amount) SELECT id, 'cash:usdc', 'debit', 1 FROM e",
        "UPDATE journal_lines SET account_code = 'credits:cogni_system' WHERE account_code = 'expense:absorbed'",
    ],
    "sweep_without_transfer": [
        "DELETE FROM swept_transfers",
        "UPDATE general_entries SET reference = 'x' WHERE reason = 'sweep'",
        "UPDATE swept_transfers SET entry_id = gen_random_uuid()",
    ],
    "held_credits": [
        "UPDATE credit_holds SET state = 'voided', resolved_at = now() WHERE state = 'held'",
        "UPDATE credit_holds SET amount_credits = amount_credits + 1 WHERE state = 'held'",
        "UPDATE credit_holds SET state = 'held', resolved_at = NULL WHERE state = 'voided'",
    ],
    "usage_without_receipt": [
        "UPDATE credit_ledger SET reason = 'llm_usage'"
        " WHERE id = (SELECT id FROM credit_ledger WHERE reason = 'payment_reversal' LIMIT 1)",
        "DELETE FROM charge_references",
        "UPDATE charge_references SET source_system = 'another'",
        "UPDATE charge_references SET receipt_id = gen_random_uuid()",
        "UPDATE charge_references SET receipt_created_at = receipt_created_at - interval '1 second'",
        "UPDATE charge_receipts SET charged_credits = charged_credits + 1",
        "UPDATE charge_receipts SET billing_account_id = 'cogni_system'",
        "UPDATE charge_receipts SET entry_id = gen_random_uuid()",
        "UPDATE credit_ledger SET reference = 'gateway' WHERE reason = 'llm_usage'",
        "UPDATE charge_receipts SET provider_cost_usd = provider_cost_usd * 2, absorbed_cost_usd = 0",
    ],
    "entry_balanced": [
        "UPDATE journal_lines SET account_code = 'credits:cogni_system' WHERE account_code = 'cash:usdc'",
        "UPDATE journal_lines SET side = CASE side WHEN 'debit' THEN 'credit' ELSE 'debit' END",
        "DELETE FROM journal_lines",
        "INSERT INTO journal_lines (entry_id, account_code, side, amount)"
        " SELECT id, 'cash:usdc', side, 1 FROM credit_ledger, (VALUES ('debit'), ('credit')) s (side)",
        "INSERT INTO journal_lines (entry_id, account_code, side, amount)"
        " SELECT id, 'cash:usdc', 'credit', 1 FROM credit_ledger LIMIT 1",
        "UPDATE journal_lines SET account_code = 'cash:usdc' WHERE account_code = 'revenue:usage'",
        "UPDATE journal_lines SET account_code = 'revenue:usage'"
        " WHERE account_code LIKE 'credits:%' AND side = 'credit'",
        "UPDATE journal_lines SET account_code = 'credits:cogni_system' WHERE account_code = 'cash:usdc'"
        " AND entry_id = (SELECT id FROM credit_ledger WHERE reference = '{bought}' AND reason = 'credits_purchase')",
    ],
    "running_balance": [
        "UPDATE credit_ledger SET balance_after = balance_after + 1 WHERE billing_account_id = 'cogni_system'"
    ],
    "credited_attempt": [
        "UPDATE credit_ledger SET amount = amount - 1 WHERE reference = '{bought}' AND reason = 'credits_purchase'",
        "UPDATE credit_ledger SET billing_account_id = 'cogni_system' WHERE reference = '{bought}'",
        "UPDATE credit_ledger SET billing_account_id = 'x' WHERE reference = '{donated}'",
        "UPDATE credit_ledger SET reason = 'gift' WHERE reference = '{reversed}' AND reason = 'credits_purchase'",
    ],
    "reversed_attempt": [
        "DELETE FROM transfer_finality",
        "UPDATE transfer_finality SET attempt_id = '{bought}'",
        "UPDATE transfer_finality SET outcome = 'final'",
        "UPDATE credit_ledger SET reference = gen_random_uuid() WHERE reason = 'payment_reversal'",
        "UPDATE credit_ledger SET billing_account_id = 'x'"
        " WHERE reason = 'payment_reversal' AND billing_account_id <> 'cogni_system'",
        "UPDATE credit_ledger SET reason = 'gift'"
        " WHERE reason = 'payment_reversal' AND billing_account_id = 'cogni_system'",
    ],
    "bonus_without_purchase": [
        "UPDATE payment_attempts SET purpose = 'system', revenue_share = NULL WHERE id = '{bought}'",
        "UPDATE payment_attempts SET status = 'FAILED', error_code = 'x', revenue_share = NULL WHERE id = '{bought}'",
        "UPDATE credit_ledger SET reference = 'no id' WHERE reference = '{bought}'",
        "DELETE FROM transfer_credits",
    ],
    "bonus_amount": [
        "UPDATE credit_ledger SET billing_account_id = 'x' WHERE reason = 'platform_revenue_share'",
        "UPDATE transfer_credits SET revenue_share = 0.6",
    ],
}
TABLES: Final = (
    "credit_ledger", "journal_lines", "billing_accounts", "payment_attempts", "settled_transfers", "transfer_finality",
    "transfer_credits", "general_entries", "swept_transfers", "credit_holds", "charge_receipts", "charge_references",
)  # fmt: skip


@contextmanager
def broken(shop: Shop, statement: str) -> Iterator[None]:
    """What the statement does, until the end of the block; then every table is as it was."""
    ids = {name: str(getattr(shop, name).id) for name in ("bought", "donated", "reversed", "intent", "pending")}
    # Without triggers a statement changes the tables that it names; one that calls a function may change any.
    tables = TABLES if "post_entry(" in statement else [name for name in TABLES if name in statement]
    backups = [f"CREATE TABLE backup_{name} AS TABLE {name}" for name in tables]
    at_once(shop.database, *backups, statement.format_map(ids))
    yield
    at_once(
        shop.database,
        *(
            f"DELETE FROM {name}; INSERT INTO {name} OVERRIDING SYSTEM VALUE TABLE backup_{name};"
            f" DROP TABLE backup_{name}"
            for name in tables
        ),
    )


# -- what is found


async def test_right_books_are_right_and_are_checked_to_their_end(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    assert checkpoints(shop.database) == newest(shop.database)
    assert await check_everything(shop.roles) == set()


def test_every_check_is_broken_here() -> None:
    assert {*BREAK, "recount"} == set(CHECK_NAMES)


async def test_what_is_wrong_with_new_rows_is_found_until_it_is_fixed(shop: Shop) -> None:
    for name in BREAK:
        for statement in (BREAK[name], *BREAK_OTHERWISE.get(name, ())):
            forget(shop.database)
            with broken(shop, statement):
                await check(shop.roles)
                assert name in found_last(shop.database), (name, statement)
                if statement is BREAK[name]:
                    # The checkpoints have moved on: it is on record, not found again.
                    assert name in await check(shop.roles)
    forget(shop.database)
    assert await check(shop.roles) == set()


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("bonus_missing", "SELECT '{bought}'"),
        ("operator_bonus_missing", "SELECT id::text FROM credit_ledger WHERE reason = 'operator_credit'"),
    ],
)
async def test_a_bonus_that_is_missing_is_that_of_its_own_payment(shop: Shop, name: str, own: str) -> None:
    with broken(shop, BREAK[name]):
        await check(shop.roles)
    found = query(shop.database.service_url, "SELECT subject FROM books_violations WHERE check_name = %s", name)
    assert found == query(shop.database.superuser_url, own.format(bought=shop.bought.id))


@pytest.mark.slow(but=("trial_balance", "bonus_amount", "pending_overdue"))
@pytest.mark.parametrize("name", BREAK)
async def test_what_is_done_to_checked_rows_is_found_by_the_check_of_everything(shop: Shop, name: str) -> None:
    assert await check(shop.roles) == set()
    for statement in (BREAK[name], *BREAK_OTHERWISE.get(name, ())):
        with broken(shop, statement):
            # The sums of lines that were checked are on record: their own check is the one that finds a change.
            assert {"trial_balance": "recount"}.get(name, name) in await check_everything(shop.roles), statement
        assert await check_everything(shop.roles) == set(), statement


@pytest.mark.parametrize("name", ["intent_overdue", "pending_overdue"])
async def test_what_becomes_overdue_is_found_though_nothing_happens_to_it(shop: Shop, name: str) -> None:
    assert await check(shop.roles) == set()
    assert checkpoints(shop.database) == newest(shop.database)
    with broken(shop, BREAK[name]):
        assert await check(shop.roles) == {name}
    assert await check(shop.roles) == set()


async def test_held_credits_that_change_though_no_entry_does_are_found(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    assert checkpoints(shop.database) == newest(shop.database)
    for statement in (BREAK["held_credits"], BREAK_OTHERWISE["held_credits"][1]):
        with broken(shop, statement):
            assert await check(shop.roles) == {"held_credits"}
        assert await check(shop.roles) == set()


async def test_a_hold_that_was_released_on_the_account_alone_is_found_by_the_part_over_old_rows(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    with broken(shop, BREAK_OTHERWISE["held_credits"][0]):
        assert await check(shop.roles) == set(), "no entry and no open hold leads to the account"
        async with shop.roles.service.transaction() as connection:
            await books_check.check_old(connection, pending_max=PENDING_MAX)
        assert on_record(shop.database) == {"held_credits"}


async def test_a_balance_without_any_entry_is_found(shop: Shop) -> None:
    account = (
        "INSERT INTO billing_accounts (id, owner_user_id, balance_credits)"
        " SELECT 'empty', owner_user_id, 5 FROM billing_accounts LIMIT 1"
    )
    with broken(shop, account):
        assert await check_everything(shop.roles) == {"account_balance"}
        async with shop.roles.service.transaction() as connection:
            [violation] = await find_violations(connection)
        assert "account empty" in violation


async def test_what_was_fixed_takes_no_place_among_what_is_checked_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_check, "KNOWN_MAX", 1)
    for name in ("sweep_without_transfer", "bonus_amount"):
        forget(shop.database)
        with broken(shop, BREAK[name]):
            assert await check(shop.roles) == {name}
        assert await check(shop.roles) == set()


async def test_what_has_ended_takes_no_place_among_what_is_overdue(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_check, "KNOWN_MAX", 1)
    assert await check(shop.roles) == set()
    ended = (
        "UPDATE payment_attempts SET status = 'FAILED', error_code = 'INTENT_EXPIRED',"
        " expires_at = now() - interval '1 hour' WHERE id = '{pending}'"
    )
    with broken(shop, f"{ended}; {BREAK['intent_overdue']}"):
        assert await check(shop.roles) == {"intent_overdue"}


async def test_an_intent_that_has_expired_is_not_overdue(shop: Shop) -> None:
    expired = (
        "UPDATE payment_attempts SET status = 'FAILED', error_code = 'INTENT_EXPIRED',"
        " expires_at = now() - interval '1 hour' WHERE id = '{intent}'"
    )
    with broken(shop, expired):
        assert await check(shop.roles) == set()


@pytest.mark.parametrize(("minutes", "is_late"), [(9, False), (11, True)])
async def test_the_bonus_of_a_reversed_purchase_may_be_reversed_a_while_later(
    shop: Shop, minutes: int, is_late: bool
) -> None:
    with broken(
        shop,
        "DELETE FROM credit_ledger WHERE reason = 'payment_reversal' AND billing_account_id = 'cogni_system';"
        f" UPDATE payment_attempts SET updated_at = now() - interval '{minutes} minutes' WHERE id = '{{reversed}}'",
    ):
        assert ("reversed_attempt" in await check(shop.roles)) is is_late


async def test_a_general_entry_without_lines_is_found_by_the_check_of_everything(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    alone = "INSERT INTO general_entries (reason, reference) VALUES ('absorbed_cost', 'gateway:x')"
    with broken(shop, alone):
        assert await check_everything(shop.roles) == {"general_entry_balanced"}
    assert await check_everything(shop.roles) == set()


async def test_new_lines_of_an_old_general_entry_are_found(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    lines = """
        INSERT INTO journal_lines (entry_id, account_code, side, amount)
        SELECT id, 'expense:absorbed', 'debit', 1 FROM general_entries WHERE reason = 'absorbed_cost'
    """
    with broken(shop, lines):
        assert await check(shop.roles) == {"general_entry_balanced", "trial_balance"}
        assert await check(shop.roles) == {"general_entry_balanced", "trial_balance"}, "it stays on record"
    assert await check_everything(shop.roles) == set()


async def test_new_lines_of_an_old_entry_are_found(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    lines = """
        INSERT INTO journal_lines (entry_id, account_code, side, amount)
        SELECT id, 'cash:usdc', side, 1 FROM credit_ledger, (VALUES ('debit'), ('credit')) s (side) WHERE entry_seq = 1
    """
    with broken(shop, lines):
        assert await check(shop.roles) == {"entry_balanced"}
    assert await check_everything(shop.roles) == set()


async def test_lines_without_an_entry_are_found_and_their_removal_is_no_change_of_the_sums(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    lines = """
        INSERT INTO journal_lines (entry_id, account_code, side, amount)
        SELECT gen_random_uuid(), 'cash:usdc', side, 1 FROM (VALUES ('debit'), ('credit')) s (side)
    """
    with broken(shop, lines):
        assert await check_everything(shop.roles) == {"line_without_entry"}
        assert checkpoints(shop.database) == newest(shop.database)
    assert await check_everything(shop.roles) == set()


async def test_lines_that_are_put_right_behind_a_check_under_way_are_summed_again(shop: Shop) -> None:
    wrong = """
        UPDATE journal_lines SET entry_id = gen_random_uuid(), amount = amount + 1
         WHERE entry_id = (SELECT id FROM credit_ledger WHERE entry_seq = 1)
    """
    with broken(shop, wrong):
        assert "line_without_entry" in await check(shop.roles)
        async with shop.roles.service.transaction() as connection:
            begun = await books_check.check_old(connection, Round(), pending_max=PENDING_MAX, rows_max=1)
        assert begun.lines == 2, "it has passed both lines of the first entry"
    assert await check(shop.roles) == set()
    await check_all_books(shop.roles.service, pending_max=PENDING_MAX, begin_at=begun)
    assert await check_everything(shop.roles) == set()


async def test_removing_an_account_s_last_entry_and_what_goes_with_it_is_found(shop: Shop) -> None:
    """Every balance still agrees, and no attempt misses it: only the sums know."""
    with connect(shop.database.service_url) as service:
        service.execute("SELECT post_entry('cogni_system', 7, 'gift', 'x', 'cash:usdc', '{}')")
    assert await check(shop.roles) == set()
    last = "(SELECT max(entry_seq) FROM credit_ledger)"
    with connect(shop.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            f"DELETE FROM journal_lines WHERE entry_id = (SELECT id FROM credit_ledger WHERE entry_seq = {last})"
        )
        superuser.execute(f"DELETE FROM credit_ledger WHERE entry_seq = {last}")
        superuser.execute("UPDATE billing_accounts SET balance_credits = balance_credits - 7 WHERE is_system_tenant")
    assert await check_everything(shop.roles) == {"recount"}
    assert await check_everything(shop.roles) == {"recount"}, "it is not said that they stay so"
    with connect(shop.database.migration_url) as owner:
        owner.execute("UPDATE books_checks SET lines_mended = lines_mended + 1")
    assert await check_everything(shop.roles) == set()


async def test_attempts_are_overdue_and_bonuses_late_from_a_moment_on(shop: Shop) -> None:
    ids = {"intent": shop.intent.id, "pending": shop.pending.id, "bought": shop.bought.id}
    almost = """
        UPDATE payment_attempts SET expires_at = now() - interval '9 minutes' WHERE id = %(intent)s;
        UPDATE payment_attempts SET submitted_at = now() - interval '23 hours 59 minutes' WHERE id = %(pending)s;
        UPDATE credit_ledger SET reason = 'gift' WHERE reason = 'platform_revenue_share';
        UPDATE payment_attempts SET updated_at = now() - interval '9 minutes' WHERE status IN ('CREDITED', 'REVERSED');
        UPDATE payment_events SET created_at = now() - interval '9 minutes';
        UPDATE credit_ledger SET created_at = now() - interval '9 minutes' WHERE reason = 'operator_credit';
    """
    with psycopg.ClientCursor(psycopg.connect(shop.database.superuser_url, autocommit=True)) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute(almost, ids)
        assert await check(shop.roles) == set()
        assert checkpoints(shop.database)["events"] == 0
        later = almost.replace("9 minutes", "11 minutes").replace("23 hours 59 minutes", "1 day 1 minute")
        superuser.execute(later, ids)
        superuser.connection.close()
    assert await check(shop.roles) == {"intent_overdue", "pending_overdue", "bonus_missing", "operator_bonus_missing"}
    assert checkpoints(shop.database) == newest(shop.database)


# -- rows that appear late


@dataclass(slots=True)
class Poster:
    """A transaction that goes on for as long as it likes."""

    connection: Connection

    def begin(self) -> None:
        """Be under way: have a transaction id."""
        self.connection.execute("SELECT pg_current_xact_id()")

    def post(self, account: str, *, lines: bool = True) -> None:
        """An entry, with lines or, which is wrong, without."""
        self.connection.execute(
            "SELECT post_entry(%s, 5, 'gift', gen_random_uuid()::text, 'cash:usdc', '{}')", (account,)
        )
        if not lines:
            self.connection.execute(
                "DELETE FROM journal_lines WHERE entry_id ="
                " (SELECT id FROM credit_ledger ORDER BY entry_seq DESC LIMIT 1)"
            )


@pytest.fixture
def posters(shop: Shop) -> Iterator[tuple[Poster, Poster]]:
    """Two that post to different accounts, with the triggers off."""
    with ExitStack() as stack:
        yield (
            Poster(stack.enter_context(connect(shop.database.superuser_url, triggers=False))),
            Poster(stack.enter_context(connect(shop.database.superuser_url, triggers=False))),
        )


@pytest.mark.parametrize("who_has_the_lower_id", ["the one that commits", "the one that goes on"])
async def test_an_entry_that_appears_below_a_checked_one_is_checked(
    shop: Shop, posters: tuple[Poster, Poster], who_has_the_lower_id: str
) -> None:
    """The highest id that has finished says nothing of those below it, nor of who is under way above it."""
    slow, quick = posters
    assert await check(shop.roles) == set()
    for poster in (quick, slow) if who_has_the_lower_id == "the one that commits" else (slow, quick):
        poster.begin()
    slow.post("cogni_system", lines=False)
    quick.post(shop.bought.billing_account_id)
    quick.connection.commit()
    for _ in range(4):
        assert await check(shop.roles) == set()
    slow.connection.commit()
    assert await check(shop.roles) == {"entry_balanced"}
    assert checkpoints(shop.database)["entries"] == newest(shop.database)["entries"]


async def test_an_entry_that_appears_between_two_steps_is_checked(shop: Shop, posters: tuple[Poster, Poster]) -> None:
    """By the second step it is known that no other can appear; that the first one saw all is not."""
    slow, quick = posters
    assert await check(shop.roles) == set()
    slow.post("cogni_system", lines=False)
    for _ in range(3):
        quick.post(shop.bought.billing_account_id)
    quick.connection.commit()
    async with shop.roles.service.transaction() as connection:
        await books_check.record_watermarks(connection)
    async with shop.roles.service.transaction() as connection:
        step = await books_check.check_new(connection, {}, pending_max=PENDING_MAX, rows_max=2)
    assert (step.is_last, step.is_held) == (False, True)
    slow.connection.commit()
    async with shop.roles.service.transaction() as connection:
        step = await books_check.check_new(connection, step.positions, pending_max=PENDING_MAX)
    assert (step.is_last, step.is_held) == (True, False)
    assert await check(shop.roles) == {"entry_balanced"}


async def test_new_rows_are_checked_though_a_transaction_never_ends(shop: Shop, posters: tuple[Poster, Poster]) -> None:
    slow, quick = posters
    slow.begin()
    quick.post("cogni_system", lines=False)
    quick.connection.commit()
    assert await check(shop.roles) == {"entry_balanced"}
    assert await check(shop.roles, rows_max=4) == {"entry_balanced"}
    slow.connection.rollback()
    assert await check(shop.roles, rows_max=4) == {"entry_balanced"}
    assert checkpoints(shop.database) == newest(shop.database)


async def test_lines_that_appear_late_are_counted_once(shop: Shop, posters: tuple[Poster, Poster]) -> None:
    slow, quick = posters
    slow.post("cogni_system")
    for _ in range(3):
        quick.post(shop.bought.billing_account_id)
        quick.connection.commit()
        assert await check(shop.roles) == set()
    slow.connection.commit()
    assert await check_everything(shop.roles) == set()
    total = "SELECT coalesce(sum(amount) FILTER (WHERE side = %s), 0) FROM journal_lines"
    assert query(shop.database.service_url, "SELECT debits, credits FROM books_checks") == [
        (scalar(shop.database.service_url, total, "debit"), scalar(shop.database.service_url, total, "credit"))
    ]


async def test_a_backup_that_is_restored_on_another_server_is_checked_on(shop: Shop) -> None:
    """Its watermarks are ids that no row has reached here."""
    with connect(shop.database.superuser_url) as superuser:
        superuser.execute("UPDATE books_checks SET mark_xid = 2 ^ 60")
    assert await check(shop.roles) == set()
    assert checkpoints(shop.database) == newest(shop.database)


# -- steps


@pytest.mark.slow(but=("3",))
@pytest.mark.parametrize("rows_max", [1, 2, 3])
async def test_a_check_in_small_steps_is_the_same(shop: Shop, rows_max: int) -> None:
    assert await check_everything(shop.roles, rows_max=rows_max) == set()
    assert checkpoints(shop.database) == newest(shop.database)
    with broken(shop, BREAK["bonus_amount"]):
        assert await check_everything(shop.roles, rows_max=rows_max) == {"bonus_amount"}
    assert await check_everything(shop.roles, rows_max=rows_max) == set()


async def test_small_steps_come_by_every_row_of_every_table(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    several_of_each = (
        "UPDATE credit_ledger SET balance_after = balance_after + 1;"
        " DELETE FROM settled_transfers;"
        " UPDATE billing_accounts SET balance_credits = balance_credits + 2;"
        # No open hold leads to an account.
        " DELETE FROM credit_holds;"
        " DELETE FROM journal_lines WHERE entry_id IN (SELECT id FROM general_entries);"
        " UPDATE journal_lines SET entry_id = gen_random_uuid()"
    )
    recorded = "SELECT check_name, subject FROM books_violations ORDER BY check_name, subject"
    with broken(shop, several_of_each):
        await check_all_books(shop.roles.service, pending_max=PENDING_MAX, rows_max=1)
        found = query(shop.database.service_url, recorded)
        await check_all_books(shop.roles.service, pending_max=PENDING_MAX)
        assert query(shop.database.service_url, recorded) == found
    of_each = {"running_balance", "credited_attempt", "account_balance", "general_entry_balanced", "line_without_entry"}
    assert of_each <= {name for name, _ in found}


async def test_small_steps_over_new_rows_pass_over_none(shop: Shop) -> None:
    with broken(shop, "UPDATE journal_lines SET entry_id = gen_random_uuid()"):
        await check(shop.roles, rows_max=1)
        found = "SELECT count(*) FROM books_violations WHERE check_name = 'line_without_entry'"
        lines = scalar(shop.database.service_url, "SELECT count(*) FROM journal_lines")
        assert scalar(shop.database.service_url, found) == lines


async def test_the_round_over_old_rows_comes_by_all_of_them_and_begins_again(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    for _ in range(2):
        with broken(shop, BREAK["running_balance"]):
            seen = 0
            while "running_balance" not in on_record(shop.database):
                async with shop.roles.service.transaction() as connection:
                    await books_check.check_old(connection, pending_max=PENDING_MAX, rows_max=1)
                seen += 1
                assert seen <= 2 * newest(shop.database)["lines"]
        assert await check(shop.roles) == set()
    assert await check_everything(shop.roles) == set()


async def test_concurrent_checks_are_serialized(shop: Shop) -> None:
    await asyncio.gather(*(check_books(shop.roles.service, pending_max=PENDING_MAX, rows_max=2) for _ in range(3)))
    assert await check_everything(shop.roles) == set()
    assert checkpoints(shop.database) == newest(shop.database)


async def run_activity(shop: Shop, *, full: bool, begun: Round | None = None) -> list[Round | None]:
    """The activity, after a try of it that had come so far; the positions that it sends."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, heartbeat_details=[begun and begun.model_dump()])
    sent: list[Round | None] = []
    environment.on_heartbeat = lambda position: sent.append(position and Round.model_validate(position))
    activities = BookkeepingActivities(shop.roles.service, pending_max=PENDING_MAX)
    await environment.run(activities.check_books, BooksToCheck(full=full))
    return sent


async def test_a_check_of_everything_that_is_interrupted_goes_on_where_it_was(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    begun = Round(entries=newest(shop.database)["entries"])
    with broken(shop, BREAK["running_balance"]):
        new_rows, end = await run_activity(shop, full=True, begun=begun)
        assert on_record(shop.database) == set(), "the entries were checked before"
        assert new_rows == begun, "interrupted again before it goes on, it is as far as it was"
        assert end is not None
        assert end.is_complete
        assert (await run_activity(shop, full=True))[0] is None
        assert on_record(shop.database) == {"running_balance"}


async def test_each_ordinary_run_checks_some_old_rows_as_well(shop: Shop) -> None:
    assert await check(shop.roles) == set()
    with broken(shop, BREAK["running_balance"]):
        assert await check(shop.roles) == set()
        await run_activity(shop, full=False)
        assert on_record(shop.database) == {"running_balance"}


async def test_a_check_of_everything_alone_is_noted_as_one(shop: Shop) -> None:
    ends = "SELECT checked_at IS NOT NULL, checked_in_full_at IS NOT NULL FROM books_checks"
    await check_everything(shop.roles)
    assert query(shop.database.service_url, ends) == [(False, False)], "as the command does it"
    for full, noted in ((False, (True, False)), (True, (True, True)), (False, (True, True))):
        await run_activity(shop, full=full)
        assert query(shop.database.service_url, ends) == [noted]


@pytest.mark.slow
async def test_concurrent_payments_are_no_violations(roles: RolePair) -> None:
    payers = [await roles.open_account(number) for number in range(1, 5)]
    numbers = iter(range(1, 10_000))
    done = asyncio.Event()

    async def pay(place: int) -> None:
        purpose = Purpose.SYSTEM if place == 0 else Purpose.SELF
        for _ in range(10):
            now = datetime.now(UTC)
            intent = await roles.create(
                payers[place], purpose=purpose, created_at=now, expires_at=now + timedelta(minutes=30)
            )
            attempt = (await roles.submit(intent, tx_hash(next(numbers)), at=now)).attempt
            await roles.credit(attempt)
            if purpose is Purpose.SELF:
                await roles.mint(attempt)

    async def keep_checking() -> None:
        while not done.is_set():
            assert await check(roles, rows_max=7) == set()

    checking = [asyncio.create_task(keep_checking()) for _ in range(2)]
    try:
        await asyncio.gather(*(pay(place) for place in range(4)))
    finally:
        done.set()
        await asyncio.gather(*checking)
    age(roles.database)
    assert await check_everything(roles) == set()
    assert checkpoints(roles.database) == newest(roles.database)
    assert await roles.books() == []


# -- what is published


async def test_a_violation_is_reported_once_as_new_and_once_as_fixed(shop: Shop) -> None:
    async def untold() -> list[tuple[str, bool]]:
        async with shop.roles.service.transaction() as connection:
            changes = await books_check.list_unannounced(connection)
            await books_check.note_announced(
                connection,
                opened=[change.id for change in changes if not change.is_resolved],
                resolved=[change.id for change in changes if change.is_resolved],
            )
        return [(change.check, change.is_resolved) for change in changes]

    for _ in range(2):
        with broken(shop, BREAK["bonus_amount"]):
            await check_everything(shop.roles)
            assert await untold() == [("bonus_amount", False)]
            await check_everything(shop.roles)
            assert await untold() == []
        await check(shop.roles)
        assert await untold() == [("bonus_amount", True)]
        assert await untold() == []
    with connect(shop.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO books_violations (check_name, subject, detail, resolved_at) VALUES"
            " ('x', 'x', 'came and went', now())"
        )
    assert await untold() == [("x", False), ("x", True)]


async def test_a_violation_that_was_not_published_is_published_by_the_next(shop: Shop) -> None:
    with broken(shop, BREAK["bonus_amount"]):
        for _ in range(2):
            await check(shop.roles)
            async with shop.roles.service.transaction() as connection:
                [change] = await books_check.list_unannounced(connection)
    assert (change.check, change.is_resolved) == ("bonus_amount", False)


RECORDED: Final = """
    INSERT INTO books_violations (check_name, subject, detail, resolved_at)
    VALUES ('x', '1', 'one', NULL), ('x', '2', 'two', now()), ('x', '3', 'three', NULL), ('y', '4', 'four', NULL)
"""


async def test_one_run_publishes_so_many_the_oldest_first_and_the_next_the_rest(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_check, "ANNOUNCED_MAX", 2)
    with connect(shop.database.superuser_url, triggers=False) as superuser:
        superuser.execute(RECORDED)

    async def publish() -> list[tuple[str, bool]]:
        async with shop.roles.service.transaction() as connection:
            changes = await books_check.list_unannounced(connection)
            opened = [change.id for change in changes if not change.is_resolved]
            await books_check.note_announced(
                connection, opened, [change.id for change in changes if change.is_resolved]
            )
        return [(change.subject, change.is_resolved) for change in changes]

    assert await publish() == [("1", False), ("2", False), ("2", True)]
    told = "SELECT announced_at FROM books_violations WHERE subject = '1'"
    first_told = query(shop.database.service_url, told)
    assert await publish() == [("3", False), ("4", False)]
    assert await publish() == []
    with connect(shop.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE books_violations SET resolved_at = now() WHERE subject = '1'")
    assert await publish() == [("1", True)]
    assert query(shop.database.service_url, told) == first_told, "its end does not say when it was published as new"


async def test_what_is_open_is_listed_so_many_of_each_check_the_oldest_first(shop: Shop) -> None:
    with connect(shop.database.superuser_url, triggers=False) as superuser:
        superuser.execute(RECORDED)
    async with shop.roles.service.transaction() as connection:
        listed = [
            [violation.subject for violation in await books_check.list_open_violations(connection, shown_max=shown_max)]
            for shown_max in (1, 2)
        ]
        assert listed == [["1", "4"], ["1", "3", "4"]]
        assert await books_check.count_open_violations(connection) == {"x": 2, "y": 1}


async def test_what_another_version_has_recorded_stays_and_stops_no_check(shop: Shop) -> None:
    """While a new version is rolled out, both check: of a check that is not its own, neither knows what it is about."""
    with connect(shop.database.superuser_url, triggers=False) as superuser:
        superuser.execute(RECORDED)
    assert await check_everything(shop.roles) == {"x", "y"}


# -- what it costs


ROWS_VISITED: Final = text(
    "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
)
FILL: Final = """
    WITH first AS (SELECT coalesce(max(entry_seq), 0) AS seq FROM credit_ledger), entry AS (
        INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference)
        SELECT 'cogni_system', 1, (SELECT balance_credits FROM billing_accounts WHERE is_system_tenant) + n, 'gift',
               gen_random_uuid() FROM generate_series(1, %(count)s) n RETURNING id
    )
    INSERT INTO journal_lines (entry_id, account_code, side, amount)
    SELECT id, code, side, 1 FROM entry,
           (VALUES ('cash:usdc', 'debit'), ('credits:cogni_system', 'credit')) l (code, side);
    UPDATE billing_accounts SET balance_credits = balance_credits + %(count)s WHERE is_system_tenant;
    INSERT INTO payment_events (attempt_id, event_type, to_status, created_at)
    SELECT gen_random_uuid(), 'x', 'x', now() - interval '1 hour' FROM generate_series(1, %(count)s);
"""


async def visit(roles: RolePair, *, new_entries: int) -> int:
    """How many rows a run over so many new entries reads, in all tables."""
    visited = 0

    @asynccontextmanager
    async def counted() -> AsyncIterator[ServiceConnection]:
        """A transaction of a connection of its own, since a connection's numbers are of all that it has done lately."""
        nonlocal visited
        await roles.service.dispose()
        async with roles.service.transaction() as connection:
            yield connection
            visited += int((await connection.connection.execute(ROWS_VISITED)).scalar_one())

    async with counted() as connection:
        await books_check.record_watermarks(connection)
    async with counted() as connection:
        step = await books_check.check_new(connection, {}, pending_max=PENDING_MAX)
        assert (step.entries_checked, step.is_last) == (new_entries, True)
    async with counted() as connection:
        await books_check.check_known(connection, pending_max=PENDING_MAX)
    assert checkpoints(roles.database) == newest(roles.database)
    return visited


@pytest.mark.slow
async def test_a_check_visits_as_many_rows_in_a_large_ledger_as_in_a_small_one(shop: Shop) -> None:
    visited: list[int] = []
    with psycopg.ClientCursor(psycopg.connect(shop.database.superuser_url, autocommit=True)) as superuser:
        superuser.execute("SET session_replication_role = replica")
        for old_entries in (500, 20_000):
            superuser.execute(FILL, {"count": old_entries})
            superuser.execute("ANALYZE")
            assert await check(shop.roles) == set()
            assert checkpoints(shop.database) == newest(shop.database)
            superuser.execute(FILL, {"count": 100})
            visited.append(await visit(shop.roles, new_entries=100))
        superuser.connection.close()
    small, large = visited
    assert 100 < large < small + 50 < 3_000


@pytest.mark.slow
async def test_a_check_visits_as_many_rows_whatever_the_number_of_old_payments(roles: RolePair) -> None:
    visited: list[int] = []
    ledger = Ledger(roles.database.superuser_url)
    for old_entries in (2_000, 20_000):
        ledger.add(old_entries)
        with connect(roles.database.superuser_url) as superuser:
            superuser.execute("ANALYZE")
        assert await check(roles) == set()
        ledger.add(1_000)
        visited.append(await visit(roles, new_entries=1_000))
    ledger.close()
    small, large = visited
    assert 1_000 < large < small + 50
