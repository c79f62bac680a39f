"""Which price a model has now: `UPSTREAMS_FILE` before the price book, and how much a call may cost at it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

import structlog

from domain.billing.price_book import PriceBook
from domain.billing.pricing import ModelRates
from domain.billing.upstreams import PriceOverride
from domain.errors import SettleError
from domain.money import CREDITS_PER_USD

REFRESH_SECONDS: Final = 15.0
"""A new version of the prices counts so long after its day has begun, at the latest."""

KNOWN_MAX: Final = 10_000
"""Names of models come from clients: those without a price must not fill the memory."""

log = structlog.get_logger(__name__)


LoadBook = Callable[[PriceBook | None], Awaitable[PriceBook]]
"""Reads the version that counts now; the one given is returned where it still does."""


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """A model's price. The most that a call can cost is worked out with whole numbers, for every call."""

    rates: ModelRates
    version: str
    rates_json: str
    _input: int
    _output: int
    _request: int
    _divisor: int
    _markup_factor: Decimal

    @classmethod
    def of(cls, rates: ModelRates, version: str, markup_factor: Decimal) -> ModelPrice:
        """The price with the user's markup."""
        factor = Fraction(markup_factor) * CREDITS_PER_USD
        request = rates.highest_cost(0, 0) * factor
        of_input = rates.highest_cost(1, 0) * factor - request
        of_output = rates.highest_cost(0, 1) * factor - request
        divisor = of_input.denominator * of_output.denominator * request.denominator
        return cls(
            rates=rates,
            version=version,
            rates_json=as_json(rates),
            _input=int(of_input * divisor),
            _output=int(of_output * divisor),
            _request=int(request * divisor),
            _divisor=divisor,
            _markup_factor=markup_factor,
        )

    def credits_for(self, input_tokens: int, output_tokens: int, other_units: Mapping[str, int] | None = None) -> int:
        """The most that so many tokens, and other units, can cost a user, in credits, rounded up."""
        total: int | Fraction = self._input * input_tokens + self._output * output_tokens + self._request
        if other_units:
            others = self.rates.highest_cost(0, 0, other_units) - self.rates.highest_cost(0, 0)
            total += others * Fraction(self._markup_factor) * CREDITS_PER_USD * self._divisor
        return int(-(-total // self._divisor))

    def output_tokens_within(self, credits: int, input_tokens: int) -> int | None:
        """How many tokens of output so many credits pay for, after the input; None where output costs nothing."""
        if not self._output:
            return None
        rest = credits * self._divisor - self._input * input_tokens - self._request
        return max(0, rest // self._output)


def as_json(rates: ModelRates) -> str:
    """Rates as the price book's tables have them, decimals as text."""
    return json.dumps(rates.model_dump(mode="json")["rates"], sort_keys=True)


class Prices:
    """The prices that count now, those of the file of upstreams before the book's."""

    def __init__(self, load_book: LoadBook, overrides: Mapping[str, PriceOverride], markup_factor: Decimal) -> None:
        self._load_book = load_book
        self._overrides = overrides
        self._markup_factor = markup_factor
        self._stored: PriceBook | None = None
        self._book: PriceBook | None = None
        self._known: dict[str, ModelPrice] = {}

    def find(self, model: str) -> ModelPrice | None:
        """The model's price; None where it has none."""
        found = self._known.get(model)
        if found is not None or self._book is None:
            return found
        price = self._book.find(model)
        if price is None:
            return None
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[model] = ModelPrice.of(price.rates, price.version, self._markup_factor)
        return self._known[model]

    async def refresh(self) -> None:
        """Read the version that counts now. Raises `SettleError`."""
        book = await self._load_book(self._stored)
        if book is not self._stored:
            log.info("prices", version=book.version)
            self._stored = book
            self._book = book.with_overrides(self._overrides)
            self._known = {}

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Read the prices, and follow them while the block runs. Raises `SettleError` where they cannot be read."""
        await self.refresh()
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except SettleError as error:
                log.warning("prices are not read: the ones before go on counting", reason=error.message)
