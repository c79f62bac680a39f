"""A reconciliation of a ledger into which each kind of difference is planted finds exactly those."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from domain.errors import InvalidInput, WatcherBehind
from domain.operations.findings import FindingKind, Remedy
from domain.operations.reconciliation.report import Report, Severity
from domain.payments.attempt import PaymentAttempt
from tests.reconciliation.books import HOUR, Books, ago, finalise, plant
from tests.reconciliation.planting import find_transfer, mint, observe, observe_payment, stored, take
from tests.support.payments import CHAIN_ID, WRONG_PAYMENT, RolePair, transfer_for, tx_hash, wallet
from tests.support.sql import connect, query, scalar

CLEAN = {
    "transfers": 7,
    "inflow_raw": 100_000_000 * 3 + 5_000_000 + 5_000_000 + 40 + 50 + 60 + 70,
    "purchases_credits": 3_000_000_000,
    "donations_credits": 50_000_000,
    "operator_credits": 50_000_000 + 600,
    "unapplied_raw": 40 + 50 + 70,
    "surplus_raw": 70,
    "refunded_raw": 40 + 70,
    "written_off_raw": 50,
    "ledger_debit_credits": 3_100_000_600,
}


def differences(report: Report) -> list[tuple[str, str]]:
    """Kind and severity of what was found."""
    assert sum(report.counts.values()) == len(report.differences)
    return sorted((one.kind, one.severity.value) for one in report.differences)


async def test_a_clean_ledger_has_no_differences_and_its_totals_close(books: Books) -> None:
    report = await books.reconcile()
    assert differences(report) == []
    assert {name: value for name, value in report.totals.by_name().items() if value} == CLEAN
    assert (report.closes, report.is_well, report.alarms) == (True, True, 0)
    assert books.helpers == type(books.helpers)()
    assert await books.roles.books() == []


async def test_it_is_stored_as_a_balance_assertion(books: Books) -> None:
    report = await books.reconcile()
    [row] = query(
        books.roles.database.superuser_url,
        "SELECT id, chain_id, inflow_raw::bigint, purchases_credits::bigint, unapplied_raw::bigint, closes,"
        " differences, totals->>'operator_credits', period_to - period_from FROM balance_assertions",
    )
    assert row == (
        report.assertion_id,
        CHAIN_ID,
        CLEAN["inflow_raw"],
        CLEAN["purchases_credits"],
        CLEAN["unapplied_raw"],
        True,
        {},
        str(CLEAN["operator_credits"]),
        7 * HOUR,
    )


async def test_the_csv_has_every_transfer_and_makes_up_the_totals(books: Books, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "books.csv"
    report = await books.reconcile(csv_file=file)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert sorted(row["kind"] for row in rows) == [
        "donation", "operator_credit", "purchase", "purchase", "purchase", "refunded", "written_off",
    ]  # fmt: skip
    assert sum(int(row["value_raw"]) for row in rows) == report.totals.inflow_raw
    for column in ("purchase_credits", "donation_credits"):
        name = column.replace("_credits", "s_credits")
        assert sum(int(row[column]) for row in rows) == report.totals.by_name()[name]
    assert sum(int(row["operator_credits"]) for row in rows) == report.totals.operator_credits
    assert sum(int(row["unapplied_raw"]) for row in rows) == report.totals.unapplied_raw
    for row in rows:
        parts = sum(int(row[f"{part}_credits"]) for part in ("purchase", "donation", "operator"))
        assert int(row["value_raw"]) * 10 == parts + int(row["unapplied_raw"]) * 10
    assert all(row["attempt_id"] for row in rows if row["kind"] in {"purchase", "donation"})
    assert all(row["finding_id"] for row in rows if row["kind"] in {"operator_credit", "refunded", "written_off"})
    assert [path.name for path in file.parent.iterdir()] == ["books.csv"]


async def test_a_file_that_cannot_be_finished_is_not_there(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "books.csv"
    file.write_text("the one before")

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("services.operations.books_file.os.fsync", fails)
    with pytest.raises(OSError, match="no space left"):
        await books.reconcile(csv_file=file)
    assert file.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["books.csv"]


# -- each kind of difference, alone


async def _unawaited(books: Books) -> None:
    await observe(books.roles.service, tx_hash(20), wallet(9), 7_000, at=ago(HOUR))


async def _overpayment(books: Books) -> None:
    await books.settle(21, surplus_raw=33)


async def _underpaid(books: Books) -> None:
    attempt = await books.roles.create_submitted(books.payer, 22)
    await books.roles.refuse(attempt, WRONG_PAYMENT)
    await observe(books.roles.service, tx_hash(22), wallet(1), 99, at=ago(HOUR))


async def _late(books: Books) -> None:
    attempt = await books.roles.create(books.payer, created_at=ago(4 * HOUR), expires_at=ago(3 * HOUR), cents=12_300)
    with connect(books.roles.database.service_url) as service:
        service.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = 'INTENT_EXPIRED' WHERE id = %s", (attempt.id,)
        )
    await observe(books.roles.service, tx_hash(23), wallet(1), attempt.amount_raw, at=ago(HOUR))


async def _wrong_sender_known(books: Books) -> None:
    await find_transfer(books.roles.service, 24, kind=FindingKind.WRONG_SENDER, at=ago(HOUR))


async def _watcher_does_nothing(books: Books) -> None:
    """An intent's own transfer, an hour old, that was not submitted; and one that was set aside by mistake."""
    for number, handled in ((70, False), (71, True)):
        attempt = await books.roles.create(
            books.payer, created_at=ago(2 * HOUR), expires_at=ago(-HOUR), cents=number * 100
        )
        value_raw = attempt.amount_raw
        await observe(books.roles.service, tx_hash(number), wallet(1), value_raw, at=ago(HOUR), handled=handled)


async def _credited_without_transfer(books: Books) -> None:
    """Settled in a block that the watcher has been through, and not there."""
    attempt = await books.settle(25)
    plant(books.roles, "DELETE FROM observed_transfers WHERE tx_hash = %s", attempt.tx_hash)


async def _row_without_attempt(books: Books) -> None:
    _post(books.roles, books.payer.billing_account_id, 500, "credits_purchase", str(uuid4()), "cash:usdc")


async def _row_of_another_reason(books: Books) -> None:
    """Whatever it is called: it moves the treasury's account."""
    _post(books.roles, books.payer.billing_account_id, 500, "gift", "for nothing", "cash:usdc")


async def _bonus_without_purchase(books: Books) -> None:
    _post(books.roles, "cogni_system", 500, "platform_revenue_share", str(uuid4()), "expense:platform_revenue_share")


async def _operator_credit_off_the_chain(books: Books) -> None:
    finding_id = await find_transfer(books.roles.service, 26, at=ago(HOUR))
    await take(books.roles.service, finding_id, Remedy.CREDIT)
    await mint(books.roles.service, finding_id)
    plant(books.roles, "DELETE FROM observed_transfers WHERE tx_hash = %s", tx_hash(26))


async def _credited_without_row(books: Books) -> None:
    attempt = await books.settle(27, payer=await books.roles.open_account(27))
    plant(
        books.roles,
        "WITH gone AS (DELETE FROM credit_ledger WHERE reference = %s AND reason = 'credits_purchase' RETURNING id)"
        " DELETE FROM journal_lines l USING gone WHERE l.entry_id = gone.id",
        str(attempt.id),
    )


async def _credited_too_much(books: Books) -> None:
    attempt = await books.settle(28, payer=await books.roles.open_account(28))
    plant(
        books.roles,
        "WITH e AS (UPDATE credit_ledger SET amount = amount + 5 WHERE reference = %s AND reason = 'credits_purchase'"
        " RETURNING id) UPDATE journal_lines l SET amount = amount + 5 FROM e WHERE l.entry_id = e.id",
        str(attempt.id),
    )


async def _credited_twice(books: Books) -> None:
    """To another account, which the unique index of each account does not see."""
    attempt = await books.settle(29)
    other = await books.roles.open_account(8)
    _post(books.roles, other.billing_account_id, 1_000_000_000, "credits_purchase", str(attempt.id), "cash:usdc")


async def _wrong_bonus(books: Books) -> None:
    attempt = await books.settle(30)
    plant(
        books.roles,
        "WITH e AS (UPDATE credit_ledger SET amount = 1 WHERE reference = %s AND reason = 'platform_revenue_share'"
        " RETURNING id) UPDATE journal_lines l SET amount = 1 FROM e WHERE l.entry_id = e.id",
        str(attempt.id),
    )
    books.helpers.running.add(attempt.id)  # the right one appears to be still to come


async def _settled_for_another_value(books: Books) -> None:
    attempt = await books.settle(31)
    plant(books.roles, "UPDATE observed_transfers SET value_raw = value_raw - 1 WHERE tx_hash = %s", attempt.tx_hash)


async def _credited_without_settled_transfer(books: Books) -> None:
    attempt = await books.settle(32)
    plant(books.roles, "DELETE FROM settled_transfers WHERE attempt_id = %s", attempt.id)
    plant(books.roles, "DELETE FROM observed_transfers WHERE tx_hash = %s", attempt.tx_hash)


async def _only_called(status: str, number: int, books: Books) -> None:
    """Neither a transfer nor an entry: the state was written by hand."""
    attempt = await books.roles.create_submitted(books.payer, number, created_at=ago(2 * HOUR), expires_at=ago(-HOUR))
    plant(
        books.roles,
        "UPDATE payment_attempts SET status = %s, updated_at = %s, revenue_share = 0.75 WHERE id = %s",
        status, ago(HOUR), attempt.id,
    )  # fmt: skip


async def _only_called_credited(books: Books) -> None:
    await _only_called("CREDITED", 90, books)


async def _only_called_reversed(books: Books) -> None:
    await _only_called("REVERSED", 91, books)


async def _settled_and_not_credited(books: Books) -> None:
    attempt = await books.settle(33)
    plant(
        books.roles,
        "UPDATE payment_attempts SET status = 'PENDING_UNVERIFIED', revenue_share = NULL WHERE id = %s",
        attempt.id,
    )
    books.helpers.running.add(attempt.id)


async def _finding_credited_without_credit(books: Books) -> None:
    finding_id = await find_transfer(books.roles.service, 34, at=ago(HOUR))
    plant(books.roles, "UPDATE findings SET resolved_at = now(), resolution = 'credit' WHERE id = %s", finding_id)


async def _no_workflow(books: Books) -> None:
    attempt = await books.roles.create_submitted(books.payer, 35)
    plant(books.roles, "UPDATE payment_attempts SET submitted_at = now() - interval '1 h' WHERE id = %s", attempt.id)


async def _no_bonus(books: Books) -> None:
    attempt = await books.roles.create_submitted(books.payer, 36)
    await books.roles.credit(attempt)
    await observe_payment(books.roles, attempt, at=ago(HOUR))
    finalise(books.roles, attempt)


async def _nobody_waits_for_finality(books: Books) -> None:
    attempt = await books.roles.settle(books.payer, 37)
    await observe_payment(books.roles, attempt, at=ago(HOUR))
    with connect(books.roles.database.superuser_url) as superuser:
        superuser.execute("DELETE FROM transfers_awaiting_finality")


async def _no_bonus_of_an_operators_credit(books: Books) -> None:
    await take(books.roles.service, await find_transfer(books.roles.service, 38, at=ago(HOUR)), Remedy.CREDIT)


async def _reorganised(books: Books) -> None:
    attempt = await books.roles.settle(books.payer, 39)
    books.helpers.running.add(attempt.id)
    with connect(books.roles.database.service_url) as service:
        service.execute(
            "INSERT INTO orphaned_transfers (chain_id, tx_hash, log_index, block_number, block_hash, from_address,"
            " value_raw, observed_at) SELECT chain_id, tx_hash, log_index, block_number, block_hash, from_address,"
            " value_raw, now() FROM settled_transfers WHERE attempt_id = %s",
            (attempt.id,),
        )


async def _reversal_of_the_bonus_missing(books: Books) -> None:
    attempt = await books.roles.settle(books.payer, 40)
    _reverse(books.roles, attempt)


def _post(roles: RolePair, account: str, amount: int, reason: str, reference: str, contra: str) -> None:
    with connect(roles.database.service_url) as service:
        service.execute("SELECT post_entry(%s, %s, %s, %s, %s, '{}')", (account, amount, reason, reference, contra))


def _reverse(roles: RolePair, attempt: PaymentAttempt, *, bonus: bool = False) -> None:
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) SELECT attempt_id, 'reversed', chain_id, tx_hash, log_index, block_number, block_hash,"
            " 'finalized' FROM settled_transfers WHERE attempt_id = %s",
            (attempt.id,),
        )
        service.execute("UPDATE payment_attempts SET status = 'REVERSED' WHERE id = %s", (attempt.id,))
        service.execute(
            "SELECT post_entry(%s, %s, 'payment_reversal', %s, 'cash:usdc', '{}')",
            (attempt.billing_account_id, -attempt.amount_raw * 10, str(attempt.id)),
        )
        if bonus:
            service.execute(
                "SELECT post_entry('cogni_system', %s, 'payment_reversal', %s, 'expense:platform_revenue_share', '{}')",
                (-750_000_000, str(attempt.id)),
            )


UNCLOSED = ("totals_do_not_close", "alarm")
Plant = Callable[[Books], Awaitable[None]]

PLANTED: list[tuple[Plant, list[tuple[str, str]]]] = [
    (_unawaited, [("transfer_without_intent", "operator")]),
    (_overpayment, [("surplus", "operator")]),
    (_underpaid, [("underpayment", "operator")]),
    (_late, [("late_payment", "operator")]),
    (_wrong_sender_known, [("wrong_sender", "operator")]),
    (_watcher_does_nothing, [("transfer_undecided", "notice")] * 2),
    (_credited_without_transfer, [("ledger_without_transfer", "alarm")]),
    (_row_without_attempt, [("ledger_without_transfer", "alarm"), UNCLOSED]),
    (_row_of_another_reason, [("ledger_without_transfer", "alarm"), UNCLOSED]),
    (_bonus_without_purchase, [("ledger_without_transfer", "alarm")]),
    (_operator_credit_off_the_chain, [("ledger_without_transfer", "alarm")]),
    (_credited_without_row, [("ledger_disagrees", "alarm"), UNCLOSED]),
    (_credited_too_much, [("ledger_disagrees", "alarm"), UNCLOSED]),
    (_credited_twice, [("ledger_disagrees", "alarm"), UNCLOSED]),
    (_wrong_bonus, [("ledger_disagrees", "alarm")]),
    (_settled_for_another_value, [("ledger_disagrees", "alarm")]),
    (_credited_without_settled_transfer, [("ledger_without_transfer", "alarm"), UNCLOSED]),
    (_only_called_credited, [("ledger_without_transfer", "alarm")]),
    (_only_called_reversed, [("ledger_without_transfer", "alarm")]),
    (_settled_and_not_credited, [("ledger_disagrees", "alarm")]),
    (_finding_credited_without_credit, [("ledger_disagrees", "alarm")]),
    (_no_workflow, [("workflow_missing", "started")]),
    (_no_bonus, [("bonus_missing", "started")]),
    (_nobody_waits_for_finality, [("finality_missing", "started")]),
    (_no_bonus_of_an_operators_credit, [("operator_bonus_missing", "started")]),
    (_reorganised, [("transfer_reorganised", "notice")]),
    (_reversal_of_the_bonus_missing, [("bonus_reversal_missing", "started")]),
]


@pytest.mark.slow(
    but=(
        "_row_without_attempt-", "_row_of_another_reason-", "_credited_without_row-", "_credited_too_much-",
        "_credited_twice-", "_credited_without_settled_transfer-",
    )
)  # fmt: skip
@pytest.mark.parametrize(("planted", "expected"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
async def test_what_is_planted_is_found_and_nothing_else(
    books: Books, planted: Plant, expected: list[tuple[str, str]]
) -> None:
    await planted(books)
    await _finds(books, expected)


async def test_what_leaves_the_totals_as_they_are_is_found_and_nothing_else(books: Books) -> None:
    """All of it in one ledger; what each finds alone is slow."""
    closing = [(planted, kinds) for planted, kinds in PLANTED if UNCLOSED not in kinds]
    # Nothing can be posted to the system tenant after that.
    for planted, _ in sorted(closing, key=lambda one: one[0] is _wrong_bonus):
        await planted(books)
    await _finds(books, sorted(kind for _, kinds in closing for kind in kinds))


async def _finds(books: Books, expected: list[tuple[str, str]]) -> None:
    """A reconciliation finds just these, and once."""
    report = await books.reconcile()
    assert differences(report) == expected, report
    assert report.closes == (UNCLOSED not in expected)
    assert report.is_well == all(severity != "alarm" for _, severity in expected)
    for difference in report.differences:
        assert difference.remedy
        assert difference.detail
        if difference.severity is Severity.OPERATOR:
            assert difference.remedy == f"settle findings show {difference.finding_id}"
    # Found once: the same again is the same findings, and no new ones.
    again = await books.reconcile()
    known = {one.finding_id for one in report.differences if one.finding_id and one.severity is not Severity.STARTED}
    assert {one.finding_id for one in again.differences if one.finding_id} >= known
    # A workflow of these tests is never at work on anything; what was listed is listed.
    assert again.counts == {kind: count for kind, count in report.counts.items() if kind != "finality_missing"}


# -- what is no difference


async def test_a_payment_that_was_reversed_is_subtracted_from_the_totals(books: Books) -> None:
    attempt = await books.roles.settle(books.payer, 50)
    _reverse(books.roles, attempt, bonus=True)
    report = await books.reconcile()
    assert differences(report) == []
    assert report.totals.reversed_credits == report.totals.ledger_credit_credits == 1_000_000_000
    assert report.totals.posted_for_others_credits == 1_000_000_000
    assert report.totals.inflow_raw == CLEAN["inflow_raw"]
    assert report.closes


async def test_a_reversed_payment_that_is_on_the_chain_again_waits_for_an_operator(books: Books) -> None:
    attempt = await books.roles.settle(books.payer, 51)
    _reverse(books.roles, attempt, bonus=True)
    await observe_payment(books.roles, attempt, at=ago(HOUR), attempt_id=None)
    report = await books.reconcile()
    assert differences(report) == [("returned_after_reversal", "operator")]
    [found] = report.differences
    assert found.finding_id is not None
    await take(books.roles.service, found.finding_id, Remedy.CREDIT)
    await mint(books.roles.service, found.finding_id)
    report = await books.reconcile()
    assert differences(report) == []
    assert report.totals.operator_credits == CLEAN["operator_credits"] + 1_000_000_000
    assert report.closes


async def test_a_transfer_whose_log_has_another_index_now_is_the_same_transfer(books: Books) -> None:
    """Its transaction moved to another block, which is not final yet."""
    attempt = await books.roles.settle(books.payer, 52)
    books.helpers.running.add(attempt.id)
    await observe_payment(books.roles, attempt, at=ago(HOUR), log_index=9, block_number=11)
    report = await books.reconcile()
    assert (differences(report), report.closes) == ([], True)


async def test_two_alike_in_a_transaction_are_two(books: Books) -> None:
    attempt = await books.roles.create_submitted(books.payer, 53)
    await books.roles.credit(attempt, transfer_for(attempt, log_index=4))
    await books.roles.mint(attempt)
    finalise(books.roles, attempt)
    for log_index in (2, 4):
        await observe_payment(books.roles, attempt, at=ago(HOUR), log_index=log_index)
    report = await books.reconcile()
    [found] = report.differences
    assert (found.kind, found.log_index, found.value_raw) == ("transfer_without_intent", 2, 100_000_000)
    assert report.closes


async def test_what_has_come_just_now_is_left_to_the_watcher(books: Books) -> None:
    now = datetime.now(UTC)
    await observe(books.roles.service, tx_hash(54), wallet(9), 7_000, at=now, handled=False)
    report = await books.reconcile()
    assert differences(report) == []
    assert (report.totals.in_progress_raw, report.closes) == (7_000, True)


async def test_a_transfer_that_an_attempt_waits_for_is_left_to_it(books: Books) -> None:
    attempt = await books.roles.create_submitted(books.payer, 55)
    books.helpers.running.add(attempt.id)
    await observe_payment(books.roles, attempt, at=ago(HOUR), handled=False)
    report = await books.reconcile()
    assert (differences(report), report.closes) == ([], True)


async def test_nothing_is_said_of_blocks_that_the_watcher_has_not_been_through(books: Books) -> None:
    for number, block in ((56, 0), (57, 1_001)):
        attempt = await books.roles.create_submitted(books.payer, number)
        await books.roles.credit(attempt, transfer_for(attempt, block_number=block))
        await books.roles.mint(attempt)
        finalise(books.roles, attempt)
    # One was settled before the chain was followed at all, the other one a moment ago.
    plant(books.roles, "UPDATE chain_cursors SET created_at = now() + interval '1 minute'")
    report = await books.reconcile()
    assert (differences(report), report.closes) == ([], True)
    assert report.totals.unobserved_raw == 200_000_000
    plant(books.roles, "UPDATE chain_cursors SET first_block = 0, block_number = 1001")
    assert (await books.reconcile()).counts == {"ledger_without_transfer": 2}


async def test_another_chains_payments_are_another_reconciliations(books: Books) -> None:
    attempt = await books.roles.create(books.payer, chain_id=10)
    attempt = (await books.roles.submit(attempt, tx_hash(58))).attempt
    await books.roles.credit(attempt)
    await books.roles.mint(attempt)
    report = await books.reconcile()
    assert {name: value for name, value in report.totals.by_name().items() if value} == CLEAN
    assert report.is_well


async def test_what_is_pending_with_a_workflow_at_work_is_no_difference(books: Books) -> None:
    pending = await books.roles.create_submitted(books.payer, 59)
    credited = await books.roles.create_submitted(books.payer, 60)
    await books.roles.credit(credited)
    await observe_payment(books.roles, credited, at=ago(HOUR))
    books.helpers.running |= {pending.id, credited.id}
    assert differences(await books.reconcile()) == []


# -- periods


async def test_everything_belongs_to_the_time_of_its_block_whenever_it_was_credited(books: Books) -> None:
    middle = ago(90 * timedelta(minutes=1))
    await books.settle(61, at=ago(HOUR))
    before = await books.reconcile(to_time=middle)
    after = await books.reconcile(from_time=middle)
    both = await books.reconcile()
    assert [report.is_well for report in (before, after, both)] == [True, True, True]
    assert {name: value for name, value in before.totals.by_name().items() if value} == {
        **{name: value for name, value in CLEAN.items() if name != "ledger_debit_credits"},
        "posted_outside_credits": CLEAN["ledger_debit_credits"],
    }
    assert after.totals.inflow_raw == 100_000_000
    assert after.totals.posted_for_others_credits == CLEAN["ledger_debit_credits"]
    for name in ("transfers", "inflow_raw", "purchases_credits", "donations_credits", "operator_credits",
                 "unapplied_raw", "ledger_debit_credits", "ledger_credit_credits"):  # fmt: skip
        assert before.totals.by_name()[name] + after.totals.by_name()[name] == both.totals.by_name()[name]


async def test_the_end_of_a_period_is_not_in_it(books: Books) -> None:
    at = ago(HOUR)
    await books.settle(62, at=at)
    assert (await books.reconcile(from_time=at)).totals.transfers == 1
    assert (await books.reconcile(to_time=at)).totals.transfers == CLEAN["transfers"]
    assert (await books.reconcile(to_time=at + timedelta(microseconds=1))).totals.transfers == CLEAN["transfers"] + 1


async def test_a_transfer_mined_at_the_end_and_posted_before_it_is_the_next_periods(books: Books) -> None:
    """Blocks have the clock of their producer."""
    end = ago(-HOUR / 2)
    await books.settle(65, at=end)
    report = await books.reconcile(to_time=end)
    assert (report.totals.transfers, report.totals.posted_for_others_credits) == (CLEAN["transfers"], 1_000_000_000)
    assert report.closes


async def test_a_period_that_is_none_is_refused(books: Books) -> None:
    now = datetime.now(UTC)
    for end in (now, now - HOUR):
        with pytest.raises(InvalidInput, match="--to"):
            await books.reconcile(now, end)


async def test_the_default_period_is_a_day_or_longer_where_a_day_was_missed(books: Books) -> None:
    reconciliation = books.reconciliation()
    begin, end = await reconciliation.default_period(whole_hours=False)
    assert end - begin == timedelta(days=1)
    await books.reconcile(ago(80 * HOUR), ago(50 * HOUR))
    begin, end = await reconciliation.default_period(whole_hours=False)
    assert timedelta(hours=49) < end - begin < timedelta(hours=51)


async def test_scheduled_periods_follow_one_another_in_whole_hours(books: Books) -> None:
    reconciliation = books.reconciliation()
    begin, end = await reconciliation.default_period(whole_hours=True)
    assert (end.minute, end.second, end.microsecond, end - begin) == (0, 0, 0, timedelta(days=1))
    assert datetime.now(UTC) - HOUR * 2 < end <= datetime.now(UTC)
    await books.reconcile(end - 30 * HOUR, end - 3 * HOUR)
    # Three hours are new, and a day is asked for: no gap, and the same hours again do no harm.
    assert await reconciliation.default_period(timedelta(hours=2), whole_hours=True) == (end - 3 * HOUR, end)
    await books.reconcile(begin, end)
    with pytest.raises(WatcherBehind, match="is reconciled"):
        await reconciliation.default_period(whole_hours=True)


async def test_a_scope_without_a_watcher_cannot_be_reconciled_by_the_clock(roles: RolePair) -> None:
    with pytest.raises(WatcherBehind, match="not been followed"):
        await Books(roles, await roles.open_account(1)).reconciliation().default_period(whole_hours=True)


async def test_a_watcher_that_lags_is_reported(books: Books) -> None:
    plant(books.roles, "UPDATE chain_cursors SET updated_at = now() - interval '20 min'")
    report = await books.reconcile()
    assert differences(report) == [("watcher_behind", "notice")]
    assert report.is_well
    # Of a period that was over when it stopped nothing is missing.
    assert differences(await books.reconcile(to_time=ago(HOUR))) == []


# -- findings


async def test_an_alarm_that_an_operator_leaves_as_it_is_does_not_ring_again(books: Books) -> None:
    await _row_without_attempt(books)
    await _credited_without_transfer(books)
    report = await books.reconcile()
    assert (report.counts["ledger_without_transfer"], report.closes) == (2, False)
    for found in report.differences:
        if found.finding_id:
            await take(books.roles.service, found.finding_id, Remedy.WRITE_OFF)
    after = await books.reconcile()
    assert (differences(after), after.closes) == ([], True)
    assert after.totals.excused_debit_credits == 500


async def test_an_alarm_that_is_retried_is_opened_again_while_it_is_true(books: Books) -> None:
    await _credited_without_transfer(books)
    [found] = (await books.reconcile()).differences
    assert found.finding_id is not None
    await take(books.roles.service, found.finding_id, Remedy.RETRY)
    [again] = (await books.reconcile()).differences
    assert again.finding_id == found.finding_id
    assert (await stored(books.roles.service, found.finding_id)).times_opened == 2
    await take(books.roles.service, found.finding_id, Remedy.RETRY)
    await observe(books.roles.service, tx_hash(25), wallet(1), 100_000_000, at=ago(HOUR))
    assert differences(await books.reconcile()) == []


async def test_a_finding_whose_transfer_has_paid_since_is_closed_by_it(books: Books) -> None:
    finding_id = await find_transfer(books.roles.service, 63, sender=wallet(1), value_raw=100_000_000, at=ago(HOUR))
    attempt = await books.roles.settle(books.payer, 63)
    finalise(books.roles, attempt)
    assert differences(await books.reconcile()) == []
    assert (await stored(books.roles.service, finding_id)).resolution == "settled"


async def test_two_at_once_find_the_same_and_write_it_down_once(books: Books) -> None:
    for planted in (_unawaited, _overpayment, _credited_without_transfer, _row_without_attempt):
        await planted(books)
    reports = await asyncio.gather(*(books.reconcile() for _ in range(3)))
    assert len({frozenset(report.counts.items()) for report in reports}) == 1
    open_ = scalar(books.roles.database.superuser_url, "SELECT count(*) FROM findings WHERE resolved_at IS NULL")
    assert open_ == 4


@pytest.mark.slow
async def test_all_of_them_at_once_are_found(books: Books) -> None:
    # What spoils the system tenant's balance comes last: nothing can be posted to it after that.
    for planted, _ in sorted(PLANTED, key=lambda one: one[0] is _wrong_bonus):
        await planted(books)
    report = await books.reconcile()
    expected = sorted({kind for _, kinds in PLANTED for kind in kinds if kind != UNCLOSED})
    assert sorted({one for one in differences(report) if one != UNCLOSED}) == expected
    counted = sum(len([kind for kind in kinds if kind != UNCLOSED]) for _, kinds in PLANTED)
    assert sum(report.counts.values()) - report.counts["totals_do_not_close"] == counted


# -- workflows


async def test_all_of_it_is_as_of_one_moment(books: Books) -> None:
    """What is posted while it reads belongs to the next run, wherever it is posted to."""

    def on_progress(words: str) -> None:
        if "reading the journal" in words:
            _post(books.roles, books.payer.billing_account_id, 500, "gift", "meanwhile", "cash:usdc")

    report = await books.reconciliation().run(ago(6 * HOUR), ago(-HOUR), on_progress=on_progress)
    assert (differences(report), report.closes) == ([], True)
    assert (await books.reconcile()).counts == {"ledger_without_transfer": 1, "totals_do_not_close": 1}


async def test_without_temporal_the_books_are_reconciled_all_the_same(books: Books) -> None:
    await _no_bonus(books)
    books.helpers.is_silent = True
    report = await books.reconcile()
    assert differences(report) == [("workflows_not_asked", "notice")]
    assert report.closes


async def test_what_was_finished_concurrently_is_not_started(books: Books) -> None:
    """The bonus came between the reading and the asking: nothing is asked at all."""
    attempt = await books.roles.create_submitted(books.payer, 64)
    await books.roles.credit(attempt)
    await observe_payment(books.roles, attempt, at=ago(HOUR))
    finalise(books.roles, attempt)
    reconciliation = books.reconciliation()
    told: list[str] = []

    def on_progress(words: str) -> None:
        told.append(words)
        if "reading the journal" in words:
            with connect(books.roles.database.service_url) as service:
                service.execute(
                    "SELECT post_entry('cogni_system', 750000000, 'platform_revenue_share', %s,"
                    " 'expense:platform_revenue_share', '{}')",
                    (str(attempt.id),),
                )

    report = await reconciliation.run(ago(6 * HOUR), datetime.now(UTC) + HOUR, on_progress=on_progress)
    assert any("reading the journal" in words for words in told)
    assert (differences(report), books.helpers.picked_up) == ([], [])
