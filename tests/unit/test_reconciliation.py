"""Pairing transfers with what was credited for them, and the two equations, as tables."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from domain.operations.reconciliation.comparison import reconcile
from domain.operations.reconciliation.matching import Application, Entry, Observed, Transaction, match
from domain.operations.reconciliation.totals import Totals
from domain.payments.attempt import AttemptStatus, Purpose

ALICE, BOB = "0x" + "a1" * 20, "0x" + "b0" * 20
ATTEMPT = UUID(int=1)


def seen(log_index: int, value_raw: int = 10, sender: str = ALICE) -> Observed:
    """A transfer on the chain, in the period."""
    return Observed(log_index, 7, "2026-01-01T00:00:00Z", sender, value_raw, in_period=True, is_past_grace_period=True)


def paid(
    log_index: int, value_raw: int = 10, sender: str = ALICE, status: AttemptStatus = AttemptStatus.CREDITED
) -> Application:
    """A purchase that a transfer paid, to the unit, with its entry and without a bonus."""
    entry = Entry("credits_purchase", "account", value_raw * 10, value_raw * 10, 0, in_period=True)
    return Application(
        log_index,
        7,
        sender,
        value_raw,
        attempt_id=ATTEMPT,
        status=status,
        purpose=Purpose.SELF,
        billing_account_id="account",
        amount_raw=value_raw,
        outcome="final",
        entries=(entry,),
    )


@pytest.mark.parametrize(
    ("observed", "applications", "pairs"),
    [
        ([], [], []),
        ([seen(1)], [], []),
        ([], [paid(1)], []),
        ([seen(1)], [paid(1)], [(1, 1)]),
        # An address in another case is the same one.
        ([seen(1, sender=ALICE.upper().replace("0X", "0x"))], [paid(1)], [(1, 1)]),
        # Its transaction moved: another index, the same transfer.
        ([seen(5)], [paid(1)], [(5, 1)]),
        # Its place comes first, where two are alike.
        ([seen(1), seen(2)], [paid(2)], [(2, 2)]),
        # Moved, and another payer's log is where it was.
        ([seen(1, 99, BOB), seen(4)], [paid(1)], [(4, 1)]),
        # Two of one sender have changed places.
        ([seen(1, 20), seen(2, 10)], [paid(1, 10), paid(2, 20)], [(1, 2), (2, 1)]),
        # Another value, or another sender, at the same place: paired, so that it is reported as a contradiction.
        ([seen(1, 11)], [paid(1, 10)], [(1, 1)]),
        ([seen(1, sender=BOB)], [paid(1)], [(1, 1)]),
        # Neither place nor sender nor value.
        ([seen(2, 11)], [paid(1, 10)], []),
        # What was reversed was not credited for anything.
        ([seen(1)], [paid(1, status=AttemptStatus.REVERSED)], []),
    ],
)
def test_transfers_are_paired_with_what_was_credited_for_them(
    observed: list[Observed], applications: list[Application], pairs: list[tuple[int, int]]
) -> None:
    found, left, right = match(observed, applications)
    assert sorted((transfer.log_index, application.log_index) for transfer, application in found) == sorted(pairs)
    assert len(left) == len(observed) - len(pairs)
    standing = [application for application in applications if application.stands]
    assert len(right) == len(standing) - len(pairs)


def test_a_line_is_made_up_of_its_parts() -> None:
    transaction = Transaction(1, "0x" + "1" * 64, (seen(1, 17),), (replace(paid(1), value_raw=17, surplus_raw=7),))
    outcome = reconcile(transaction)
    [line] = outcome.lines
    assert (line.kind, line.purchase_credits, line.unapplied_raw) == ("purchase", 100, 7)
    assert (outcome.totals.inflow_raw, outcome.totals.unapplied_raw, outcome.totals.open_raw) == (17, 7, 7)
    assert [finding.kind.value for finding in outcome.findings] == ["surplus"]


CLOSED = Totals(
    inflow_raw=17, purchases_credits=100, donations_credits=20, operator_credits=10, unapplied_raw=4,
    ledger_debit_credits=132, posted_outside_credits=3, posted_for_others_credits=5, ledger_credit_credits=8,
    reversed_credits=8,
)  # fmt: skip


def test_totals_that_close_have_no_contradiction() -> None:
    assert CLOSED.contradictions() == []


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("inflow_raw", "inflow of"),
        ("purchases_credits", "inflow of"),
        ("donations_credits", "inflow of"),
        ("operator_credits", "inflow of"),
        ("unapplied_raw", "inflow of"),
        ("ledger_debit_credits", "into the treasury's account"),
        ("posted_outside_credits", "into the treasury's account"),
        ("posted_for_others_credits", "into the treasury's account"),
        ("ledger_credit_credits", "out of the treasury's account"),
        ("reversed_credits", "out of the treasury's account"),
    ],
)
def test_one_credit_too_much_or_too_little_is_reported(name: str, words: str, by: int) -> None:
    wrong = replace(CLOSED, **{name: getattr(CLOSED, name) + by})
    assert any(words in contradiction for contradiction in wrong.contradictions())


def test_sums_add_up() -> None:
    totals = Totals()
    totals.add(CLOSED)
    totals.add(CLOSED)
    assert (totals.inflow_raw, totals.reversed_credits) == (34, 16)
