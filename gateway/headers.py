"""Which headers pass, both ways: those that are listed here, and no other.

A client's key never leaves, an upstream's never returns; what names the platform's own account at the provider, sets
cookies, or describes one connection only, stays where it came from.
"""

from __future__ import annotations

from typing import Final

from multidict import CIMultiDictProxy

from domain.billing.upstreams import Upstream, UsageLookup
from domain.billing.usage import Dialect

ANTHROPIC_VERSION: Final = "2023-06-01"
"""What a call to `/v1/messages` speaks that does not say."""

_TO_UPSTREAM: Final = ("accept", "anthropic-beta", "anthropic-version", "openai-beta", "user-agent")
_TO_CLIENT: Final = (
    "cache-control",
    "content-language",
    "content-type",
    "openai-model",
    "openai-processing-ms",
    "openai-version",
)
_TO_CLIENT_OF_ERRORS: Final = ("retry-after", "retry-after-ms", "x-should-retry")


def for_upstream(
    headers: CIMultiDictProxy[str], dialect: Dialect, upstream: Upstream, api_key: str | None
) -> dict[str, str]:
    """The headers of the call to an upstream."""
    passed = {name: headers[name] for name in _TO_UPSTREAM if name in headers}
    # Of a form the boundary is in it.
    is_form = dialect is Dialect.TRANSCRIPTIONS
    passed["content-type"] = headers.get("content-type", "") if is_form else "application/json"
    # What is not compressed can be read as it passes.
    passed["accept-encoding"] = "identity"
    if dialect is Dialect.MESSAGES:
        passed.setdefault("anthropic-version", ANTHROPIC_VERSION)
    if api_key is not None:
        if dialect is Dialect.MESSAGES and upstream.usage_lookup is not UsageLookup.OPENROUTER:
            passed["x-api-key"] = api_key
        else:
            passed["authorization"] = f"Bearer {api_key}"
    return passed


def for_client(headers: CIMultiDictProxy[str], *, is_error: bool) -> dict[str, str]:
    """The headers of an upstream's answer that the client gets."""
    names = (*_TO_CLIENT, *_TO_CLIENT_OF_ERRORS) if is_error else _TO_CLIENT
    return {name: headers[name] for name in names if name in headers}


def of_request(request_id: str, dialect: Dialect | None) -> dict[str, str]:
    """What every answer has: its request's id, under the names that clients read."""
    of_all = {"X-Request-Id": request_id, "Server": "settle"}
    return {**of_all, "request-id": request_id} if dialect is Dialect.MESSAGES else of_all


def of_rate(per_minute: int, remaining: int | None) -> dict[str, str]:
    """The gateway's own rate limit, as OpenAI's clients read it."""
    if remaining is None:
        return {}
    used = max(0, per_minute - remaining)
    return {
        "x-ratelimit-limit-requests": str(per_minute),
        "x-ratelimit-remaining-requests": str(max(0, remaining)),
        "x-ratelimit-reset-requests": f"{-(-used * 60_000 // per_minute)}ms",
    }
