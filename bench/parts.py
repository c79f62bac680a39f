"""What every report of the bench is made of."""

from __future__ import annotations

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
