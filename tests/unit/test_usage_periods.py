"""Which days a usage report covers, and how bad ones are refused by name."""

from __future__ import annotations

from datetime import date

import pytest

from domain.billing.reports import DAYS_MAX, UsagePeriod, parse_period
from domain.errors import InvalidInput

TODAY = date(2026, 3, 15)


@pytest.mark.parametrize(
    ("first", "last", "period"),
    [
        (None, None, (date(2026, 2, 14), TODAY)),
        ("2026-03-15", None, (TODAY, TODAY)),
        ("2026-04-01", None, (date(2026, 4, 1), date(2026, 4, 1))),
        (None, "2026-01-30", (date(2026, 1, 1), date(2026, 1, 30))),
        (None, "2020-01-02", (date(2020, 1, 1), date(2020, 1, 2))),
        ("2024-02-29", "2025-02-28", (date(2024, 2, 29), date(2025, 2, 28))),
        ("2999-12-31", "2999-12-31", (date(2999, 12, 31), date(2999, 12, 31))),
    ],
)
def test_a_period_is_what_was_asked_or_thirty_days(
    first: str | None, last: str | None, period: tuple[date, date]
) -> None:
    assert parse_period(first, last, today=TODAY) == UsagePeriod(*period)


@pytest.mark.parametrize(
    ("first", "last", "field"),
    [
        ("2026-03-15", "2026-03-14", "to"),
        ("2025-03-14", "2026-03-15", "from"),
        ("2024-01-01", None, "from"),
        ("2026-02-30", None, "from"),
        (None, "2026-13-01", "to"),
        (None, "20260301", "to"),
        (None, "2026-W10-1", "to"),
        (None, "today", "to"),
        ("1700000000", None, "from"),
        ("２０２６-01-01", None, "from"),
        ("2019-12-31", "2020-01-01", "from"),
        ("2026-01-01", "3000-01-01", "to"),
        ("2026-01-01\n", None, "from"),
        ("", None, "from"),
        (None, "", "to"),
    ],
)
def test_what_is_no_period_is_refused_by_name(first: str | None, last: str | None, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_period(first, last, today=TODAY)
    assert caught.value.field == field


def test_the_longest_period_is_a_leap_year() -> None:
    assert parse_period("2024-01-01", "2024-12-31", today=TODAY).days == DAYS_MAX
    with pytest.raises(InvalidInput):
        parse_period("2024-01-01", "2025-01-01", today=TODAY)
