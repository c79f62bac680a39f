"""Axes of charts as coordinates. Integers, so that they are exact.

Places on the time axis are shares of the width, so that a chart fills its place while labels keep their size. Levels
are pixels: the height is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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


def levels_of(lowest: int, highest: int) -> list[int]:
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


def percent(thousandths: int) -> str:
    """`12.3%` of the width."""
    return f"{thousandths // 10}.{thousandths % 10}%"


def in_short(number: int, largest: int | None = None) -> str:
    """`1.25 M`, exact; in the unit that suits the largest number of the axis."""
    size = max(abs(number), abs(largest or 0))
    unit, name = next(((unit, name) for unit, name in UNITS if size >= unit), UNITS[-1])
    whole, rest = divmod(abs(number), unit)
    decimals = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{'−' if number < 0 else ''}{whole:,}{'.' if decimals else ''}{decimals}{name if number else ''}"
