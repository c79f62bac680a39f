"""What the chain watcher's rows may save: both sides of every bound, and that they never decide."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.payments.verification import CONFIRMATION_DELAY_MIN, POLL_DELAY_MAX, WaitReason, back_off
from domain.payments.watched import (
    ASK_INTERVAL_MAX,
    FRESH_SLACK,
    LAG_BLOCKS_MAX,
    WatchedTransaction,
    WatchedWait,
    ask_interval,
    fresh_for,
    is_fresh,
    wait_by_watcher,
    watched_for,
)

TX = "0x" + "1" * 64
NEEDED = 5
HEAD = 100
BLOCK = timedelta(seconds=2)
NOTHING = timedelta(0)
TICK = timedelta(milliseconds=1)


def rows(**changes: Any) -> WatchedTransaction:
    """A watcher at the head that has just written, and has not seen the transaction."""
    return WatchedTransaction(**{"block_number": HEAD, "head_number": HEAD, "written_ago": NOTHING} | changes)


def seen(block: int, **changes: Any) -> WatchedTransaction:
    """The same, with the transaction in that block."""
    return rows(**{"seen_in_block": block, "seen_ago": NOTHING} | changes)


def wait(watched: WatchedTransaction | None, **changes: Any) -> WatchedWait | None:
    """Of a payment submitted a moment ago."""
    values: dict[str, Any] = {
        "min_confirmations": NEEDED,
        "waited": NOTHING,
        "asked_ago": None,
        "is_mined": False,
        "block_time": BLOCK,
    }
    return wait_by_watcher(watched, TX, **values | changes)


# -- fresh


@pytest.mark.parametrize(
    ("block_seconds", "seconds"),
    [(0.05, 2.5), (0.25, 3), (2, 10), (12, 50), (15, 62), (60, 152)],
)
def test_rows_are_fresh_for_two_blocks_and_two_polls(block_seconds: float, seconds: float) -> None:
    block_time = timedelta(seconds=block_seconds)
    bound = timedelta(seconds=seconds)
    assert fresh_for(block_time) == bound
    assert is_fresh(rows(written_ago=bound), block_time=block_time)
    assert not is_fresh(rows(written_ago=bound + TICK), block_time=block_time)


@pytest.mark.parametrize(
    ("lag", "fresh"), [(0, True), (LAG_BLOCKS_MAX, True), (LAG_BLOCKS_MAX + 1, False), (-1, False)]
)
def test_a_watcher_that_catches_up_is_not_fresh(lag: int, fresh: bool) -> None:
    assert is_fresh(rows(block_number=HEAD - lag), block_time=BLOCK) is fresh


def test_rows_from_the_future_are_not_fresh() -> None:
    assert is_fresh(rows(written_ago=-FRESH_SLACK), block_time=BLOCK)
    assert not is_fresh(rows(written_ago=-FRESH_SLACK - TICK), block_time=BLOCK)
    assert wait(seen(HEAD - NEEDED + 1, written_ago=-FRESH_SLACK)) is None


def test_a_watcher_that_waits_itself_is_not_fresh() -> None:
    assert not is_fresh(rows(is_waiting=True), block_time=BLOCK)


@pytest.mark.parametrize(
    "watched",
    [
        None,
        seen(HEAD, written_ago=fresh_for(BLOCK) + TICK),
        seen(HEAD, is_waiting=True),
        seen(HEAD - LAG_BLOCKS_MAX - 1, block_number=HEAD - LAG_BLOCKS_MAX - 1),
    ],
)
def test_without_fresh_rows_the_payment_polls_by_itself(watched: WatchedTransaction | None) -> None:
    assert wait(watched) is None


# -- seen


@pytest.mark.parametrize(("block", "confirmations", "seconds"), [(HEAD, 1, 8), (HEAD - 1, 2, 6), (HEAD - 3, 4, 2)])
def test_confirmations_are_waited_for_until_their_block_is_due(block: int, confirmations: int, seconds: int) -> None:
    found = wait(seen(block))
    assert found is not None
    assert found.delay == timedelta(seconds=seconds)
    assert found.waiting.reason is WaitReason.CONFIRMATIONS
    assert (found.waiting.confirmations, found.waiting.confirmations_needed) == (confirmations, NEEDED)
    assert found.waiting.block_number == block
    assert found.waiting.message.startswith(f"{confirmations} of {NEEDED} confirmations")
    assert str(HEAD) in found.waiting.message


@pytest.mark.parametrize("block", [HEAD - NEEDED + 1, HEAD - NEEDED, 0])
def test_a_payment_with_its_confirmations_is_asked_for(block: int) -> None:
    assert wait(seen(block)) is None


def test_the_due_time_counts_from_when_the_head_was_written() -> None:
    age = timedelta(seconds=1.4)
    found = wait(seen(HEAD - 3, written_ago=age))
    assert found is not None
    assert found.delay == BLOCK - age
    assert wait(seen(HEAD - 3, written_ago=BLOCK - TICK)) is not None
    assert wait(seen(HEAD - 3, written_ago=BLOCK)) is None, "the watcher may only not have read the block yet"


@pytest.mark.parametrize(
    ("block_seconds", "block", "delay"),
    [(0.05, HEAD, CONFIRMATION_DELAY_MIN), (20, HEAD, POLL_DELAY_MAX), (12, HEAD, timedelta(seconds=48))],
)
def test_the_wait_for_confirmations_has_bounds(block_seconds: float, block: int, delay: timedelta) -> None:
    found = wait(seen(block), block_time=timedelta(seconds=block_seconds))
    assert found is not None
    assert found.delay == delay


def test_a_row_above_the_watchers_own_block_is_not_believed() -> None:
    assert wait(seen(HEAD + 1)) is None
    assert wait(seen(10**12)) is None


def test_a_payment_that_is_seen_for_too_long_is_asked_for() -> None:
    """A watcher that moves slowly, or moves the transaction again and again, delays it by so much only."""
    patience = 2 * NEEDED * BLOCK + fresh_for(BLOCK)
    assert wait(seen(HEAD, seen_ago=patience)) is not None
    assert wait(seen(HEAD, seen_ago=patience + TICK)) is None


# -- not seen


@pytest.mark.parametrize(
    ("waited_seconds", "delay_seconds"),
    [(0, 12), (1, 11), (4, 8), (11.9, 0.5)],
)
def test_a_payment_just_sent_waits_until_it_could_be_confirmed(waited_seconds: float, delay_seconds: float) -> None:
    found = wait(rows(), waited=timedelta(seconds=waited_seconds))
    assert found is not None
    assert found.delay == timedelta(seconds=delay_seconds)
    assert found.waiting.reason is WaitReason.NOT_FOUND
    assert TX in found.waiting.message and str(HEAD) in found.waiting.message


@pytest.mark.parametrize(
    ("confirmations", "block_seconds", "seconds"),
    [(5, 2, 12), (1, 2, 4), (5, 12, 36), (30, 2, 15), (3, 0.25, 1), (64, 0.25, 15)],
)
def test_nothing_is_asked_until_it_could_be_confirmed_or_a_wrong_payment_has_waited_for_long(
    confirmations: int, block_seconds: float, seconds: float
) -> None:
    found = watched_for(confirmations, block_time=timedelta(seconds=block_seconds))
    assert found == timedelta(seconds=seconds)


@pytest.mark.parametrize("waited_seconds", [12, 13, 3600])
def test_one_that_the_watcher_does_not_see_by_then_is_asked_for(waited_seconds: int) -> None:
    assert wait(rows(), waited=timedelta(seconds=waited_seconds)) is None


@pytest.mark.parametrize("waited", [NOTHING, timedelta(hours=1)])
def test_one_that_a_node_has_in_a_block_is_asked_for(waited: timedelta) -> None:
    assert wait(rows(), waited=waited, asked_ago=NOTHING, is_mined=True) is None


@pytest.mark.parametrize(
    ("waited_seconds", "interval_seconds", "delay_seconds"),
    [(12, 4, 2), (16, 4, 2), (20, 5, 2), (40, 10, 4), (600, 150, 60), (1200, 300, 60), (80_000, 300, 60)],
)
def test_a_node_is_asked_ever_less_often_about_what_is_not_mined(
    waited_seconds: int, interval_seconds: int, delay_seconds: int
) -> None:
    waited, interval = timedelta(seconds=waited_seconds), timedelta(seconds=interval_seconds)
    assert ask_interval(waited, block_time=BLOCK) == interval
    assert wait(rows(), waited=waited, asked_ago=interval) is None
    found = wait(rows(), waited=waited, asked_ago=interval - TICK)
    assert found is not None
    assert found.delay == timedelta(seconds=delay_seconds)


# -- what holds for all rows


def simulate(watched: WatchedTransaction, *, until: timedelta) -> list[timedelta]:
    """When a node is asked about a payment that it does not have, while the rows stay as they are."""
    now, asked_at = NOTHING, None
    asked: list[timedelta] = []
    while now < until:
        found = wait(watched, waited=now, asked_ago=now - asked_at if asked_at is not None else None)
        if found is None:
            asked.append(now)
            asked_at = now
            now += back_off(now, block_time=BLOCK)
        else:
            now += found.delay
    return asked


def test_a_refusal_is_late_by_a_few_blocks_only_and_a_day_of_waiting_takes_few_requests() -> None:
    asked = simulate(rows(), until=timedelta(days=1))
    assert asked[0] == watched_for(NEEDED, block_time=BLOCK)
    assert len(asked) < 400, "of 1,480 polls"
    for earlier, later in itertools.pairwise(asked):
        assert later - earlier <= min(max(later / 3, 4 * BLOCK), ASK_INTERVAL_MAX + POLL_DELAY_MAX)


NUMBERS = st.integers(95, 105) | st.integers(0, 2**62) | st.just(2**62)
"""Of blocks: near each other, or invented."""


@given(
    st.builds(
        WatchedTransaction,
        block_number=NUMBERS,
        head_number=NUMBERS,
        written_ago=st.timedeltas(-timedelta(days=1), timedelta(minutes=1)),
        is_waiting=st.booleans(),
        seen_in_block=st.none() | NUMBERS,
        seen_ago=st.none() | st.timedeltas(NOTHING, timedelta(days=2)),
    ),
    st.timedeltas(NOTHING, timedelta(days=1)),
    st.booleans(),
)
def test_no_rows_do_more_than_delay_and_never_for_longer_than_the_slowest_poll(
    watched: WatchedTransaction, waited: timedelta, is_mined: bool
) -> None:
    found = wait(watched, waited=waited, is_mined=is_mined)
    if found is not None:
        assert found.waiting.kind == "waiting"
        assert NOTHING < found.delay <= POLL_DELAY_MAX
        assert found.waiting.confirmations < NEEDED
        assert watched.seen_in_block is None or found.waiting.confirmations >= 1
