"""A provider's own record of a call, which is asked for where the gateway died before it knew what the call used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.billing.upstreams import UsageLookup
from domain.billing.usage import Dialect, ImplausibleUsage, Usage, read_usage


def read_call_record(lookup: UsageLookup, answer: Any) -> Usage | ImplausibleUsage | None:
    """What the record says that the call used, and costs; None where the provider has no record of it (yet).

    `answer` is JSON read with exact decimals. A record that cannot be true, or is of another shape, is
    `ImplausibleUsage`.
    """
    match lookup:
        case UsageLookup.OPENROUTER:
            record = answer.get("data") if isinstance(answer, Mapping) else answer
            report = _of_generation
        case UsageLookup.LITELLM:
            record = answer[0] if isinstance(answer, list) and answer else None
            report = _of_spend_log
        case UsageLookup.NONE:
            return None
    if record is None:
        return None
    if not isinstance(record, Mapping):
        return ImplausibleUsage(f"the provider's record is {type(record).__name__}: expected an object")
    try:
        return read_usage(Dialect.CHAT, report(record))
    except ImplausibleUsage as error:
        return error


def _of_generation(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenRouter's `/generation`, in the shape in which it reports usage in an answer. Native tokens are the billed
    ones.
    """
    return {
        "prompt_tokens": record.get("native_tokens_prompt") or 0,
        "completion_tokens": record.get("native_tokens_completion") or 0,
        "prompt_tokens_details": {"cached_tokens": record.get("native_tokens_cached") or 0},
        "completion_tokens_details": {"reasoning_tokens": record.get("native_tokens_reasoning") or 0},
        "cost": record.get("total_cost"),
        "is_byok": record.get("is_byok"),
        "cost_details": {"upstream_inference_cost": record.get("upstream_inference_cost")},
    }


def _of_spend_log(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of LiteLLM's `/spend/logs`, in the same shape. The tokens' parts are in the usage object, where it is
    kept.
    """
    metadata = record.get("metadata")
    usage = metadata.get("usage_object") if isinstance(metadata, Mapping) else None
    details = {
        name: usage[name]
        for name in ("prompt_tokens_details", "completion_tokens_details")
        if isinstance(usage, Mapping) and isinstance(usage.get(name), Mapping)
    }
    return {
        "prompt_tokens": record.get("prompt_tokens") or 0,
        "completion_tokens": record.get("completion_tokens") or 0,
        **details,
        "cost": record.get("spend"),
    }
