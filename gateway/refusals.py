"""What the gateway answers where it makes no call: in the error shape of the API that was called.

OpenAI: https://platform.openai.com/docs/guides/error-codes. Anthropic: https://docs.anthropic.com/en/api/errors. Both
packages retry 408, 409, 429 and 5xx by themselves, and obey `x-should-retry` before anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from math import ceil
from typing import Any, Final

from domain.billing.usage import Dialect


class LimitSource(StrEnum):
    """Which limit a call would pass."""

    BALANCE = "balance"
    KEY_LIMIT = "key_limit"
    ACCOUNT_LIMIT = "account_limit"
    IN_FLIGHT = "in_flight"
    """Only because of what is held for calls in flight: it may be enough when they have ended."""


IN_FLIGHT_RETRY_SECONDS: Final = 5
"""When to come back where calls in flight are the reason: most have ended by then."""

CLAIM_RETRY_SECONDS: Final = 2
CONNECTIONS_RETRY_SECONDS: Final = 1

_OPENAI_TYPES: Final[Mapping[HTTPStatus, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "insufficient_quota",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final[Mapping[HTTPStatus, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no call is made. `code` is stable; `details` go beside it into the error's object."""

    status: HTTPStatus
    code: str
    message: str
    param: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    retry_after_seconds: float | None = None
    is_final: bool = False
    """It stays as it is, however often the call is repeated, although its status says otherwise."""

    @property
    def may_be_retried(self) -> bool:
        """Whether clients should repeat the call by themselves; a 402 they never do, whatever it says of waiting."""
        return not self.is_final and self.status in (
            HTTPStatus.CONFLICT,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.BAD_GATEWAY,
            HTTPStatus.SERVICE_UNAVAILABLE,
        )

    @property
    def headers(self) -> dict[str, str]:
        """Headers for people's clients: whether, and when, to try again."""
        headers = {"x-should-retry": "true" if self.may_be_retried else "false"}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, ceil(self.retry_after_seconds)))
        return headers

    def event(self, dialect: Dialect | None, request_id: str) -> bytes:
        """The same as the last event of a stream that has begun."""
        name = b"event: error\n" if dialect in (Dialect.MESSAGES, Dialect.RESPONSES) else b""
        if dialect is Dialect.RESPONSES:
            body = json.dumps({"type": "error", "code": self.code, "message": self.message, "param": None}).encode()
        else:
            body = self.body(dialect, request_id)
        return name + b"data: " + body + b"\n\n"

    def body(self, dialect: Dialect | None, request_id: str) -> bytes:
        """The answer's JSON, in the shape of the API that was called; OpenAI's where it was none of them."""
        if dialect is Dialect.MESSAGES:
            kind = _ANTHROPIC_TYPES.get(self.status, _type_by_class(self.status))
            error = {"type": kind, "message": self.message, "code": self.code, **self.details}
            return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
        kind = _OPENAI_TYPES.get(self.status, _type_by_class(self.status))
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code, **self.details}
        return json.dumps({"error": error}).encode()


def _type_by_class(status: HTTPStatus) -> str:
    return "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"


def insufficient_credits(
    source: LimitSource, *, available: int, held: int, needed: int, top_up_url: str | None
) -> Refusal:
    """402: the call may cost more than there is. All figures are credits."""
    why = {
        LimitSource.BALANCE: "the account has",
        LimitSource.IN_FLIGHT: f"with {held:,} held for calls in flight the account has",
        LimitSource.KEY_LIMIT: "the key's limit leaves",
        LimitSource.ACCOUNT_LIMIT: "the account's limit leaves",
    }[source]
    return Refusal(
        HTTPStatus.PAYMENT_REQUIRED,
        "insufficient_credits",
        f"Insufficient credits: the call needs up to {needed:,}, {why} {available:,}",
        details={
            "limit_source": source.value,
            "available": available,
            "held": held,
            "needed": needed,
            "top_up_url": top_up_url,
        },
        retry_after_seconds=IN_FLIGHT_RETRY_SECONDS if source is LimitSource.IN_FLIGHT else None,
    )


def rate_limited(retry_after_seconds: float) -> Refusal:
    """429: too many calls in the last minute."""
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_exceeded",
        f"Too many calls: try again in {ceil(retry_after_seconds)} s",
        retry_after_seconds=retry_after_seconds,
    )


def invalid_key(reason: str = "The API key is invalid") -> Refusal:
    """401: no key, or one that opens nothing (any more)."""
    return Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", reason)


def forbidden(code: str, message: str) -> Refusal:
    """403: the key is good, and not for this."""
    return Refusal(HTTPStatus.FORBIDDEN, code, message)


def model_not_found(model: str) -> Refusal:
    """404: no upstream offers the model, or it has no price."""
    return Refusal(
        HTTPStatus.NOT_FOUND, "model_not_found", f"The model {model[:100]!r} does not exist here", param="model"
    )


def invalid_request(message: str, param: str | None = None) -> Refusal:
    """400: the request cannot be passed on."""
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_request", message, param=param)


def unavailable(message: str) -> Refusal:
    """503: something that a call needs does not answer now."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message)


def too_many_connections() -> Refusal:
    """503: the process has as many connections as it may have."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "too_many_connections",
        "The gateway has too many connections: try again",
        retry_after_seconds=CONNECTIONS_RETRY_SECONDS,
    )


def upstream_failed(message: str) -> Refusal:
    """502: an upstream was asked, and gave no answer that can be passed on."""
    return Refusal(HTTPStatus.BAD_GATEWAY, "upstream_failed", message)


def too_large(bytes_max: int) -> Refusal:
    """413: the request is longer than what is passed on."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "request_too_large",
        f"The request is too large: expected at most {bytes_max:,} bytes",
    )


def not_found(message: str) -> Refusal:
    """404: there is no such thing here."""
    return Refusal(HTTPStatus.NOT_FOUND, "not_found", message)


def method_not_allowed(allowed: str) -> Refusal:
    """405: the address is right, the method is not."""
    return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", f"Method not allowed: expected {allowed}")


def call_in_flight(request_id: str | None) -> Refusal:
    """409: the first call with the same Idempotency-Key has no answer yet."""
    return Refusal(
        HTTPStatus.CONFLICT,
        "idempotency_key_in_use",
        "A call with this Idempotency-Key is in flight: try again when it has ended",
        details={"request_id": request_id},
        retry_after_seconds=CLAIM_RETRY_SECONDS,
    )


def answer_not_kept(request_id: str | None) -> Refusal:
    """409: the first call with the same Idempotency-Key was answered with a stream, which cannot be given again."""
    return Refusal(
        HTTPStatus.CONFLICT,
        "idempotency_key_used",
        f"The call with this Idempotency-Key was answered as request {request_id}, and its answer is not kept",
        details={"request_id": request_id},
        is_final=True,
    )


def idempotency_key_reused() -> Refusal:
    """422: the same Idempotency-Key came with another request."""
    return Refusal(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "idempotency_key_reused",
        "This Idempotency-Key was used for another request",
    )


def failed() -> Refusal:
    """500: a fault of the gateway's own."""
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "The call failed")
