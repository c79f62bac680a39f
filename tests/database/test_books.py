"""Double entry against a buggy caller who owns the tables: what does not balance is refused at commit."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import CheckViolation, ForeignKeyViolation, UniqueViolation

from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from tests.database.conftest import TwoTenants
from tests.support.sql import Connection, connect, refused, scalar

PURCHASED = 1_000_000_000


def _header(connection: Connection, account: str, amount: int, balance_after: int, **columns: Any) -> UUID:
    entry_id = uuid4()
    values = {"reason": "adjustment", "reference": None} | columns
    connection.execute(
        "INSERT INTO credit_ledger (id, billing_account_id, amount, balance_after, reason, reference)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (entry_id, account, amount, balance_after, values["reason"], values["reference"]),
    )
    return entry_id


def _line(connection: Connection, entry_id: UUID, code: str, side: str, amount: int) -> None:
    connection.execute(
        "INSERT INTO journal_lines (entry_id, account_code, side, amount) VALUES (%s, %s, %s, %s)",
        (entry_id, code, side, amount),
    )


def _set_balance(connection: Connection, account: str, balance: int) -> None:
    connection.execute("UPDATE billing_accounts SET balance_credits = %s WHERE id = %s", (balance, account))


def _post(connection: Connection, account: str, amount: int, before: int, **columns: Any) -> UUID:
    """A whole, right entry by hand: what the tests below each leave one thing out of."""
    _set_balance(connection, account, before + amount)
    entry_id = _header(connection, account, amount, before + amount, **columns)
    _line(connection, entry_id, "cash:usdc", "debit", amount)
    _line(connection, entry_id, f"credits:{account}", "credit", amount)
    return entry_id


def test_a_right_entry_by_hand_is_accepted(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        _post(owner, two_tenants.alice.account, 5, PURCHASED)
    with connect(two_tenants.database.migration_url) as owner:
        _post(owner, two_tenants.alice.account, 6, PURCHASED + 5)


def test_several_right_entries_in_one_transaction_are_accepted(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        for number in range(3):
            _post(owner, two_tenants.alice.account, 5, PURCHASED + 5 * number)


def test_a_header_without_lines_is_refused(two_tenants: TwoTenants) -> None:
    with refused(CheckViolation, "journal_entry_matches_header"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, PURCHASED + 5)
        _header(owner, two_tenants.alice.account, 5, PURCHASED + 5)


@pytest.mark.parametrize(("code", "side"), [("cash:usdc", "debit"), ("credits", "credit")])
def test_an_entry_of_one_line_is_refused(two_tenants: TwoTenants, code: str, side: str) -> None:
    with refused(CheckViolation, "journal_entry_balanced"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, PURCHASED + 5)
        entry_id = _header(owner, two_tenants.alice.account, 5, PURCHASED + 5)
        _line(owner, entry_id, f"credits:{two_tenants.alice.account}" if code == "credits" else code, side, 5)


@pytest.mark.parametrize("debit", [4, 6])
def test_an_entry_whose_debits_are_not_its_credits_is_refused(two_tenants: TwoTenants, debit: int) -> None:
    with refused(CheckViolation, "journal_entry_balanced"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, PURCHASED + 5)
        entry_id = _header(owner, two_tenants.alice.account, 5, PURCHASED + 5)
        _line(owner, entry_id, "cash:usdc", "debit", debit)
        _line(owner, entry_id, f"credits:{two_tenants.alice.account}", "credit", 5)


@pytest.mark.parametrize("header", [4, 6, -5])
def test_balanced_lines_that_are_not_what_the_header_says_are_refused(two_tenants: TwoTenants, header: int) -> None:
    with refused(CheckViolation, "journal_entry_matches_header"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, PURCHASED + header)
        entry_id = _header(owner, two_tenants.alice.account, header, PURCHASED + header)
        _line(owner, entry_id, "cash:usdc", "debit", 5)
        _line(owner, entry_id, f"credits:{two_tenants.alice.account}", "credit", 5)


def test_an_entry_that_moves_only_another_accounts_credits_is_refused(two_tenants: TwoTenants) -> None:
    with refused(CheckViolation, "journal_entry_matches_header"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, PURCHASED + 5)
        entry_id = _header(owner, two_tenants.alice.account, 5, PURCHASED + 5)
        _line(owner, entry_id, "cash:usdc", "debit", 5)
        _line(owner, entry_id, f"credits:{two_tenants.bob.account}", "credit", 5)


def test_an_entry_that_takes_from_another_accounts_credits_is_refused(two_tenants: TwoTenants) -> None:
    with refused(CheckViolation, "journal_entry_of_one_account"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, PURCHASED + 5)
        entry_id = _header(owner, two_tenants.alice.account, 5, PURCHASED + 5)
        _line(owner, entry_id, f"credits:{two_tenants.bob.account}", "debit", 5)
        _line(owner, entry_id, f"credits:{two_tenants.alice.account}", "credit", 5)


def test_the_service_cannot_pay_one_account_with_anothers_credits(two_tenants: TwoTenants) -> None:
    with refused(CheckViolation, "journal_entry_of_one_account"), connect(two_tenants.database.service_url) as service:
        service.execute(
            "SELECT * FROM post_entry(%s, 5, 'adjustment', NULL, %s, '{}')",
            (two_tenants.alice.account, f"credits:{two_tenants.bob.account}"),
        )


@pytest.mark.parametrize("codes", [("cash:usdc", "expense:platform_revenue_share"), ("cash:usdc", "cash:usdc")])
def test_a_balanced_pair_of_lines_added_to_an_old_entry_is_refused(
    two_tenants: TwoTenants, codes: tuple[str, str]
) -> None:
    [entry_id] = _entry_ids(two_tenants)
    with refused(CheckViolation, "journal_entry_written_at_once"), connect(two_tenants.database.migration_url) as owner:
        _line(owner, entry_id, codes[0], "debit", 5)
        _line(owner, entry_id, codes[1], "credit", 5)


def test_one_line_added_to_an_old_entry_is_refused(two_tenants: TwoTenants) -> None:
    [entry_id] = _entry_ids(two_tenants)
    with refused(CheckViolation, "journal_entry_balanced"), connect(two_tenants.database.migration_url) as owner:
        _line(owner, entry_id, "cash:usdc", "debit", 5)


def _entry_ids(two_tenants: TwoTenants) -> list[UUID]:
    with connect(two_tenants.database.service_url) as service:
        rows = service.execute(
            "SELECT id FROM credit_ledger WHERE billing_account_id = %s", (two_tenants.alice.account,)
        ).fetchall()
    return [entry_id for (entry_id,) in rows]


@pytest.mark.parametrize("balance_after", [PURCHASED + 4, PURCHASED + 6, 5])
def test_a_wrong_running_balance_is_refused(two_tenants: TwoTenants, balance_after: int) -> None:
    with refused(CheckViolation, "credit_ledger_running_balance"), connect(two_tenants.database.migration_url) as owner:
        _set_balance(owner, two_tenants.alice.account, balance_after)
        entry_id = _header(owner, two_tenants.alice.account, 5, balance_after)
        _line(owner, entry_id, "cash:usdc", "debit", 5)
        _line(owner, entry_id, f"credits:{two_tenants.alice.account}", "credit", 5)


def test_an_entry_that_leaves_the_balance_behind_is_refused(two_tenants: TwoTenants) -> None:
    with (
        refused(CheckViolation, "billing_accounts_balance_is_ledger_sum"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        entry_id = _header(owner, two_tenants.alice.account, 5, PURCHASED + 5)
        _line(owner, entry_id, "cash:usdc", "debit", 5)
        _line(owner, entry_id, f"credits:{two_tenants.alice.account}", "credit", 5)


@pytest.mark.parametrize("balance", [0, PURCHASED - 1, PURCHASED + 1])
def test_a_balance_that_is_not_the_ledgers_is_refused(two_tenants: TwoTenants, balance: int) -> None:
    with (
        refused(CheckViolation, "billing_accounts_balance_is_ledger_sum"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _set_balance(owner, two_tenants.alice.account, balance)


def test_an_account_that_is_born_rich_is_refused_and_an_empty_one_is_not(two_tenants: TwoTenants) -> None:
    statement = "INSERT INTO billing_accounts (id, owner_user_id, balance_credits) VALUES (%s, %s, %s)"
    with (
        refused(CheckViolation, "billing_accounts_balance_is_ledger_sum"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(statement, ("born_rich", two_tenants.alice.user_id, 1))
    with connect(two_tenants.database.migration_url) as owner:
        owner.execute(statement, ("born_empty", two_tenants.alice.user_id, 0))
    code = scalar(
        two_tenants.database.service_url, "SELECT code FROM ledger_accounts WHERE billing_account_id = %s", "born_empty"
    )
    assert code == "credits:born_empty"


def test_a_check_at_commit_sees_the_whole_book_even_for_a_bound_tenant(two_tenants: TwoTenants) -> None:
    """Row-level security must not blind the checks: the system tenant's row is invisible to settle_app."""
    with psycopg.connect(two_tenants.database.superuser_url) as connection:
        connection.execute("GRANT EXECUTE ON FUNCTION post_entry TO settle_app")
        connection.execute("SET LOCAL ROLE settle_app")
        connection.execute(
            "SELECT * FROM post_entry(%s, 5, 'adjustment', NULL, 'cash:usdc', '{}')", (SYSTEM_TENANT_ACCOUNT_ID,)
        )
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.rollback()


@pytest.mark.parametrize("amount", [0, -5])
def test_a_line_of_nothing_or_less_is_refused(two_tenants: TwoTenants, amount: int) -> None:
    [entry_id] = _entry_ids(two_tenants)
    with refused(CheckViolation, "journal_lines_amount_check"), connect(two_tenants.database.migration_url) as owner:
        _line(owner, entry_id, "cash:usdc", "debit", amount)


def test_an_entry_of_nothing_is_refused(two_tenants: TwoTenants) -> None:
    with refused(CheckViolation, "credit_ledger_amount_check"), connect(two_tenants.database.service_url) as service:
        service.execute(
            "SELECT * FROM post_entry(%s, 0, 'adjustment', NULL, 'cash:usdc', '{}')", (two_tenants.alice.account,)
        )


@pytest.mark.parametrize("reason", ["credits_purchase", "platform_revenue_share", "system_donation"])
@pytest.mark.parametrize(("amount", "reference"), [(-5, "a reference"), (5, None)])
def test_a_payments_entry_is_positive_and_has_a_reference(
    two_tenants: TwoTenants, reason: str, amount: int, reference: str | None
) -> None:
    with refused(CheckViolation, "credit_ledger_check"), connect(two_tenants.database.migration_url) as owner:
        _header(owner, two_tenants.alice.account, amount, PURCHASED + amount, reason=reason, reference=reference)


def test_an_account_may_be_charged_by_a_negative_entry(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.service_url) as service:
        [(amount, after)] = service.execute(
            "SELECT amount, balance_after FROM post_entry(%s, -5, 'usage', 'call 1', 'revenue:usage', '{}')",
            (two_tenants.alice.account,),
        ).fetchall()
    assert (amount, after) == (-5, PURCHASED - 5)
    sides = "SELECT side FROM journal_lines WHERE account_code = 'revenue:usage'"
    assert scalar(two_tenants.database.service_url, sides) == "credit"


@pytest.mark.parametrize(
    ("reason", "index"),
    [
        ("credits_purchase", "credit_ledger_one_purchase_per_reference"),
        ("platform_revenue_share", "credit_ledger_one_revenue_share_per_reference"),
        ("system_donation", "credit_ledger_one_donation_per_reference"),
    ],
)
def test_a_payment_is_posted_once_per_account_and_reason(two_tenants: TwoTenants, reason: str, index: str) -> None:
    alice, bob = two_tenants.alice.account, two_tenants.bob.account
    with connect(two_tenants.database.migration_url) as owner:
        _post(owner, alice, 5, PURCHASED, reason=reason, reference="the same")
        _post(owner, bob, 5, PURCHASED, reason=reason, reference="the same")
        _post(owner, alice, 5, PURCHASED + 5, reason=reason, reference="another")
    with refused(UniqueViolation, index), connect(two_tenants.database.migration_url) as owner:
        _post(owner, alice, 5, PURCHASED + 10, reason=reason, reference="the same")


@pytest.mark.parametrize(
    ("reason", "amount", "index"),
    [
        ("payment_reversal", -5, "credit_ledger_one_reversal_per_reference"),
        ("operator_credit", 5, "credit_ledger_one_operator_credit_per_reference"),
    ],
)
def test_a_reversal_and_an_operators_credit_are_posted_once(
    two_tenants: TwoTenants, reason: str, amount: int, index: str
) -> None:
    # Without the triggers, which refuse it for reasons of their own: what is left is the index.
    url, account = two_tenants.database.superuser_url, two_tenants.alice.account
    post = (
        "INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason, reference)"
        " VALUES (%s, %s, 0, %s, %s)"
    )
    with connect(url, triggers=False) as superuser:
        superuser.execute(post, (account, amount, reason, "the same"))
        superuser.execute(post, (account, amount, reason, "another"))
    with refused(UniqueViolation, index), connect(url, triggers=False) as superuser:
        superuser.execute(post, (account, amount, reason, "the same"))


def test_posting_again_reports_the_entry_that_is_there(two_tenants: TwoTenants) -> None:
    statement = "SELECT * FROM post_entry(%s, %s, 'system_donation', 'x', 'cash:usdc', '{}')"
    with connect(two_tenants.database.service_url) as service:
        [first] = service.execute(statement, (two_tenants.alice.account, 5)).fetchall()
        [second] = service.execute(statement, (two_tenants.alice.account, 5)).fetchall()
        [other_amount] = service.execute(statement, (two_tenants.alice.account, 6)).fetchall()
    assert first[1:] == (5, PURCHASED + 5, True)
    assert second == other_amount == (*first[:3], False)


def test_the_same_reference_with_two_reasons_is_two_entries(two_tenants: TwoTenants) -> None:
    statement = "SELECT posted FROM post_entry(%s, 5, %s, 'x', 'cash:usdc', '{}')"
    with connect(two_tenants.database.service_url) as service:
        for reason in ("credits_purchase", "platform_revenue_share", "system_donation", "usage"):
            assert service.execute(statement, (two_tenants.alice.account, reason)).fetchall() == [(True,)]


def test_a_posting_carries_the_accounts_default_key(two_tenants: TwoTenants) -> None:
    keys = "SELECT count(*) FROM credit_ledger e JOIN virtual_keys k ON k.id = e.virtual_key_id AND k.is_default"
    total = scalar(two_tenants.database.service_url, "SELECT count(*) FROM credit_ledger")
    assert scalar(two_tenants.database.service_url, keys) == total > 0


def test_a_line_of_an_unknown_account_is_refused(two_tenants: TwoTenants) -> None:
    with (
        refused(ForeignKeyViolation, "journal_lines_account_code_fkey"),
        connect(two_tenants.database.service_url) as service,
    ):
        service.execute("SELECT * FROM post_entry(%s, 5, 'x', 'x', 'cash:nowhere', '{}')", (two_tenants.alice.account,))


def test_a_balance_beyond_a_bigint_is_refused_and_nothing_is_lost(two_tenants: TwoTenants) -> None:
    with refused(psycopg.errors.NumericValueOutOfRange), connect(two_tenants.database.service_url) as service:
        service.execute(
            "SELECT * FROM post_entry(%s, %s, 'x', 'x', 'cash:usdc', '{}')", (two_tenants.alice.account, 2**63 - 1)
        )
    balance = "SELECT balance_credits FROM billing_accounts WHERE id = %s"
    assert scalar(two_tenants.database.service_url, balance, two_tenants.alice.account) == PURCHASED


# -- accounts


def test_a_second_system_tenant_is_refused(two_tenants: TwoTenants) -> None:
    with (
        refused(UniqueViolation, "billing_accounts_one_system_tenant"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute("UPDATE billing_accounts SET is_system_tenant = true WHERE id = %s", (two_tenants.alice.account,))


def test_an_account_has_one_default_key_and_any_number_of_others(two_tenants: TwoTenants) -> None:
    statement = "INSERT INTO virtual_keys (billing_account_id, is_default) VALUES (%s, %s)"
    with connect(two_tenants.database.migration_url) as owner:
        owner.execute(statement, (two_tenants.alice.account, False))
        owner.execute(statement, (two_tenants.alice.account, False))
    with refused(UniqueViolation, "virtual_keys_one_default"), connect(two_tenants.database.migration_url) as owner:
        owner.execute(statement, (two_tenants.alice.account, True))


def test_two_users_may_be_without_a_wallet_and_none_shares_one(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        owner.execute("INSERT INTO users (id) VALUES ('robot')")
    with refused(UniqueViolation, "users_wallet_address_key"), connect(two_tenants.database.migration_url) as owner:
        owner.execute("INSERT INTO users VALUES ('x', %s)", (two_tenants.alice.payer.wallet_address,))
