"""The picture of a balance: its coordinates are exact, and its levels are round."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.charts import HEIGHT, LEVELS_MAX, TOP, in_short
from api.operators.balance_chart import Chart, draw

START = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
LOWEST, HIGHEST = TOP + HEIGHT, TOP


def _draw(opening: int, *steps: tuple[timedelta, int], now: timedelta = DAY) -> Chart:
    moved = [(START + at, value) for at, value in steps]
    return draw(opening, moved, start=START, end=START + DAY, now=START + now, label_every=4 * HOUR)


def test_each_change_is_a_step_at_its_time_and_the_curve_ends_now() -> None:
    chart = _draw(0, (6 * HOUR, 50), (12 * HOUR, 100), now=18 * HOUR)
    assert [level.label for level in chart.levels] == ["0", "50", "100"]
    assert chart.curve == f"M0 {LOWEST}H250V{(LOWEST + HIGHEST) // 2}H500V{HIGHEST}H750"
    assert chart.area == f"{chart.curve}V{LOWEST}H0Z"
    assert (chart.end_x, chart.end_y) == ("75.0%", HIGHEST)
    assert [(part.x, part.width, part.balance_credits) for part in chart.segments] == [
        ("0.0%", "25.0%", 0),
        ("25.0%", "25.0%", 50),
        ("50.0%", "25.0%", 100),
    ]


def test_a_balance_that_never_moved_is_a_flat_line() -> None:
    assert _draw(0).curve == f"M0 {LOWEST}H1000"
    assert [level.label for level in _draw(0).levels] == ["0"]
    flat = _draw(7_000_000)
    assert [level.label for level in flat.levels] == ["0", "2 M", "4 M", "6 M", "8 M"]
    assert flat.curve == f"M0 {LOWEST - HEIGHT * 7 // 8}H1000"
    assert flat.area


def test_a_balance_far_above_zero_is_shown_closely_and_its_area_does_not_mislead() -> None:
    chart = _draw(1_000_000, (HOUR, 1_100_000))
    assert [level.label for level in chart.levels] == ["1 M", "1.05 M", "1.1 M"]
    assert chart.area == ""
    half = _draw(500, (HOUR, 1_000))
    assert half.levels[0].label == "0"
    assert half.area


def test_a_balance_that_hardly_moves_has_short_labels() -> None:
    chart = _draw(31_216_250_000, (HOUR, 31_216_250_001))
    assert [level.label for level in chart.levels] == ["31.18 bn", "31.19 bn", "31.2 bn", "31.21 bn", "31.22 bn"]


def test_a_debt_is_below_zero() -> None:
    chart = _draw(100, (HOUR, -50))
    assert [level.label for level in chart.levels] == ["−50", "0", "50", "100"]
    assert chart.area == ""
    assert [level.label for level in _draw(-3).levels] == ["−3", "−2", "−1", "0"]


def test_times_are_whole_and_none_is_cut_off_at_an_edge() -> None:
    chart = _draw(0)
    assert [(time.x, time.label, time.is_extra) for time in chart.times] == [
        ("16.6%", "04:00", True),
        ("33.3%", "08:00", False),
        ("50.0%", "12:00", True),
        ("66.6%", "16:00", False),
        ("83.3%", "20:00", True),
    ]
    week = draw(0, [], start=START, end=START + 7 * DAY, now=START, label_every=DAY)
    assert [time.label for time in week.times] == [f"{day} Jan" for day in range(6, 12)]


def test_what_was_posted_by_a_faster_clock_stays_in_the_picture() -> None:
    chart = _draw(0, (30 * HOUR, 4))
    assert chart.curve == f"M0 {LOWEST}H1000V{HIGHEST}H1000"


@pytest.mark.parametrize(
    ("number", "largest", "words"),
    [
        (0, None, "0"), (0, 10**9, "0"), (999, None, "999"), (1_000, None, "1 k"), (1_250_000, None, "1.25 M"),
        (-1_250_000, None, "−1.25 M"), (500, 2_000, "0.5 k"), (10**9, None, "1 bn"),
        (31_216_250_001, None, "31.216250001 bn"), (2**63 - 1, None, "9,223,372.036854775807 tn"),
    ],
)  # fmt: skip
def test_a_number_in_short_is_exact(number: int, largest: int | None, words: str) -> None:
    assert in_short(number, largest) == words


@given(
    opening=st.integers(-(2**62), 2**62),
    values=st.lists(st.integers(-(2**62), 2**62), max_size=20),
)
def test_whatever_the_balance_was_it_fits_between_a_few_levels(opening: int, values: list[int]) -> None:
    chart = _draw(opening, *((HOUR * number, value) for number, value in enumerate(values)))
    assert 1 <= len(chart.levels) <= LEVELS_MAX + 1
    ys = [int(y) for y in re.findall(r"V(\d+)", chart.curve)] + [chart.end_y]
    assert all(HIGHEST <= y <= LOWEST for y in ys)
    assert [level.y for level in chart.levels] == sorted({level.y for level in chart.levels}, reverse=True)
    assert (chart.lowest_credits, chart.highest_credits) == (min([opening, *values]), max([opening, *values]))
