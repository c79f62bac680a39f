"""The Usage page's forms past the browser: other sites, other accounts' keys, limits, what is no form."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import pytest

from devstack.chain import payer_wallets
from tests.support.api import Reply, RunningApi, Visitor, running_api
from tests.support.engine import Engine
from tests.support.spending import Spender
from tests.support.sql import connect, query


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


# -- an organization's


async def account_of(visitor: Visitor) -> tuple[str, str]:
    """The user's and the account's id."""
    session = (await visitor.get("/api/v1/auth/session")).body
    return session["userId"], session["billingAccountId"]


async def organization_of(api: RunningApi, visitor: Visitor, *, role: str = "owner") -> Spender:
    """An organization in which the visitor has this role, with a key that has spent 77 credits."""
    user, _ = await account_of(visitor)
    found = Spender(api.engine.database, f"lab-{uuid4()}")
    owner = user if role == "owner" else "cogni_system_principal"
    with connect(found.database.service_url) as service:
        service.execute("SELECT open_account(%s, %s, 'organization', NULL, 'Lab & <b>Co</b>')", (found.account, owner))
        service.execute(
            "INSERT INTO account_members (billing_account_id, user_id, role) VALUES (%s, %s, %s)"
            " ON CONFLICT (billing_account_id, user_id) DO NOTHING",
            (found.account, user, role),
        )
    found.create_key()
    found.add_credits(1_000_000)
    found.capture(found.hold(model="model-of-the-lab"), 77)
    return found


async def test_who_manages_an_organization_chooses_it_and_sees_its_usage(api: RunningApi, payer: Visitor) -> None:
    lab = await organization_of(api, payer, role="admin")
    own = await payer.get("/usage")
    assert f'<option value="{lab.account}">Lab &amp; &lt;b&gt;Co&lt;/b&gt;</option>' in own.body
    assert "model-of-the-lab" not in own.body
    shown = await payer.get(f"/usage?account={lab.account}")
    assert shown.status == 200
    for text in ("model-of-the-lab", "Balance of Lab &amp;", 'id="member-title"', f"key-{lab.key_id}", "999,923"):
        assert text in shown.body, text
    # Links keep the account.
    links = re.findall(r'href="(/usage[^"#]*)', shown.body)
    assert links
    assert all(f"account={lab.account}" in link for link in links if "?" in link)
    # So do the forms: a new key, rotation, revocation.
    assert shown.body.count(f'type="hidden" name="account" value="{lab.account}"') == 3
    report = await payer.get(f"/usage/by-model.csv?account={lab.account}")
    assert "model-of-the-lab" in report.body
    assert "model-of-the-lab" not in (await payer.get("/usage/by-model.csv")).body


@pytest.mark.parametrize("role", ["member", None])
async def test_an_organization_is_not_there_for_who_does_not_manage_it(
    api: RunningApi, payer: Visitor, role: str | None
) -> None:
    async with api.visitor(payer_wallets()[1]) as stranger:
        lab = await organization_of(api, payer)
        if role is not None:
            user, _ = await account_of(stranger)
            with connect(api.engine.database.service_url) as service:
                service.execute("INSERT INTO account_members VALUES (%s, %s, %s)", (lab.account, user, role))
        for path in (f"/usage?account={lab.account}", f"/usage/by-day.csv?account={lab.account}"):
            refused = await stranger.get(path)
            assert (refused.status, refused.code) == (404, "ACCOUNT_NOT_FOUND")
        made = await posted(stranger, "/usage/keys", label="Mine", account=lab.account)
        assert (made.status, made.code) == (404, "ACCOUNT_NOT_FOUND")
        revoked = await posted(stranger, f"/usage/keys/{lab.key_id}/revoke", account=lab.account)
        assert revoked.status == 404
        assert "<select" not in (await stranger.get("/usage")).body.split('id="keys"')[0]
    assert keys(api) == [(lab.key_id, "test", False)]


async def test_an_organizations_keys_are_made_rotated_and_revoked_on_its_page(api: RunningApi, payer: Visitor) -> None:
    lab = await organization_of(api, payer)
    made = await posted(payer, "/usage/keys", label="Agent", account=lab.account)
    assert made.status == 201
    assert "Balance of Lab" in made.body
    of = "SELECT id, billing_account_id, created_by_user_id FROM virtual_keys WHERE label = 'Agent' ORDER BY created_at"
    [(key_id, account, maker)] = query(api.engine.database.service_url, of)
    assert (account, maker) == (lab.account, (await account_of(payer))[0])
    rotated = await posted(payer, f"/usage/keys/{key_id}/rotate", overlap="0", account=lab.account)
    assert rotated.status == 201
    assert "Balance of Lab" in rotated.body
    [_, (second, account, _)] = query(api.engine.database.service_url, of)
    assert account == lab.account
    revoked = await posted(payer, f"/usage/keys/{second}/revoke", account=lab.account)
    assert (revoked.status, revoked.headers["Location"]) == (303, f"/usage?done=revoked&account={lab.account}#keys")


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
    assert "Overlap: expected" in refused.body
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
        assert "Too many keys" in refused.body
        assert 'value="Two"' in refused.body
