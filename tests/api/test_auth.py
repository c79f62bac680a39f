"""Signing in with a wallet: what works, and everything that must not."""

from __future__ import annotations

import asyncio
import hashlib
import re
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import pytest

from chain.addresses import checksum_address
from devstack.chain import dev_wallets, payer_wallets
from tests.support.api import RunningApi, first_wallet, running_api, sign
from tests.support.engine import Engine
from tests.support.smart_wallets import SIGNING_ON_CHAIN, put_contract, sign_on_chain, wrap_with_factory
from tests.support.sql import query, scalar

LOGIN = "/api/v1/auth/login"
SESSION = "/api/v1/auth/session"
ALICE, BOB = payer_wallets()[:2]


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


async def test_the_message_binds_domain_address_chain_nonce_and_time(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address.lower())
    issued, expires = (datetime.fromisoformat(challenge[name]) for name in ("issuedAt", "expiresAt"))
    assert expires - issued == timedelta(minutes=5)
    assert challenge["message"] == (
        f"{urlsplit(api.url).netloc} wants you to sign in with your Ethereum account:\n"
        f"{ALICE.address}\n\n"
        "Sign in to Cogni. This costs nothing and moves no money.\n\n"
        f"URI: {api.url}\n"
        "Version: 1\n"
        f"Chain ID: {api.engine.chain.chain_id}\n"
        f"Nonce: {challenge['nonce']}\n"
        f"Issued At: {issued:%Y-%m-%dT%H:%M:%SZ}\n"
        f"Expiration Time: {expires:%Y-%m-%dT%H:%M:%SZ}"
    )
    assert re.fullmatch(r"[0-9A-Za-z]{24}", challenge["nonce"])


async def test_a_first_login_opens_user_account_and_key(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        session = await visitor.sign_in(ALICE)
        assert (await visitor.get(SESSION)).body == session
    assert session["address"] == ALICE.address
    opened = query(
        api.engine.database.superuser_url,
        "SELECT u.id, b.id, k.is_default FROM users u JOIN billing_accounts b ON b.owner_user_id = u.id"
        " JOIN virtual_keys k ON k.billing_account_id = b.id WHERE u.wallet_address = %s",
        ALICE.address,
    )
    assert opened == [(session["userId"], session["billingAccountId"], True)]


async def test_ten_first_logins_at_once_open_one_account(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenges = [await visitor.challenge(ALICE.address) for _ in range(10)]
        replies = await asyncio.gather(
            *(visitor.log_in(found["nonce"], sign(ALICE, found["message"])) for found in challenges)
        )
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body["billingAccountId"] for reply in replies}) == 1
    assert scalar(api.engine.database.superuser_url, "SELECT count(*) FROM users WHERE wallet_address IS NOT NULL") == 1


async def test_the_message_itself_names_the_challenge_as_well(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        body = {"message": challenge["message"], "signature": sign(ALICE, challenge["message"])}
        assert (await visitor.post(LOGIN, body)).status == 200


async def test_a_message_that_differs_by_a_byte_names_none(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        altered = challenge["message"].replace("moves no money", "moves nx money")
        for body in ({"message": altered}, {"message": altered, "nonce": challenge["nonce"]}):
            refused = await visitor.post(LOGIN, {**body, "signature": sign(ALICE, altered)})
            assert (refused.status, refused.code) == (401, "SIGN_IN_REFUSED")


async def test_a_login_needs_a_challenge(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        refused = await visitor.post(LOGIN, {"signature": "0x" + "00" * 65})
        assert (refused.status, refused.body["errors"][0]["field"]) == (422, "nonce")


# -- attacks ---------------------------------------------------------------------------------------------------------


async def test_another_wallets_nonce_does_not_sign_in(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        refused = await visitor.log_in(challenge["nonce"], sign(BOB, challenge["message"]))
        assert (refused.status, refused.code) == (401, "SIGN_IN_REFUSED")
        assert (await visitor.get(SESSION)).status == 401
        # Who was attacked still can.
        assert (await visitor.log_in(challenge["nonce"], sign(ALICE, challenge["message"]))).status == 200


async def test_a_login_cannot_be_replayed(api: RunningApi) -> None:
    async with api.visitor() as visitor, api.visitor() as attacker:
        challenge = await visitor.challenge(ALICE.address)
        signature = sign(ALICE, challenge["message"])
        assert (await visitor.log_in(challenge["nonce"], signature)).status == 200
        replayed = await attacker.log_in(challenge["nonce"], signature)
        assert (replayed.status, replayed.code) == (401, "SIGN_IN_REFUSED")
        assert (await attacker.get(SESSION)).status == 401


async def test_a_nonce_used_twenty_times_at_once_lets_one_in(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        signature = sign(ALICE, challenge["message"])
        replies = await asyncio.gather(*(visitor.log_in(challenge["nonce"], signature) for _ in range(20)))
    assert sorted(reply.status for reply in replies) == [200] + [401] * 19
    assert scalar(api.engine.database.superuser_url, "SELECT count(*) FROM sessions") == 1


async def test_a_login_for_another_domain_is_worth_nothing_here(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        elsewhere = challenge["message"].replace(urlsplit(api.url).netloc, "evil.example")
        refused = await visitor.log_in(challenge["nonce"], sign(ALICE, elsewhere))
        assert (refused.status, refused.code) == (401, "SIGN_IN_REFUSED")


async def test_a_login_for_another_chain_is_worth_nothing_here(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        elsewhere = re.sub(r"Chain ID: \d+", "Chain ID: 1", challenge["message"])
        refused = await visitor.log_in(challenge["nonce"], sign(ALICE, elsewhere))
        assert (refused.status, refused.code) == (401, "SIGN_IN_REFUSED")


async def test_a_challenge_lives_for_minutes_and_no_longer(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        age(api, "login_challenges", "5 minutes")
        late = await visitor.log_in(challenge["nonce"], sign(ALICE, challenge["message"]))
        assert (late.status, late.code) == (401, "SIGN_IN_REFUSED")


async def test_a_session_that_was_planted_before_the_login_is_not_the_one_after_it(api: RunningApi) -> None:
    async with api.visitor() as visitor, api.visitor(BOB) as attacker:
        planted = attacker.cookie
        visitor.cookie = planted
        await visitor.sign_in(ALICE)
        assert visitor.cookie != planted
        # The session that the attacker planted has ended, and never was Alice's.
        assert (await attacker.get(SESSION)).status == 401


async def test_a_token_of_ones_own_making_is_nobodys(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        for token in ("", "x", "a" * 43, "a" * 5_000, "ümlaut"):
            visitor.session.cookie_jar.clear()
            reply = await visitor.get(SESSION, headers={"Cookie": f"{visitor.cookie_name}={token}"})
            assert (reply.status, reply.code) == (401, "UNAUTHENTICATED"), token


async def test_the_database_does_not_know_the_cookies_value(api: RunningApi) -> None:
    async with api.visitor(ALICE) as visitor:
        token = visitor.cookie
    kept = [bytes(row[0]) for row in query(api.engine.database.superuser_url, "SELECT token_hash FROM sessions")]
    assert hashlib.sha256(token.encode()).digest() in kept
    assert {len(one) for one in kept} == {32}


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        reply = await visitor.log_in(challenge["nonce"], sign(ALICE, challenge["message"]))
    header = reply.headers["Set-Cookie"]
    assert re.fullmatch(r"settle_session_\d+=[\w-]{43}; HttpOnly; Max-Age=86400; Path=/; SameSite=lax", header), header


async def test_over_tls_the_cookie_is_bound_to_this_host(engine: Engine) -> None:
    async with running_api(engine, API_URL="https://pay.example.com") as api, api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        reply = await visitor.log_in(challenge["nonce"], sign(ALICE, challenge["message"]))
    header = reply.headers["Set-Cookie"]
    assert re.fullmatch(
        r"__Host-settle_session=[\w-]{43}; HttpOnly; Max-Age=86400; Path=/; SameSite=lax; Secure", header
    ), header
    assert reply.headers["Strict-Transport-Security"] == "max-age=31536000"


async def test_a_new_login_ends_the_session_before_it(api: RunningApi) -> None:
    async with api.visitor(ALICE) as visitor, api.visitor() as thief:
        thief.cookie = visitor.cookie
        assert (await thief.get(SESSION)).status == 200
        await visitor.sign_in(ALICE)
        assert (await thief.get(SESSION)).status == 401
        assert (await visitor.get(SESSION)).status == 200


async def test_signing_out_ends_this_session_and_no_other(api: RunningApi) -> None:
    async with api.visitor(ALICE) as roles, api.visitor(ALICE) as phone:
        token = roles.cookie
        reply = await roles.post("/api/v1/auth/logout")
        assert reply.status == 204
        assert "Max-Age=0" in reply.headers["Set-Cookie"]
        roles.cookie = token
        assert (await roles.get(SESSION)).status == 401
        assert (await phone.get(SESSION)).status == 200


async def test_signing_out_everywhere_ends_all_of_ones_own(api: RunningApi) -> None:
    async with api.visitor(ALICE) as roles, api.visitor(ALICE) as phone, api.visitor(BOB) as stranger:
        assert (await roles.post("/api/v1/auth/logout", {"everywhere": True})).status == 204
        assert (await phone.get(SESSION)).status == 401
        assert (await stranger.get(SESSION)).status == 200


async def test_signing_out_without_a_session_changes_nothing(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        assert (await visitor.post("/api/v1/auth/logout")).status == 204


async def test_a_session_ends_by_itself(api: RunningApi) -> None:
    async with api.visitor(ALICE) as visitor:
        age(api, "sessions", "1 day")
        assert (await visitor.get(SESSION)).status == 401


# -- smart wallets ---------------------------------------------------------------------------------------------------


async def test_a_deployed_smart_wallet_signs_in_and_pays(api: RunningApi) -> None:
    chain = api.engine.chain
    owner = ALICE
    address = await chain.deploy_smart_wallet(owner.address)
    async with api.visitor() as visitor, api.engine.worker():
        challenge = await visitor.challenge(address)
        session = await visitor.log_in(challenge["nonce"], sign(owner, challenge["message"]))
        assert (session.status, session.body["address"]) == (200, address), session.body
        intent = await visitor.intent(1_000)
        await chain.mint(address, intent["amountRaw"])
        sent = await chain.pay_from_smart_wallet(owner.private_key, intent["to"], intent["amountRaw"])
        await chain.mine(2)
        assert (await visitor.submit(intent["attemptId"], sent)).status == 202
        assert (await visitor.ends(intent["attemptId"]))["status"] == "CREDITED"
        await api.engine.result(intent["attemptId"])
        summary = (await visitor.get("/api/v1/payments/credits/summary")).body
    assert summary["balanceCredits"] == 100_000_000
    assert await api.engine.books() == []


async def test_a_smart_wallet_that_is_not_deployed_yet_signs_in(api: RunningApi) -> None:
    chain = api.engine.chain
    owner = dev_wallets()[7]
    await chain.deploy_smart_wallet_factory()
    address = chain.smart_wallet_address(owner.address)
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(address)
        signature = wrap_with_factory(chain, owner.address, sign(owner, challenge["message"]))
        session = await visitor.log_in(challenge["nonce"], signature)
    assert (session.status, session.body["address"]) == (200, address), session.body


async def test_a_wallet_whose_owners_sign_on_the_chain_signs_in_when_they_have(api: RunningApi) -> None:
    chain = api.engine.chain
    address = checksum_address(await put_contract(chain, 0x5AFE, SIGNING_ON_CHAIN))
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(address)
        early = await visitor.log_in(challenge["nonce"], "0x")
        assert (early.status, early.code) == (401, "SIGN_IN_REFUSED")
        await sign_on_chain(chain, ALICE.private_key, address, challenge["message"])
        session = await visitor.log_in(challenge["nonce"], "0x")
        assert (session.status, session.body["address"]) == (200, address), session.body
        assert (await visitor.log_in(challenge["nonce"], "0x")).status == 401, "a challenge is good once"


async def test_an_empty_signature_of_a_wallet_with_a_key_is_a_wrong_one(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(ALICE.address)
        refused = await visitor.log_in(challenge["nonce"], "0x")
        assert (refused.status, refused.code) == (401, "SIGN_IN_REFUSED")
        for malformed in ("", "0X", "0x1", "0x 12", " 0x", "0x\n", "0xzz", "0x" + "00" * 9000, "0x" + "00" * 10_001):
            answer = await visitor.log_in(challenge["nonce"], malformed)
            assert (answer.status, answer.code) == (422, "INVALID_INPUT"), malformed


async def test_a_smart_wallets_owner_is_the_only_one_who_signs_for_it(api: RunningApi) -> None:
    address = await api.engine.chain.deploy_smart_wallet(ALICE.address)
    async with api.visitor() as visitor:
        challenge = await visitor.challenge(address)
        refused = await visitor.log_in(challenge["nonce"], sign(BOB, challenge["message"]))
    assert (refused.status, refused.code) == (401, "SIGN_IN_REFUSED")


async def test_a_smart_wallets_challenge_outlives_a_chain_that_is_down(engine: Engine) -> None:
    address = await engine.chain.deploy_smart_wallet(ALICE.address)
    async with running_api(engine, CHAIN_RPC_URLS="http://127.0.0.1:1") as cut_off, cut_off.visitor() as visitor:
        challenge = await visitor.challenge(address)
        signature = sign(ALICE, challenge["message"])
        refused = await visitor.log_in(challenge["nonce"], signature)
        assert (refused.status, refused.code) == (503, "CHAIN_UNAVAILABLE")
        assert refused.headers["Retry-After"]
        async with running_api(engine) as api, api.visitor() as again:
            assert (await again.log_in(challenge["nonce"], signature)).status == 200


async def test_a_wallet_with_a_key_signs_in_while_the_chain_is_down(engine: Engine) -> None:
    async with running_api(engine, CHAIN_RPC_URLS="http://127.0.0.1:1") as api, api.visitor(first_wallet()) as visitor:
        assert (await visitor.get(SESSION)).status == 200


def age(api: RunningApi, table: str, by: str) -> None:
    """Let all rows of a table be older."""
    query(
        api.engine.database.superuser_url, f"UPDATE {table} SET expires_at = expires_at - %s::interval RETURNING 1", by
    )
