"""The oracle can fail: each kind of violation is planted past every guard, and it names exactly that one."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal
from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from db.ledger import entries as ledger
from domain.ledger.entries import Posting
from domain.payments.attempt import Purpose
from domain.payments.postings import donation_posting, purchase_posting, revenue_share_posting
from tests.database.conftest import TwoTenants
from tests.support.deposits import METHOD, NEVER_DEPLOYED, add_method
from tests.support.oracle import check_books
from tests.support.payments import RolePair, transfer_for, tx_hash, wallet
from tests.support.sql import connect, query, scalar

CREDITS = 1_000_000_000
BONUS = 750_000_000


def _plant(two_tenants: TwoTenants, statement: str, *values: object) -> None:
    """What no role could do: neither triggers nor foreign keys are checked."""
    with connect(two_tenants.database.superuser_url, triggers=False) as superuser:
        cursor = superuser.execute(sql.SQL(statement), values or None)
        assert cursor.rowcount > 0, "the violation was not planted"


def _entry(two_tenants: TwoTenants, reference: UUID, reason: str = "credits_purchase") -> UUID:
    found = scalar(
        two_tenants.database.superuser_url,
        "SELECT id FROM credit_ledger WHERE reference = %s AND reason = %s",
        str(reference),
        reason,
    )
    assert isinstance(found, UUID)
    return found


async def _complaints(two_tenants: TwoTenants, **options: bool | Decimal) -> list[str]:
    # Any role that reads everything may ask: the answer does not depend on the role.
    as_superuser = await check_books(two_tenants.database.superuser_url, **options)  # type: ignore[arg-type]
    as_service = await check_books(two_tenants.database.service_url, **options)  # type: ignore[arg-type]
    assert as_superuser == as_service
    return as_superuser


async def test_right_books_have_no_complaint(two_tenants: TwoTenants) -> None:
    assert await _complaints(two_tenants) == []


async def test_every_attempt_that_still_waits_is_named_when_none_may(two_tenants: TwoTenants) -> None:
    waiting = {
        f"attempt {attempt.id}: still PENDING_UNVERIFIED"
        for tenant in (two_tenants.alice, two_tenants.bob)
        for attempt in (tenant.pending, tenant.pending_donation)
    }
    assert set(await _complaints(two_tenants, nothing_stuck=True)) == waiting


async def test_a_line_that_was_changed_is_named(two_tenants: TwoTenants) -> None:
    entry = _entry(two_tenants, two_tenants.alice.credited.id)
    _plant(two_tenants, "UPDATE journal_lines SET amount = amount + 1 WHERE entry_id = %s AND side = 'debit'", entry)
    total = 4 * CREDITS + 2 * BONUS
    assert await _complaints(two_tenants) == [
        f"entry {entry}: debits {CREDITS + 1}, credits {CREDITS}",
        f"trial balance: debits {total + 1}, credits {total}",
    ]


@pytest.mark.slow
async def test_entries_that_err_in_opposite_ways_are_named_though_the_total_is_right(two_tenants: TwoTenants) -> None:
    first, second = _entry(two_tenants, two_tenants.alice.credited.id), _entry(two_tenants, two_tenants.bob.credited.id)
    _plant(two_tenants, "UPDATE journal_lines SET amount = amount + 1 WHERE entry_id = %s AND side = 'debit'", first)
    _plant(two_tenants, "UPDATE journal_lines SET amount = amount - 1 WHERE entry_id = %s AND side = 'debit'", second)
    assert set(await _complaints(two_tenants)) == {
        f"entry {first}: debits {CREDITS + 1}, credits {CREDITS}",
        f"entry {second}: debits {CREDITS - 1}, credits {CREDITS}",
    }


@pytest.mark.slow
async def test_a_header_that_its_lines_do_not_bear_out_is_named(two_tenants: TwoTenants) -> None:
    entry = _entry(two_tenants, two_tenants.alice.credited.id)
    _plant(two_tenants, "UPDATE journal_lines SET amount = amount + 1 WHERE entry_id = %s", entry)
    assert await _complaints(two_tenants) == [
        f"entry {entry}: header says {CREDITS}, its liability lines say {CREDITS + 1}"
    ]


@pytest.mark.slow
async def test_a_header_without_lines_is_named(two_tenants: TwoTenants) -> None:
    entry = _entry(two_tenants, two_tenants.alice.credited.id)
    _plant(two_tenants, "DELETE FROM journal_lines WHERE entry_id = %s", entry)
    assert await _complaints(two_tenants) == [f"entry {entry}: header says {CREDITS}, its liability lines say 0"]


@pytest.mark.slow
async def test_lines_without_a_header_are_named(two_tenants: TwoTenants) -> None:
    lost = uuid4()
    _plant(
        two_tenants,
        "INSERT INTO journal_lines (entry_id, account_code, side, amount) VALUES (%s, 'cash:usdc', 'debit', 1),"
        " (%s, 'revenue:usage', 'credit', 1)",
        lost,
        lost,
    )
    complaints = await _complaints(two_tenants)
    assert len(complaints) == 2
    assert all(complaint.endswith(f"its entry {lost} does not exist") for complaint in complaints)


@pytest.mark.slow
async def test_an_entry_that_moves_another_accounts_credits_is_named(two_tenants: TwoTenants) -> None:
    entry = _entry(two_tenants, two_tenants.alice.credited.id)
    theirs = f"credits:{two_tenants.bob.account}"
    _plant(
        two_tenants, "UPDATE journal_lines SET account_code = %s WHERE entry_id = %s AND side = 'debit'", theirs, entry
    )
    assert await _complaints(two_tenants) == [
        f"entry {entry}: is of account {two_tenants.alice.account} and moves {theirs}"
    ]


@pytest.mark.slow
async def test_a_balance_that_is_not_the_sum_is_named(two_tenants: TwoTenants) -> None:
    _plant(
        two_tenants,
        "UPDATE billing_accounts SET balance_credits = balance_credits + 1 WHERE id = %s",
        two_tenants.alice.account,
    )
    assert await _complaints(two_tenants) == [
        f"account {two_tenants.alice.account}: balance {CREDITS + 1}, its entries sum to {CREDITS}"
    ]


@pytest.mark.slow
async def test_a_running_balance_that_does_not_run_is_named(two_tenants: TwoTenants) -> None:
    entry = _entry(two_tenants, two_tenants.alice.credited.id)
    _plant(two_tenants, "UPDATE credit_ledger SET balance_after = balance_after - 1 WHERE id = %s", entry)
    assert await _complaints(two_tenants) == [
        f"entry {entry}: balance_after {CREDITS - 1}, the entries up to it sum to {CREDITS}"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "flagged"),
    [
        ("UPDATE billing_accounts SET is_system_tenant = false WHERE is_system_tenant", "None"),
        (
            "UPDATE billing_accounts SET is_system_tenant = true WHERE NOT is_system_tenant",
            "all",
        ),
    ],
)
async def test_a_wrong_number_of_system_tenants_is_named(two_tenants: TwoTenants, statement: str, flagged: str) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        owner.execute("DROP INDEX billing_accounts_one_system_tenant")
    _plant(two_tenants, statement)
    everybody = str(sorted((two_tenants.alice.account, two_tenants.bob.account, "cogni_system")))
    expected = everybody if flagged == "all" else flagged
    assert await _complaints(two_tenants) == [f"system tenant: flagged are {expected}"]


@pytest.mark.slow
async def test_a_purchase_without_its_entry_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    entry = _entry(two_tenants, attempt.id)
    _plant(two_tenants, "DELETE FROM journal_lines WHERE entry_id = %s", entry)
    _plant(two_tenants, "DELETE FROM credit_ledger WHERE id = %s", entry)
    _plant(two_tenants, "UPDATE billing_accounts SET balance_credits = 0 WHERE id = %s", two_tenants.alice.account)
    assert await _complaints(two_tenants) == [
        f"attempt {attempt.id}: CREDITED with 0 entries credits_purchase of {CREDITS}"
        f" on {two_tenants.alice.account}, not with 1"
    ]


@pytest.mark.slow
async def test_an_entry_of_the_wrong_amount_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    entry = _entry(two_tenants, attempt.id)
    wrong = CREDITS - 1
    _plant(two_tenants, "UPDATE credit_ledger SET amount = %s, balance_after = %s WHERE id = %s", wrong, wrong, entry)
    _plant(two_tenants, "UPDATE journal_lines SET amount = %s WHERE entry_id = %s", wrong, entry)
    _plant(
        two_tenants, "UPDATE billing_accounts SET balance_credits = %s WHERE id = %s", wrong, two_tenants.alice.account
    )
    account = two_tenants.alice.account
    assert await _complaints(two_tenants) == [
        f"attempt {attempt.id}: CREDITED with 0 entries credits_purchase of {CREDITS} on {account}, not with 1",
        f"entry {entry}: credits_purchase of {wrong} on {account} is what no CREDITED attempt asks for",
    ]


@pytest.mark.slow
async def test_a_donation_that_went_to_the_donor_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.donated
    with connect(two_tenants.database.service_url) as service:
        [(entry,)] = service.execute(
            "SELECT entry_id FROM post_entry(%s, %s, 'system_donation', %s, 'cash:usdc', '{}')",
            (two_tenants.alice.account, CREDITS, str(attempt.id)),
        ).fetchall()
    assert await _complaints(two_tenants) == [
        f"entry {entry}: system_donation of {CREDITS} on {two_tenants.alice.account} "
        "is what no CREDITED attempt asks for"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["credits_purchase", "platform_revenue_share", "system_donation"])
async def test_credits_that_no_attempt_asked_for_are_named(two_tenants: TwoTenants, reason: str) -> None:
    for reference in (
        str(uuid4()),
        "no attempt",
        str(two_tenants.alice.pending.id),
        str(two_tenants.alice.rejected.id),
    ):
        with connect(two_tenants.database.service_url) as service:
            service.execute(
                "SELECT * FROM post_entry('cogni_system', 5, %s, %s, 'cash:usdc', '{}')", (reason, reference)
            )
    complaints = await _complaints(two_tenants)
    assert len(complaints) == 4
    assert all(
        complaint.endswith(f": {reason} of 5 on cogni_system is what no CREDITED attempt asks for")
        for complaint in complaints
    )


async def test_a_bonus_that_is_missing_is_named_unless_it_may_still_come(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    assert await _complaints(two_tenants, expected_share=Decimal("0.75")) == []
    entry = _entry(two_tenants, attempt.id, "platform_revenue_share")
    # Turned into another kind of entry, so that every balance stays right.
    _plant(two_tenants, "UPDATE credit_ledger SET reason = 'adjustment' WHERE id = %s", entry)
    missing = f"attempt {attempt.id}: CREDITED with 0 bonuses of {BONUS}, not with 1"
    assert await _complaints(two_tenants) == [missing]
    assert await _complaints(two_tenants, pending_bonus_ok=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("pending_bonus_ok", [False, True])
async def test_a_bonus_of_the_wrong_amount_is_named(two_tenants: TwoTenants, pending_bonus_ok: bool) -> None:
    complaints = await _complaints(two_tenants, expected_share=Decimal("0.5"), pending_bonus_ok=pending_bonus_ok)
    wrong = [complaint for complaint in complaints if complaint.startswith("entry ")]
    missing = [complaint for complaint in complaints if complaint.startswith("attempt ")]
    assert len(wrong) == 2
    assert all(f"platform_revenue_share of {BONUS} on cogni_system is what no" in complaint for complaint in wrong)
    assert len(missing) == (0 if pending_bonus_ok else 2)


@pytest.mark.slow
async def test_a_bonus_where_the_share_is_nothing_is_named(two_tenants: TwoTenants) -> None:
    complaints = await _complaints(two_tenants, expected_share=Decimal(0))
    assert len(complaints) == 2
    assert all("platform_revenue_share" in complaint for complaint in complaints)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["pending", "rejected"])
async def test_a_transfer_of_an_attempt_that_is_not_credited_is_named(two_tenants: TwoTenants, state: str) -> None:
    attempt = two_tenants.alice.pending if state == "pending" else two_tenants.alice.rejected
    _plant(
        two_tenants,
        "UPDATE settled_transfers SET attempt_id = %s, tx_hash = %s, from_address = %s WHERE attempt_id = %s",
        attempt.id,
        attempt.tx_hash,
        attempt.from_address,
        two_tenants.bob.credited.id,
    )
    assert set(await _complaints(two_tenants)) == {
        f"attempt {attempt.id}: {attempt.status if state == 'pending' else 'REJECTED'} with 1 settled transfers",
        f"attempt {two_tenants.bob.credited.id}: CREDITED with 0 settled transfers",
    }


@pytest.mark.slow
async def test_an_attempt_paid_by_two_transfers_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    with connect(two_tenants.database.superuser_url, triggers=False) as owner:
        owner.execute("ALTER TABLE settled_transfers DROP CONSTRAINT settled_transfers_one_transfer_per_attempt")
        owner.execute(
            "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash,"
            " from_address, value_raw, surplus_raw) SELECT chain_id, tx_hash, log_index + 1, attempt_id, block_number,"
            " block_hash, from_address, value_raw, surplus_raw FROM settled_transfers WHERE attempt_id = %s",
            (attempt.id,),
        )
    assert await _complaints(two_tenants) == [f"attempt {attempt.id}: CREDITED with 2 settled transfers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "value_raw = value_raw - 1",
        "surplus_raw = surplus_raw + 1",
        "chain_id = chain_id + 1",
        f"tx_hash = '{tx_hash(5_555)}'",
        f"from_address = '{wallet(5_555)}'",
    ],
)
async def test_a_transfer_that_is_not_what_was_asked_for_is_named(two_tenants: TwoTenants, change: str) -> None:
    _plant(two_tenants, f"UPDATE settled_transfers SET {change} WHERE attempt_id = %s", two_tenants.alice.credited.id)
    [complaint] = await _complaints(two_tenants)
    assert complaint.startswith("transfer ")
    assert complaint.endswith(f"is not what attempt {two_tenants.alice.credited.id} asked for")


@pytest.mark.slow
async def test_a_transfer_of_no_attempt_is_named(two_tenants: TwoTenants) -> None:
    lost = uuid4()
    _plant(two_tenants, "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number,"
                 " block_hash, from_address, value_raw, surplus_raw) SELECT chain_id, tx_hash, 99, %s, block_number,"
                 " block_hash, from_address, value_raw, surplus_raw FROM settled_transfers LIMIT 1", lost)  # fmt: skip
    [complaint] = await _complaints(two_tenants)
    assert complaint.endswith(f"is not what attempt {lost} asked for")


# -- the audit trail


@pytest.mark.slow
async def test_an_attempt_without_a_trail_is_named(two_tenants: TwoTenants) -> None:
    _plant(two_tenants, "DELETE FROM payment_events WHERE attempt_id = %s", two_tenants.alice.credited.id)
    assert await _complaints(two_tenants) == [f"attempt {two_tenants.alice.credited.id}: CREDITED without an event"]


@pytest.mark.slow
async def test_a_status_that_the_trail_does_not_end_with_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    _plant(two_tenants, "DELETE FROM payment_events WHERE attempt_id = %s AND to_status = 'CREDITED'", attempt.id)
    assert await _complaints(two_tenants) == [
        f"attempt {attempt.id}: is CREDITED (None), its last event says PENDING_UNVERIFIED (None)"
    ]


@pytest.mark.slow
async def test_an_error_that_the_trail_does_not_end_with_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.rejected
    _plant(two_tenants, "UPDATE payment_attempts SET error_code = 'INVALID_TOKEN' WHERE id = %s", attempt.id)
    assert await _complaints(two_tenants) == [
        f"attempt {attempt.id}: is REJECTED (INVALID_TOKEN), its last event says REJECTED (INSUFFICIENT_AMOUNT)"
    ]


@pytest.mark.slow
async def test_a_step_that_is_missing_from_the_trail_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    _plant(two_tenants, "DELETE FROM payment_events WHERE attempt_id = %s AND event_type = 'submitted'", attempt.id)
    assert await _complaints(two_tenants) == [
        f"attempt {attempt.id}: event says PENDING_UNVERIFIED to CREDITED after CREATED_INTENT"
    ]


@pytest.mark.slow
async def test_a_trail_with_an_illegal_step_is_named(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    with connect(two_tenants.database.service_url) as service:
        service.execute(
            "INSERT INTO payment_events (attempt_id, event_type, from_status, to_status)"
            " VALUES (%s, 'credited', 'CREDITED', 'CREDITED')",
            (attempt.id,),
        )
    assert await _complaints(two_tenants) == [
        f"attempt {attempt.id}: event says CREDITED to CREDITED, which is no legal step"
    ]


# -- without one of the unique indexes


def _posting(two_tenants: TwoTenants, index: str) -> Posting:
    bob = two_tenants.bob
    posting = {
        "credit_ledger_one_purchase_per_reference": purchase_posting(bob.credited),
        "credit_ledger_one_donation_per_reference": donation_posting(bob.donated),
        "credit_ledger_one_revenue_share_per_reference": revenue_share_posting(bob.credited),
    }[index]
    assert posting is not None
    return posting


def _complaint(posting: Posting) -> str:
    if posting.reason == "platform_revenue_share":
        return f"attempt {posting.reference}: CREDITED with 2 bonuses of {posting.amount_credits}, not with 1"
    return (
        f"attempt {posting.reference}: CREDITED with 2 entries {posting.reason} of {posting.amount_credits}"
        f" on {posting.billing_account_id}, not with 1"
    )


INDEXES = (
    "credit_ledger_one_purchase_per_reference",
    "credit_ledger_one_donation_per_reference",
    "credit_ledger_one_revenue_share_per_reference",
)


def _post_past_the_look(connection: psycopg.Connection[tuple[object, ...]], posting: Posting) -> None:
    """What the function does after it has checked whether the entry is there: what a race comes down to."""
    [(balance,)] = connection.execute(
        "UPDATE billing_accounts SET balance_credits = balance_credits + %s WHERE id = %s RETURNING balance_credits",
        (posting.amount_credits, posting.billing_account_id),
    ).fetchall()
    [(entry,)] = connection.execute(
        "INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference)"
        " VALUES (%s, %s, %s, %s, %s) RETURNING id",
        (posting.billing_account_id, posting.amount_credits, balance, posting.reason.value, posting.reference),
    ).fetchall()
    for line in posting.lines:
        connection.execute(
            "INSERT INTO journal_lines (entry_id, account_code, side, amount) VALUES (%s, %s, %s, %s)",
            (entry, line.account_code, line.side.value, line.amount_credits),
        )


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("index", INDEXES)
async def test_without_its_unique_index_a_double_credit_is_possible_and_named(
    two_tenants: TwoTenants, index: str
) -> None:
    posting = _posting(two_tenants, index)
    with (
        pytest.raises(psycopg.errors.UniqueViolation, match=index),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _post_past_the_look(owner, posting)
    assert await _complaints(two_tenants) == []

    with connect(two_tenants.database.migration_url) as owner:
        owner.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
        _post_past_the_look(owner, posting)
    assert await _complaints(two_tenants) == [_complaint(posting)]


@pytest.mark.parametrize("has_index", [True, False])
async def test_the_unique_index_alone_decides_a_race_of_two_bonuses(roles: RolePair, has_index: bool) -> None:
    """Both transactions have checked before either writes; the lock on the account's row lets one wait."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    posting = revenue_share_posting((await roles.credit(attempt)).attempt)
    assert posting is not None
    if not has_index:
        with connect(roles.database.migration_url) as owner:
            owner.execute("DROP INDEX credit_ledger_one_revenue_share_per_reference")
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def second() -> ledger.PostedEntry:
        async with roles.service.transaction() as connection:
            return await ledger.post(connection, posting, {})

    async with roles.service.transaction() as first:
        assert (await ledger.post(first, posting, {})).posted
        other = asyncio.create_task(second())
        while scalar(roles.database.superuser_url, waits) == 0:
            await asyncio.sleep(0)
    if has_index:
        with pytest.raises(ledger.PostedMeanwhile):
            await other
        assert await roles.books() == []
    else:
        assert (await other).posted
        assert await roles.books() == [_complaint(posting)]


async def test_without_its_unique_constraint_a_transfer_pays_two_attempts_and_is_named(roles: RolePair) -> None:
    first = await roles.create_submitted(await roles.open_account(1), 1)
    second = await roles.create_submitted(await roles.open_account(2), 1, purpose=Purpose.SYSTEM)
    with connect(roles.database.migration_url) as owner:
        owner.execute("ALTER TABLE settled_transfers DROP CONSTRAINT settled_transfers_one_attempt_per_transfer")
    await roles.credit(first)
    await roles.mint(first)
    await roles.credit(second, transfer_for(first, from_address=second.from_address))
    assert await roles.books() == [f"transfer {first.chain_id}/{first.tx_hash}/0: pays 2 attempts"]
    assert query(roles.database.service_url, "SELECT count(*) FROM credit_ledger") == [(3,)]


# Sweeps and relayed transactions --------------------------------------------------------------------------------------

_TX: Final = [f"0x{number:064x}" for number in range(1, 4)]
_WHO: Final = f"0x{'ab' * 20}"
_ADDRESS: Final = UUID(int=5)
_ENTRY: Final = UUID(int=6)
_ATTEMPT: Final = UUID(int=7)

_DEPOSIT: Final = (
    "INSERT INTO deposits (id, chain_id, tx_hash, log_index, address_id, method_id, token, from_address, value_raw,"
    " credits, block_number, block_hash, block_time)"
    f" VALUES (gen_random_uuid(), 31337, '{_TX[2]}', 0, '{_ADDRESS}', '{METHOD}', '{NEVER_DEPLOYED}', '{_WHO}', 5, 50,"
    f" 1, '{_TX[0]}', now())"
)
_SWEPT: Final = (
    "INSERT INTO swept_transfers (chain_id, tx_hash, log_index, address_id, method_id, treasury, value_raw, credits,"
    f" block_number, block_hash, entry_id) VALUES (31337, '{_TX[0]}', 0, '{_ADDRESS}', '{METHOD}', '{_WHO}', %s, %s,"
    f" 1, '{_TX[0]}', '{_ENTRY}')"
)
_GENERAL: Final = f"INSERT INTO general_entries (id, reason, reference) VALUES ('{_ENTRY}', 'sweep', 'planted')"
_LINES: Final = (
    "INSERT INTO journal_lines (entry_id, account_code, side, amount)"
    f" VALUES ('{_ENTRY}', '%s', 'debit', 50), ('{_ENTRY}', 'cash:usdc:deposits', 'credit', 50)"
)
_SIGNED: Final = (
    "INSERT INTO sweep_transactions (chain_id, tx_hash, sweep_id, sender, nonce, raw, outcome)"
    f" SELECT 31337, t.tx_hash, gen_random_uuid(), '{_WHO}', 7, '', t.outcome"
    f" FROM (VALUES ('{_TX[0]}', %s), ('{_TX[1]}', %s)) t (tx_hash, outcome)"
)
_RELAYED: Final = (
    "INSERT INTO relay_nonces (chain_id, relayer, nonce, attempt_id, outcome, mined_tx_hash, ended_at)"
    f" SELECT 31337, '{_WHO}', n, '{_ATTEMPT}', 'succeeded', '{_TX[0]}', now() FROM generate_series(1, %s) n"
)
_SENT: Final = (
    "INSERT INTO relay_transactions (chain_id, tx_hash, relayer, nonce, raw, gas, max_fee_wei, priority_fee_wei,"
    f" sent_at) SELECT 31337, '{_TX[0]}', '{_WHO}', n, '', 1, 1, 1, %s FROM generate_series(1, 1) n"
)

PLANTED: Final = {
    "two of one nonce mined": ([_SIGNED % ("'succeeded'", "'reverted'")], "sweep's nonce .*/7: 2 .* mined, 0 are open"),
    "a nonce is open": ([_SIGNED % ("'succeeded'", "NULL")], "sweep's nonce .*/7: 1 .* mined, 1 are open"),
    "booked elsewhere": (
        [_DEPOSIT, _SWEPT % (5, 50), _GENERAL, _LINES % "expense:platform_revenue_share"],
        "swept transfer .*/0: 50 credits, its entry .* moves debit expense:.*",
    ),
    "not booked": ([_DEPOSIT, _SWEPT % (5, 50)], "swept transfer .*/0: 50 credits, its entry .* moves nothing"),
    "booked for another amount": (
        [_DEPOSIT, _SWEPT % (4, 50), _GENERAL, _LINES % "cash:usdc"],
        "swept transfer .*/0: booked with 50 credits, worth 40",
    ),
    "an entry of no transfer": ([_GENERAL, _LINES % "cash:usdc"], f"sweep entry {_ENTRY}: 0 swept transfers name it"),
    "more was swept than came": (
        [_SWEPT % (5, 50), _GENERAL, _LINES % "cash:usdc"],
        f"address {_ADDRESS}: 5 of token .* was swept, 0 came",
    ),
    "relayed twice": (
        [
            _RELAYED % 2,
            _SENT % "now()",
            _SENT.replace(_TX[0], _TX[1]).replace("(1, 1)", "(2, 2)") % "now()",
            f"UPDATE relay_nonces SET mined_tx_hash = '{_TX[1]}' WHERE nonce = 2",
        ],
        f"attempt {_ATTEMPT}: 2 relayed transactions of it succeeded",
    ),
    "mined without being sent": (
        [_RELAYED % 1, _SENT % "NULL"],
        "relay's nonce .*/1: succeeded by .*, which is none of.*",
    ),
    "mined what was not signed": ([_RELAYED % 1], "relay's nonce .*/1: succeeded by .*, which is none of.*"),
    "a nonce that is given out again": (
        [
            _RELAYED % 1,
            _SENT % "now()",
            f"INSERT INTO relayers (chain_id, address, next_nonce) VALUES (31337, '{_WHO}', 1)",
        ],
        "relayer .*: its next nonce is 1, its last one 1",
    ),
}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("planted", PLANTED)
async def test_a_sweep_or_a_relayed_transaction_that_is_wrong_is_named(roles: RolePair, planted: str) -> None:
    statements, complaint = PLANTED[planted]
    add_method(roles.database)
    assert await check_books(roles.database.service_url, nothing_stuck=True) == []
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        for statement in statements:
            superuser.execute(sql.SQL(statement))
    [found] = await check_books(roles.database.service_url, nothing_stuck=True)
    assert re.fullmatch(complaint, found), found
