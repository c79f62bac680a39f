"""An entry is checked once for each statement that writes its lines: in whatever order, and whenever, its rows come."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from psycopg.errors import CheckViolation, ForeignKeyViolation, IntegrityError

from tests.database.conftest import TwoTenants
from tests.support.sql import Connection, connect, refused, scalar

PURCHASED = 1_000_000_000
AMOUNT = 5

LINES = "INSERT INTO journal_lines (entry_id, account_code, side, amount) VALUES "
EARLIER_LINE = (
    "INSERT INTO journal_lines (id, entry_id, account_code, side, amount) OVERRIDING SYSTEM VALUE"
    " VALUES (-1, %s, %s, 'debit', 1)"
)
EXPENSE, CASH = "expense:platform_revenue_share", "cash:usdc"


@pytest.fixture
def account(two_tenants: TwoTenants) -> str:
    """An account with credits."""
    return two_tenants.alice.account


@pytest.fixture
def owner_url(two_tenants: TwoTenants) -> str:
    """The address of the tables' owner."""
    return two_tenants.database.migration_url


def header(owner: Connection, account: str, *, number: int = 1, entry_id: UUID | None = None) -> UUID:
    """The balance and the header of an account's next entry of `AMOUNT`, the `number`-th of the transaction."""
    entry_id = entry_id or uuid4()
    after = PURCHASED + AMOUNT * number
    owner.execute("UPDATE billing_accounts SET balance_credits = %s WHERE id = %s", (after, account))
    owner.execute(
        "INSERT INTO credit_ledger (id, billing_account_id, amount, balance_after, reason)"
        " VALUES (%s, %s, %s, %s, 'adjustment')",
        (entry_id, account, AMOUNT, after),
    )
    return entry_id


def lines(owner: Connection, *written: tuple[UUID, str, str, int]) -> None:
    """Lines of any entries, by one statement."""
    values = [value for line in written for value in line]
    owner.execute((LINES + ", ".join(["(%s, %s, %s, %s)"] * len(written))).encode(), values)


def pair(entry_id: UUID, account: str, *, debit: int = AMOUNT) -> list[tuple[UUID, str, str, int]]:
    """The two lines of an entry, in the order in which they are posted."""
    return [(entry_id, CASH, "debit", debit), (entry_id, f"credits:{account}", "credit", AMOUNT)]


def check_now(owner: Connection) -> None:
    """Fire all checks that wait for the commit; from here on each fires at the end of its statement."""
    owner.execute("SET CONSTRAINTS ALL IMMEDIATE")


def check_at_commit(owner: Connection) -> None:
    owner.execute("SET CONSTRAINTS ALL DEFERRED")


def test_entries_whose_lines_are_written_by_one_statement_are_accepted(owner_url: str, account: str) -> None:
    with connect(owner_url) as owner:
        first, second = header(owner, account), header(owner, account, number=2)
        lines(owner, *pair(first, account), *pair(second, account))
        check_now(owner)
        check_at_commit(owner)
        lines(owner, *pair(header(owner, account, number=3), account))


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_one_wrong_entry_among_those_of_a_statement_is_refused(owner_url: str, account: str, wrong: int) -> None:
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        entries = [header(owner, account, number=number) for number in (1, 2, 3)]
        debits = [AMOUNT + (number == wrong) for number in range(3)]
        lines(
            owner,
            *(line for entry, debit in zip(entries, debits, strict=True) for line in pair(entry, account, debit=debit)),
        )


@pytest.mark.parametrize("is_last", [True, False])
def test_a_wrong_line_of_a_statement_is_refused_wherever_it_stands(owner_url: str, account: str, is_last: bool) -> None:
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        entry = header(owner, account)
        extra = (entry, EXPENSE, "debit", 1)
        lines(owner, *([*pair(entry, account), extra] if is_last else [extra, *pair(entry, account)]))


@pytest.mark.parametrize("at_commit", [True, False])
def test_a_line_added_after_its_entry_was_checked_is_refused(owner_url: str, account: str, at_commit: bool) -> None:
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        entry = header(owner, account)
        lines(owner, *pair(entry, account))
        check_now(owner)
        if at_commit:
            check_at_commit(owner)
        lines(owner, (entry, EXPENSE, "debit", 1))


def test_a_line_added_after_the_check_under_an_earlier_number_is_refused(owner_url: str, account: str) -> None:
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        entry = header(owner, account)
        lines(owner, *pair(entry, account))
        check_now(owner)
        owner.execute(EARLIER_LINE, (entry, EXPENSE))


@pytest.mark.parametrize("commands", range(5))
def test_a_line_of_a_later_transaction_relies_on_none_of_an_earlier_one(
    owner_url: str, account: str, commands: int
) -> None:
    """Lines of two transactions may have been written by the same command of each."""
    with connect(owner_url) as owner:
        entry = header(owner, account)
        lines(owner, *pair(entry, account))
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        for _ in range(commands):
            owner.execute("UPDATE users SET wallet_address = wallet_address")
        owner.execute(EARLIER_LINE, (entry, EXPENSE))


def test_a_line_that_is_written_around_a_check_is_refused(owner_url: str, account: str) -> None:
    """A statement whose row is made by a function that writes the entry: the row itself comes after their check."""
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        owner.execute(
            b"CREATE FUNCTION pg_temp.write_pair(entry uuid, account text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN "
            b"INSERT INTO public.journal_lines (entry_id, account_code, side, amount)"
            b" VALUES (entry, 'cash:usdc', 'debit', 5), (entry, 'credits:' || account, 'credit', 5);"
            b" RETURN 1; END $$"
        )
        entry = header(owner, account)
        owner.execute("SET CONSTRAINTS journal_lines_balanced IMMEDIATE")
        owner.execute(
            "INSERT INTO journal_lines (entry_id, account_code, side, amount)"
            " SELECT %(entry)s, %(code)s, 'debit', pg_temp.write_pair(%(entry)s, %(account)s)",
            {"entry": entry, "code": EXPENSE, "account": account},
        )


def test_lines_that_a_savepoint_rolls_back_count_for_no_check(owner_url: str, account: str) -> None:
    """The last line is the one that others rely on; it was checked, with all of them, and is rolled back."""
    with refused(CheckViolation, "journal_entry_balanced"), connect(owner_url) as owner:
        entry = header(owner, account)
        debit, credit = pair(entry, account)
        lines(owner, debit)
        owner.execute("SAVEPOINT before")
        lines(owner, credit)
        owner.execute("ROLLBACK TO before")


def test_a_check_that_a_savepoint_rolls_back_is_made_again(owner_url: str, account: str) -> None:
    with refused(CheckViolation, "journal_entry_matches_header"), connect(owner_url) as owner:
        first = header(owner, account)
        lines(owner, *pair(first, account))
        second = header(owner, account, number=2)
        owner.execute("SAVEPOINT before")
        lines(owner, *pair(second, account))
        with refused(CheckViolation, "journal_entry_written_at_once"):
            check_now(owner)
        owner.execute("ROLLBACK TO before")


def test_a_line_in_a_savepoint_of_its_own_is_late_for_its_entry(owner_url: str, account: str) -> None:
    with refused(CheckViolation, "journal_entry_written_at_once"), connect(owner_url) as owner:
        entry = header(owner, account)
        owner.execute("SAVEPOINT before")
        lines(owner, *pair(entry, account))
        owner.execute("RELEASE before")


def test_a_header_after_its_lines_is_accepted_at_commit_only(owner_url: str, account: str) -> None:
    entry = uuid4()
    with connect(owner_url) as owner:
        lines(owner, *pair(entry, account))
        header(owner, account, entry_id=entry)
    with refused(ForeignKeyViolation, "journal_lines_entry_exists"), connect(owner_url) as owner:
        lines(owner, *pair(uuid4(), account))
        check_now(owner)


def test_a_header_cannot_rest_on_lines_of_an_earlier_transaction(
    two_tenants: TwoTenants, owner_url: str, account: str
) -> None:
    """Those of a general entry, under its id."""
    with connect(owner_url) as owner:
        [general] = owner.execute(
            "INSERT INTO general_entries (reason, reference) VALUES ('absorbed_cost', 'x') RETURNING id"
        ).fetchone() or (None,)
        assert general is not None
        lines(owner, (general, "expense:absorbed", "debit", AMOUNT), (general, "payable:providers", "credit", AMOUNT))
    with refused(CheckViolation, "journal_entry_matches_header"), connect(owner_url) as owner:
        header(owner, account, entry_id=general)
    assert scalar(two_tenants.database.service_url, "SELECT count(*) FROM general_entries") == 1


@pytest.mark.parametrize("general_first", [True, False])
def test_two_headers_of_one_id_are_refused(owner_url: str, account: str, general_first: bool) -> None:
    with refused(IntegrityError, "general_entries_id_is_its_own"), connect(owner_url) as owner:
        entry = uuid4()
        general = "INSERT INTO general_entries (id, reason, reference) VALUES (%s, 'absorbed_cost', 'x')"
        if general_first:
            owner.execute(general, (entry,))
        header(owner, account, entry_id=entry)
        if not general_first:
            owner.execute(general, (entry,))
        lines(owner, *pair(entry, account))
