"""Which parametrized cases `make test` keeps of a test that is slow but for some."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import product

import pytest

from tests.support.selection import EACH_VALUE, representative_cases


def cases(*counts: int) -> list[frozenset[Hashable]]:
    """The cases of parameters with so many values each."""
    return [frozenset(enumerate(values)) for values in product(*map(range, counts))]


@pytest.mark.parametrize("counts", [(1,), (7,), (3, 4), (48, 11), (2, 3, 4)])
def test_each_value_is_shown_in_as_many_cases_as_the_longest_list_has(counts: tuple[int, ...]) -> None:
    every = cases(*counts)
    kept = list(representative_cases(every, EACH_VALUE))
    assert len(kept) == len(set(kept)) == max(counts)
    assert set().union(*(every[place] for place in kept)) == set().union(*every)


def test_some_of_one_list_come_from_all_over_it() -> None:
    kept = sorted(representative_cases(cases(100), 5))
    assert kept[0] == 0
    assert all(second - first <= 40 for first, second in zip(kept, [*kept[1:], 100], strict=True))


@pytest.mark.parametrize("count", [1, 3, 10])
def test_as_many_as_are_asked_for_and_no_more_than_there_are(count: int) -> None:
    assert len(list(representative_cases(cases(3, 2), count))) == min(count, 6)
