"""What a heartbeat concludes from what it read, on both sides of each edge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.operations.governance import (
    Heartbeat,
    HeartbeatStatus,
    Income,
    Reading,
    evaluate_heartbeat,
    heartbeat_event,
    low_balance_event,
)

NOW = datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
GOOD = Reading(
    account_present=True,
    is_flagged=True,
    balance_credits=100,
    schema_revision="7",
    chain_id=1,
    head_number=9,
    head_mined_at=NOW - timedelta(seconds=60),
)


def evaluate(*, was_low: bool = False, **changes: Any) -> Heartbeat:
    return evaluate_heartbeat(
        GOOD.model_copy(update=changes),
        key="beat/1",
        scheduled_at=NOW,
        now=NOW,
        threshold_credits=100,
        head_age_max=timedelta(seconds=60),
        worker_version="1.2.3",
        was_low=was_low,
    )


def test_all_is_well() -> None:
    beat = evaluate()
    assert (beat.status, beat.is_low, beat.crossed, beat.problems) == (HeartbeatStatus.OK, False, False, ())
    assert (beat.head_number, beat.head_age_seconds) == (9, 60)


@pytest.mark.parametrize(
    ("balance", "was_low", "is_low", "crossed"),
    [
        (100, False, False, False),
        (100, True, False, False),
        (99, False, True, True),
        (99, True, True, False),
        (-1, False, True, True),
        (None, False, False, False),
        (None, True, True, False),
    ],
)
def test_the_voice_is_raised_when_the_balance_falls_below_the_threshold(
    balance: int | None, was_low: bool, is_low: bool, crossed: bool
) -> None:
    beat = evaluate(balance_credits=balance, was_low=was_low)
    assert (beat.is_low, beat.crossed) == (is_low, crossed)


def test_a_low_balance_is_no_failure_and_a_failure_is_worse() -> None:
    assert evaluate(balance_credits=99).status is HeartbeatStatus.LOW
    assert evaluate(balance_credits=99, problems=("x",)).status is HeartbeatStatus.FAILED


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"is_flagged": False}, ("account cogni_system is not flagged as the system tenant",)),
        (
            {"head_mined_at": NOW - timedelta(seconds=61)},
            ("the chain's newest block is 61 s old, more than 60 s",),
        ),
        ({"head_mined_at": None, "problems": ("no node",)}, ("no node",)),
        ({"balance_credits": None, "is_flagged": False, "problems": ("no account",)}, ("no account",)),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], problems: tuple[str, ...]) -> None:
    beat = evaluate(**changes)
    assert (beat.status, beat.problems) == (HeartbeatStatus.FAILED, problems)


def test_a_block_from_the_future_of_another_clock_is_new() -> None:
    assert evaluate(head_mined_at=NOW + timedelta(seconds=3)).head_age_seconds == 0


def test_events_take_their_ids_from_the_heartbeat() -> None:
    beat = evaluate(balance_credits=99)
    low = low_balance_event(beat)
    assert heartbeat_event(beat).id == "governance.heartbeat:beat/1"
    assert (low.id, low.time) == ("governance.heartbeat.low_balance:beat/1", NOW)
    assert low.data == {"balanceCredits": 99, "thresholdCredits": 100}


@pytest.mark.parametrize(
    ("by_reason", "balance", "spent", "days"),
    [
        ({}, 100, 0, None),
        ({"credits_purchase": 5, "payment_reversal": -5}, 100, 0, None),
        ({"usage": -30}, 100, 30, 3),
        ({"usage": -101}, 100, 101, 0),
        ({"usage": -1}, -5, 1, 0),
    ],
)
def test_how_long_the_rest_lasts(by_reason: dict[str, int], balance: int, spent: int, days: int | None) -> None:
    day = Income(since=NOW - timedelta(days=1), until=NOW, balance_credits=balance, by_reason=by_reason)
    assert (day.spent_credits, day.runway_days) == (spent, days)


def test_half_a_day_counts_for_half() -> None:
    half = Income(since=NOW - timedelta(hours=12), until=NOW, balance_credits=100, by_reason={"usage": -10})
    assert half.runway_days == 5
