"""The price book of the installed release of `genai-prices`, as of a day. Its data is in the package: no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from importlib.metadata import version
from typing import Any, Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TimeOfDateConstraint,
)

from domain.billing.price_book import Clause, ListedPrice, PriceBook
from domain.billing.pricing import ModelRates

PACKAGE: Final = "genai-prices"

_OWN_MODELS: Final = frozenset({"openai", "google", "mistral", "cohere"})
"""Providers whose models the package does not all find by name alone (`text-embedding-3-small`), because the name says
less than whose it is. Others with such models sell what another provider makes, at a price of their own.
"""

_TYPICAL_TOKENS: Final = 1_000_000
"""Input and output by which two prices of a day are compared."""


def installed_source() -> str:
    """The package and its release."""
    return f"{PACKAGE} {version(PACKAGE)}"


def installed_book(day: date) -> PriceBook:
    """The prices that count on a day (UTC).

    Where a price depends on the time of day, it is the dearest of the day: a version has one price for a model, and it
    is never below what the provider takes.
    """
    providers = get_snapshot().providers
    by_name, by_provider, found_last = [], [], []
    for provider in providers:
        for model in provider.models:
            rates = _rates_on(model, day)
            if rates is None:
                continue
            stored = rates.model_dump(mode="json", exclude_defaults=True)["rates"]
            names = _clause(model.match)
            claim = _claim_of(provider, model, providers)
            if claim is not None:
                by_name.append(ListedPrice(model.id, provider.id, stored, {"and": [claim, names]}))
            elif _is_own(provider, model, providers):
                found_last.append(ListedPrice(model.id, provider.id, stored, names))
            else:
                by_provider.append(ListedPrice(f"{provider.id}/{model.id}", provider.id, stored, names))
    return PriceBook(installed_source(), _once(by_name + found_last + by_provider))


def later_starts(day: date) -> tuple[tuple[date, str], ...]:
    """Days after `day` on which the package has another price for a model, with the model: when to import again."""
    return tuple(
        sorted(
            (condition.constraint.start_date, f"{provider.id}/{model.id}")
            for provider in get_snapshot().providers
            for model in provider.models
            if not isinstance(model.prices, ModelPrice)
            for condition in model.prices
            if isinstance(condition.constraint, StartDateConstraint) and condition.constraint.start_date > day
        )
    )


def _claim_of(provider: Provider, model: ModelInfo, providers: Iterable[Provider]) -> Clause | None:
    """The rule by which the package knows the provider from the model's own name; None where it finds another, or none.

    The first provider that claims a name gets it.
    """
    first = _first_claim(model.id.lower(), providers)
    if first is not provider or provider.model_match is None:
        return None
    return _clause(provider.model_match)


def _is_own(provider: Provider, model: ModelInfo, providers: Iterable[Provider]) -> bool:
    return provider.id in _OWN_MODELS and _first_claim(model.id.lower(), providers) is None


def _first_claim(name: str, providers: Iterable[Provider]) -> Provider | None:
    return next((one for one in providers if one.model_match is not None and one.model_match.is_match(name)), None)


def _once(listed: Iterable[ListedPrice]) -> tuple[ListedPrice, ...]:
    """The first of each name."""
    kept: dict[str, ListedPrice] = {}
    for price in listed:
        kept.setdefault(price.model, price)
    return tuple(kept.values())


def _rates_on(model: ModelInfo, day: date) -> ModelRates | None:
    """The dearest rates of a day; None where the package knows the model, and no price."""
    rates = []
    for moment in _moments(model, day):
        prices = model.get_prices(moment)
        if any(value is not None for value in vars(prices).values()):
            rates.append(ModelRates.of_price_book(prices))
    return max(rates, key=lambda one: one.highest_cost(_TYPICAL_TOKENS, _TYPICAL_TOKENS), default=None)


def _moments(model: ModelInfo, day: date) -> Iterator[datetime]:
    """Midnight, and each moment of the day at which the price may change."""
    midnight = datetime.combine(day, time(), UTC)
    yield midnight
    if isinstance(model.prices, ModelPrice):
        return
    for condition in model.prices:
        if isinstance(condition.constraint, TimeOfDateConstraint):
            for at in (condition.constraint.start_time, condition.constraint.end_time):
                moment = datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC)
                yield midnight + timedelta(hours=moment.hour, minutes=moment.minute, seconds=moment.second)


_CLAUSES: Final[dict[type[Any], Callable[[Any], Clause]]] = {
    ClauseEquals: lambda one: {"equals": one.equals.lower()},
    ClauseStartsWith: lambda one: {"starts_with": one.starts_with.lower()},
    ClauseEndsWith: lambda one: {"ends_with": one.ends_with.lower()},
    ClauseContains: lambda one: {"contains": one.contains.lower()},
    ClauseRegex: lambda one: {"regex": one.regex},
    ClauseOr: lambda one: {"or": [_clause(part) for part in one.or_]},
    ClauseAnd: lambda one: {"and": [_clause(part) for part in one.and_]},
}


def _clause(rule: Any) -> Clause:
    return _CLAUSES[type(rule)](rule)
