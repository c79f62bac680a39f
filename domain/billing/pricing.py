"""The price of a call: counted units at a price book's rates, in exact decimals, rounded once at the end.

The price book's units and their nesting (cached tokens are part of the input, …) are those of `genai-prices`. What a
call cost is kept as lines of count and rate, so that it can be computed again without any price book.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from functools import cache
from math import ceil
from types import MappingProxyType, SimpleNamespace
from typing import Final, Self

from genai_prices.data_units import unit_data
from genai_prices.decompose import compute_leaf_values
from genai_prices.types import ModelPrice, TieredPrices
from genai_prices.units import UnitDef, UnitRegistry
from pydantic import BaseModel, ConfigDict, field_validator

from domain.billing.usage import ImplausibleUsage, Usage
from domain.money import CREDITS_PER_USD

COST_DECIMALS: Final = 18
"""A cost is exact; only where a unit is divided by 60 or 3,600 (seconds of audio) it is rounded up in this place."""

IMAGES: Final = "images"
"""The unit of an image that is made."""

_EXACT: Final = Context(prec=60, rounding=ROUND_CEILING)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Tier(_Value):
    """A rate for the whole call once its input is longer than `above_input_tokens`."""

    above_input_tokens: int
    usd: Decimal


class Rate(_Value):
    """US dollars for as many units as the price book counts them by (a million tokens, a thousand requests)."""

    usd: Decimal
    tiers: tuple[Tier, ...] = ()

    @field_validator("usd")
    @classmethod
    def _is_a_price(cls, usd: Decimal) -> Decimal:
        if not usd.is_finite() or usd < 0:
            raise ValueError(f"a rate is a decimal from 0, not {usd}")
        return usd

    def for_input(self, input_tokens: int) -> Decimal:
        """The rate that counts for a call with so much input."""
        reached = [tier for tier in self.tiers if input_tokens > tier.above_input_tokens]
        return max(reached, key=lambda tier: tier.above_input_tokens).usd if reached else self.usd

    @property
    def highest(self) -> Decimal:
        """The dearest rate that a call can get."""
        return max((self.usd, *(tier.usd for tier in self.tiers)))


class PricedLine(_Value):
    """One line of a receipt: `count` units at `usd` for `per` of them."""

    unit: str
    count: int
    usd: Decimal
    per: int

    @property
    def cost(self) -> Fraction:
        """Exactly, in US dollars."""
        return Fraction(self.usd) * self.count / self.per


class ModelRates(_Value):
    """What a model's calls cost its provider's customers: a rate for each unit that is priced."""

    rates: Mapping[str, Rate]

    @field_validator("rates")
    @classmethod
    def _are_known(cls, rates: Mapping[str, Rate]) -> Mapping[str, Rate]:
        unknown = sorted(rates.keys() - units().keys())
        if unknown:
            raise ValueError(f"unknown units: {', '.join(unknown)}")
        if not rates:
            raise ValueError("a model without any rate has no price")
        return rates

    @classmethod
    def of_price_book(cls, prices: ModelPrice) -> Self:
        """The rates of an entry of `genai-prices`."""
        by_price_key = {unit.price_key: name for name, unit in units().items()}
        return cls(
            rates={
                by_price_key[key]: _to_rate(value)
                for key, value in vars(prices).items()
                if value is not None and key in by_price_key
            }
        )

    @property
    def is_free(self) -> bool:
        """Every rate is 0."""
        return all(rate.highest == 0 for rate in self.rates.values())

    def price(self, usage: Usage) -> tuple[PricedLine, ...]:
        """The lines of a call's receipt, each unit counted once. Raises `ImplausibleUsage`."""
        known = units()
        priced = {name: known[name] for name in self.rates if name != "requests"}
        try:
            counts = compute_leaf_values(set(priced), SimpleNamespace(**usage.units), priced)
        except ValueError as error:
            raise ImplausibleUsage(str(error)) from None
        if "requests" in self.rates:
            counts["requests"] = 1
        return tuple(
            PricedLine(
                unit=name,
                count=int(counts[name]),
                usd=self.rates[name].for_input(usage.input_tokens),
                per=known[name].per,
            )
            for name in sorted(counts)
            if counts[name]
        )

    def highest_cost(
        self, input_tokens: int, output_tokens: int, other_units: Mapping[str, int] = MappingProxyType({})
    ) -> Fraction:
        """The most that so many tokens and other units can cost, in US dollars: each token at the dearest rate of its
        side, and of units that contain each other (seconds of audio) the dearest.
        """
        known = units()
        most = {"input": Fraction(0), "output": Fraction(0)}
        requests = Fraction(0)
        for name, rate in self.rates.items():
            unit = known[name]
            cost = Fraction(rate.highest) / unit.per
            side = unit.dimensions.get("direction")
            if unit.dimensions.get("family") == "tokens" and side in most:
                most[side] = max(most[side], cost)
            elif name == "requests":
                requests = cost
        return (
            most["input"] * input_tokens
            + most["output"] * output_tokens
            + requests
            + max(
                (
                    Fraction(self.rates[name].highest) * count / known[name].per
                    for name, count in other_units.items()
                    if name in self.rates
                ),
                default=Fraction(0),
            )
        )


def cost_usd(lines: Sequence[PricedLine]) -> Decimal:
    """What the lines cost, in US dollars."""
    return to_usd(sum((line.cost for line in lines), Fraction(0)))


def to_usd(cost: Fraction) -> Decimal:
    """A cost as a decimal: exact where it has at most `COST_DECIMALS` places, else rounded up."""
    scaled = ceil(cost * 10**COST_DECIMALS)
    return _EXACT.divide(Decimal(scaled), Decimal(10**COST_DECIMALS)).normalize(_EXACT)


def credits_for_usd(usd: Decimal, *, factor: Decimal = Decimal(1)) -> int:
    """Credits for a cost in US dollars times `factor`: one rounding, at the end, up."""
    return ceil(Fraction(usd) * Fraction(factor) * CREDITS_PER_USD)


@cache
def units() -> Mapping[str, UnitDef]:
    """What can be counted and priced, by name: what the package knows, and images, which `UPSTREAMS_FILE` can price."""
    return {**UnitRegistry(unit_data).units, IMAGES: UnitDef(IMAGES, "images_count", 1, {"family": IMAGES})}


def _to_rate(value: Decimal | TieredPrices) -> Rate:
    if isinstance(value, TieredPrices):
        return Rate(
            usd=value.base,
            tiers=tuple(Tier(above_input_tokens=tier.start, usd=tier.price) for tier in value.tiers),
        )
    return Rate(usd=value)
