"""Balance chart as coordinates, rendered by `templates/operator_picture.html`. Integers, so that it is exact.

Times are shares of the width, so that the chart fills its place while labels keep their size. Levels are pixels: the
height is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

WIDTH: Final = 1_000
"""Units of the curve's own coordinate system, which is scaled to the available width."""

TOP: Final = 8
"""Pixels above the highest level, for half of its label."""

HEIGHT: Final = 200
"""Pixels between the lowest and the highest level."""

BOTTOM: Final = 26
"""Pixels below, for the time labels."""

LEVELS_MAX: Final = 5
SPREAD_MIN: Final = 1_000
"""Smallest range shown, as a fraction of the balance: a thousandth. Less would need labels with many digits."""

EDGE: Final = 25
"""A time label closer than this to an end, in thousandths of the width, would be cut off."""

UNITS: Final = ((10**12, " tn"), (10**9, " bn"), (10**6, " M"), (10**3, " k"), (1, ""))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal grid line at pixel `y` from the top."""

    y: int
    label: str


@dataclass(frozen=True, slots=True)
class TimeLabel:
    """A time label at `x` percent. `is_extra` where a narrow chart omits it."""

    x: str
    label: str
    is_extra: bool


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
    levels = _levels(lowest, highest)
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
        end_x=_percent(max(last, x_of(points[-1][0]))),
        end_y=y_of(values[-1]),
        lowest_credits=lowest,
        highest_credits=highest,
    )


def _levels(lowest: int, highest: int) -> list[int]:
    """Round levels from below the lowest value to above the highest; from zero, unless all are far above it."""
    is_flat = lowest == highest
    low = 0 if lowest >= 0 and (is_flat or lowest <= highest // 2) else lowest
    high = 0 if is_flat and highest < 0 else highest
    if low == high:
        return [0]
    if low > 0:
        low = min(low, high - high // SPREAD_MIN)
    step = 1
    while (high - low) // step >= LEVELS_MAX - 1:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    first, last = low // step, -(-high // step)
    return [number * step for number in range(first, last + 1)]


def _times(start: datetime, end: datetime, every: timedelta) -> list[TimeLabel]:
    found = []
    number = -(-(start - _EPOCH) // every)
    while (moment := _EPOCH + number * every) <= end:
        x = (moment - start) * WIDTH // (end - start)
        if EDGE <= x <= WIDTH - EDGE:
            is_midnight = moment.hour == moment.minute == 0
            label = f"{moment.day} {moment:%b}" if is_midnight else f"{moment:%H:%M}"
            found.append(TimeLabel(_percent(x), label, is_extra=number % 2 == 1))
        number += 1
    return found


def _segments(points: Sequence[tuple[datetime, int]], end: datetime, x_of: Callable[[datetime], int]) -> list[Segment]:
    ends = [at for at, _ in points[1:]] + [end]
    return [
        Segment(_percent(x_of(at)), _percent(x_of(until) - x_of(at)), at, value)
        for (at, value), until in zip(points, ends, strict=True)
        if until > at
    ]


def _percent(thousandths: int) -> str:
    return f"{thousandths // 10}.{thousandths % 10}%"


def in_short(number: int, largest: int | None = None) -> str:
    """`1.25 M`, exact; in the unit that suits the largest number of the axis."""
    size = max(abs(number), abs(largest or 0))
    unit, name = next(((unit, name) for unit, name in UNITS if size >= unit), UNITS[-1])
    whole, rest = divmod(abs(number), unit)
    decimals = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{'−' if number < 0 else ''}{whole:,}{'.' if decimals else ''}{decimals}{name if number else ''}"
