"""What LiteLLM's generic API callback posts: its standard logging payload, field by field as its proxy writes it."""

from __future__ import annotations

import json
from typing import Any, Final

SUCCESS: Final[dict[str, Any]] = {
    "id": "chatcmpl-9f1c2f6e",
    "trace_id": "b7f8e1d0-5f0e-4a52-9a3b-0c8f9f0d7a11",
    "call_type": "acompletion",
    "stream": True,
    "response_cost": 0.00045,
    "cost_breakdown": {"input_cost": 0.00015, "output_cost": 0.0003, "total_cost": 0.00045, "tool_usage_cost": 0.0},
    "response_cost_failure_debug_info": None,
    "status": "success",
    "custom_llm_provider": "openai",
    "total_tokens": 1500,
    "prompt_tokens": 1000,
    "completion_tokens": 500,
    "startTime": 1764300000.123456,
    "endTime": 1764300003.5,
    "completionStartTime": 1764300000.9,
    "response_time": 3.376544,
    "model_map_information": {"model_map_key": "gpt-4o-mini", "model_map_value": None},
    "model": "gpt-4o-mini",
    "model_id": "e5b4",
    "model_group": "gpt-4o-mini",
    "api_base": "https://api.openai.com",
    "metadata": {
        "user_api_key_hash": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
        "user_api_key_alias": None,
        "user_api_key_team_id": None,
        "user_api_key_end_user_id": None,
        "billing_account_id": "ACCOUNT",
        "usage_object": {
            "completion_tokens": 500,
            "prompt_tokens": 1000,
            "total_tokens": 1500,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
    },
    "cache_hit": False,
    "cache_key": None,
    "saved_cache_cost": 0.0,
    "request_tags": [],
    "end_user": "",
    "requester_ip_address": "",
    "messages": None,
    "response": None,
    "error_str": None,
    "model_parameters": {"stream": True},
    "hidden_params": {"model_id": None, "cache_key": None, "api_base": None, "response_cost": None},
}

FAILURE: Final[dict[str, Any]] = SUCCESS | {
    "id": "3a0a",
    "status": "failure",
    "response_cost": 0,
    "total_tokens": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "error_str": "litellm.RateLimitError: RateLimitError: OpenAIException",
    "response_cost_failure_debug_info": {"error_str": "no cost", "traceback_str": ""},
}


def payload(account: str, *, of: dict[str, Any] = SUCCESS, **changes: Any) -> dict[str, Any]:
    """One call of an account."""
    metadata = of["metadata"] | {"billing_account_id": account}
    return of | {"metadata": metadata} | changes


def without_account(**changes: Any) -> dict[str, Any]:
    """One whose metadata names no account."""
    metadata = {name: value for name, value in SUCCESS["metadata"].items() if name != "billing_account_id"}
    return SUCCESS | {"metadata": metadata} | changes


def body(document: object) -> bytes:
    """As Python's own writer sends it, NaN included."""
    return json.dumps(document).encode()
