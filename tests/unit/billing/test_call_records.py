"""Providers' records of single calls, as OpenRouter and LiteLLM write them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import pytest

from domain.billing import exact_json
from domain.billing.call_records import read_call_record
from domain.billing.upstreams import UsageLookup
from domain.billing.usage import ImplausibleUsage, Usage

GENERATION: Final = b"""
{"data": {"id": "gen-1", "model": "openai/gpt-4o-mini", "streamed": true, "cancelled": true, "total_cost": 0.0015,
 "usage": 0.0015, "upstream_inference_cost": null, "is_byok": false, "tokens_prompt": 10, "tokens_completion": 25,
 "native_tokens_prompt": 12, "native_tokens_completion": 30, "native_tokens_reasoning": 5, "native_tokens_cached": 3,
 "provider_name": "OpenAI", "finish_reason": null}}
"""
SPEND_LOG: Final = b"""
[{"request_id": "chatcmpl-1", "call_type": "acompletion", "spend": 0.0015, "total_tokens": 42, "prompt_tokens": 12,
  "completion_tokens": 30, "model": "gpt-4o-mini", "status": "success", "cache_hit": "False",
  "metadata": {"usage_object": {"prompt_tokens": 12, "completion_tokens": 30,
   "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 5}}}}]
"""


@pytest.mark.parametrize(
    ("lookup", "answer"), [(UsageLookup.OPENROUTER, GENERATION), (UsageLookup.LITELLM, SPEND_LOG)], ids=str
)
def test_a_record_is_read_with_its_exact_cost_and_the_parts_of_its_tokens(lookup: UsageLookup, answer: bytes) -> None:
    usage = read_call_record(lookup, exact_json.loads(answer))
    assert isinstance(usage, Usage)
    assert (usage.input_tokens, usage.cached_input_tokens) == (12, 3)
    assert (usage.output_tokens, usage.reasoning_tokens) == (30, 5)
    assert usage.stated_cost_usd == Decimal("0.0015")


def test_with_a_key_of_the_account_s_own_what_the_provider_behind_takes_is_added() -> None:
    answer = exact_json.loads(
        GENERATION.replace(b'"is_byok": false', b'"is_byok": true').replace(
            b'"upstream_inference_cost": null', b'"upstream_inference_cost": 0.02'
        )
    )
    usage = read_call_record(UsageLookup.OPENROUTER, answer)
    assert isinstance(usage, Usage)
    assert usage.stated_cost_usd == Decimal("0.0215")


@pytest.mark.parametrize(
    ("lookup", "answer"),
    [
        (UsageLookup.OPENROUTER, None),
        (UsageLookup.OPENROUTER, {"data": None}),
        (UsageLookup.OPENROUTER, {}),
        (UsageLookup.LITELLM, None),
        (UsageLookup.LITELLM, []),
        (UsageLookup.LITELLM, [None]),
        (UsageLookup.NONE, {"data": {"total_cost": 1}}),
    ],
)
def test_no_record_is_none(lookup: UsageLookup, answer: Any) -> None:
    assert read_call_record(lookup, answer) is None


@pytest.mark.parametrize(
    ("lookup", "answer"),
    [
        (UsageLookup.OPENROUTER, "text"),
        (UsageLookup.OPENROUTER, {"data": {"total_cost": "a lot"}}),
        (UsageLookup.OPENROUTER, {"data": {"total_cost": -1}}),
        (UsageLookup.OPENROUTER, {"data": {"native_tokens_prompt": 1, "native_tokens_cached": 2}}),
        (UsageLookup.LITELLM, ["text"]),
        (UsageLookup.LITELLM, [{"prompt_tokens": -4, "spend": 0}]),
    ],
)
def test_a_record_that_cannot_be_true_is_said_to_be(lookup: UsageLookup, answer: Any) -> None:
    assert isinstance(read_call_record(lookup, answer), ImplausibleUsage)
