"""What the upstream charges: exact decimals, linear, per million tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from devstack.upstream.tokens import Tokens

_MILLION: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens of each kind. Reasoning is output."""

    input: Decimal
    output: Decimal
    cached: Decimal
    cache_write: Decimal

    def parts(self, tokens: Tokens) -> dict[str, Decimal]:
        """What each kind costs, in USD."""
        return {
            "input": self.input * tokens.uncached / _MILLION,
            "cached": self.cached * tokens.cached / _MILLION,
            "cache_write": self.cache_write * tokens.cache_write / _MILLION,
            "output": self.output * tokens.output / _MILLION,
        }

    def cost_usd(self, tokens: Tokens) -> Decimal:
        """What all of it costs, in USD."""
        return (
            self.input * tokens.uncached
            + self.cached * tokens.cached
            + self.cache_write * tokens.cache_write
            + self.output * tokens.output
        ) / _MILLION


def price(input_usd: str, output_usd: str, cached_usd: str | None = None, cache_write_usd: str | None = None) -> Price:
    """A price from decimal text; cached and cache-write tokens cost what input costs unless given."""
    return Price(
        Decimal(input_usd), Decimal(output_usd), Decimal(cached_usd or input_usd), Decimal(cache_write_usd or input_usd)
    )


DEFAULT_PRICE: Final = price("1", "4", "0.1", "1.25")
"""Of every model that is not listed."""

PRICES: Final[Mapping[str, Price]] = {
    "dev-small": price("0.1", "0.4", "0.01", "0.125"),
    "dev-large": price("10", "40", "1", "12.5"),
    "gpt-4.1": price("2", "8", "0.5"),
    "gpt-4.1-mini": price("0.4", "1.6", "0.1"),
    "gpt-5": price("1.25", "10", "0.125"),
    "gpt-5-mini": price("0.25", "2", "0.025"),
    "gpt-3.5-turbo-instruct": price("1.5", "2"),
    "claude-sonnet-4-5": price("3", "15", "0.3", "3.75"),
    "claude-haiku-4-5": price("1", "5", "0.1", "1.25"),
    "gpt-image-1": price("5", "40"),
    "gpt-4o-mini-tts": price("0.6", "12"),
    "text-embedding-3-small": price("0.02", "0"),
    "text-embedding-3-large": price("0.13", "0"),
}
"""Models that `GET /v1/models` lists. Those of real names have the prices that their providers publish."""


def price_of(model: str) -> Price:
    """The price of a model."""
    return PRICES.get(model, DEFAULT_PRICE)
