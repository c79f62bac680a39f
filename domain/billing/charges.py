"""Who pays for a call, however it ended: the table of docs/decisions/gateway.md, in one function."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Final

from domain.billing.pricing import ModelRates, PricedLine, cost_usd, credits_for_usd, to_usd
from domain.billing.usage import ImplausibleUsage, Usage, require_output_within
from domain.money import CREDITS_PER_USD


class CallEnd(StrEnum):
    """How a call that was sent to an upstream ended."""

    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    """The client hung up; what the upstream still reported until it stopped, or was drained, is in its usage."""
    UPSTREAM_BROKE = "upstream_broke"
    """The upstream broke off after it had begun to answer."""
    ERROR_ONLY = "error_only"
    """A success by its status whose only content is an error."""
    REFUSED = "refused"
    """The upstream answered with an error's status, or not at all."""
    FAILED_OVER = "failed_over"
    """Another upstream answered instead."""
    GATEWAY_DIED = "gateway_died"


class Doubt(StrEnum):
    """Why a charge is not what the provider reported; each is a finding for operators."""

    IMPLAUSIBLE_USAGE = "implausible_usage"
    ZERO_USAGE = "zero_usage"
    ZERO_COST = "zero_cost"
    UNKNOWN_COST = "unknown_cost"


@dataclass(frozen=True, slots=True)
class Terms:
    """What was known and held before the call was made."""

    rates: ModelRates | None
    """None where only the upstream states what a call costs."""
    markup_factor: Decimal
    held_credits: int
    output_tokens_limit: int | None


@dataclass(frozen=True, slots=True)
class Charge:
    """Cost of a call to user, provider and platform: exact in US dollars, rounded up once in credits."""

    user_cost_usd: Decimal
    provider_cost_usd: Decimal
    absorbed_cost_usd: Decimal
    """The part of the provider's cost for which no price is charged."""
    charged_credits: int
    usage: Usage
    lines: tuple[PricedLine, ...]
    is_estimated: bool
    doubt: Doubt | None = None
    doubt_detail: str | None = None

    @property
    def is_nothing(self) -> bool:
        """Neither the user nor the platform owes anything: the hold is voided."""
        return not self.charged_credits and not self.provider_cost_usd


_PRICED: Final = frozenset({CallEnd.COMPLETED, CallEnd.CLIENT_LEFT, CallEnd.GATEWAY_DIED})
"""Ends after which the user pays for what was produced, even where the provider does not say how much that was."""

_WITHOUT_OUTPUT: Final = frozenset({CallEnd.REFUSED, CallEnd.ERROR_ONLY, CallEnd.FAILED_OVER})
"""Ends with nothing of use to the client: only what the provider itself reports can have cost anything."""

_NOTHING: Final = Decimal(0)


def charge(end: CallEnd, report: Usage | ImplausibleUsage | None, produced: Usage, terms: Terms) -> Charge:
    """Decide what a call costs, from how it ended, what the provider reported, and what was seen of its output.

    `produced` is the gateway's own estimate: input by its bytes, output by what came through. It counts where there is
    no report, or none that can be true; then the user pays at most what was held.
    """
    usage, doubt, detail = _believed(report, produced, terms)
    estimated = usage is None
    if usage is None:
        usage = Usage() if end in _WITHOUT_OUTPUT else produced
    cost, lines = _cost(usage, terms)
    if doubt is None:
        doubt, detail = _doubt_of_cost(usage, cost, terms)
    is_charged = is_priced(end, estimated=estimated)
    price = Fraction(cost) * Fraction(terms.markup_factor) if is_charged else Fraction(0)
    charged_credits = credits_for_usd(cost, factor=terms.markup_factor) if is_charged else 0
    if estimated and charged_credits > terms.held_credits:
        charged_credits = terms.held_credits
        price = Fraction(charged_credits, CREDITS_PER_USD)
    return Charge(
        user_cost_usd=to_usd(price),
        provider_cost_usd=cost,
        absorbed_cost_usd=max(_NOTHING, cost - to_usd(price)) if is_charged else cost,
        charged_credits=charged_credits,
        usage=usage,
        lines=lines,
        is_estimated=estimated and not usage.is_empty,
        doubt=doubt,
        doubt_detail=detail,
    )


def is_priced(end: CallEnd, *, estimated: bool) -> bool:
    """Whether the user pays for a call that ended so: after an upstream broke off only for what it has reported."""
    return end in _PRICED or (end is CallEnd.UPSTREAM_BROKE and not estimated)


def _believed(
    report: Usage | ImplausibleUsage | None, produced: Usage, terms: Terms
) -> tuple[Usage | None, Doubt | None, str | None]:
    """The report, where it can be true; else why it cannot."""
    if isinstance(report, ImplausibleUsage):
        return None, Doubt.IMPLAUSIBLE_USAGE, str(report)
    if report is None:
        return None, None, None
    try:
        require_output_within(report, terms.output_tokens_limit)
        if terms.rates is not None:
            terms.rates.price(report)
    except ImplausibleUsage as error:
        return None, Doubt.IMPLAUSIBLE_USAGE, str(error)
    if report.is_empty and produced.output_tokens and not (report.stated_cost_usd or 0):
        return None, Doubt.ZERO_USAGE, f"the upstream reports no tokens, and about {produced.output_tokens} came"
    return report, None, None


def _cost(usage: Usage, terms: Terms) -> tuple[Decimal, tuple[PricedLine, ...]]:
    """The provider's cost, and the lines that add up to it.

    What the provider states is its bill. A stated 0 counts only where the price book knows no price, or says 0, too.
    """
    lines = terms.rates.price(usage) if terms.rates is not None else ()
    computed = cost_usd(lines)
    if not usage.stated_cost_usd or usage.stated_cost_usd == computed:
        return computed, lines
    return usage.stated_cost_usd, (PricedLine(unit="requests", count=1, usd=usage.stated_cost_usd, per=1),)


def _doubt_of_cost(usage: Usage, cost: Decimal, terms: Terms) -> tuple[Doubt | None, str | None]:
    tokens = f"{usage.input_tokens} tokens of input and {usage.output_tokens} of output"
    if usage.stated_cost_usd == 0 and cost > 0:
        return Doubt.ZERO_COST, f"the upstream states a cost of 0 for {tokens}"
    if usage.stated_cost_usd is None and terms.rates is None and not usage.is_empty:
        return Doubt.UNKNOWN_COST, f"neither the price book nor the upstream says what {tokens} cost"
    return None, None
