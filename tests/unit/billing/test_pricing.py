"""Prices: the price book's own calculation, to the last digit; tiers; rounding; lines that compute again."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.billing.pricing import ModelRates, PricedLine, Rate, Tier, cost_usd, credits_for_usd, to_usd, units
from domain.billing.usage import ImplausibleUsage, Usage

AT = datetime(2026, 11, 1, tzinfo=UTC)
PRICED = [
    (provider, model)
    for provider in get_snapshot().providers
    for model in provider.models
    if any(value is not None for value in vars(model.get_prices(AT)).values())
]

DECIMALS = st.decimals(min_value=0, max_value=1_000, allow_nan=False, allow_infinity=False, places=9)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    read = draw(st.integers(0, 400_000))
    cached = draw(st.integers(0, read))
    written = draw(st.integers(0, 100_000))
    return Usage(
        {
            "input_tokens": read,
            "cache_read_tokens": cached,
            "cache_write_tokens": draw(st.integers(0, read - cached)),
            "output_tokens": written,
            "output_reasoning_tokens": draw(st.integers(0, written)),
        }
    )


@given(usages(), st.sampled_from(PRICED))
def test_every_model_costs_what_the_price_book_computes(usage: Usage, priced: tuple[object, object]) -> None:
    provider, model = priced
    expected = model.calc_price(genai_prices.Usage(**usage.units), provider, genai_request_timestamp=AT)  # type: ignore[attr-defined]
    lines = ModelRates.of_price_book(model.get_prices(AT)).price(usage)  # type: ignore[attr-defined]
    assert abs(cost_usd(lines) - expected.total_price) < Decimal("1e-17")


@given(usages(), st.sampled_from(PRICED))
def test_no_call_costs_more_than_was_foreseen_for_its_tokens(usage: Usage, priced: tuple[object, object]) -> None:
    rates = ModelRates.of_price_book(priced[1].get_prices(AT))  # type: ignore[attr-defined]
    lines = rates.price(usage)
    assert sum((line.cost for line in lines), Fraction(0)) <= rates.highest_cost(
        usage.input_tokens, usage.output_tokens
    )


TIERED = ModelRates(
    rates={
        "input_tokens": Rate(usd=Decimal(2), tiers=(Tier(above_input_tokens=272_000, usd=Decimal(4)),)),
        "cache_read_tokens": Rate(usd=Decimal("0.5")),
        "output_tokens": Rate(usd=Decimal(8)),
    }
)


@pytest.mark.parametrize(("input_tokens", "cost"), [(272_000, "0.544"), (272_001, "1.088004")])
def test_a_tier_counts_for_the_whole_call(input_tokens: int, cost: str) -> None:
    assert cost_usd(TIERED.price(Usage({"input_tokens": input_tokens}))) == Decimal(cost)


def test_tokens_of_the_cache_are_paid_once_at_their_own_rate() -> None:
    lines = TIERED.price(Usage({"input_tokens": 1_000, "cache_read_tokens": 600, "output_tokens": 200}))
    assert {line.unit: line.count for line in lines} == {
        "input_tokens": 400,
        "cache_read_tokens": 600,
        "output_tokens": 200,
    }
    assert cost_usd(lines) == Decimal("0.0027")


def test_a_price_is_never_negative() -> None:
    with pytest.raises(ImplausibleUsage):
        TIERED.price(Usage({"input_tokens": 5, "cache_read_tokens": 6}))
    with pytest.raises(ValidationError):
        Rate(usd=Decimal(-1))


@pytest.mark.parametrize("usd", ["NaN", "Infinity", "-0.1"])
def test_what_is_no_rate_is_refused(usd: str) -> None:
    with pytest.raises(ValidationError):
        Rate(usd=Decimal(usd))


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown units: thoughts"):
        ModelRates(rates={"thoughts": Rate(usd=Decimal(1))})
    with pytest.raises(ValidationError, match="no price"):
        ModelRates(rates={})


def test_a_model_is_free_only_where_every_rate_is() -> None:
    assert ModelRates(rates={"input_tokens": Rate(usd=Decimal(0))}).is_free
    assert not TIERED.is_free


@pytest.mark.parametrize(
    ("usd", "factor", "credits"),
    [
        ("0.0000001", "1", 1),  # a credit exactly
        ("0.00000010000000001", "1", 2),
        ("0.0000001", "2", 2),
        ("0.00000005", "2", 1),
        ("0.000000001", "2", 1),
        ("0", "2", 0),
        ("1", "2", 20_000_000),
        ("0.29175735", "2", 5_835_147),
        ("123456789.123456789", "1.1", 1_358_024_680_358_025),
    ],
)
def test_credits_are_rounded_once_and_up(usd: str, factor: str, credits: int) -> None:
    assert credits_for_usd(Decimal(usd), factor=Decimal(factor)) == credits


@given(DECIMALS, st.decimals(min_value=1, max_value=10, places=4))
def test_the_price_is_never_below_the_cost(usd: Decimal, factor: Decimal) -> None:
    assert credits_for_usd(usd, factor=factor) >= credits_for_usd(usd)
    assert credits_for_usd(usd) >= usd * 10_000_000


@given(
    st.lists(
        st.builds(
            PricedLine,
            unit=st.sampled_from(sorted(units())),
            count=st.integers(0, 10**9),
            usd=DECIMALS,
            per=st.sampled_from([1, 60, 1_000, 3_600, 1_000_000]),
        ),
        max_size=5,
    )
)
def test_lines_compute_again_from_their_text(lines: list[PricedLine]) -> None:
    stored = [line.model_dump_json() for line in lines]
    again = [PricedLine.model_validate_json(text) for text in stored]
    assert cost_usd(again) == cost_usd(lines)
    exact = sum((line.cost for line in lines), Fraction(0))
    assert 0 <= Fraction(to_usd(exact)) - exact < Fraction(1, 10**18)
