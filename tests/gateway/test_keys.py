"""Who may call what, for whom, and what a key may read."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest

from gateway.policy import REQUEST_BYTES_MAX
from tests.gateway.support import MODEL, Served, add_key, chat, faulty, open_account, served, until
from tests.support.postgres import Database
from tests.support.sql import connect, no_write_is_proved, query

ANTHROPIC = {"anthropic_version": "2023-06-01"}


async def test_a_key_that_is_revoked_is_refused_by_the_next_call_of_every_process(database: Database) -> None:
    async with served(database) as one, served(database, account=one.account) as other:
        assert [(await gateway.client.post(chat())).status for gateway in (one, other)] == [200, 200]
        with connect(database.superuser_url) as owner:
            owner.execute("UPDATE virtual_keys SET revoked_at = now() WHERE id = %s", (one.account.key_id,))
        for gateway in (one, other):
            answer = await gateway.client.post(chat())
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert "revoked" in answer.error["message"]
            assert (await gateway.client.get("/v1/credits")).status == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/chat/completions", chat(model="nowhere")),
        ("/v1/chat/completions", b"{"),
        ("/v1/messages", {"model": MODEL, "max_tokens": 5, "messages": []}),
    ],
)
async def test_without_a_key_in_force_nothing_else_is_said(gateway: Served, path: str, body: Any) -> None:
    expired = add_key(gateway.books.database, gateway.account.id, expires_at=datetime.now(UTC) - timedelta(hours=1))
    for key in ("sk-settle-unknown", expired.key):
        answer = await gateway.client.post(body, path, key=key)
        assert answer.status == 401, answer.body
        assert answer.headers["x-should-retry"] == "false"
        assert ("request_id" in answer.json) == (path == "/v1/messages")
        assert answer.request_id.startswith("req_")
    assert not gateway.calls()


async def test_a_call_without_any_key_is_refused(gateway: Served) -> None:
    async with gateway.client.session.post(f"{gateway.client.url}/v1/chat/completions", json=chat()) as response:
        assert response.status == 401
        assert (await response.json())["error"]["type"] == "authentication_error"


async def test_a_key_is_for_its_models(gateway: Served) -> None:
    key = add_key(gateway.books.database, gateway.account.id, models=["dev-large"]).key
    answer = await gateway.client.post(chat(), key=key)
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    listed = (await gateway.client.get("/v1/models", key=key)).json["data"]
    assert [model["id"] for model in listed] == ["dev-large"] or not listed
    assert (await gateway.client.get(f"/v1/models/{MODEL}", key=key)).status == 404


async def test_a_keys_limit_is_a_402(gateway: Served) -> None:
    key = add_key(gateway.books.database, gateway.account.id, limit_day=100).key
    answer = await gateway.client.post(chat(max_tokens=1000), key=key)
    assert (answer.status, answer.error["limit_source"], answer.error["available"]) == (402, "key_limit", 100)


async def test_attribution_needs_the_right(gateway: Served) -> None:
    tenant = await open_account(gateway.books.database, cents=0, number=2)
    may = add_key(gateway.books.database, gateway.account.id, may_attribute=True).key
    refused = await gateway.client.post(chat(), X_Attribute_To=tenant.id)
    assert (refused.status, refused.error["code"]) == (403, "attribution_not_allowed")
    in_body = await gateway.client.post(chat(metadata={"attribute_to": tenant.id}))
    assert (in_body.status, in_body.error["code"]) == (403, "attribution_not_allowed")
    unknown = await gateway.client.post(chat(), key=may, X_Attribute_To="acct_unknown")
    assert unknown.status == 403
    assert not gateway.calls()
    assert (await gateway.client.post(chat(), key=may, X_Attribute_To=tenant.id)).status == 200
    receipt = gateway.books.receipt()
    assert (receipt["attributed_to"], receipt["billing_account_id"]) == (tenant.id, gateway.account.id)


async def test_billing_another_account_needs_its_grant(gateway: Served) -> None:
    database = gateway.books.database
    payer = await open_account(database, cents=10, number=2)
    for sent, body in (({"X_Bill_To": payer.id}, chat()), ({}, chat(metadata={"billing_account_id": payer.id}))):
        refused = await gateway.client.post(body, **sent)
        assert (refused.status, refused.error["code"]) == (403, "billing_not_granted")
    query(
        database.service_url,
        "INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES (%s, %s) RETURNING id",
        *(payer.id, gateway.account.id),
    )
    answer = await gateway.client.post(chat(), X_Bill_To=payer.id)
    assert answer.status == 200
    assert gateway.books.receipt()["billing_account_id"] == payer.id
    assert gateway.books.balance(gateway.account.id) == (10_000_000, 0)
    for key in (gateway.account.key, payer.key):
        assert (await gateway.client.get(f"/v1/usage/{answer.request_id}", key=key)).status == 200
    two = await gateway.client.post(chat(metadata={"bill_to": gateway.account.id}), X_Bill_To=payer.id)
    assert (two.status, two.error["code"]) == (400, "invalid_request")


async def test_credits_and_usage_are_shown_to_the_account_alone(gateway: Served) -> None:
    stranger = await open_account(gateway.books.database, cents=0, number=2)
    call = asyncio.create_task(gateway.client.post(faulty(delay=0.5)))
    await until(gateway.books.holds)
    credits = (await gateway.client.get("/v1/credits")).json
    assert credits["balanceCredits"] - credits["heldCredits"] == credits["availableCredits"] < 10_000_000
    answer = await call
    usage = await gateway.client.get(f"/v1/usage/{answer.request_id}")
    receipt = gateway.books.receipt()
    assert usage.json | {"providerCostUsd": "", "userCostUsd": "", "createdAt": ""} == {
        "requestId": answer.request_id,
        "status": "charged",
        "model": MODEL,
        "chargedCredits": receipt["charged_credits"],
        "heldCredits": 0,
        "inputTokens": receipt["input_tokens"],
        "cachedInputTokens": 0,
        "outputTokens": receipt["output_tokens"],
        "reasoningTokens": 0,
        "estimated": False,
        "providerCostUsd": "",
        "userCostUsd": "",
        "createdAt": "",
    }
    for key, request_id in ((stranger.key, answer.request_id), (gateway.account.key, "req_nothing")):
        assert (await gateway.client.get(f"/v1/usage/{request_id}", key=key)).status == 404


async def test_models_are_those_that_can_be_called(database: Database) -> None:
    async with served(database, upstreams={"models": ["dev-*", "claude-*", "named-only", "text-*"]}) as gateway:
        listed = {model["id"]: model for model in (await gateway.client.get("/v1/models")).json["data"]}
        assert {MODEL, "text-embedding-3-small", "claude-haiku-4-5"} <= listed.keys()
        # It has no price; and this no upstream offers.
        assert listed.keys().isdisjoint({"named-only", "gpt-4.1"})
        assert (await gateway.client.get(f"/v1/models/{MODEL}")).json == listed[MODEL]
        anthropic = (await gateway.client.get("/v1/models", **ANTHROPIC)).json
        assert {model["id"] for model in anthropic["data"]} == listed.keys()
        assert (await gateway.client.get("/v1/models/gpt-4.1", **ANTHROPIC)).json["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("field", ["api_base", "api_key", "base_url", "extra_headers"])
async def test_a_body_does_not_choose_where_a_call_goes(gateway: Served, field: str) -> None:
    answer = await gateway.client.post(chat(**{field: "http://127.0.0.1:9"}))
    assert (answer.status, answer.error["param"]) == (400, field)
    assert not gateway.calls()
    assert not gateway.books.holds()


async def test_a_request_that_is_too_large_is_refused(gateway: Served) -> None:
    async with gateway.client.session.post(
        f"{gateway.client.url}/v1/chat/completions",
        data=BytesIO(b" " * (REQUEST_BYTES_MAX + 1)),
        headers={"Authorization": f"Bearer {gateway.account.key}"},
    ) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"


async def test_a_large_request_is_passed_on(gateway: Served) -> None:
    body = json.dumps(chat("word " * 400_000, max_tokens=10)).encode()
    async with gateway.client.session.post(
        f"{gateway.client.url}/v1/chat/completions",
        data=BytesIO(body),
        headers={"Authorization": f"Bearer {gateway.account.key}"},
    ) as response:
        assert response.status == 200
    assert gateway.calls()[0].body == body


async def test_what_is_no_route_has_the_shape_of_the_api(gateway: Served) -> None:
    assert (await gateway.client.get("/v1/nothing")).error["code"] == "not_found"
    assert (await gateway.client.get("/v1/nothing", **ANTHROPIC)).json["type"] == "error"
    assert (await gateway.client.get("/v1/messages")).status == 405
    async with gateway.client.session.head(gateway.client.url) as response:
        assert response.status == 200
        assert response.headers["X-Request-Id"]


async def test_the_process_says_how_it_is(gateway: Served) -> None:
    await gateway.client.post(chat())
    assert (await gateway.client.get("/livez")).json == {"status": "ok"}
    ready = await gateway.client.get("/readyz")
    fine = {"database": "ok", "schema": "ok", "system_tenant": "ok"}
    assert (ready.status, ready.json["checks"]) == (200, fine)
    with no_write_is_proved(gateway.books.database.superuser_url):
        ready = await gateway.client.get("/readyz")
    assert (ready.status, ready.json["checks"]) == (503, fine | {"database": ready.json["checks"]["database"]})
    assert "no write" in ready.json["checks"]["database"]
    gateway.gateway.is_stopping = True
    try:
        assert [(await gateway.client.get(path)).status for path in ("/livez", "/readyz")] == [503, 503]
    finally:
        gateway.gateway.is_stopping = False
    assert b"settle_gateway_calls_total{" in (await gateway.client.get("/metrics")).body


@pytest.mark.parametrize("name", ["\0", "\ud800", "m\n"])
async def test_names_that_the_database_cannot_hold_are_refused(gateway: Served, name: str) -> None:
    assert (await gateway.client.post(chat(model=name))).status in (400, 404)
    assert (await gateway.client.post(chat(metadata={"bill_to": name}))).status == 400
    assert (await gateway.client.get("/v1/usage/%00")).status == 404
