"""What every report of the bench is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from bench.rounds import Comparison, Spread


class Part(BaseModel):
    """Immutable part of the report, in camelCase on the wire."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Range(Part):
    """Median, smallest and largest over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, spread: Spread, *, digits: int) -> Range:
        """The spread, rounded to the measurement's resolution."""
        return cls(median=round(spread.median, digits), min=round(spread.min, digits), max=round(spread.max, digits))


class Measured(Part):
    """The product against its baseline."""

    name: str
    baseline: str
    rounds: int
    per_round: int
    concurrency: int
    product_per_second: Range
    baseline_per_second: Range
    ratio: Range
    aim: float
    aim_met: bool

    @classmethod
    def of(
        cls, name: str, baseline: str, comparison: Comparison, *, per_round: int, concurrency: int, aim: float
    ) -> Measured:
        """The comparison with its aim; the median of the ratios is what counts."""
        return cls(
            name=name,
            baseline=baseline,
            rounds=comparison.rounds,
            per_round=per_round,
            concurrency=concurrency,
            product_per_second=Range.of(comparison.product_per_second, digits=1),
            baseline_per_second=Range.of(comparison.baseline_per_second, digits=1),
            ratio=Range.of(comparison.ratio, digits=3),
            aim=aim,
            aim_met=comparison.ratio.median >= aim,
        )


class Latency(Part):
    """Exact percentiles of all samples; none where there are none."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of all samples."""
        ordered = sorted(seconds)

        def at(share: float) -> float | None:
            """The smallest sample that so large a share does not exceed (nearest rank)."""
            return round(ordered[math.ceil(share * len(ordered)) - 1] * 1000, 1) if ordered else None

        return cls(count=len(ordered), p50_ms=at(0.50), p95_ms=at(0.95), p99_ms=at(0.99))

    def shown(self) -> tuple[str | None, ...]:
        """The three, for people."""
        return tuple(None if found is None else f"{found:,.1f}" for found in (self.p50_ms, self.p95_ms, self.p99_ms))


class Aim(Part):
    """One aim, and whether it was met."""

    name: str
    wanted: str
    found: str
    met: bool

    @classmethod
    def at_most(cls, name: str, found: float, limit: float, *, unit: str = "") -> Aim:
        """Less is better."""
        return cls._of(name, f"≤ {limit:g}", f"{found:,.1f}", unit, met=found <= limit)

    @classmethod
    def at_least(cls, name: str, found: float, limit: float, *, unit: str = "") -> Aim:
        """More is better."""
        return cls._of(name, f"≥ {limit:g}", f"{found:,.2f}", unit, met=found >= limit)

    @classmethod
    def _of(cls, name: str, wanted: str, found: str, unit: str, *, met: bool) -> Aim:
        return cls(name=name, wanted=f"{wanted} {unit}".rstrip(), found=f"{found} {unit}".rstrip(), met=met)

    @property
    def verdict(self) -> str:
        """In one word."""
        return "PASS" if self.met else "below"
