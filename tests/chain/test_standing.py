"""The mark that heads are measured against, and the endpoints' records: both sides of each rule."""

import pytest

from chain.circuit_breaker import (
    COOL_DOWN_SECONDS_MAX,
    COOL_DOWN_WRONG_CHAIN_SECONDS,
    MARK_EXPIRY_SECONDS,
    STALL_SECONDS,
    CircuitBreaker,
    HeadMark,
)
from chain.rpc import RETRY_AFTER_SECONDS_MAX, Failure


@pytest.mark.parametrize(("head", "behind"), [(97, False), (96, True), (100, False), (101, False)])
def test_a_head_is_behind_when_it_is_more_than_the_tolerance_below_the_mark(head: int, behind: bool) -> None:
    mark = HeadMark(tolerance_blocks=3)
    mark.observe(100, 0.0)
    assert mark.is_behind(head) is behind


def test_the_highest_head_is_dropped_only_when_no_endpoint_reached_it_in_time() -> None:
    mark = HeadMark()
    mark.observe(1_000_000, 0.0)
    mark.observe(100, 10.0)
    mark.observe(110, 20.0)
    mark.observe(90, 10.0 + MARK_EXPIRY_SECONDS - 0.1)
    assert mark.value == 1_000_000
    mark.observe(91, 10.0 + MARK_EXPIRY_SECONDS)
    assert mark.value == 110, "the highest head of that time takes its place"


def test_an_endpoint_that_reaches_the_mark_keeps_it() -> None:
    mark = HeadMark()
    mark.observe(100, 0.0)
    mark.observe(50, 1.0)
    mark.observe(100, 50.0)
    mark.observe(50, 1.0 + MARK_EXPIRY_SECONDS)
    assert mark.value == 100


def test_after_a_quiet_hour_the_first_lagging_node_is_still_recognised() -> None:
    mark = HeadMark()
    mark.observe(100, 0.0)
    mark.observe(50, 3600.0)
    assert mark.is_behind(50)


def test_a_jitter_within_the_tolerance_does_not_lower_the_mark() -> None:
    mark = HeadMark(tolerance_blocks=3)
    for second in range(200):
        mark.observe(97, float(second)) if second else mark.observe(100, 0.0)
    assert mark.value == 100


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (5000, 60.0)])
def test_the_cool_down_doubles_with_each_failure_and_is_bounded(failures: int, seconds: float) -> None:
    breaker = CircuitBreaker()
    for _ in range(failures):
        breaker.failed(Failure.UNREACHABLE, 100.0)
    assert breaker.cools_until == 100.0 + seconds <= 100.0 + COOL_DOWN_SECONDS_MAX
    assert breaker.is_cooling(100.0 + seconds - 0.01)
    assert not breaker.is_cooling(100.0 + seconds)


def test_an_answer_ends_the_cool_down_and_its_growth() -> None:
    breaker = CircuitBreaker()
    for _ in range(5):
        breaker.failed(Failure.TIMEOUT, 0.0)
    breaker.answered()
    assert not breaker.is_cooling(0.0)
    breaker.failed(Failure.TIMEOUT, 0.0)
    assert breaker.cools_until == 1.0


@pytest.mark.parametrize(("asked_for", "seconds"), [(30.0, 30.0), (0.0, 1.0), (1e9, 300.0)])
def test_a_node_may_ask_for_a_longer_pause_but_not_for_an_endless_one(asked_for: float, seconds: float) -> None:
    breaker = CircuitBreaker()
    breaker.failed(Failure.RATE_LIMITED, 0.0, asked_for)
    assert breaker.cools_until == seconds


def test_a_pause_is_required_only_where_the_node_asked_for_it_and_only_until_it_answers() -> None:
    breaker = CircuitBreaker()
    breaker.failed(Failure.RATE_LIMITED, 0.0)
    assert breaker.is_cooling(0.5)
    assert not breaker.wants_pause(0.5)
    breaker.failed(Failure.RATE_LIMITED, 0.0, 30.0)
    assert breaker.wants_pause(29.9)
    assert not breaker.wants_pause(30.0)
    breaker.failed(Failure.TIMEOUT, 1.0)
    assert breaker.wants_pause(29.9), "another failure does not shorten it"
    breaker.failed(Failure.BEHIND, 2.0)
    assert not breaker.wants_pause(2.0), "it has answered"
    breaker.failed(Failure.RATE_LIMITED, 3.0, 30.0)
    breaker.answered()
    assert not breaker.wants_pause(3.0)
    breaker.failed(Failure.RATE_LIMITED, 4.0, 1e9)
    assert not breaker.wants_pause(4.0 + RETRY_AFTER_SECONDS_MAX)


def test_a_wrong_chain_is_remembered_for_a_while_and_checked_again() -> None:
    breaker = CircuitBreaker()
    breaker.failed(Failure.WRONG_CHAIN, 0.0)
    assert breaker.is_cooling(COOL_DOWN_WRONG_CHAIN_SECONDS - 1)
    assert not breaker.is_cooling(COOL_DOWN_WRONG_CHAIN_SECONDS)


def test_a_head_that_stands_still_is_stalled_after_its_time_and_any_movement_ends_that() -> None:
    breaker = CircuitBreaker()
    assert not breaker.is_stalled(1e6), "nothing is known yet"
    breaker.saw_head(100, 0.0)
    breaker.saw_head(100, STALL_SECONDS - 0.1)
    assert not breaker.is_stalled(STALL_SECONDS - 0.1)
    assert breaker.is_stalled(STALL_SECONDS)
    breaker.saw_head(99, STALL_SECONDS)
    assert not breaker.is_stalled(STALL_SECONDS)
