"""The price book: which rates a model's calls are priced at, found by any name that the model is called by.

A version of it is complete: rates, and the rules by which names are matched, too. What a name costs therefore changes
with a version only, whatever release of `genai-prices` is installed (`domain.billing.installed_prices`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

from domain.billing.pricing import ModelRates
from domain.billing.upstreams import MODEL_CHARS_MAX, PriceOverride

Clause = Mapping[str, Any]
"""A rule that names are matched by: one of `equals`, `starts_with`, `ends_with`, `contains`, `regex` (each of a name in
lower case), or `and`, `or` of several.
"""

FOUND_MAX: Final = 4_096
"""Names whose price is remembered. Callers choose names, so there is no end of them."""

_COMPACT_DATE: Final = re.compile(r"-(20\d\d)(\d\d)(\d\d)(?=-|:|$)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListedPrice:
    """A model in a price book, as it is stored."""

    model: str
    """The name that it is listed under: the provider's own, after `provider/` where it does not stand for the model."""
    provider: str
    rates: Mapping[str, Any]
    """`ModelRates.rates` as JSON."""
    names: Clause

    @property
    def is_qualified(self) -> bool:
        """Found only where its provider is named."""
        return self.model.startswith(f"{self.provider}/")

    def read_rates(self) -> ModelRates:
        """The rates, checked."""
        return ModelRates.model_validate({"rates": self.rates})


@dataclass(frozen=True, slots=True)
class Price:
    """What a call for a model is priced at."""

    model: str
    """As it is listed: the same for all names of one model."""
    provider: str | None
    """None where only the file of upstreams has a price."""
    rates: ModelRates
    version: str
    """What receipts name: a version's id, or `upstreams-file:` with the digest of the model's prices there."""


@dataclass(frozen=True)
class PriceBook:
    """One version of prices, with those of the file of upstreams, which count before it."""

    version: str
    listed: Sequence[ListedPrice]
    """In the order in which they are tried for a name."""
    overrides: Mapping[str, PriceOverride] = field(default_factory=dict)
    _found: dict[str, Price | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def with_overrides(self, overrides: Mapping[str, PriceOverride]) -> PriceBook:
        """The same version, with prices that count before its own."""
        return replace(self, overrides=overrides)

    def without_overrides(self) -> PriceBook:
        """The version alone."""
        return replace(self, overrides={})

    def find(self, model: str) -> Price | None:
        """The price of a model by one of its names (`gpt-4o`, `gpt-4o-2024-08-06`, `openai/gpt-4o`); None without one.

        Before it comes a price of the file of upstreams, for this name or the name that the model is listed under.
        """
        if model not in self._found:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            self._found[model] = self._find(model)
        return self._found[model]

    def _find(self, model: str) -> Price | None:
        listed = self._find_listed(model)
        for name in (model, listed.model if listed else model):
            override = self.overrides.get(name)
            if override is not None:
                return Price(name, listed.provider if listed else None, override.rates, version_of(override))
        return None if listed is None else Price(listed.model, listed.provider, listed.read_rates(), self.version)

    def _find_listed(self, model: str) -> ListedPrice | None:
        if len(model) > MODEL_CHARS_MAX:
            return None
        name = model.lower()
        for spelling in dict.fromkeys((name, _COMPACT_DATE.sub(_with_dashes, name))):
            provider, _, own_name = spelling.partition("/")
            of_provider = self._by_provider.get(provider, ()) if own_name else ()
            for candidates, written in ((of_provider, own_name), (self._by_name, spelling)):
                for listed in candidates:
                    if matches(listed.names, written):
                        return listed
        return None

    @cached_property
    def _by_name(self) -> tuple[ListedPrice, ...]:
        return tuple(listed for listed in self.listed if not listed.is_qualified)

    @cached_property
    def _by_provider(self) -> Mapping[str, Sequence[ListedPrice]]:
        found: dict[str, list[ListedPrice]] = {}
        for listed in self.listed:
            found.setdefault(listed.provider, []).append(listed)
        return found


def version_of(override: PriceOverride) -> str:
    """What a receipt names as the version of a price of the file of upstreams: the same prices, the same version."""
    text = json.dumps(override.digest_fields, sort_keys=True)
    return f"upstreams-file:{sha256(text.encode()).hexdigest()[:12]}"


def matches(clause: Clause, name: str) -> bool:
    """Whether a rule holds for a name in lower case. Raises `ValueError` for a rule that is none."""
    [(kind, operand)] = clause.items()
    match kind:
        case "equals":
            return bool(name == operand)
        case "starts_with":
            return name.startswith(operand)
        case "ends_with":
            return name.endswith(operand)
        case "contains":
            return operand in name
        case "regex":
            return re.search(operand, name) is not None
        case "or":
            return any(matches(one, name) for one in operand)
        case "and":
            return all(matches(one, name) for one in operand)
    raise ValueError(f"{kind!r} is no rule for names")


def _with_dashes(found: re.Match[str]) -> str:
    """`-20240806`, as some proxies write a date, is the provider's `-2024-08-06`; other digits stay as they are."""
    try:
        return f"-{date(*map(int, found.groups()))}"
    except ValueError:
        return found[0]


# -- differences between two books


class Change(StrEnum):
    """What is different about a model."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    """Rates, or the provider."""
    RENAMED = "renamed"
    """The same rates under other names."""


@dataclass(frozen=True, slots=True)
class RateChange:
    """A rate that differs, in US dollars for as many units as it is given for; None where there is none."""

    unit: str
    above_input_tokens: int
    """0 for the rate that counts from the first token."""
    before_usd: Decimal | None
    after_usd: Decimal | None

    @property
    def percent(self) -> Decimal | None:
        """By how much it changes, to a tenth; None where one of the two is missing, or the first is 0."""
        before, after = self.before_usd, self.after_usd
        if not before or after is None:
            return None
        return ((after - before) / before * 100).quantize(Decimal("0.1"))


@dataclass(frozen=True, slots=True)
class PriceChange:
    """A model whose price differs between two books."""

    model: str
    provider: str
    change: Change
    rates: tuple[RateChange, ...]


def compare(before: PriceBook, after: PriceBook) -> tuple[PriceChange, ...]:
    """What the second book changes, by model. Prices of the file of upstreams are in neither."""
    old, new = ({listed.model: listed for listed in book.listed} for book in (before, after))
    return tuple(
        change for model in sorted(old.keys() | new.keys()) for change in _changes(old.get(model), new.get(model))
    )


def _changes(old: ListedPrice | None, new: ListedPrice | None) -> Iterator[PriceChange]:
    listed = new or old
    assert listed is not None
    if old == new:
        return
    rates = _rate_changes(old, new)
    if old is None or new is None:
        change = Change.ADDED if old is None else Change.REMOVED
    elif rates or old.provider != new.provider:
        change = Change.CHANGED
    elif old.names != new.names:
        change = Change.RENAMED
    else:
        return  # the same decimals, written differently
    yield PriceChange(listed.model, listed.provider, change, rates)


def _rate_changes(old: ListedPrice | None, new: ListedPrice | None) -> tuple[RateChange, ...]:
    before, after = (_steps(listed.read_rates()) if listed else {} for listed in (old, new))
    return tuple(
        RateChange(unit, above, before.get((unit, above)), after.get((unit, above)))
        for unit, above in sorted(before.keys() | after.keys())
        if before.get((unit, above)) != after.get((unit, above))
    )


def _steps(rates: ModelRates) -> dict[tuple[str, int], Decimal]:
    """Every rate by unit and the input above which it counts."""
    steps = {(unit, 0): rate.usd for unit, rate in rates.rates.items()}
    for unit, rate in rates.rates.items():
        steps.update({(unit, tier.above_input_tokens): tier.usd for tier in rate.tiers})
    return steps
