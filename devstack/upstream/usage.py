"""The `usage` object of an answer, true or not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from devstack.upstream.behaviour import CostStyle, UsageLie
from devstack.upstream.generation import TOKENS_PER_SECOND, Generation
from devstack.upstream.prices import price_of
from devstack.upstream.raw_json import decimal, raw
from devstack.upstream.requests import Dialect
from devstack.upstream.tokens import Tokens

OMITTED: Final = object()
"""The answer has no `usage` field."""

BYOK_FEE: Final = Decimal("0.05")
"""The part of the cost that is charged where the caller brings a key."""
OVER_PROMPT: Final = 1_000
"""So many more cached tokens than the prompt has."""
OVER_MAX: Final = 100_000
"""So many more output tokens than were produced."""


def usage_of(generation: Generation, *, tokens: Tokens | None = None) -> Any:
    """What the answer reports: an object, None, a lie, or `OMITTED`. `tokens`: instead of what is produced."""
    tokens = tokens or generation.tokens
    behaviour = generation.asked.behaviour
    if behaviour.usage == "omit":
        return OMITTED
    usage = true_usage(generation.asked.dialect, tokens)
    if behaviour.searches and generation.asked.dialect is Dialect.MESSAGES:
        usage["server_tool_use"] = {"web_search_requests": behaviour.searches}
    if generation.asked.model.startswith("whisper"):
        usage = {"type": "duration", "seconds": decimal(Decimal(tokens.prompt) / TOKENS_PER_SECOND)}
    if behaviour.cost is not None:
        usage |= _stated_cost(behaviour.cost, price_of(generation.asked.model).cost_usd(tokens))
    return _lie(behaviour.usage, usage, generation.asked.dialect, tokens) if behaviour.usage else usage


def add_usage(document: dict[str, Any], usage: Any) -> dict[str, Any]:
    """The document with its usage, unless that is omitted."""
    if usage is not OMITTED:
        document["usage"] = usage
    return document


def true_usage(dialect: Dialect, tokens: Tokens) -> dict[str, Any]:
    """The dialect's usage object."""
    if dialect is Dialect.EMBEDDINGS:
        return {"prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt}
    if dialect is Dialect.MESSAGES:
        return _messages_usage(tokens)
    if dialect in (Dialect.IMAGES, Dialect.SPEECH, Dialect.TRANSCRIPTIONS):
        return _media_usage(dialect, tokens)
    if dialect is Dialect.RESPONSES:
        return {
            "input_tokens": tokens.prompt,
            "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_write},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
            "total_tokens": tokens.total,
        }
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.total,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cached,
            "cache_write_tokens": tokens.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _media_usage(dialect: Dialect, tokens: Tokens) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "input_tokens": tokens.prompt,
        "output_tokens": tokens.output,
        "total_tokens": tokens.total,
    }
    if dialect is Dialect.IMAGES:
        usage["input_tokens_details"] = {"text_tokens": tokens.prompt, "image_tokens": 0}
    elif dialect is Dialect.TRANSCRIPTIONS:
        usage |= {"type": "tokens", "input_token_details": {"text_tokens": 0, "audio_tokens": tokens.prompt}}
    return usage


def _messages_usage(tokens: Tokens) -> dict[str, Any]:
    # Anthropic's input_tokens are the uncached ones only.
    usage: dict[str, Any] = {
        "input_tokens": tokens.uncached,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": tokens.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": tokens.output,
        "service_tier": "standard",
    }
    if tokens.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
    return usage


def _stated_cost(style: CostStyle, cost_usd: Decimal) -> dict[str, Any]:
    if style == "byok":
        # With a key of the caller's own: the fee, and beside it what the provider behind it takes.
        fee = cost_usd * BYOK_FEE
        return {
            "cost": decimal(fee),
            "is_byok": True,
            "cost_details": {"upstream_inference_cost": decimal(cost_usd)},
        }
    stated: dict[CostStyle, Any] = {
        "number": decimal(cost_usd),
        "text": format(cost_usd.normalize(), "f"),
        "exponent": raw(f"{cost_usd:e}"),
        "object": {"input_tokens_cost": 0, "output_tokens_cost": 0, "total_cost": decimal(cost_usd)},
        "zero": 0,
        "negative": decimal(-cost_usd),
        "nan": raw("NaN"),
        "huge": raw("1e400"),
        "null": None,
    }
    return {"cost": stated[style]}


def _lie(lie: UsageLie, usage: dict[str, Any], dialect: Dialect, tokens: Tokens) -> Any:
    if lie in ("null", "list"):
        return None if lie == "null" else []
    if lie == "zero":
        return _numbers_as(usage, lambda _: 0)
    if lie == "text":
        return _numbers_as(usage, str)
    if lie == "cached_over_prompt":
        return _with_cached(usage, dialect, tokens.prompt + OVER_PROMPT)
    field = next(name for name in ("completion_tokens", "output_tokens", "prompt_tokens") if name in usage)
    lies: dict[str, Any] = {
        "negative": -5,
        "nan": raw("NaN"),
        "infinity": raw("Infinity"),
        "huge": raw("1e400"),
        "output_over_max": tokens.output + OVER_MAX,
        "fraction": raw(f"{tokens.output}.5"),
    }
    return usage | {field: lies[lie]}


def _numbers_as(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers_as(inner, change) for name, inner in value.items()}
    return change(value) if isinstance(value, int) else value


def _with_cached(usage: dict[str, Any], dialect: Dialect, cached: int) -> dict[str, Any]:
    if dialect is Dialect.MESSAGES:
        return usage | {"cache_read_input_tokens": cached}
    details = "input_tokens_details" if dialect is Dialect.RESPONSES else "prompt_tokens_details"
    return usage | {details: usage.get(details, {}) | {"cached_tokens": cached}}
