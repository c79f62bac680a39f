"""The chart of what was spent: exact coordinates, every day in its place."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.charts import HEIGHT, TOP
from api.pages.usage import exact_usd
from api.pages.usage_chart import DAY_WIDTH, LABELS_MAX, draw_days, every_day, share_of
from domain.errors import InvalidInput
from domain.money import format_exact, parse_usd_as_credits, usd_for_credits
from services.billing.spreadsheets import to_csv

START = date(2026, 1, 30)


def test_bars_are_as_high_as_what_was_spent() -> None:
    days = every_day(START, START + timedelta(days=3))
    chart = draw_days(list(zip(days, (0, 50, 100, 1), strict=True)))
    assert [level.label for level in chart.levels] == ["0", "50", "100"]
    assert [(bar.x, bar.y, bar.height) for bar in chart.bars] == [
        (1, TOP + HEIGHT, 0),
        (11, TOP + HEIGHT // 2, HEIGHT // 2),
        (21, TOP, HEIGHT),
        (31, TOP + HEIGHT - 2, 2),
    ]
    assert chart.highest.day == date(2026, 2, 1)
    assert chart.width == 4 * DAY_WIDTH
    assert [time.label for time in chart.times] == ["30 Jan", "31 Jan", "1 Feb", "2 Feb"]


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=366))
def test_whatever_was_spent_it_fits(spent: list[int]) -> None:
    days = every_day(START, START + timedelta(days=len(spent) - 1))
    chart = draw_days(list(zip(days, spent, strict=True)))
    assert len(chart.times) <= LABELS_MAX
    for bar in chart.bars:
        assert 0 <= bar.height <= HEIGHT
        assert bar.y + bar.height == TOP + HEIGHT
        assert (bar.height > 0) == (bar.credits > 0)


@pytest.mark.parametrize(("credits", "largest", "share"), [(0, 0, "0.0%"), (1, 3, "33.3%"), (5, 5, "100.0%")])
def test_a_share_is_of_the_largest(credits: int, largest: int, share: str) -> None:
    assert share_of(credits, largest) == share


@pytest.mark.parametrize(
    ("credits", "dollars"),
    [(0, "0.00"), (1, "0.0000001"), (-1_234, "−0.0001234"), (10_000_000_000, "1,000.00"), (5_000_000, "0.50")],
)
def test_dollars_of_credits_are_exact(credits: int, dollars: str) -> None:
    assert exact_usd(credits) == dollars


@given(st.integers(0, 10**15))
def test_dollars_as_text_are_the_credits_they_came_from(credits: int) -> None:
    assert parse_usd_as_credits(format_exact(usd_for_credits(credits)), field="x") == credits


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e3", "1,5", ".5", "1.", "NaN", "0.00000001", "1234567890", "１"])
def test_what_is_no_amount_of_dollars_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_usd_as_credits(text, field="limit")


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0", "0"), ("0E-18", "0"), ("1E-7", "0.0000001"), ("12.50", "12.5"), ("100", "100"), ("1E+3", "1000")],
)
def test_a_decimal_is_written_without_an_exponent(amount: str, text: str) -> None:
    assert format_exact(Decimal(amount)) == text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_text_that_begins_like_a_formula_begins_with_an_apostrophe(start: str) -> None:
    assert to_csv(["a", "b"], [[f"{start}1", -1]]).splitlines()[1].lstrip('"').startswith("'")
    assert to_csv(["a"], [[-1], [None], ["a=1"]]) == 'a\r\n-1\r\n""\r\na=1\r\n'
