"""Two sides measured alternately: on a shared machine only ratios of neighbours in time mean anything."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass

Work = Callable[[int], Awaitable[None]]
"""Does so many pieces of work; what it needs has been prepared by the caller."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of what the rounds gave."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that are compared: `prepare` is not timed, `work` is."""

    name: str
    prepare: Work
    work: Work


@dataclass(frozen=True, slots=True)
class Comparison:
    """The product against its baseline. `ratio` is the spread of each round's own ratio, not of the rates."""

    product_per_second: Spread
    baseline_per_second: Spread
    ratio: Spread
    rounds: int

    @classmethod
    def of(cls, product: Sequence[float], baseline: Sequence[float]) -> Comparison:
        """Compare the rates of the same rounds."""
        return cls(
            product_per_second=Spread.of(product),
            baseline_per_second=Spread.of(baseline),
            ratio=Spread.of([ours / theirs for ours, theirs in zip(product, baseline, strict=True)]),
            rounds=len(product),
        )


async def at_once(jobs: Iterable[Coroutine[object, object, None]]) -> None:
    """All jobs at once. The first error ends the others and is raised as it is, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


class Deadline:
    """A bound on the whole run: a round that would not fit is left out, the first never is."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = clock() + seconds

    @property
    def seconds_left(self) -> float:
        """Until the end; 0 after it."""
        return max(self._ends - self._clock(), 0.0)

    def leaves(self, seconds: float) -> bool:
        """Whether so much time is left."""
        return seconds <= self._ends - self._clock()


async def measure(side: Side, count: int) -> float:
    """Pieces of work per second."""
    await side.prepare(count)
    started = time.perf_counter()
    await side.work(count)
    return count / (time.perf_counter() - started)


async def measure_alternately(
    sides: Sequence[Side],
    *,
    count: int,
    rounds: int,
    deadline: Deadline,
    on_round: Callable[[int, Sequence[float]], None] = lambda _number, _rates: None,
    measure: Callable[[Side, int], Awaitable[float]] = measure,
) -> list[list[float]]:
    """Rates of each side, in the order of `sides`: each does `count` pieces of work in a round, one after the other.

    Every round begins with another side, so that what drifts (a growing database, a neighbour's load) does not always
    meet the same one.
    """
    rates: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        started = time.monotonic()
        first = number % len(sides)
        for index in (*range(first, len(sides)), *range(first)):
            rates[index].append(await measure(sides[index], count))
        on_round(number + 1, [found[-1] for found in rates])
        if not deadline.leaves(time.monotonic() - started):
            break
    return rates


async def compare(
    product: Side,
    baseline: Side,
    *,
    count: int,
    rounds: int,
    deadline: Deadline,
    on_round: Callable[[int, float, float], None] = lambda _number, _product, _baseline: None,
) -> Comparison:
    """Measure both sides alternately, `count` pieces of work at a time."""
    found = await measure_alternately(
        (product, baseline),
        count=count,
        rounds=rounds,
        deadline=deadline,
        on_round=lambda number, rates: on_round(number, rates[0], rates[1]),
    )
    return Comparison.of(*found)
