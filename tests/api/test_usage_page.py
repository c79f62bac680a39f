"""The Usage page's forms past the browser: other sites, other accounts' keys, limits, what is no form."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from devstack.chain import payer_wallets
from tests.support.api import Reply, RunningApi, Visitor, running_api
from tests.support.engine import Engine
from tests.support.sql import query


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


async def posted(visitor: Visitor, path: str, **fields: Any) -> Reply:
    """A form's answer, without following a redirect."""
    headers = fields.pop("headers", {})
    return await visitor.call("POST", path, data=fields, headers=headers, allow_redirects=False)


def keys(api: RunningApi) -> list[tuple[Any, ...]]:
    """Id, label and whether it is revoked, of every service key."""
    statement = (
        "SELECT id, label, revoked_at IS NOT NULL FROM virtual_keys WHERE key_hash IS NOT NULL ORDER BY created_at"
    )
    return query(api.engine.database.service_url, statement)


async def test_a_strangers_key_is_not_there(api: RunningApi, payer: Visitor) -> None:
    assert (await posted(payer, "/usage/keys", label="Mine")).status == 201
    [(key_id, _, _)] = keys(api)
    async with api.visitor(payer_wallets()[1]) as stranger:
        for act, fields in (("revoke", {}), ("rotate", {"overlap": "0"})):
            refused = await posted(stranger, f"/usage/keys/{key_id}/{act}", **fields)
            assert refused.status == 404
            assert f"Key {key_id} not found." in refused.body
        assert "Mine" not in (await stranger.get("/usage")).body
    assert keys(api) == [(key_id, "Mine", False)]


async def test_no_other_site_posts_a_form(api: RunningApi, payer: Visitor) -> None:
    await posted(payer, "/usage/keys", label="Mine")
    [(key_id, _, _)] = keys(api)
    for path in ("/usage/keys", f"/usage/keys/{key_id}/rotate", f"/usage/keys/{key_id}/revoke"):
        refused = await posted(payer, path, label="x", overlap="0", headers={"Origin": "https://evil.example"})
        assert (refused.status, refused.code) == (403, "CROSS_SITE_REQUEST")
    assert keys(api) == [(key_id, "Mine", False)]


async def test_who_is_not_signed_in_is_sent_to_the_credits_page(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        for method, path in (
            ("GET", "/usage"),
            ("GET", "/usage/by-day.csv"),
            ("POST", "/usage/keys"),
            ("POST", f"/usage/keys/{uuid4()}/rotate"),
            ("POST", f"/usage/keys/{uuid4()}/revoke"),
        ):
            reply = await visitor.call(method, path, allow_redirects=False)
            assert (reply.status, reply.headers["Location"]) == (303, "/credits")
    assert keys(api) == []


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "label"),
        ({"label": "\x00"}, "label"),
        ({"label": "x", "expiresAt": "tomorrow"}, "expiresAt"),
        ({"label": "x", "expiresAt": "2001-01-01"}, "expiresAt"),
        ({"label": "x", "limitDayCredits": "1e9"}, "limitDayCredits"),
        ({"label": "x", "limitMonthCredits": "-1"}, "limitMonthCredits"),
        ({"label": "x", "models": "a\x00"}, "models"),
    ],
)
async def test_what_is_wrong_is_said_beside_its_field(
    api: RunningApi, payer: Visitor, fields: dict[str, str], field: str
) -> None:
    refused = await posted(payer, "/usage/keys", **fields)
    assert refused.status == 422
    assert f'id="{field}-error"' in refused.body
    assert keys(api) == []


@pytest.mark.parametrize("token", ["", "\x00", "x" * 10_000])
async def test_a_form_without_its_token_is_a_form_of_its_own(api: RunningApi, payer: Visitor, token: str) -> None:
    for _ in range(2):
        assert (await posted(payer, "/usage/keys", label="x", token=token)).status == 201
    assert len(keys(api)) == 2


async def test_what_is_no_form_changes_nothing(api: RunningApi, payer: Visitor) -> None:
    many = await posted(payer, "/usage/keys", label="x", **{f"field{number}": "1" for number in range(30)})
    assert (many.status, many.code) == (422, "INVALID_INPUT")
    assert keys(api) == []
    assert (await posted(payer, "/usage/keys", label="x")).status == 201
    [(key_id, _, _)] = keys(api)
    refused = await posted(payer, f"/usage/keys/{key_id}/rotate", overlap="1")
    assert refused.status == 422
    assert "Overlap: expected one of 0, 3600, 86400, 604800 seconds" in refused.body
    assert len(keys(api)) == 1


async def test_text_of_users_is_text(payer: Visitor) -> None:
    label = '<script>alert(1)</script>"'
    made = await posted(payer, "/usage/keys", label=label, token=str(uuid4()))
    assert made.status == 201
    assert "<script>alert" not in made.body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made.body


async def test_a_positional_address_of_the_page_that_is_wrong_leads_back_to_it(payer: Visitor) -> None:
    for path in ("/usage?cursor=nonsense", "/usage/by-day.csv?from=never"):
        reply = await payer.get(path, allow_redirects=False)
        assert (reply.status, reply.headers["Location"]) == (303, "/usage")
    assert (await payer.get("/usage?from=never")).status == 422
    assert (await payer.get("/usage/by-account.csv")).status == 422


async def test_too_many_changes_are_said_on_the_page(engine: Engine) -> None:
    async with running_api(engine, RATE_LIMIT_KEYS_PER_ACCOUNT="1") as api, api.visitor(payer_wallets()[0]) as payer:
        assert (await posted(payer, "/usage/keys", label="One")).status == 201
        refused = await posted(payer, "/usage/keys", label="Two")
        assert refused.status == 429
        assert "Too many keys; try again in" in refused.body
        assert 'value="Two"' in refused.body
