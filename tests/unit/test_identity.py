"""Which transfer is which after its transaction has moved: alike ones are counted, each is there once and pays once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.transfers.identity import PaidTransfer, Place, assign_places, is_alike, is_paid

HERE, THERE = "0x" + "0a" * 32, "0x" + "0b" * 32
ALICE = "0x" + "aA" * 20

INDEXES = st.integers(min_value=0, max_value=6)
PLACES = st.builds(Place, st.sampled_from([HERE, THERE, None]), INDEXES)


def paid(**changes: object) -> PaidTransfer:
    values: dict[str, object] = {"log_index": 3, "block_hash": HERE, "from_address": ALICE, "value_raw": 7}
    return PaidTransfer.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({}, True),
        ({"from_address": ALICE.lower()}, True),
        ({"log_index": 5, "block_hash": THERE}, True),
        ({"value_raw": 8}, False),
        ({"from_address": "0x" + "33" * 20}, False),
    ],
)
def test_alike_are_those_of_one_sender_and_value(changes: dict[str, object], alike: bool) -> None:
    assert is_alike(paid(), paid(**changes)) is alike


@pytest.mark.parametrize(
    ("twins", "places", "expected"),
    [
        ({3}, [Place(HERE, 3)], {3: 0}),
        ({7}, [Place(THERE, 3)], {7: 0}),
        ({3, 7}, [Place(THERE, 3)], {3: 0}),
        ({5, 7}, [Place(THERE, 3)], {5: 0}),
        # Paid at the same number in two blocks: two have paid, not one.
        ({5, 7}, [Place(THERE, 5), Place(HERE, 5)], {5: 1, 7: 0}),
        ({5, 7}, [Place(THERE, 4), Place(THERE, 3)], {5: 1, 7: 0}),
        ({5}, [Place(THERE, 4), Place(THERE, 3)], {5: 1}),
        (set(), [Place(HERE, 3)], {}),
    ],
)
def test_each_that_has_paid_takes_one_twin(twins: set[int], places: list[Place], expected: dict[int, int]) -> None:
    assert assign_places(HERE, twins, places) == expected


@given(st.sets(INDEXES), st.lists(PLACES, max_size=5))
def test_as_many_twins_have_paid_as_payments_were_made(twins: set[int], places: list[Place]) -> None:
    assigned = assign_places(HERE, twins, places)
    assert len(assigned) == min(len(twins), len(places))
    assert assigned.keys() <= twins
    assert len(set(assigned.values())) == len(assigned)


@given(st.sets(INDEXES), st.lists(PLACES, max_size=5), INDEXES)
def test_one_that_paid_in_this_block_is_at_its_place(twins: set[int], places: list[Place], own: int) -> None:
    assert is_paid(Place(HERE, own), twins, [*places, Place(HERE, own)])


def test_one_whose_twins_have_not_been_seen_is_taken_for_the_one_that_has_paid() -> None:
    assert is_paid(Place(HERE, 7), [], [Place(THERE, 5)])
    assert is_paid(Place(HERE, 7), [7, 8], [Place(THERE, 5)])
    assert not is_paid(Place(HERE, 8), [7, 8], [Place(THERE, 5)])
