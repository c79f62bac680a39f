"""Requests that are malformed, hostile or too many: a 4xx that says what is wrong, never a 5xx."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.http.problems import KINDS
from api.pages.static_files import address_of, fingerprint
from devstack.chain import payer_wallets
from tests.support.api import RunningApi, Visitor, first_wallet, running_api
from tests.support.engine import Engine
from tests.support.sql import connect, query, scalar

INTENTS = "/api/v1/payments/intents"
CHALLENGE = "/api/v1/auth/challenge"
HASH = "0x" + "5e" * 32
ALICE, BOB = payer_wallets()[:2]

AMOUNTS = {
    "negative": "-1",
    "zero": "0",
    "below the least": "99",
    "above the most": "1000001",
    "a fraction": "100.5",
    "a whole number written as a fraction": "100.0",
    "an exponent": "1e3",
    "beyond every float": "1e400",
    "huge": "9" * 400,
    "beyond a bigint": str(2**63),
    "a boolean": "true",
    "a string": '"2500"',
    "null": "null",
    "a list": "[2500]",
    "an object": '{"cents": 2500}',
}


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


@pytest.mark.slow(but=4)
@pytest.mark.parametrize("amount", AMOUNTS.values(), ids=AMOUNTS.keys())
async def test_a_malformed_amount_is_named(payer: Visitor, amount: str) -> None:
    reply = await raw(payer, INTENTS, f'{{"amountUsdCents": {amount}}}')
    assert (reply.status, reply.code) == (422, "INVALID_INPUT"), reply.body
    assert [error["field"] for error in reply.body["errors"]] == ["amountUsdCents"]


async def test_what_json_has_no_number_for_is_named_too(payer: Visitor) -> None:
    for constant in ("NaN", "Infinity", "-Infinity"):
        reply = await raw(payer, INTENTS, f'{{"amountUsdCents": {constant}}}')
        assert (reply.status, reply.code) == (422, "INVALID_INPUT"), constant
        assert [error["field"] for error in reply.body["errors"]] == ["amountUsdCents"], constant


async def test_a_body_of_another_shape_is_named(payer: Visitor) -> None:
    for body, field in (("{}", "amountUsdCents"), ("[]", "body"), ('"x"', "body"), ("7", "body")):
        reply = await raw(payer, INTENTS, body)
        assert (reply.status, reply.body["errors"][0]["field"]) == (422, field), body


async def test_an_unknown_purpose_is_named(payer: Visitor) -> None:
    for purpose in ('"SELF"', '"other"', "null", "1", '["self"]'):
        reply = await raw(payer, INTENTS, f'{{"amountUsdCents": 500, "purpose": {purpose}}}')
        assert (reply.status, reply.body["errors"][0]["field"]) == (422, "purpose"), purpose


async def test_a_misspelt_purpose_does_not_quietly_buy(api: RunningApi, payer: Visitor) -> None:
    reply = await payer.post(INTENTS, {"amountUsdCents": 500, "purposes": "system"})
    assert (reply.status, reply.body["errors"][0]["field"]) == (422, "purposes")
    assert scalar(api.engine.database.service_url, "SELECT count(*) FROM payment_attempts") == 0


@pytest.mark.slow(but=3)
@pytest.mark.parametrize(
    "body", ["", "{", "nul", b"\xff\xfe", b"\x00", '{"amountUsdCents": 500', "[" * 60_000, '{"a":' * 9_000]
)
async def test_a_body_that_is_no_json_is_refused(payer: Visitor, body: str | bytes) -> None:
    reply = await raw(payer, INTENTS, body)
    assert reply.status in {400, 422}, reply.body
    assert reply.body["errors"][0]["field"] == "body"


async def test_another_media_type_is_refused(payer: Visitor) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "", "application/xml"):
        reply = await raw(payer, INTENTS, '{"amountUsdCents": 500}', media_type=media_type)
        assert (reply.status, reply.code) == (415, "UNSUPPORTED_MEDIA_TYPE"), media_type


async def test_a_body_that_is_too_large_is_refused(payer: Visitor) -> None:
    reply = await raw(payer, INTENTS, json.dumps({"amountUsdCents": 500, "x": "y" * 70_000}))
    assert (reply.status, reply.code) == (413, "BODY_TOO_LARGE")


async def test_also_when_it_does_not_say_how_large_it_is(payer: Visitor) -> None:
    async def stream() -> Any:
        for _ in range(100):
            yield b" " * 1_000

    reply = await payer.post(INTENTS, data=stream(), headers={"Content-Type": "application/json"})
    assert (reply.status, reply.code) == (413, "BODY_TOO_LARGE")


HASHES: dict[str, Any] = {
    "too short": "0x" + "5e" * 31,
    "too long": "0x" + "5e" * 33,
    "without 0x": "5e" * 32,
    "no hex": "0x" + "zz" * 32,
    "other digits": "0x" + "٣" * 64,
    "a line more": HASH + "\n",
    "empty": "",
    "a number": 7,
    "null": None,
    "a list": [HASH],
    "a megabyte would be": "0x" + "5" * 50_000,
}


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("tx_hash", HASHES.values(), ids=HASHES.keys())
async def test_a_malformed_hash_is_named(payer: Visitor, tx_hash: object) -> None:
    intent = await payer.intent()
    reply = await payer.post(f"/api/v1/payments/attempts/{intent['attemptId']}/submit", {"txHash": tx_hash})
    assert (reply.status, reply.code) == (422, "INVALID_INPUT")
    assert [error["field"] for error in reply.body["errors"]] == ["txHash"]


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("attempt_id", ["1", "x", "%00", "..%2f", "0" * 5_000, "'; DROP TABLE users; --"])
async def test_a_malformed_id_is_named(payer: Visitor, attempt_id: str) -> None:
    for reply in (
        await payer.get(f"/api/v1/payments/attempts/{attempt_id}"),
        await payer.get(f"/api/v1/payments/attempts/{attempt_id}/events"),
        await payer.submit(attempt_id, HASH),
    ):
        assert reply.status in {404, 422}, reply.body
        if reply.status == 422:
            assert reply.body["errors"][0]["field"] == "id"


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("query_string", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("limit=1e400", "limit"),
    ],
)
async def test_a_malformed_page_is_named(payer: Visitor, query_string: str, field: str) -> None:
    for path in ("/api/v1/payments/credits/summary", "/api/v1/payments/attempts"):
        reply = await payer.get(f"{path}?{query_string}")
        assert (reply.status, reply.body["errors"][0]["field"]) == (422, field)


ADDRESSES: dict[str, Any] = {
    "empty": "",
    "short": "0x1234",
    "a mistyped digit": "0x70997970C51812dc3A010C7d01b50e0d17dc79C9",
    "a name": "vitalik.eth",
    "a number": 7,
    "null": None,
}


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
async def test_a_malformed_address_is_named(api: RunningApi, address: object) -> None:
    async with api.visitor() as visitor:
        reply = await visitor.post(CHALLENGE, {"address": address})
    assert (reply.status, reply.body["errors"][0]["field"]) == (422, "address")


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("signature", ["", "0x1", "zz", "0x" + "00" * 9_000, 7, None])
async def test_a_malformed_signature_is_named(api: RunningApi, signature: object) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        reply = await visitor.post("/api/v1/auth/login", {"nonce": challenge["nonce"], "signature": signature})
    assert (reply.status, reply.body["errors"][0]["field"]) == (422, "signature")


async def test_a_message_with_a_nul_is_named(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        reply = await visitor.post("/api/v1/auth/login", {"message": "a\0b", "signature": "0x1111"})
    assert (reply.status, reply.body["errors"][0]["field"]) == (422, "message")


# -- whose account ---------------------------------------------------------------------------------------------------


async def test_anothers_attempt_is_not_there(api: RunningApi, payer: Visitor) -> None:
    intent = await payer.intent()
    attempt_id = intent["attemptId"]
    async with api.visitor(BOB) as stranger:
        replies = [
            await stranger.get(f"/api/v1/payments/attempts/{attempt_id}"),
            await stranger.get(f"/api/v1/payments/attempts/{attempt_id}/events"),
            await stranger.submit(attempt_id, HASH),
        ]
        nowhere = await stranger.get(f"/api/v1/payments/attempts/{uuid4()}")
        assert (await stranger.get("/api/v1/payments/attempts")).body["attempts"] == []
    assert {(reply.status, reply.code) for reply in [*replies, nowhere]} == {(404, "ATTEMPT_NOT_FOUND")}
    assert (await payer.status(attempt_id))["status"] == "CREATED_INTENT"


async def test_an_account_in_the_body_is_refused_by_name(api: RunningApi, payer: Visitor) -> None:
    async with api.visitor(BOB) as victim:
        session = (await victim.get("/api/v1/auth/session")).body
    for name in ("billingAccountId", "billing_account_id", "userId", "fromAddress", "accountId"):
        forged = await payer.post(INTENTS, {"amountUsdCents": 500, name: session["billingAccountId"]})
        assert (forged.status, forged.body["errors"][0]["field"]) == (422, name)
    assert scalar(api.engine.database.service_url, "SELECT count(*) FROM payment_attempts") == 0


NO_ATTEMPT = "11111111-2222-4333-8444-555555555555"
PROTECTED = (
    ("GET", "/api/v1/auth/session"),
    ("POST", INTENTS),
    ("POST", f"/api/v1/payments/attempts/{NO_ATTEMPT}/submit"),
    ("GET", f"/api/v1/payments/attempts/{NO_ATTEMPT}"),
    ("GET", f"/api/v1/payments/attempts/{NO_ATTEMPT}/events"),
    ("GET", "/api/v1/payments/attempts"),
    ("GET", "/api/v1/payments/credits/summary"),
)


async def test_nothing_is_served_without_a_session(api: RunningApi) -> None:
    for method, path in PROTECTED:
        async with api.visitor() as visitor:
            body = {"amountUsdCents": 500} if path == INTENTS else {"txHash": HASH} if method == "POST" else None
            reply = await visitor.call(method, path, body)
        assert (reply.status, reply.code) == (401, "UNAUTHENTICATED"), (method, path)


# -- from another site -----------------------------------------------------------------------------------------------

POSTS = (INTENTS, CHALLENGE, "/api/v1/auth/login", "/api/v1/auth/logout", "/credits/sign-out")
FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "garbage"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "{own}"},
)


async def test_another_sites_page_changes_nothing(api: RunningApi, payer: Visitor) -> None:
    for headers, path in itertools.product(FOREIGN, POSTS):
        sent = {name: value.replace("{own}", api.url) for name, value in headers.items()}
        reply = await payer.post(path, {"amountUsdCents": 500}, headers=sent)
        assert (reply.status, reply.code) == (403, "CROSS_SITE_REQUEST"), (headers, path)
    assert scalar(api.engine.database.service_url, "SELECT count(*) FROM payment_attempts") == 0
    assert (await payer.get("/api/v1/auth/session")).status == 200


async def test_our_own_page_may(api: RunningApi, payer: Visitor) -> None:
    for headers in ({"Origin": api.url}, {"Sec-Fetch-Site": "same-origin"}, {}):
        assert (await payer.post(INTENTS, {"amountUsdCents": 500}, headers=headers)).status == 201


# -- too many --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_of_a_thousand_intents_most_are_refused_with_a_retry_after(engine: Engine) -> None:
    async with running_api(engine, RATE_LIMIT_INTENTS_PER_ACCOUNT="60") as api, api.visitor(first_wallet()) as payer:
        replies = []
        for _ in range(20):
            replies += await asyncio.gather(*(payer.post(INTENTS, {"amountUsdCents": 500}) for _ in range(50)))
        refused = [reply for reply in replies if reply.status == 429]
        made = [reply for reply in replies if reply.status == 201]
        assert len(refused) + len(made) == 1_000
        # A minute's worth at once, and what came back while the thousand were on their way.
        assert 60 <= len(made) <= 100
        assert {reply.code for reply in refused} == {"RATE_LIMITED"}
        assert all(1 <= int(reply.headers["Retry-After"]) <= 60 for reply in refused)
        async with api.visitor(BOB) as other:
            assert (await other.intent())["attemptId"], "one account's flood is not another's"


async def test_two_processes_share_the_limits(engine: Engine) -> None:
    limit = {"RATE_LIMIT_INTENTS_PER_ACCOUNT": "3"}
    async with (
        running_api(engine, **limit) as one,
        running_api(engine, **limit) as two,
        one.visitor(ALICE) as here,
        two.visitor(ALICE) as there,
    ):
        statuses = [(await here.post(INTENTS, {"amountUsdCents": 500})).status for _ in range(2)]
        statuses += [(await there.post(INTENTS, {"amountUsdCents": 500})).status for _ in range(2)]
    assert statuses == [201, 201, 201, 429]


async def test_accounts_of_one_address_share_its_limit(engine: Engine) -> None:
    async with running_api(engine, RATE_LIMIT_INTENTS_PER_ADDRESS="3") as api:
        statuses = []
        for wallet in payer_wallets()[:4]:
            async with api.visitor(wallet) as visitor:
                statuses.append((await visitor.post(INTENTS, {"amountUsdCents": 500})).status)
    assert statuses == [201, 201, 201, 429]


async def test_logins_and_submissions_are_limited_too(engine: Engine) -> None:
    limits = {"RATE_LIMIT_LOGINS_PER_ADDRESS": "4", "RATE_LIMIT_SUBMITS_PER_ACCOUNT": "2"}
    async with engine.worker(), running_api(engine, **limits) as api, api.visitor(ALICE) as payer:
        intent = await payer.intent()
        submits = [(await payer.submit(intent["attemptId"], HASH)).status for _ in range(3)]
        challenges = [(await payer.post(CHALLENGE, {"address": ALICE.address})).status for _ in range(3)]
    assert submits == [202, 202, 429]
    assert challenges == [200, 200, 429], "signing in took two of the four"


async def test_only_the_wallets_owner_uses_up_its_logins(engine: Engine) -> None:
    async with running_api(engine, RATE_LIMIT_LOGINS_PER_ACCOUNT="1") as api, api.visitor() as visitor:
        for _ in range(3):
            challenge = await visitor.challenge(ALICE.address)
            assert (await visitor.log_in(challenge["nonce"], "0x" + "11" * 65)).status == 401
        await visitor.sign_in(ALICE)
        challenge = await visitor.challenge(ALICE.address)
        limited = await visitor.log_in(challenge["nonce"], "0x" + "11" * 65)
        assert limited.status == 401


async def test_a_forwarded_address_is_believed_from_a_named_proxy_only(engine: Engine) -> None:
    forwarded = [{"X-Forwarded-For": f"203.0.113.{number}"} for number in range(1, 4)]
    for proxies, expected in (("", [200, 200, 429]), ("127.0.0.0/8", [200, 200, 200])):
        with connect(engine.database.superuser_url) as superuser:
            superuser.execute("TRUNCATE rate_limits")
        limits = {"RATE_LIMIT_LOGINS_PER_ADDRESS": "2", "TRUSTED_PROXIES": proxies}
        async with running_api(engine, **limits) as api, api.visitor() as visitor:
            replies = [await visitor.post(CHALLENGE, {"address": ALICE.address}, headers=sent) for sent in forwarded]
        assert [reply.status for reply in replies] == expected


async def test_what_a_client_adds_in_front_of_the_proxys_word_changes_nothing(engine: Engine) -> None:
    limits = {"RATE_LIMIT_LOGINS_PER_ADDRESS": "2", "TRUSTED_PROXIES": "127.0.0.1"}
    async with running_api(engine, **limits) as api, api.visitor() as visitor:
        headers = [{"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.7"} for number in range(3)]
        replies = [await visitor.post(CHALLENGE, {"address": ALICE.address}, headers=sent) for sent in headers]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert query(
        engine.database.superuser_url, "SELECT bucket FROM rate_limits WHERE bucket LIKE %s", "logins:address:%"
    ) == [("logins:address:203.0.113.7",)]


# -- headers and answers ---------------------------------------------------------------------------------------------


async def test_every_answer_carries_the_security_headers(payer: Visitor) -> None:
    for path in ("/credits", "/api/v1/auth/session", "/nowhere", "/static/credits.css", "/readyz"):
        headers = (await payer.get(path)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "server" not in {name.lower() for name in headers}


async def test_answers_about_accounts_are_not_cached(payer: Visitor) -> None:
    for path in ("/credits", "/api/v1/auth/session", "/api/v1/payments/credits/summary"):
        assert (await payer.get(path)).headers["Cache-Control"] == "no-store"


async def test_only_a_files_own_fingerprint_makes_it_immutable(payer: Visitor) -> None:
    page = (await payer.get("/credits")).body
    [address] = re.findall(r'src="(/static/credits.js[^"]*)"', page)
    kept = {path: (await payer.get(path)).headers["Cache-Control"] for path in (address, "/static/credits.js?v=newer")}
    assert kept == {address: "public, max-age=31536000, immutable", "/static/credits.js?v=newer": "no-cache"}


async def test_a_module_names_those_that_it_imports_by_their_content(payer: Visitor) -> None:
    todo = [*re.findall(r'src="(/static/[^"]+)"', (await payer.get("/credits")).body), address_of("pay.js")]
    seen: set[str] = set()
    while todo:
        seen.add(address := todo.pop())
        reply = await payer.get(address)
        assert reply.headers["Cache-Control"] == "public, max-age=31536000, immutable", address
        if ".js" in address:
            imported = re.findall(r"^(?:import|\}) .*'\./([^']+)';$", reply.body, re.MULTILINE)
            todo += {f"/static/{name}" for name in imported} - seen
    modules = {address.partition("?")[0].removeprefix("/static/") for address in seen if ".js" in address}
    assert modules == {"credits.js", "pay.js", "wallets.js", "client.js"}


def test_a_changed_module_changes_the_address_of_what_imports_it(tmp_path: Path) -> None:
    """By way of another one, too: otherwise a browser runs what it has kept, with what is new."""

    def fingerprints(changed: str) -> list[str]:
        folder = tmp_path / changed
        folder.mkdir()
        contents = {"a": "import { b } from './b.js';", "b": "export {\n  c,\n} from './c.js';", "c": "// c", "d": ""}
        for name, content in contents.items():
            (folder / f"{name}.js").write_text(content + ("//" if name == changed else ""))
        return [fingerprint(f"{name}.js", folder) for name in contents]

    before = fingerprints("none")
    for changed, differ in (("c", "abc"), ("b", "ab"), ("a", "a"), ("d", "d")):
        now = fingerprints(changed)
        assert [name for name, x, y in zip("abcd", before, now, strict=True) if x != y] == list(differ)


async def test_a_module_is_sent_again_only_when_it_has_changed(payer: Visitor) -> None:
    first = await payer.get("/static/credits.js")
    assert first.headers["Content-Type"] == "text/javascript; charset=utf-8"
    again = await payer.get("/static/credits.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, "")


async def test_an_unknown_address_and_a_wrong_method_are_problems_too(payer: Visitor) -> None:
    nowhere = await payer.get("/api/v1/nowhere")
    assert (nowhere.status, nowhere.code) == (404, "NOT_FOUND")
    wrong = await payer.get(INTENTS)
    assert (wrong.status, wrong.code, wrong.headers["Allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")
    assert wrong.body["requestId"] == wrong.headers["X-Request-ID"]


async def test_this_machines_other_names_lead_to_the_one_that_is_signed_for(api: RunningApi) -> None:
    port = api.url.rpartition(":")[2]
    async with api.visitor() as visitor:
        reply = await visitor.get("/credits", headers={"Host": f"localhost:{port}"}, allow_redirects=False)
        assert (reply.status, reply.headers["Location"]) == (307, f"{api.url}/credits")
        for host in (f"127.0.0.1:{port}", f"proxy.internal:{port}", "localhost:1", "pay.example.com"):
            assert (await visitor.get("/credits", headers={"Host": host}, allow_redirects=False)).status == 200, host


def test_each_code_stands_for_one_kind() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(codes) == len(set(codes))


async def raw(visitor: Visitor, path: str, body: str | bytes, *, media_type: str = "application/json") -> Any:
    """A POST whose body is sent as it stands."""
    return await visitor.post(path, data=body, headers={"Content-Type": media_type})
