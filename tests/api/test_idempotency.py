"""`Idempotency-Key` on intents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devstack.chain import payer_wallets
from tests.support.api import RunningApi, Visitor
from tests.support.sql import scalar

INTENTS = "/api/v1/payments/intents"


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


async def test_the_same_key_and_body_again_get_the_same_intent(api: RunningApi, payer: Visitor) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = await payer.post(INTENTS, {"amountUsdCents": 500}, headers=headers)
    again = await payer.post(INTENTS, {"amountUsdCents": 500}, headers=headers)
    assert first.status == again.status == 201
    assert first.body == again.body
    assert attempts(api) == 1


async def test_also_at_the_same_moment(api: RunningApi, payer: Visitor) -> None:
    replies = await asyncio.gather(
        *(payer.post(INTENTS, {"amountUsdCents": 500}, headers={"Idempotency-Key": "k"}) for _ in range(12))
    )
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body["attemptId"] for reply in replies}) == 1
    assert attempts(api) == 1


@pytest.mark.parametrize("body", [{"amountUsdCents": 501}, {"amountUsdCents": 500, "purpose": "system"}])
async def test_another_body_under_the_same_key_is_refused(
    api: RunningApi, payer: Visitor, body: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "order-1"}
    await payer.post(INTENTS, {"amountUsdCents": 500}, headers=headers)
    refused = await payer.post(INTENTS, body, headers=headers)
    assert (refused.status, refused.code) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert attempts(api) == 1


async def test_a_refused_request_keeps_no_key(api: RunningApi, payer: Visitor) -> None:
    headers = {"Idempotency-Key": "order-1"}
    refused = await payer.post(INTENTS, {"amountUsdCents": 99}, headers=headers)
    assert refused.status == 422
    assert (await payer.post(INTENTS, {"amountUsdCents": 100}, headers=headers)).status == 201


async def test_two_payers_may_use_the_same_key(api: RunningApi, payer: Visitor) -> None:
    headers = {"Idempotency-Key": "order-1"}
    mine = await payer.post(INTENTS, {"amountUsdCents": 500}, headers=headers)
    async with api.visitor(payer_wallets()[1]) as other:
        theirs = await other.post(INTENTS, {"amountUsdCents": 700}, headers=headers)
    assert (mine.status, theirs.status) == (201, 201)
    assert mine.body["attemptId"] != theirs.body["attemptId"]


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "ümlaut"])
async def test_a_malformed_key_is_refused_by_name(payer: Visitor, key: str) -> None:
    refused = await payer.post(INTENTS, {"amountUsdCents": 500}, headers={"Idempotency-Key": key})
    assert refused.status == 422
    assert refused.body["errors"][0]["field"].lower() == "idempotency-key"


def attempts(api: RunningApi) -> int:
    """How many attempts there are."""
    return int(scalar(api.engine.database.service_url, "SELECT count(*) FROM payment_attempts"))
