"""How a provider's limit on log queries is found out, and remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.ranges import GROW_AFTER, LogRange


def ask(log_range: LogRange, limit: int, questions: int) -> list[tuple[int, bool]]:
    """What a provider with that limit is asked for, and whether it answered."""
    asked = []
    for _ in range(questions):
        size = log_range.size
        asked.append((size, size <= limit))
        if size <= limit:
            log_range.answered(size)
        else:
            assert log_range.refused(size)
    return asked


def test_a_provider_that_refuses_nothing_is_asked_for_the_most_from_the_start() -> None:
    assert ask(LogRange(2_000), limit=10_000, questions=3) == [(2_000, True)] * 3


def test_a_provider_of_ten_blocks_ends_up_asked_for_ten_after_few_refusals() -> None:
    asked = ask(LogRange(2_000), limit=10, questions=40)
    assert [size for size, _ in asked[-20:]] == [10] * 20
    assert sum(not answered for _, answered in asked) <= 10


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 499, 500, 501, 1_999, 2_000])
def test_a_limit_is_found_exactly(limit: int) -> None:
    log_range = LogRange(2_000)
    ask(log_range, limit, questions=40)
    assert log_range.size == limit


def test_a_known_limit_is_tried_again_rarely_and_by_one_block() -> None:
    log_range = LogRange(2_000)
    ask(log_range, limit=10, questions=40)
    later = ask(log_range, limit=10, questions=4 * GROW_AFTER)
    refused = [size for size, answered in later if not answered]
    assert set(refused) == {11}
    assert 3 <= len(refused) <= 4


def test_a_limit_that_was_raised_is_noticed() -> None:
    log_range = LogRange(2_000)
    ask(log_range, limit=10, questions=40)
    ask(log_range, limit=5_000, questions=GROW_AFTER + 20)
    assert log_range.size == 2_000


def test_a_limit_that_was_lowered_is_followed() -> None:
    log_range = LogRange(2_000)
    ask(log_range, limit=500, questions=40)
    ask(log_range, limit=10, questions=40)
    assert log_range.size == 10


def test_a_short_range_at_the_head_says_nothing() -> None:
    log_range = LogRange(2_000)
    ask(log_range, limit=10, questions=40)
    for _ in range(10 * GROW_AFTER):
        log_range.answered(1)
    assert log_range.size == 10


def test_a_single_block_that_is_refused_is_no_matter_of_size() -> None:
    log_range = LogRange(2_000)
    ask(log_range, limit=10, questions=40)
    assert not log_range.refused(1)
    assert log_range.size == 10


@given(
    most=st.integers(min_value=1, max_value=100_000),
    limits=st.lists(st.tuples(st.integers(min_value=1, max_value=200_000), st.integers(1, 200)), max_size=5),
)
def test_the_size_is_always_a_number_of_blocks_that_may_be_asked_for(most: int, limits: list[tuple[int, int]]) -> None:
    log_range = LogRange(most)
    for limit, questions in limits:
        for size, _ in ask(log_range, limit, questions):
            assert 1 <= size <= most
