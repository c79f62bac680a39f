"""Balance chart as coordinates (`api/charts.py`), rendered by `templates/operator_picture.html`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from api.charts import BOTTOM, EDGE, HEIGHT, TOP, Level, TimeLabel, in_short, levels_of, percent

WIDTH: Final = 1_000
"""Units of the curve's own coordinate system, which is scaled to the available width."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment in which the balance does not change, in percent, with its tooltip."""

    x: str
    width: str
    start: datetime
    balance_credits: int


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything to render. `area` is empty where the lowest level is not zero: it would mislead."""

    curve: str
    area: str
    levels: list[Level]
    times: list[TimeLabel]
    segments: list[Segment]
    end_x: str
    end_y: int
    lowest_credits: int
    highest_credits: int

    @property
    def height(self) -> int:
        """Total height in pixels."""
        return TOP + HEIGHT + BOTTOM


def draw(
    opening_credits: int,
    steps: Sequence[tuple[datetime, int]],
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    label_every: timedelta,
) -> Chart:
    """The chart of a balance that was `opening_credits` at `start` and has each step's value from the step's time on.

    The curve ends at `now`, the axis at `end`; times are labelled at whole multiples of `label_every`.
    """
    points = [(start, opening_credits), *steps]
    values = [value for _, value in points]
    lowest, highest = min(values), max(values)
    levels = levels_of(lowest, highest)
    low, high = levels[0], levels[-1]

    def x_of(moment: datetime) -> int:
        return min(max((moment - start) * WIDTH // (end - start), 0), WIDTH)

    def y_of(value: int) -> int:
        return TOP + HEIGHT - (value - low) * HEIGHT // max(high - low, 1)

    last = x_of(min(now, end))
    path = f"M0 {y_of(opening_credits)}"
    for at, value in steps:
        path += f"H{x_of(at)}V{y_of(value)}"
    path += f"H{max(last, x_of(points[-1][0]))}"
    return Chart(
        curve=path,
        area=f"{path}V{y_of(0)}H0Z" if low == 0 else "",
        levels=[Level(y_of(level), in_short(level, levels[-1])) for level in levels],
        times=_times(start, end, label_every),
        segments=_segments(points, min(now, end), x_of),
        end_x=percent(max(last, x_of(points[-1][0]))),
        end_y=y_of(values[-1]),
        lowest_credits=lowest,
        highest_credits=highest,
    )


def _times(start: datetime, end: datetime, every: timedelta) -> list[TimeLabel]:
    found = []
    number = -(-(start - _EPOCH) // every)
    while (moment := _EPOCH + number * every) <= end:
        x = (moment - start) * WIDTH // (end - start)
        if EDGE <= x <= WIDTH - EDGE:
            is_midnight = moment.hour == moment.minute == 0
            label = f"{moment.day} {moment:%b}" if is_midnight else f"{moment:%H:%M}"
            found.append(TimeLabel(percent(x), label, is_extra=number % 2 == 1))
        number += 1
    return found


def _segments(points: Sequence[tuple[datetime, int]], end: datetime, x_of: Callable[[datetime], int]) -> list[Segment]:
    ends = [at for at, _ in points[1:]] + [end]
    return [
        Segment(percent(x_of(at)), percent(x_of(until) - x_of(at)), at, value)
        for (at, value), until in zip(points, ends, strict=True)
        if until > at
    ]
