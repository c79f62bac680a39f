"""The parts of a reconciliation's statement, each by itself: the functions of `db/functions/reconciliation.sql`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.ledger.entries import Reason
from tests.reconciliation.books import HOUR, Books, ago, plant, spend
from tests.reconciliation.planting import find_transfer, observe
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, tx_hash, wallet
from tests.support.sql import query, scalar

GRACE = timedelta(minutes=15)
BEFORE = "0x" + "72" * 20
"""A treasury of before."""


def rows(books: Books, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Asked in the role that reconciles."""
    return query(books.roles.database.service_url, statement, *values)


def payment(books: Books, columns: str, number: int, *, grace: timedelta = GRACE) -> tuple[Any, ...]:
    """The one payment of a transaction."""
    [row] = rows(books, f"SELECT {columns} FROM settled_payments(%s) WHERE tx_hash = %s", grace, tx_hash(number))
    return row


# -- entries


@pytest.mark.parametrize(
    "reference",
    [None, "", "transfer:31337:0x00:0", "11111111-1111-1111-1111-11111111111", "11111111111111111111111111111111"],
)
def test_a_reference_that_is_no_id_names_no_attempt(books: Books, reference: str | None) -> None:
    assert scalar(books.roles.database.service_url, "SELECT attempt_of_reference(%s)", reference) is None


def test_a_reference_that_is_an_id_names_its_attempt(books: Books) -> None:
    attempt_id = uuid4()
    assert scalar(books.roles.database.service_url, "SELECT attempt_of_reference(%s)", str(attempt_id)) == attempt_id


def test_every_reason_of_the_code_is_one_of_a_payment_and_usage_is_none(books: Books) -> None:
    url = books.roles.database.service_url
    asked = [*Reason, "usage"]
    assert {one for one in asked if scalar(url, "SELECT is_reason_of_payment(%s)", one)} == set(Reason)


def test_an_entry_has_what_it_moved_on_the_treasurys_account(books: Books) -> None:
    found = rows(
        books,
        "SELECT DISTINCT reason, cash_debit_credits = amount_credits, cash_credit_credits, attempt_id IS NULL"
        " FROM ledger_entries_with_cash() WHERE reason <> 'operator_credit' ORDER BY 1",
    )
    assert found == [
        ("credits_purchase", True, None, False),
        ("platform_revenue_share", None, None, False),
        ("platform_revenue_share", None, None, True),
        ("system_donation", True, None, False),
        ("usage", None, None, True),
    ]


def test_no_entry_of_good_books_is_unexplained(books: Books) -> None:
    assert rows(books, "SELECT * FROM unexplained_entries()") == []


@pytest.mark.parametrize("table", ["settled_transfers", "transfer_credits"])
def test_entries_without_what_they_were_posted_for_are_unexplained(books: Books, table: str) -> None:
    plant(books.roles, f"DELETE FROM {table} WHERE tx_hash = '{tx_hash(6)}'")
    found = rows(books, "SELECT reason, amount_credits FROM unexplained_entries() ORDER BY entry_seq")
    assert [reason for reason, _ in found] == {
        "settled_transfers": ["credits_purchase", "platform_revenue_share"],
        "transfer_credits": ["operator_credit", "platform_revenue_share"],
    }[table]


def test_an_entry_that_moves_the_treasurys_account_is_unexplained_whatever_its_reason(books: Books) -> None:
    spend(books.roles, books.payer.billing_account_id, 700)
    plant(
        books.roles,
        "UPDATE journal_lines SET account_code = 'cash:usdc' WHERE account_code = 'revenue:usage' AND amount = 700",
    )
    assert rows(books, "SELECT reason, cash_credit_credits FROM unexplained_entries()") == [("usage", 700)]


# -- transactions


def test_a_transaction_belongs_to_the_time_of_its_block_and_of_what_was_posted_for_it(books: Books) -> None:
    def numbers(begin: timedelta, end: timedelta) -> set[str]:
        asked = "SELECT tx_hash FROM transactions_between(%s, now() - %s, now() - %s)"
        return {one for (one,) in rows(books, asked, CHAIN_ID, begin, end)}

    everything = {tx_hash(number) for number in (1, 2, 3, 4, 5, 6, 7)}
    posted = everything - {tx_hash(4), tx_hash(5)}
    assert numbers(3 * HOUR, HOUR) == everything
    assert numbers(HOUR, -HOUR) == posted
    assert numbers(4 * HOUR, 3 * HOUR) == set()
    assert rows(books, "SELECT * FROM transactions_between(8453, now() - interval '1 day', now())") == []


# -- transfers


async def test_what_a_treasury_sends_is_no_income_whichever_treasury_it_is(books: Books) -> None:
    plant(
        books.roles,
        "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by) VALUES (1, %s, %s, 'worker')",
        TOKEN,
        BEFORE,
    )
    for number, sender in ((21, TREASURY), (22, BEFORE.upper().replace("X", "x")), (23, wallet(1))):
        await observe(books.roles.service, tx_hash(number), sender, 5)
    found = rows(
        books,
        "SELECT tx_hash, is_income FROM received_transfers() WHERE tx_hash = ANY (%s) ORDER BY 1",
        [tx_hash(number) for number in (21, 22, 23)],
    )
    assert [is_income for _, is_income in found] == [False, False, True]


async def test_a_transfer_below_the_first_block_that_is_answered_for_is_too_old(books: Books) -> None:
    plant(books.roles, "UPDATE chain_cursors SET answers_from = 100")
    for number, block in ((21, 99), (22, 100)):
        await observe(books.roles.service, tx_hash(number), wallet(1), 5, block_number=block)
    found = rows(
        books,
        "SELECT is_too_old FROM received_transfers() WHERE tx_hash = ANY (%s) ORDER BY block_number",
        [tx_hash(21), tx_hash(22)],
    )
    assert found == [(True,), (False,)]


async def test_a_transfer_comes_with_the_finding_about_it(books: Books) -> None:
    finding_id = await find_transfer(books.roles.service, 21, at=ago(HOUR))
    [(finding, waits)] = rows(
        books,
        "SELECT finding, undecided_since < now() - interval '50 minutes' FROM received_transfers() WHERE tx_hash = %s",
        tx_hash(21),
    )
    assert finding["finding_id"] == str(finding_id)
    assert finding["resolution"] is None
    assert waits


# -- what was credited


def test_a_payment_has_its_terms_its_surplus_and_what_its_bonus_should_be(books: Books) -> None:
    columns = "purpose, value_raw - amount_raw, surplus_raw, bonus_credits > 0, surplus_finding IS NOT NULL, outcome"
    assert payment(books, columns, 1) == ("self", 0, 0, True, False, "final")
    assert payment(books, columns, 2) == ("system", 0, 0, False, False, "final")
    assert payment(books, columns, 6) == ("self", 60, 60, True, True, "final")


def test_a_surplus_that_was_credited_is_named_by_its_payment_and_no_refund_is(books: Books) -> None:
    [(credited,)] = rows(books, "SELECT reference FROM operator_credits() WHERE part = 'surplus'")
    assert payment(books, "surplus_reference", 6) == (credited,)
    assert payment(books, "surplus_reference", 7) == (None,)
    assert rows(books, "SELECT DISTINCT part FROM operator_credits() ORDER BY 1") == [("surplus",), ("whole",)]


@pytest.mark.parametrize(
    ("cursor", "is_covered"),
    [
        ("first_block = 1", True),
        # Not read yet: settled before the cursor was last moved, it should have been.
        ("block_number = 5, updated_at = now()", False),
        ("block_number = 5, updated_at = now() + interval '20 minutes'", True),
        # Below where the watcher began: no payment can have been made there since.
        ("first_block = 500, created_at = now() - interval '1 hour'", True),
        ("first_block = 500, created_at = now() + interval '1 hour'", False),
        ("token = '0x' || repeat('9', 40)", False),
    ],
)
def test_a_payment_is_covered_by_the_watcher(books: Books, cursor: str, is_covered: bool) -> None:
    plant(books.roles, f"UPDATE chain_cursors SET {cursor}")
    assert payment(books, "is_covered", 1) == (is_covered,)


def test_a_payment_in_a_gap_is_not_covered(books: Books) -> None:
    [(block,)] = rows(books, "SELECT block_number FROM settled_payments('0') WHERE tx_hash = %s", tx_hash(1))
    plant(
        books.roles,
        "INSERT INTO chain_gaps (chain_id, token, to_address, first_block, last_block, reason)"
        " VALUES (%s, %s, %s, %s, %s, 'pruned')",
        CHAIN_ID,
        TOKEN,
        TREASURY,
        block,
        block,
    )
    assert payment(books, "is_covered", 1) == (False,)
    plant(books.roles, "UPDATE chain_gaps SET read_at = now()")
    assert payment(books, "is_covered", 1) == (True,)


def test_the_planner_sees_through_the_parts(books: Books) -> None:
    """A function that it cannot take for part of the query would be read whole, whatever the query asks for."""
    for part in ("received_transfers()", "settled_payments('0')", "operator_credits()", "unexplained_entries()"):
        plan = rows(books, f"EXPLAIN SELECT * FROM {part}")
        assert not [line for (line,) in plan if "Function Scan" in line], part
