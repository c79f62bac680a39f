"""Bar charts of what was spent, as coordinates (`api/charts.py`), rendered by `templates/usage_parts.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from api.charts import BOTTOM, EDGE, HEIGHT, TOP, Level, TimeLabel, in_short, levels_of, percent

DAY_WIDTH: Final = 10
"""Units of a day's own coordinate system, which is scaled to the available width."""

GAP: Final = 2
"""Units between two bars."""

LABELS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """What was spent on a day. `height` is in pixels, at least one where anything was spent."""

    day: date
    credits: int
    x: int
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class DayChart:
    """Everything to render."""

    bars: list[Bar]
    levels: list[Level]
    times: list[TimeLabel]
    highest: Bar

    @property
    def height(self) -> int:
        """Total height in pixels."""
        return TOP + HEIGHT + BOTTOM

    @property
    def width(self) -> int:
        """Total width in units."""
        return len(self.bars) * DAY_WIDTH

    @property
    def bar_width(self) -> int:
        """Of one bar, in units."""
        return DAY_WIDTH - GAP


def draw_days(spent: Sequence[tuple[date, int]]) -> DayChart:
    """The chart of the credits of consecutive days, at least one; no amount is negative."""
    levels = levels_of(0, max(credits for _, credits in spent))
    highest = max(levels[-1], 1)

    def height_of(credits: int) -> int:
        return max(credits * HEIGHT // highest, 1 if credits else 0)

    bars = [
        Bar(day, credits, number * DAY_WIDTH + GAP // 2, TOP + HEIGHT - height_of(credits), height_of(credits))
        for number, (day, credits) in enumerate(spent)
    ]
    return DayChart(
        bars=bars,
        levels=[Level(TOP + HEIGHT - level * HEIGHT // highest, in_short(level, levels[-1])) for level in levels],
        times=_days(bars),
        highest=max(bars, key=lambda bar: bar.credits),
    )


def _days(bars: Sequence[Bar]) -> list[TimeLabel]:
    """Labels below the middle of some days' bars."""
    every = -(-len(bars) // LABELS_MAX)
    found: list[TimeLabel] = []
    for number, bar in enumerate(bars):
        x = (2 * number + 1) * 1_000 // (2 * len(bars))
        if number % every == every // 2 and (EDGE <= x <= 1_000 - EDGE or len(bars) == 1):
            found.append(TimeLabel(percent(x), f"{bar.day.day} {bar.day:%b}", is_extra=len(found) % 2 == 1))
    return found


def share_of(credits: int, largest: int) -> str:
    """A bar's length beside the largest one, in percent of the width."""
    return percent(credits * 1_000 // largest if largest else 0)


def every_day(first: date, last: date) -> list[date]:
    """The days of a period, both ends included."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]
