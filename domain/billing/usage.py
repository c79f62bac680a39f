"""Usage as a provider reports it in its answer. Nothing of it is believed before it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cache
from math import ceil
from typing import Any, Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import Provider

TOKENS_MAX: Final = 1_000_000_000
"""More than any model reads or writes in one call; a larger count is a fault of the provider's, not a bill."""

STATED_COST_USD_MAX: Final = Decimal(1_000_000)


class Dialect(StrEnum):
    """Which API a call speaks; each reports its usage in its own shape."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    IMAGES = "images"
    SPEECH = "speech"
    TRANSCRIPTIONS = "transcriptions"


_EXTRACTORS: Final[Mapping[Dialect, tuple[str, str]]] = {
    Dialect.CHAT: ("openai", "chat"),
    Dialect.COMPLETIONS: ("openai", "chat"),
    Dialect.RESPONSES: ("openai", "responses"),
    Dialect.MESSAGES: ("anthropic", "default"),
    Dialect.EMBEDDINGS: ("openai", "embeddings"),
    Dialect.IMAGES: ("openai", "images"),
    Dialect.SPEECH: ("openai", "responses"),
    Dialect.TRANSCRIPTIONS: ("openai", "realtime"),
}
"""Provider and flavour under which `genai-prices` knows a dialect's usage object."""


class ImplausibleUsage(ValueError):
    """A usage report that cannot be true; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call used.

    `units` counts by the names of `genai-prices` (`input_tokens`, `cache_read_tokens`, `output_reasoning_tokens`,
    `web_searches`, …). A part is counted in its whole, too: `input_tokens` includes cached ones, `output_tokens`
    those of reasoning.
    """

    units: Mapping[str, int] = field(default_factory=dict)
    stated_cost_usd: Decimal | None = None
    """What the provider says it takes for the call, exactly as it says it; None where it says nothing."""

    @property
    def input_tokens(self) -> int:
        """Tokens read, cached ones included."""
        return self.units.get("input_tokens", 0)

    @property
    def cached_input_tokens(self) -> int:
        """Tokens read from the provider's cache."""
        return self.units.get("cache_read_tokens", 0)

    @property
    def cache_write_tokens(self) -> int:
        """Tokens written to the provider's cache."""
        return self.units.get("cache_write_tokens", 0)

    @property
    def output_tokens(self) -> int:
        """Tokens written, those of reasoning included."""
        return self.units.get("output_tokens", 0)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning."""
        return self.units.get("output_reasoning_tokens", 0)

    @property
    def is_empty(self) -> bool:
        """Nothing was counted at all."""
        return not any(self.units.values())


def merge_reports(first: Mapping[str, Any] | None, later: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """One usage object out of two of a stream: what the later one says replaces what the first one said.

    Anthropic's streams report the input at the beginning and the output, so far, at the end.
    """
    if first is None or later is None:
        return first if later is None else later
    return {**first, **{name: value for name, value in later.items() if value is not None}}


def read_usage(dialect: Dialect, report: Any) -> Usage | None:
    """Read the `usage` object of an answer; None where there is none.

    `report` is JSON read with `parse_float=Decimal`. Raises `ImplausibleUsage` where a count is negative, not a whole
    number, not a number at all or beyond `TOKENS_MAX`, or a part exceeds its whole.
    """
    if report is None:
        return None
    if not isinstance(report, Mapping):
        raise ImplausibleUsage(f"usage is {type(report).__name__}: expected an object")
    if dialect is Dialect.TRANSCRIPTIONS and report.get("type") == "duration":
        return _of_recording(report.get("seconds"))
    provider_id, flavour = _EXTRACTORS[dialect]
    if dialect is Dialect.IMAGES and isinstance(details := report.get("input_tokens_details") or {}, Mapping):
        # Not every server says of which kind the input is; the package demands it.
        report = {**report, "input_tokens_details": {"text_tokens": 0, "image_tokens": 0, **details}}
    try:
        # Where the package expects it differs by flavour.
        answer = {"usage": report, "response": {"usage": report}}
        _, reported = _provider(provider_id).extract_usage(answer, api_flavor=flavour)
    except ValueError as error:
        raise ImplausibleUsage(str(error)) from None
    units = {name: _whole(name, value) for name, value in vars(reported).items() if value}
    usage = Usage(units, _stated_cost(report))
    _require_parts_within_wholes(usage)
    return usage


def _of_recording(seconds: object) -> Usage:
    """A recording's length, each second that has begun."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | Decimal) or not 0 <= seconds <= TOKENS_MAX:
        raise ImplausibleUsage(f"seconds is {str(seconds)[:40]!r}: expected a number from 0")
    begun = ceil(seconds)
    return Usage({"audio_seconds": begun, "input_audio_seconds": begun})


def require_output_within(usage: Usage, output_tokens_max: int | None) -> None:
    """Raise `ImplausibleUsage` where more was written than twice what the call allowed.

    Twice, because providers count tokens of reasoning and of tools with and without the caller's limit.
    """
    if output_tokens_max is not None and usage.output_tokens > 2 * output_tokens_max + 1_000:
        raise ImplausibleUsage(f"output_tokens is {usage.output_tokens}: the call allowed {output_tokens_max}")


def _whole(name: str, value: object) -> int:
    if isinstance(value, float):
        raise ImplausibleUsage(f"{name} is a float: expected JSON read with exact decimals")
    assert isinstance(value, int | Decimal)
    # Compared before it is made an integer: 1e400 has few digits as text and four hundred as a number.
    if value > TOKENS_MAX:
        raise ImplausibleUsage(f"{name} is {Decimal(value):.3e}: more than any call uses")
    if value != int(value):
        raise ImplausibleUsage(f"{name} is {value}: expected a whole number")
    return int(value)


def _stated_cost(report: Mapping[str, Any]) -> Decimal | None:
    """`usage.cost`: a number (OpenRouter, LiteLLM), or an object with a total (Perplexity).

    With a key of the account's own OpenRouter states its fee, and beside it what the provider behind it takes.
    """
    cost = report.get("cost")
    if isinstance(cost, Mapping):
        cost = cost.get("total_cost")
    if cost is None:
        return None
    stated = _amount("cost", cost)
    if report.get("is_byok") is True:
        details = report.get("cost_details")
        upstream = details.get("upstream_inference_cost") if isinstance(details, Mapping) else None
        stated += _amount("upstream_inference_cost", upstream) if upstream is not None else Decimal(0)
    return stated


def _amount(name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ImplausibleUsage(f"{name} is {type(value).__name__}: expected a number")
    amount = Decimal(value)
    if not amount.is_finite() or not 0 <= amount <= STATED_COST_USD_MAX:
        raise ImplausibleUsage(f"{name} is {amount:.6g}: expected 0 to {STATED_COST_USD_MAX} US dollars")
    return amount


def _require_parts_within_wholes(usage: Usage) -> None:
    read_or_written = usage.cached_input_tokens + usage.cache_write_tokens
    if read_or_written > usage.input_tokens:
        raise ImplausibleUsage(f"{read_or_written} tokens of the cache are more than {usage.input_tokens} of input")
    if usage.reasoning_tokens > usage.output_tokens:
        raise ImplausibleUsage(
            f"{usage.reasoning_tokens} tokens of reasoning are more than {usage.output_tokens} of output"
        )


@cache
def _provider(provider_id: str) -> Provider:
    return next(provider for provider in get_snapshot().providers if provider.id == provider_id)
