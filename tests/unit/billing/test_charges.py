"""Who pays for a call, for each way in which it can end."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.charges import CallEnd, Charge, Doubt, Terms, charge
from domain.billing.pricing import ModelRates, Rate, cost_usd
from domain.billing.usage import ImplausibleUsage, Usage

RATES = ModelRates(rates={"input_tokens": Rate(usd=Decimal(1)), "output_tokens": Rate(usd=Decimal(10))})
FREE = ModelRates(rates={"input_tokens": Rate(usd=Decimal(0))})
TERMS = Terms(rates=RATES, markup_factor=Decimal(2), held_credits=1_000_000, output_tokens_limit=10_000)

REPORTED = Usage({"input_tokens": 1_000, "output_tokens": 400})
"""0.005 US dollars: 100,000 credits at twice the price."""
PRODUCED = Usage({"input_tokens": 900, "output_tokens": 210})
"""0.003 US dollars: 60,000 credits."""
IMPLAUSIBLE = ImplausibleUsage("prompt_tokens is -1")
NOTHING = Usage()

PAID = {CallEnd.COMPLETED, CallEnd.CLIENT_LEFT, CallEnd.GATEWAY_DIED}
FRUITLESS = {CallEnd.REFUSED, CallEnd.ERROR_ONLY, CallEnd.FAILED_OVER}


def figures(made: Charge) -> tuple[int, str, str]:
    """Credits of the user, the provider's cost, and what of it the platform absorbs."""
    return made.charged_credits, str(made.provider_cost_usd), str(made.absorbed_cost_usd)


@pytest.mark.parametrize("end", CallEnd)
def test_a_reported_usage_costs_what_it_costs(end: CallEnd) -> None:
    made = charge(end, REPORTED, PRODUCED, TERMS)
    assert made.usage is REPORTED
    assert not made.is_estimated
    if end in PAID | {CallEnd.UPSTREAM_BROKE}:
        assert figures(made) == (100_000, "0.005", "0")
        assert made.user_cost_usd == Decimal("0.01")
    else:
        assert figures(made) == (0, "0.005", "0.005")


@pytest.mark.parametrize("end", CallEnd)
def test_without_a_report_the_gateways_own_estimate_counts(end: CallEnd) -> None:
    made = charge(end, None, PRODUCED, TERMS)
    if end in PAID:
        assert figures(made) == (60_000, "0.003", "0")
        assert made.is_estimated
    elif end is CallEnd.UPSTREAM_BROKE:
        assert figures(made) == (0, "0.003", "0.003")
        assert made.is_estimated
    else:
        assert figures(made) == (0, "0", "0")
        assert made.is_nothing
        assert not made.is_estimated
    assert made.doubt is None


@pytest.mark.parametrize("end", CallEnd)
def test_a_report_that_cannot_be_true_is_an_estimate_and_a_finding(end: CallEnd) -> None:
    made = charge(end, IMPLAUSIBLE, PRODUCED, TERMS)
    assert (made.doubt, made.doubt_detail) == (Doubt.IMPLAUSIBLE_USAGE, "prompt_tokens is -1")
    assert figures(made) == figures(charge(end, None, PRODUCED, TERMS))


@pytest.mark.parametrize(
    "report",
    [Usage({"input_tokens": 5, "output_tokens": 50_000}), Usage({"input_tokens": 5, "cache_read_tokens": 6})],
)
def test_an_output_far_over_its_bound_and_a_part_over_its_whole_cannot_be_true(report: Usage) -> None:
    rates = ModelRates(rates={**RATES.rates, "cache_read_tokens": Rate(usd=Decimal("0.1"))})
    terms = Terms(rates=rates, markup_factor=Decimal(2), held_credits=1_000_000, output_tokens_limit=1_000)
    made = charge(CallEnd.COMPLETED, report, PRODUCED, terms)
    assert made.doubt is Doubt.IMPLAUSIBLE_USAGE
    assert made.charged_credits == 60_000


def test_an_estimate_charges_at_most_what_was_held() -> None:
    terms = Terms(rates=RATES, markup_factor=Decimal(2), held_credits=20_000, output_tokens_limit=None)
    made = charge(CallEnd.COMPLETED, IMPLAUSIBLE, PRODUCED, terms)
    assert figures(made) == (20_000, "0.003", "0.001")
    assert made.user_cost_usd == Decimal("0.002")
    # What is reported is not estimated: how far it may exceed the hold is decided where the balance is known.
    assert charge(CallEnd.COMPLETED, REPORTED, PRODUCED, terms).charged_credits == 100_000


@pytest.mark.parametrize(
    ("report", "rates", "figures_expected", "doubt"),
    [
        (Usage(REPORTED.units, Decimal("0.006")), RATES, (120_000, "0.006", "0"), None),
        (Usage(REPORTED.units, Decimal("0.006")), None, (120_000, "0.006", "0"), None),
        (Usage(NOTHING.units, Decimal("0.006")), RATES, (120_000, "0.006", "0"), None),
        (Usage(REPORTED.units, Decimal(0)), RATES, (100_000, "0.005", "0"), Doubt.ZERO_COST),
        (Usage(REPORTED.units, Decimal(0)), FREE, (0, "0", "0"), None),
        (Usage(REPORTED.units, Decimal(0)), None, (0, "0", "0"), None),
        (REPORTED, None, (0, "0", "0"), Doubt.UNKNOWN_COST),
        (REPORTED, FREE, (0, "0", "0"), None),
        (NOTHING, RATES, (60_000, "0.003", "0"), Doubt.ZERO_USAGE),
        (Usage(NOTHING.units, Decimal(0)), RATES, (60_000, "0.003", "0"), Doubt.ZERO_USAGE),
    ],
)
def test_zero_absent_and_unknown_are_three_things(
    report: Usage, rates: ModelRates | None, figures_expected: tuple[int, str, str], doubt: Doubt | None
) -> None:
    terms = Terms(rates=rates, markup_factor=Decimal(2), held_credits=1_000_000, output_tokens_limit=None)
    made = charge(CallEnd.COMPLETED, report, PRODUCED, terms)
    assert (figures(made), made.doubt) == (figures_expected, doubt)


def test_an_answer_without_any_output_may_report_none() -> None:
    made = charge(CallEnd.COMPLETED, NOTHING, Usage({"input_tokens": 10}), TERMS)
    assert made.doubt is None
    assert made.is_nothing


COSTS = st.none() | st.decimals(min_value=0, max_value=10, places=12)
COUNTS = st.fixed_dictionaries({"input_tokens": st.integers(0, 10**6), "output_tokens": st.integers(0, 10**6)})
USAGES = st.builds(Usage, COUNTS, COSTS)


@given(
    st.sampled_from(CallEnd),
    st.none() | USAGES | st.just(IMPLAUSIBLE),
    st.builds(Usage, COUNTS),
    st.decimals(min_value=1, max_value=4, places=3),
    st.integers(0, 10**8),
    st.none() | st.integers(0, 10**6),
)
def test_no_account_pays_twice_and_nothing_is_lost(
    end: CallEnd,
    report: Usage | ImplausibleUsage | None,
    produced: Usage,
    factor: Decimal,
    held: int,
    limit: int | None,
) -> None:
    made = charge(end, report, produced, Terms(RATES, factor, held, limit))
    assert made.charged_credits >= 0
    assert 0 <= made.absorbed_cost_usd <= made.provider_cost_usd
    assert cost_usd(made.lines) == made.provider_cost_usd
    # What the user pays and what the platform absorbs cover the provider's cost.
    assert Decimal(made.charged_credits) / 10_000_000 + made.absorbed_cost_usd >= made.provider_cost_usd
    assert Decimal(made.charged_credits) / 10_000_000 >= made.user_cost_usd
    if end in FRUITLESS:
        assert made.charged_credits == 0
    if made.is_estimated:
        assert made.charged_credits <= held
