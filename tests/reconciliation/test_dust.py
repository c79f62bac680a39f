"""What is too small for a finding is counted, what is worth most is listed, and what is cut is said to be."""

from __future__ import annotations

from typing import Final

import pytest

from domain.operations.findings import DEFAULT_DUST_BELOW_RAW
from tests.reconciliation.books import HOUR, Books, ago
from tests.reconciliation.planting import observe
from tests.support.payments import tx_hash, wallet

FLOOR: Final = DEFAULT_DUST_BELOW_RAW


async def test_reconciliation_counts_dust_without_asking_any_node_about_it(books: Books) -> None:
    books.dust_below_raw = FLOOR
    for number in (60, 61):
        await observe(books.roles.service, tx_hash(number), wallet(9), FLOOR - 1, at=ago(HOUR))
    before = await books.reconcile()
    assert (before.totals.dust_transfers, before.totals.dust_raw) == (2, 2 * (FLOOR - 1))
    assert (before.totals.open_raw, before.counts, before.closes) == (0, {}, True)
    # A lower floor, and what is above it is an operator's to decide: it was never lost.
    books.dust_below_raw = FLOOR - 1
    after = await books.reconcile()
    assert after.counts == {"transfer_without_intent": 2}
    assert after.values_raw == {"transfer_without_intent": 2 * (FLOOR - 1)}
    assert (after.totals.dust_transfers, after.totals.open_raw) == (0, 2 * (FLOOR - 1))
    # Known by then, it stays an operator's, whatever the floor is.
    books.dust_below_raw = FLOOR
    again = await books.reconcile()
    assert (again.totals.dust_transfers, again.counts) == (0, {"transfer_without_intent": 2})


async def test_of_many_differences_those_worth_most_are_listed(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.operations.reconciliation.SHOWN_PER_KIND_MAX", 2)
    for number, value_raw in enumerate((30, 10, 5_000_000, 20), start=70):
        await observe(books.roles.service, tx_hash(number), wallet(9), value_raw, at=ago(HOUR))
    report = await books.reconcile()
    assert [one.value_raw for one in report.differences] == [5_000_000, 30]
    assert report.counts == {"transfer_without_intent": 4}
    assert report.values_raw == {"transfer_without_intent": 5_000_060}


async def test_what_one_run_leaves_out_is_reported(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.operations.reconciliation.UNDECIDED_MAX", 1)
    for number in (80, 81, 82):
        await observe(books.roles.service, tx_hash(number), wallet(9), 7_000_000, at=ago(HOUR))
    report = await books.reconcile()
    assert report.counts == {"transfer_without_intent": 1, "too_many": 1}
    assert (await books.reconcile()).counts == {"transfer_without_intent": 2, "too_many": 1}
