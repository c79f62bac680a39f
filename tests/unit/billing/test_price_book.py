"""The price book: which name gets which price, prices of a day, and what differs between two books."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ClauseContains,
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TimeOfDateConstraint,
)

from domain.billing import installed_prices
from domain.billing.installed_prices import installed_book, later_starts
from domain.billing.price_book import Change, ListedPrice, PriceBook, compare, matches
from domain.billing.upstreams import PriceOverride
from domain.billing.usage import Usage

DAY: Final = date(2026, 11, 28)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    """The installed one."""
    return installed_book(DAY)


def test_every_name_that_the_package_finds_by_itself_has_the_packages_price(book: PriceBook) -> None:
    snapshot, compared = get_snapshot(), 0
    for name in {model.id for provider in snapshot.providers for model in provider.models}:
        try:
            provider, model = snapshot.find_provider_model(name, None, None, None)
        except LookupError:
            continue
        price = book.find(name)
        if not any(value is not None for value in vars(model.get_prices(datetime.combine(DAY, time(), UTC))).values()):
            assert price is None, f"{name} has no price in the package"
            continue
        assert price is not None, name
        assert (price.provider, price.model.removeprefix(f"{provider.id}/")) == (provider.id, model.id)
        compared += 1
    assert compared > 400


@pytest.mark.parametrize(
    ("name", "listed_as", "provider"),
    [
        ("gpt-4o", "gpt-4o", "openai"),
        ("GPT-4o", "gpt-4o", "openai"),
        ("gpt-4o-2024-08-06", "gpt-4o", "openai"),
        ("gpt-4o-20240806", "gpt-4o", "openai"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "openai"),
        ("openai/gpt-4o", "gpt-4o", "openai"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5", "anthropic"),
        ("text-embedding-3-small", "text-embedding-3-small", "openai"),
        ("groq/llama-3.3-70b-versatile", "groq/llama-3.3-70b-versatile", "groq"),
        ("openrouter/openai/gpt-4o", "openrouter/openai/gpt-4o", "openrouter"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(book: PriceBook, name: str, listed_as: str, provider: str) -> None:
    price = book.find(name)
    assert price is not None
    assert (price.model, price.provider) == (listed_as, provider)


@pytest.mark.parametrize(
    "name", ["", "nothing", "llama-3.3-70b-versatile", "groq/", "/gpt-4o", "gpt-4o\n", "no/gpt-4o", "gpt-4o" * 40]
)
def test_a_name_that_stands_for_no_model_or_for_several_has_no_price(book: PriceBook, name: str) -> None:
    assert book.find(name) is None


def test_names_that_callers_make_up_do_not_fill_the_memory(book: PriceBook) -> None:
    small = PriceBook("1", book.listed[:1])
    for number in range(5_000):
        small.find(f"made-up-{number}")
    assert len(small._found) <= 4_096


def override(usd: str) -> PriceOverride:
    return PriceOverride.model_validate({"input_per_million_usd": usd, "output_per_million_usd": usd})


def test_a_price_of_the_file_counts_before_the_book_for_all_names_of_the_model(book: PriceBook) -> None:
    ours = book.with_overrides({"gpt-4o": override("7"), "gpt-4o-2024-11-20": override("8"), "ours": override("9")})
    found = {
        name: ours.find(name) for name in ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "ours", "gpt-4o-mini")
    }
    prices = {name: price.rates.rates["input_tokens"].usd for name, price in found.items() if price}
    assert list(prices.values()) == [7, 7, 8, 9, Decimal("0.15")]
    versions = {name: price.version for name, price in found.items() if price}
    assert versions["gpt-4o"] == versions["gpt-4o-2024-08-06"] != versions["gpt-4o-2024-11-20"]
    assert versions["gpt-4o-mini"] == book.version
    assert [len(version) for version in versions.values() if version.startswith("upstreams-file:")] == [27] * 4
    assert {name: price.provider for name, price in found.items() if price} == {
        **dict.fromkeys(("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "gpt-4o-mini"), "openai"),
        "ours": None,
    }
    assert book.find("ours") is None


def test_an_override_has_another_version_only_where_its_prices_differ() -> None:
    book = PriceBook("1", ())
    first, same, other = (book.with_overrides({"m": override(usd)}).find("m") for usd in ("1", "1", "1.5"))
    assert first is not None and same is not None and other is not None
    assert first.version == same.version != other.version


@pytest.mark.parametrize(
    ("clause", "name", "expected"),
    [
        ({"equals": "a"}, "a", True),
        ({"equals": "a"}, "ab", False),
        ({"starts_with": "a"}, "ab", True),
        ({"ends_with": "b"}, "ab", True),
        ({"contains": "b"}, "abc", True),
        ({"contains": "x"}, "abc", False),
        ({"regex": "^a.c$"}, "abc", True),
        ({"or": [{"equals": "a"}, {"equals": "b"}]}, "b", True),
        ({"and": [{"contains": "a"}, {"contains": "b"}]}, "a", False),
    ],
)
def test_a_rule_for_names_holds_or_not(clause: dict[str, Any], name: str, expected: bool) -> None:
    assert matches(clause, name) is expected


def test_a_rule_of_an_unknown_kind_is_refused_and_not_taken_for_a_no() -> None:
    with pytest.raises(ValueError, match="no rule for names"):
        matches({"is_not": "a"}, "a")


def dated(monkeypatch: pytest.MonkeyPatch, *conditions: ConditionalPrice) -> None:
    model = ModelInfo(id="m-1", match=ClauseEquals("m-1"), prices=list(conditions))
    provider = Provider(id="p", name="P", api_pattern="", model_match=ClauseContains("m-"), models=[model])
    monkeypatch.setattr(installed_prices, "get_snapshot", lambda: type("S", (), {"providers": [provider]}))


def usd(book: PriceBook) -> Decimal:
    price = book.find("m-1")
    assert price is not None
    return price.rates.rates["input_tokens"].usd


def test_a_price_counts_from_its_day_and_is_announced_before(monkeypatch: pytest.MonkeyPatch) -> None:
    dated(
        monkeypatch,
        ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(10))),
        ConditionalPrice(StartDateConstraint(DAY), prices=ModelPrice(input_mtok=Decimal(2))),
    )
    before = DAY - timedelta(days=1)
    assert [usd(installed_book(day)) for day in (before, DAY)] == [Decimal(10), Decimal(2)]
    assert (later_starts(before), later_starts(DAY)) == (((DAY, "p/m-1"),), ())


@pytest.mark.parametrize(("start", "end"), [(time(9), time(17)), (time(22), time(2))])
def test_a_price_that_depends_on_the_time_of_day_is_the_dearest_of_the_day(
    monkeypatch: pytest.MonkeyPatch, start: time, end: time
) -> None:
    for usual, at_times in ((5, 1), (1, 5)):
        dated(
            monkeypatch,
            ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(usual))),
            ConditionalPrice(TimeOfDateConstraint(start, end), prices=ModelPrice(input_mtok=Decimal(at_times))),
        )
        assert usd(installed_book(DAY)) == 5


def listed(model: str, provider: str = "p", names: str | None = None, **rates: Any) -> ListedPrice:
    return ListedPrice(model, provider, rates, {"equals": names or model})


def test_what_differs_is_said_by_unit_and_tier() -> None:
    tiers = [{"above_input_tokens": 200, "usd": "4"}]
    old = PriceBook(
        "1",
        (
            listed("same", input_tokens={"usd": "1"}),
            listed("rewritten", input_tokens={"usd": "1.50"}),
            listed("dearer", input_tokens={"usd": "3", "tiers": tiers}, requests={"usd": "0"}),
            listed("moved", input_tokens={"usd": "1"}),
            listed("known", input_tokens={"usd": "1"}),
            listed("left", input_tokens={"usd": "1"}),
        ),
    )
    new = PriceBook(
        "2",
        (
            listed("same", input_tokens={"usd": "1"}),
            listed("rewritten", input_tokens={"usd": "1.5"}),
            listed("dearer", input_tokens={"usd": "4"}, requests={"usd": "1"}),
            listed("moved", "q", input_tokens={"usd": "1"}),
            listed("known", names="other", input_tokens={"usd": "1"}),
            listed("came", input_tokens={"usd": "1"}),
        ),
    )
    changes = {change.model: change for change in compare(old, new)}
    assert {model: change.change for model, change in changes.items()} == {
        "dearer": Change.CHANGED,
        "moved": Change.CHANGED,
        "known": Change.RENAMED,
        "left": Change.REMOVED,
        "came": Change.ADDED,
    }
    assert [
        (rate.unit, rate.above_input_tokens, rate.before_usd, rate.after_usd, rate.percent)
        for rate in changes["dearer"].rates
    ] == [
        ("input_tokens", 0, Decimal(3), Decimal(4), Decimal("33.3")),
        ("input_tokens", 200, Decimal(4), None, None),
        ("requests", 0, Decimal(0), Decimal(1), None),
    ]
    assert compare(new, new) == ()


def test_what_a_listed_price_stores_prices_a_call(book: PriceBook) -> None:
    price = book.find("gpt-4o")
    assert price is not None
    lines = price.rates.price(Usage({"input_tokens": 1_000_000, "output_tokens": 1_000_000}))
    assert sum(line.cost for line in lines) == Decimal("12.5")
