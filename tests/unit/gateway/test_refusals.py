"""Refusals in each API's shape, and what the published clients make of them."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest

from domain.billing.usage import Dialect
from gateway import refusals
from gateway.refusals import LimitSource, Refusal

ALL = [
    refusals.invalid_key(),
    refusals.forbidden("billing_not_granted", "no"),
    refusals.model_not_found("m"),
    refusals.invalid_request("no", "model"),
    refusals.unavailable("no"),
    refusals.rate_limited(1.2),
    *[refusals.insufficient_credits(s, available=1, held=2, needed=3, top_up_url=None) for s in LimitSource],
]


@pytest.mark.parametrize("refusal", ALL, ids=lambda refusal: refusal.code)
@pytest.mark.parametrize("dialect", [*Dialect, None])
def test_a_refusal_has_the_shape_of_the_api_that_was_called(refusal: Refusal, dialect: Dialect | None) -> None:
    body = json.loads(refusal.body(dialect, "req_1"))
    error = body["error"]
    assert (error["code"], error["message"]) == (refusal.code, refusal.message)
    if dialect is Dialect.MESSAGES:
        assert (body["type"], body["request_id"]) == ("error", "req_1")
        assert error["type"].endswith("_error") or error["type"] == "request_too_large"
    else:
        assert set(body) == {"error"}
        assert {"message", "type", "param", "code"} <= set(error)


@pytest.mark.parametrize("source", LimitSource)
def test_402_says_which_limit_and_how_far(source: LimitSource) -> None:
    refusal = refusals.insufficient_credits(source, available=7, held=90, needed=100, top_up_url="https://x/credits")
    error = json.loads(refusal.body(Dialect.CHAT, "r"))["error"]
    assert refusal.status == HTTPStatus.PAYMENT_REQUIRED
    assert {name: error[name] for name in ("code", "limit_source", "available", "held", "needed", "top_up_url")} == {
        "code": "insufficient_credits",
        "limit_source": source.value,
        "available": 7,
        "held": 90,
        "needed": 100,
        "top_up_url": "https://x/credits",
    }


@pytest.mark.parametrize("refusal", ALL, ids=lambda refusal: refusal.code)
def test_only_what_passes_by_itself_is_retried(refusal: Refusal) -> None:
    assert refusal.headers["x-should-retry"] == ("true" if refusal.status in (429, 503) else "false")
    waits = refusal.status == HTTPStatus.TOO_MANY_REQUESTS or refusal.details.get("limit_source") == "in_flight"
    assert ("Retry-After" in refusal.headers) == waits


def test_seconds_to_wait_are_rounded_up() -> None:
    assert refusals.rate_limited(1.2).headers["Retry-After"] == "2"
    assert refusals.rate_limited(0.0).headers["Retry-After"] == "1"
