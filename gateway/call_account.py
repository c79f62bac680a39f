"""A call's money: what is held for it, and what it is charged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import structlog

from db.billing.holds import HoldAnswer, HoldRequest, Progress
from domain.billing.charges import CallEnd, Terms, charge, is_priced
from domain.billing.requests import CallRequest
from domain.billing.upstreams import Upstream, UsageLookup
from domain.billing.usage import ImplausibleUsage, Usage
from domain.errors import DatabaseUnavailable
from gateway import refusals
from gateway.attribution import AskedAccounts
from gateway.books import Settled
from gateway.metering import Meter
from gateway.pricing import ModelPrice
from gateway.refusals import LimitSource, Refusal
from gateway.state import Gateway
from telemetry.metrics import gateway as metrics

CLAMPED_OUTPUT_TOKENS_MIN: Final = 16
"""In strict mode a call is refused where less than this could be paid for: no answer is that short."""

_KEY_STATES: Final = {
    "unknown_key": "The API key is invalid",
    "key_revoked": "The API key was revoked",
    "key_expired": "The API key has expired",
}
_FORBIDDEN: Final = {
    "model_not_allowed": "The API key is not for this model",
    "attribution_not_allowed": "The API key may not attribute calls to that account",
    "billing_not_granted": "That account has not granted that calls are billed to it",
}

log = structlog.get_logger(__name__)


class Refused(Exception):
    """The call is refused before it is made."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and as what."""

    key_hash: str
    accounts: AskedAccounts
    request_id: str


def offered(gateway: Gateway, model: str) -> tuple[Sequence[Upstream], ModelPrice | None]:
    """The upstreams that get calls for a model, in the order in which they are tried, and its price.

    A model without a price goes only to who states the cost of each call: who keeps records of them. Raises `Refused`.
    """
    upstreams = gateway.upstreams.for_model(model)
    price = gateway.prices.find(model)
    if price is None:
        upstreams = tuple(upstream for upstream in upstreams if upstream.usage_lookup is not UsageLookup.NONE)
    if not upstreams:
        raise Refused(refusals.model_not_found(model))
    return upstreams, price


def refusal_of_key(state: str) -> Refusal:
    """401: why a key opens nothing."""
    return refusals.invalid_key(_KEY_STATES[state])


class CallAccount:
    """What is held for one call, on which terms, and what is known of its usage so far."""

    def __init__(
        self, gateway: Gateway, asked: CallRequest, caller: Caller, price: ModelPrice | None, hold_id: UUID
    ) -> None:
        self._gateway = gateway
        self._asked = asked
        self._caller = caller
        self._price = price
        self._hold_id = hold_id
        self._output_limit = asked.output_tokens_limit
        self.output_tokens_clamp: int | None = None
        """Strict mode: more must not be written."""
        self.held: HoldAnswer
        self._settled: Settled | None = None
        self.meter = self._new_meter()

    @property
    def progress(self) -> Progress:
        """How far the call is, for its hold."""
        return Progress(self._hold_id, self.meter.output_bytes, self.meter.upstream_id)

    async def hold(self, upstream: Upstream) -> None:
        """Hold credits for the call. Raises `Refused`."""
        policy, price = self._gateway.policy, self._price
        input_tokens = self._asked.input_tokens_estimate
        output_tokens = policy.output_tokens_assumed if self._output_limit is None else self._output_limit
        amount, least = policy.unpriced_hold_credits, None
        if price is not None:
            amount = price.credits_for(input_tokens, output_tokens, self._asked.other_units)
            if self._is_clamped:
                least = price.credits_for(input_tokens, min(CLAMPED_OUTPUT_TOKENS_MIN, output_tokens))
        held = await self._ask_for(amount, least, upstream)
        if held.outcome != "held":
            raise Refused(self._refusal(held, needed=amount if least is None else least))
        self.held = held
        self._gateway.open_holds[self._hold_id] = self
        metrics.OPEN_CALLS.set(len(self._gateway.open_holds))
        if self._is_clamped and price is not None and output_tokens:
            self._clamp(price.output_tokens_within(held.held, input_tokens))

    async def pass_on(self, failed: Upstream, upstream: Upstream) -> None:
        """Another upstream gets the call. Raises `Refused`, `DatabaseUnavailable`.

        What the one that failed has taken is charged to the platform with the hold that there is; the next one needs
        its own then.
        """
        report = self.meter.report
        if isinstance(report, Usage) and (not report.is_empty or report.stated_cost_usd):
            await self.settle(CallEnd.FAILED_OVER, failed)
            self._hold_id, self._settled = uuid4(), None
            self.meter = self._new_meter()
            await self.hold(upstream)
        else:
            await self._gateway.books.move(self._hold_id, upstream.name)
            self.meter = self._new_meter()

    async def settle(self, end: CallEnd, upstream: Upstream) -> Settled:
        """Charge the call; once. Afterwards its hold is resolved, or left to who resolves lapsed holds.

        Called again, it says what was charged.
        """
        if self._settled is not None:
            return self._settled
        if self._hold_id not in self._gateway.open_holds:
            return Settled(0, self.held.balance)
        policy, price = self._gateway.policy, self._price
        terms = Terms(
            rates=price.rates if price else None,
            markup_factor=policy.markup_factor,
            held_credits=self.held.held,
            output_tokens_limit=self._output_limit,
        )
        owed = charge(end, self._report(end), self.meter.produced, terms)
        if owed.doubt is not None:
            metrics.DOUBTS.labels(owed.doubt.value).inc()
        started = time.monotonic()
        self._settled = settled = await self._gateway.books.settle(
            self._hold_id,
            owed,
            end=end,
            markup_factor=policy.markup_factor,
            provider=upstream.name,
            upstream_id=self.meter.upstream_id,
            balance_before=self.held.balance,
        )
        self.close()
        metrics.SETTLE_SECONDS.observe(time.monotonic() - started)
        metrics.CALLS.labels(self._asked.dialect.value, end.value).inc()
        return settled

    def close(self) -> None:
        """The lease is no longer renewed."""
        self._gateway.open_holds.pop(self._hold_id, None)
        metrics.OPEN_CALLS.set(len(self._gateway.open_holds))

    async def _ask_for(self, amount: int, least: int | None, upstream: Upstream) -> HoldAnswer:
        policy, price, asked = self._gateway.policy, self._price, self._asked
        bucket, per_minute = policy.rate(asked.dialect)
        started = time.monotonic()
        try:
            return await self._gateway.books.hold(
                HoldRequest(
                    hold_id=self._hold_id,
                    key_hash=self._caller.key_hash,
                    request_id=self._caller.request_id,
                    amount_credits=amount,
                    amount_min_credits=least,
                    dialect=asked.dialect.value,
                    model=asked.model,
                    upstream=upstream.name,
                    is_streamed=asked.is_streamed,
                    attribute_to=self._caller.accounts.attribute_to,
                    bill_to=self._caller.accounts.bill_to,
                    owner=self._gateway.books.owner,
                    lease_seconds=self._gateway.books.lease_seconds,
                    rate_bucket=bucket,
                    rate_per_minute=per_minute,
                    markup_factor=policy.markup_factor,
                    price_version=price.version if price else None,
                    rates=price.rates_json if price else None,
                    input_tokens=asked.input_tokens_estimate,
                    output_tokens_limit=self._output_limit,
                )
            )
        except DatabaseUnavailable as error:
            log.warning("no hold: the database does not answer", reason=error.message)
            raise Refused(refusals.unavailable("Credits cannot be held now: try again")) from error
        finally:
            metrics.HOLD_SECONDS.observe(time.monotonic() - started)

    def _refusal(self, held: HoldAnswer, *, needed: int) -> Refusal:
        if held.outcome == "insufficient_credits":
            return refusals.insufficient_credits(
                LimitSource(held.limit_source or LimitSource.BALANCE),
                available=held.available or 0,
                held=held.all_held or 0,
                needed=needed,
                top_up_url=self._gateway.policy.top_up_url,
            )
        if held.outcome == "rate_limited":
            return refusals.rate_limited(held.retry_after_seconds or 0.0)
        if held.outcome in _KEY_STATES:
            return refusal_of_key(held.outcome)
        if held.outcome in _FORBIDDEN:
            return refusals.forbidden(held.outcome, _FORBIDDEN[held.outcome])
        log.error("a hold has an outcome that is not known", outcome=held.outcome)
        return refusals.failed()

    def _clamp(self, output_tokens: int | None) -> None:
        if output_tokens is not None:
            self._output_limit = min(output_tokens, self._output_limit or output_tokens)
            self.output_tokens_clamp = max(1, self._output_limit)

    def _report(self, end: CallEnd) -> Usage | ImplausibleUsage | None:
        """What the provider reported, with what it does not report and the gateway has counted: characters, images.

        Where a model is priced by these alone, they are the report.
        """
        report, price = self.meter.report, self._price
        rates = price.rates.rates if price is not None else {}
        counted = {unit: count for unit, count in self.meter.counted.items() if unit in rates}
        if not counted or isinstance(report, ImplausibleUsage):
            return report
        if report is not None:
            return Usage({**report.units, **counted}, report.stated_cost_usd)
        return Usage(counted) if counted.keys() == rates.keys() and is_priced(end, estimated=True) else None

    @property
    def _is_clamped(self) -> bool:
        return self._gateway.policy.clamps_output and self._asked.can_be_clamped

    def _new_meter(self) -> Meter:
        asked = self._asked
        return Meter(
            asked.dialect,
            asked.asks_for_usage,
            asked.input_tokens_estimate,
            other_units=asked.other_units,
            output_tokens_limit=asked.output_tokens_limit,
        )
