"""Service keys by HTTP: whose they are, what is refused, and that a secret is shown once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from devstack.chain import payer_wallets
from domain.billing.keys import hash_key
from tests.support.api import RunningApi, Visitor, running_api
from tests.support.engine import Engine
from tests.support.sql import query, scalar

KEYS = "/api/v1/keys"


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


async def made(payer: Visitor, **body: Any) -> dict[str, Any]:
    """A new key."""
    reply = await payer.post(KEYS, {"label": "Agent", **body})
    assert reply.status == 201, reply.body
    answer: dict[str, Any] = reply.body
    return answer


async def state_of(api: RunningApi, key: str) -> str | None:
    """Whether the gateway accepts a key."""
    state: str | None = scalar(api.engine.database.app_url, "SELECT state FROM find_key(%s)", hash_key(key))
    return state


async def test_a_key_works_as_soon_as_it_is_made_and_its_secret_is_shown_once(api: RunningApi, payer: Visitor) -> None:
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    body = {
        "label": " Agent ",
        "expiresAt": expires_at.isoformat(),
        "limitDayCredits": 5,
        "limitMonthCredits": 2**53 - 1,
        "models": ["o3", "gpt-4o", "o3"],
    }
    key = await made(payer, **body)
    assert key["key"].startswith("sk-settle-")
    assert await state_of(api, key["key"]) == "active"
    account = (await payer.get("/api/v1/auth/session")).body["billingAccountId"]
    expected = {"billingAccountId": account, "label": "Agent", "models": ["o3", "gpt-4o"], "mayAttribute": False}
    assert expected.items() <= key.items()
    assert datetime.fromisoformat(key["expiresAt"]) == expires_at
    [listed] = (await payer.get(KEYS)).body["keys"]
    assert {**listed, "key": key["key"]} == key
    assert key["key"] not in (await payer.get(KEYS)).body["keys"][0].values()
    assert key["key"] not in str(query(api.engine.database.superuser_url, "SELECT * FROM virtual_keys"))


async def test_a_malformed_key_is_refused_by_the_fields_name(payer: Visitor) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "label"),
        ({"label": ""}, "label"),
        ({"label": "   "}, "label"),
        ({"label": "x" * 81}, "label"),
        ({"label": "a\u0000b"}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"label": 7}, "label"),
        ({"limitDayCredits": -1}, "limitDayCredits"),
        ({"limitDayCredits": 1.5}, "limitDayCredits"),
        ({"limitDayCredits": "10"}, "limitDayCredits"),
        ({"limitDayCredits": True}, "limitDayCredits"),
        ({"limitMonthCredits": 2**53}, "limitMonthCredits"),
        ({"models": []}, "models"),
        ({"models": "gpt-4o"}, "models"),
        ({"models": [""]}, "models.0"),
        ({"models": ["  "]}, "models"),
        ({"models": ["a\u0000"]}, "models"),
        ({"models": ["x"] * 101}, "models"),
        ({"expiresAt": "2001-01-01T00:00:00Z"}, "expiresAt"),
        ({"expiresAt": "2999-01-01T00:00:00"}, "expiresAt"),
        ({"expiresAt": "3000-01-01T00:00:00Z"}, "expiresAt"),
        ({"expiresAt": "2099-02-30T00:00:00Z"}, "expiresAt"),
        ({"expiresAt": 4102444800}, "expiresAt"),
        ({"expiresAt": "tomorrow"}, "expiresAt"),
        ({"mayAttribute": True}, "mayAttribute"),
        ({"may_attribute": True}, "may_attribute"),
        ({"billingAccountId": "cogni_system"}, "billingAccountId"),
    )
    for body, field in cases:
        refused = await payer.post(KEYS, {"label": "Agent", **body} if body else {})
        assert (refused.status, refused.code) == (422, "INVALID_INPUT"), (body, refused.body)
        assert refused.body["errors"][0]["field"] == field, body
    assert (await payer.get(KEYS)).body["keys"] == []


async def test_keys_are_the_sessions_accounts_and_of_no_other(api: RunningApi, payer: Visitor) -> None:
    key = await made(payer)
    async with api.visitor(payer_wallets()[1]) as stranger:
        assert (await stranger.get(KEYS)).body["keys"] == []
        for method, path in (("POST", f"{KEYS}/{key['keyId']}/rotate"), ("DELETE", f"{KEYS}/{key['keyId']}")):
            refused = await stranger.call(method, path)
            assert (refused.status, refused.code) == (404, "KEY_NOT_FOUND")
            missing = await stranger.call(method, path.replace(key["keyId"], str(uuid4())))
            assert (missing.status, missing.code) == (404, "KEY_NOT_FOUND")
    assert await state_of(api, key["key"]) == "active"


async def test_without_a_session_there_are_neither_keys_nor_usage(api: RunningApi) -> None:
    async with api.visitor() as stranger:
        for method, path in (
            ("GET", KEYS),
            ("POST", KEYS),
            ("POST", f"{KEYS}/{UUID(int=1)}/rotate"),
            ("DELETE", f"{KEYS}/{UUID(int=1)}"),
            ("GET", "/api/v1/usage"),
            ("GET", "/api/v1/usage/calls"),
        ):
            refused = await stranger.call(method, path, {"label": "x"} if method == "POST" else None)
            assert (refused.status, refused.code) == (401, "UNAUTHENTICATED"), (method, path)


async def test_no_other_site_makes_rotates_or_revokes_a_key(payer: Visitor) -> None:
    key = await made(payer)
    for name, value in (
        ("Origin", "https://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ):
        for method, path in (
            ("POST", KEYS),
            ("POST", f"{KEYS}/{key['keyId']}/rotate"),
            ("DELETE", f"{KEYS}/{key['keyId']}"),
        ):
            refused = await payer.call(method, path, {"label": "x"} if path == KEYS else None, headers={name: value})
            assert (refused.status, refused.code) == (403, "CROSS_SITE_REQUEST"), (value, path)
    assert [found["state"] for found in (await payer.get(KEYS)).body["keys"]] == ["active"]


async def test_a_rotated_key_and_its_successor_both_work_during_the_overlap(api: RunningApi, payer: Visitor) -> None:
    old = await made(payer, limitDayCredits=7, models=["o3"])
    new = (await payer.post(f"{KEYS}/{old['keyId']}/rotate")).body
    assert (new["limitDayCredits"], new["models"], new["label"]) == (7, ["o3"], "Agent")
    assert [await state_of(api, key["key"]) for key in (old, new)] == ["active", "active"]
    listed = {key["keyId"]: key for key in (await payer.get(KEYS)).body["keys"]}
    rotated = listed[old["keyId"]]
    assert (rotated["state"], rotated["rotatedTo"]) == ("rotated", new["keyId"])
    left = datetime.fromisoformat(rotated["expiresAt"]) - datetime.now(UTC)
    assert timedelta(minutes=50) < left < timedelta(minutes=70)
    again = await payer.post(f"{KEYS}/{old['keyId']}/rotate")
    assert (again.status, again.code) == (409, "KEY_NOT_IN_FORCE")
    last = (await payer.post(f"{KEYS}/{new['keyId']}/rotate", {"overlapSeconds": 0})).body
    assert [await state_of(api, key["key"]) for key in (new, last)] == ["key_expired", "active"]


async def test_a_malformed_overlap_is_refused(payer: Visitor) -> None:
    key = await made(payer)
    for overlap in (-1, 30 * 86_400 + 1, 0.5, "60", None):
        refused = await payer.post(f"{KEYS}/{key['keyId']}/rotate", {"overlapSeconds": overlap})
        assert (refused.status, refused.body["errors"][0]["field"]) == (422, "overlapSeconds"), overlap
    assert len((await payer.get(KEYS)).body["keys"]) == 1


async def test_a_revoked_key_is_refused_for_good(api: RunningApi, payer: Visitor) -> None:
    key = await made(payer)
    for _ in range(2):
        assert (await payer.call("DELETE", f"{KEYS}/{key['keyId']}")).status == 204
    assert await state_of(api, key["key"]) == "key_revoked"
    refused = await payer.post(f"{KEYS}/{key['keyId']}/rotate")
    assert (refused.status, refused.code) == (409, "KEY_NOT_IN_FORCE")
    assert [found["state"] for found in (await payer.get(KEYS)).body["keys"]] == ["revoked"]
    assert (await payer.get(f"{KEYS}?inForce=true")).body["keys"] == []


async def test_the_same_idempotency_key_makes_one_key_and_shows_no_secret_again(
    api: RunningApi, payer: Visitor
) -> None:
    headers = {"Idempotency-Key": "agent-1"}
    replies = await asyncio.gather(*(payer.post(KEYS, {"label": "Agent"}, headers=headers) for _ in range(8)))
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body["keyId"] for reply in replies}) == 1
    assert len([reply for reply in replies if reply.body["key"]]) == 1
    assert len((await payer.get(KEYS)).body["keys"]) == 1
    [(answer,)] = query(api.engine.database.superuser_url, "SELECT answer::text FROM idempotency_keys")
    assert "sk-settle" not in answer


async def test_another_request_under_the_same_idempotency_key_is_refused(payer: Visitor) -> None:
    headers = {"Idempotency-Key": "agent-1"}
    key = (await payer.post(KEYS, {"label": "Agent"}, headers=headers)).body
    for path, body in (
        (KEYS, {"label": "Agent", "limitDayCredits": 1}),
        (KEYS, {"label": "Agent", "limitMonthCredits": 1}),
        (KEYS, {"label": "Agent", "models": ["o3"]}),
        (f"{KEYS}/{key['keyId']}/rotate", {}),
        ("/api/v1/payments/intents", {"amountUsdCents": 500}),
    ):
        refused = await payer.post(path, body, headers=headers)
        assert (refused.status, refused.code) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len((await payer.get(KEYS)).body["keys"]) == 1


async def test_a_repeated_rotation_rotates_once(payer: Visitor) -> None:
    key = await made(payer)
    headers = {"Idempotency-Key": "rotate-1"}
    path = f"{KEYS}/{key['keyId']}/rotate"
    first, again = [await payer.post(path, {}, headers=headers) for _ in range(2)]
    assert (first.status, again.status) == (201, 201)
    assert first.body["keyId"] == again.body["keyId"]
    assert (bool(first.body["key"]), again.body["key"]) == (True, None)
    assert len((await payer.get(KEYS)).body["keys"]) == 2


async def test_keys_are_listed_page_by_page(payer: Visitor) -> None:
    for number in range(3):
        await made(payer, label=f"Key {number}")
    first = (await payer.get(f"{KEYS}?limit=2")).body
    second = (await payer.get(f"{KEYS}?limit=2&cursor={first['nextCursor']}")).body
    assert [key["label"] for key in (*first["keys"], *second["keys"])] == ["Key 2", "Key 1", "Key 0"]
    assert second["nextCursor"] is None


async def test_changes_of_keys_are_limited_per_account(engine: Engine) -> None:
    async with running_api(engine, RATE_LIMIT_KEYS_PER_ACCOUNT="3") as api, api.visitor(payer_wallets()[0]) as payer:
        key = await made(payer)
        await payer.post(f"{KEYS}/{key['keyId']}/rotate")
        await payer.call("DELETE", f"{KEYS}/{key['keyId']}")
        refused = await payer.post(KEYS, {"label": "Agent"})
        assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        assert int(refused.headers["Retry-After"]) >= 1
        async with api.visitor(payer_wallets()[1]) as other:
            await made(other)


async def test_a_refused_method_names_all_those_of_the_path(payer: Visitor) -> None:
    for path, allowed in ((KEYS, {"GET", "HEAD", "POST"}), (f"{KEYS}/{uuid4()}", {"DELETE"})):
        refused = await payer.call("PATCH", path)
        assert (refused.status, refused.code) == (405, "METHOD_NOT_ALLOWED")
        assert {method.strip() for method in refused.headers["Allow"].split(",")} == allowed
