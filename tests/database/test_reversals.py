"""Reversal of reorged-out payments: once, in full, nothing else; and what the database itself enforces of it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg.errors import CheckViolation, RestrictViolation

from db.payments import finality
from domain.errors import BookkeepingError
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.finality import FinalityLevel
from tests.database.conftest import TwoTenants
from tests.support.payments import RolePair, transfer_for
from tests.support.sql import connect, query, refused

CREDITS = 1_000_000_000
BONUS = 750_000_000


async def _rows(roles: RolePair, attempt: PaymentAttempt) -> list[tuple[str, int]]:
    return [(row.reason, row.amount) for row in await roles.entries(attempt)]


async def _confirm(roles: RolePair, attempt: PaymentAttempt) -> bool:
    async with roles.service.transaction() as connection:
        return await finality.insert_finality(
            connection, attempt.id, transfer_for(attempt), FinalityLevel.SAFE, outcome="final"
        )


async def test_a_reversed_purchase_takes_credit_and_bonus_back(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    ending = await roles.reverse(attempt)
    assert (ending.changed, ending.attempt.status, ending.credited_credits) == (True, AttemptStatus.REVERSED, 0)
    assert await roles.books(pending_bonus_ok=True) == []
    entry = await roles.reverse_bonus(attempt)
    assert entry is not None
    assert entry.amount_credits == -BONUS
    assert await _rows(roles, attempt) == [
        ("credits_purchase", CREDITS),
        ("platform_revenue_share", BONUS),
        ("payment_reversal", -CREDITS),
        ("payment_reversal", -BONUS),
    ]
    assert await roles.balance(SYSTEM_TENANT_ACCOUNT_ID) == 0
    assert await roles.books() == []


async def test_a_reversed_donation_is_taken_from_the_system_tenant(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1, purpose=Purpose.SYSTEM)
    await roles.reverse(attempt)
    assert await roles.reverse_bonus(attempt) is None
    assert await _rows(roles, attempt) == [("system_donation", CREDITS), ("payment_reversal", -CREDITS)]
    assert await roles.books() == []


async def test_reversing_twice_and_at_once_reverses_once(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    endings = await asyncio.gather(*(roles.reverse(attempt) for _ in range(10)))
    assert sum(ending.changed for ending in endings) == 1
    entries = await asyncio.gather(*(roles.reverse_bonus(attempt) for _ in range(10)))
    assert sum(bool(entry and entry.posted) for entry in entries) == 1
    assert len(await _rows(roles, attempt)) == 4
    assert query(roles.database.service_url, "SELECT count(*) FROM findings") == [(1,)]
    assert await roles.books() == []


async def test_a_reversed_purchase_gets_no_bonus_any_more(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    attempt = (await roles.credit(attempt)).attempt
    await roles.reverse(attempt)
    with pytest.raises(BookkeepingError, match="REVERSED"):
        await roles.mint(attempt)
    assert await roles.reverse_bonus(attempt) is None
    assert await roles.books() == []


async def test_a_bonus_that_read_the_purchase_before_its_reversal_comes_too_late(roles: RolePair) -> None:
    """The check and the posting are two statements: the second one locks the purchase, and finds it reversed."""
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    attempt = (await roles.credit(attempt)).attempt
    async with await psycopg.AsyncConnection.connect(roles.database.superuser_url) as holder:
        await holder.execute("SELECT FROM payment_attempts WHERE id = %s FOR UPDATE", (attempt.id,))
        minting = asyncio.create_task(roles.mint(attempt))
        while not await (await holder.execute("SELECT 1 FROM pg_locks WHERE NOT granted")).fetchone():
            assert not minting.done()
        await holder.execute(FINALITY.format("reversed", "tx_hash"), (attempt.id,))
        await holder.execute("UPDATE payment_attempts SET status = 'REVERSED' WHERE id = %s", (attempt.id,))
        await holder.execute(
            "SELECT post_entry(%s, %s, 'payment_reversal', %s, 'cash:usdc', '{}')",
            (attempt.billing_account_id, -CREDITS, str(attempt.id)),
        )
        await holder.commit()
    with pytest.raises(BookkeepingError, match="not CREDITED any more"):
        await minting
    assert [reason for reason, _ in await _rows(roles, attempt)] == ["credits_purchase", "payment_reversal"]


async def test_a_payment_on_record_as_final_is_not_reversed(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    assert await _confirm(roles, attempt)
    assert not await _confirm(roles, attempt)
    with pytest.raises(BookkeepingError, match="final"):
        await roles.reverse(attempt)
    assert await roles.books() == []


async def test_a_late_word_that_it_is_final_changes_no_reversal(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    await roles.reverse(attempt)
    assert not await _confirm(roles, attempt)


async def test_only_a_credited_payment_is_reversed_and_only_a_reversed_ones_bonus(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    pending = await roles.create_submitted(payer, 1)
    with pytest.raises(BookkeepingError, match="only a credited one"):
        await roles.reverse(pending)
    with pytest.raises(BookkeepingError, match="only a reversed purchase"):
        await roles.reverse_bonus(await roles.settle(payer, 2))


# -- what the database holds itself, against its owner too


FINALITY = (
    "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)"
    " SELECT attempt_id, '{}', chain_id, {}, log_index, block_number, block_hash, 'safe' FROM settled_transfers"
    " WHERE attempt_id = %s"
)
REVERSE = "UPDATE payment_attempts SET status = 'REVERSED' WHERE id = %s"
TAKE_BACK = "SELECT post_entry('{}', {}, 'payment_reversal', '{}', 'cash:usdc', '{{}}')"


@pytest.mark.parametrize("role", ["settle_service", "settle_owner"])
def test_reversed_without_its_entry_is_refused(two_tenants: TwoTenants, role: str) -> None:
    attempt = two_tenants.alice.credited
    with (
        refused(CheckViolation, "payment_attempts_reversed_in_ledger"),
        connect(two_tenants.database.url_as(role)) as sql,
    ):
        sql.execute(FINALITY.format("reversed", "tx_hash"), (attempt.id,))
        sql.execute(REVERSE, (attempt.id,))


@pytest.mark.parametrize("role", ["settle_service", "settle_owner"])
def test_reversed_without_a_record_of_the_reorganisation_is_refused(two_tenants: TwoTenants, role: str) -> None:
    attempt = two_tenants.alice.credited
    with (
        refused(CheckViolation, "payment_attempts_reversed_transfer_is_gone"),
        connect(two_tenants.database.url_as(role)) as sql,
    ):
        sql.execute(REVERSE, (attempt.id,))
        sql.execute(TAKE_BACK.format(two_tenants.alice.account, -CREDITS, attempt.id))


def test_reversing_half_of_a_payment_is_refused(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.credited
    with (
        refused(CheckViolation, "payment_attempts_reversed_in_ledger"),
        connect(two_tenants.database.migration_url) as sql,
    ):
        sql.execute(FINALITY.format("reversed", "tx_hash"), (attempt.id,))
        sql.execute(REVERSE, (attempt.id,))
        sql.execute(TAKE_BACK.format(two_tenants.alice.account, -CREDITS // 2, attempt.id))


@pytest.mark.parametrize("reference", ["standing", "nothing"])
def test_reversing_a_payment_that_is_not_reversed_is_refused(two_tenants: TwoTenants, reference: str) -> None:
    attempt_id = two_tenants.alice.credited.id if reference == "standing" else "nothing"
    with (
        refused(CheckViolation, "credit_ledger_reverses_reversed_payment"),
        connect(two_tenants.database.service_url) as sql,
    ):
        sql.execute(TAKE_BACK.format(two_tenants.alice.account, -CREDITS, attempt_id))


@pytest.mark.parametrize(
    ("whose", "amount"), [("bob", -CREDITS), ("alice", -CREDITS - 1), ("cogni_system", -BONUS - 1)]
)
async def test_reversing_what_was_not_credited_is_refused(two_tenants: TwoTenants, whose: str, amount: int) -> None:
    account = whose if whose == "cogni_system" else getattr(two_tenants, whose).account
    attempt = two_tenants.alice.credited
    with psycopg.connect(two_tenants.database.migration_url) as sql:
        sql.execute("SET CONSTRAINTS ALL DEFERRED")
        sql.execute(FINALITY.format("reversed", "tx_hash"), (attempt.id,))
        sql.execute(REVERSE, (attempt.id,))
        if account != two_tenants.alice.account:
            sql.execute(TAKE_BACK.format(two_tenants.alice.account, -CREDITS, attempt.id))
        sql.execute(TAKE_BACK.format(account, amount, attempt.id))
        with refused(CheckViolation):
            sql.commit()


def test_a_reversal_that_gives_is_refused(two_tenants: TwoTenants) -> None:
    with refused(CheckViolation, "credit_ledger_reversal_takes"), connect(two_tenants.database.service_url) as sql:
        sql.execute(TAKE_BACK.format(two_tenants.alice.account, 1, two_tenants.alice.credited.id))


@pytest.mark.parametrize(
    ("outcome", "tx_hash"), [("reversed", "tx_hash"), ("final", "'0x' || repeat('9', 64)")], ids=["stands", "other"]
)
def test_an_outcome_that_contradicts_the_attempt_is_refused(
    two_tenants: TwoTenants, outcome: str, tx_hash: str
) -> None:
    with (
        refused(CheckViolation, "transfer_finality_agrees_with_attempt"),
        connect(two_tenants.database.service_url) as sql,
    ):
        sql.execute(FINALITY.format(outcome, tx_hash), (two_tenants.alice.credited.id,))


@pytest.mark.parametrize("change", ["UPDATE transfer_finality SET level = 'safe'", "DELETE FROM transfer_finality"])
async def test_an_outcome_is_written_once(roles: RolePair, change: str) -> None:
    await _confirm(roles, await roles.settle(await roles.open_account(1), 1))
    with refused(RestrictViolation), connect(roles.database.migration_url) as sql:
        sql.execute(change)


@pytest.mark.parametrize("column", ["tx_hash = '0x' || repeat('9', 64)", "revenue_share = 0", "submission_count = 9"])
def test_what_a_payment_was_credited_with_stays_when_it_is_reversed(two_tenants: TwoTenants, column: str) -> None:
    with refused(RestrictViolation, "payment_attempts_write_once"), connect(two_tenants.database.service_url) as sql:
        sql.execute(
            f"UPDATE payment_attempts SET status = 'REVERSED', {column} WHERE id = %s",
            (two_tenants.alice.credited.id,),
        )


@pytest.mark.parametrize("error_code", ["TX_REVERTED", "RECEIPT_NOT_FOUND"])
async def test_no_other_failure_than_an_expired_intent_turns_out_to_be_none(roles: RolePair, error_code: str) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    with connect(roles.database.service_url) as sql:
        sql.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = %s WHERE id = %s", (error_code, attempt.id)
        )
    with (
        refused(RestrictViolation, "payment_attempts_legal_transition"),
        connect(roles.database.service_url) as sql,
    ):
        sql.execute(
            "UPDATE payment_attempts SET status = 'PENDING_UNVERIFIED', error_code = NULL WHERE id = %s", (attempt.id,)
        )
