"""Charges paid by signature: anyone with a charge's id may sign, each signature is executed once, and is a deposit."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest

from chain.transactions import TransactionCalls
from devstack.chain import SignedPayment, Wallet
from devstack.processes import wait_until
from domain.payments import x402
from tests.deposits.test_settlement import start_watch
from tests.support.api import Reply, Visitor
from tests.support.deposits import METHOD, add_method, add_ring, see_deposit
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS
from tests.support.sql import connect
from tests.topups.conftest import OTHER, PAYER, STRANGER, Till, new_key, opened_relay, payment_header, with_worker
from tests.topups.test_relay import POINTS, SLOW, Killed, kill

CENTS = 250
RAW = CENTS * 10_000


@dataclass
class Shop:
    """An account that makes charges, and visitors who have nothing but a charge's id."""

    till: Till
    visitor: Visitor

    async def charge(self, cents: int = CENTS, method: str = METHOD) -> dict[str, Any]:
        reply = await self.till.payee.post("/api/v1/charges", {"method": method, "amountUsdCents": cents})
        assert reply.status == 201, reply.body
        answer: dict[str, Any] = reply.body
        return answer

    async def read(self, charge: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.till.payee.get(f"/api/v1/charges/{charge['chargeId']}")).body
        return answer

    async def ask(self, charge: dict[str, Any], **headers: str) -> Reply:
        """What a payer is to sign, or how it stands."""
        return await self.visitor.post(f"/api/v1/charges/{charge['chargeId']}/pay", {}, headers=headers)

    async def offer(self, charge: dict[str, Any]) -> dict[str, Any]:
        reply = await self.ask(charge)
        assert reply.status == 402, reply.body
        assert json.loads(base64.b64decode(reply.headers[x402.PAYMENT_REQUIRED]))["accepts"] == reply.body["accepts"]
        offer: dict[str, Any] = reply.body
        return offer

    async def post(self, charge: dict[str, Any], offer: dict[str, Any], payment: SignedPayment, **parts: Any) -> Reply:
        return await self.ask(charge, **{x402.PAYMENT_SIGNATURE: payment_header(offer, payment, **parts)})

    async def signed(self, charge: dict[str, Any], wallet: Wallet = PAYER, **changes: Any) -> SignedPayment:
        """A payment that is kept, and nothing more."""
        offer = await self.offer(charge)
        payment = self.till.sign(offer, wallet, **changes)
        reply = await self.post(charge, offer, payment)
        assert reply.status == 202, reply.body
        return payment

    async def states(self, charge: dict[str, Any]) -> list[str]:
        return [payment["state"] for payment in (await self.read(charge))["signedPayments"]]

    async def soon(self) -> int:
        """Seconds from now on the chain: an authorization that ends then."""
        return int((await self.till.chain.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16) + 4


@pytest.fixture
async def shop(till: Till) -> AsyncIterator[Shop]:
    add_method(till.engine.database, address=till.chain.token_address)
    async with till.api.visitor() as visitor:
        yield Shop(till, visitor)


async def credited(shop: Shop, charge: dict[str, Any]) -> dict[str, Any]:
    """The charge, once it is paid: worker and watcher at work, and the chain goes on."""
    seen: list[dict[str, Any]] = []

    async def is_paid() -> bool:
        await shop.till.chain.mine(1)
        seen.append(await shop.read(charge))
        return bool(seen[-1]["status"] == "paid")

    await wait_until(is_paid, timeout_seconds=PATIENCE_SECONDS, what="paid charge")
    return seen[-1]


@with_worker
async def test_what_a_stranger_signs_becomes_a_deposit_and_the_same_signature_the_same_answer(shop: Shop) -> None:
    till = shop.till
    charge = await shop.charge()
    offer = await shop.offer(charge)
    assert offer["authorization"]["message"]["to"] == charge["address"]
    await till.relay.run_once()
    assert 'id="sign"' in (await shop.visitor.get(f"/pay/{charge['chargeId']}")).body
    payment = till.sign(offer, PAYER)
    answers = [await shop.post(charge, offer, payment) for _ in range(2)]
    assert [answer.status for answer in answers] == [202, 202]
    assert answers[0].body == answers[1].body
    assert answers[0].body["payment"] == {
        "payer": PAYER.address,
        "nonce": "0x" + payment.nonce.hex(),
        "amountRaw": RAW,
        "validBefore": answers[0].body["payment"]["validBefore"],
        "state": "claimed",
        "txHash": None,
    }
    assert (await shop.ask(charge)).status == 202, "never 402 while it is on its way"
    assert 'id="sign"' not in (await shop.visitor.get(f"/pay/{charge['chargeId']}")).body
    async with till.engine.worker():
        await start_watch(till.engine)
        await till.relay.run_once()
        assert await shop.states(charge) == ["sent"]
        paid = await credited(shop, charge)
    [deposit] = paid["deposits"]
    assert (deposit["fromAddress"], deposit["valueRaw"], deposit["state"]) == (PAYER.address, RAW, "credited")
    assert paid["signedPayments"] == []
    [(tx_hash,)] = await till.rows("SELECT tx_hash FROM relay_transactions")
    assert deposit["txHash"] == tx_hash
    again = await shop.post(charge, offer, payment)
    assert (again.status, again.body["status"], again.body["payment"]["txHash"]) == (200, "paid", tx_hash)
    response = json.loads(base64.b64decode(again.headers[x402.PAYMENT_RESPONSE]))
    assert (response["success"], response["transaction"], response["payer"]) == (True, tx_hash, PAYER.address)
    assert (await shop.ask(charge)).status == 200
    assert await till.rows("SELECT count(*), sum(amount) FROM credit_ledger WHERE reason = 'credits_purchase'") == [
        (1, RAW * 10)
    ]
    assert await till.rows("SELECT kind FROM findings") == []
    assert await till.engine.books() == []


async def test_it_shows_nothing_of_the_account(shop: Shop) -> None:
    charge = await shop.charge()
    session = (await shop.till.payee.get("/api/v1/auth/session")).body
    for reply in (await shop.ask(charge), await shop.post(charge, *await _offer_and_payment(shop, charge))):
        for secret in (session["billingAccountId"], session["userId"], session["address"]):
            assert secret.lower() not in json.dumps(reply.body).lower()
    unknown = await shop.visitor.post("/api/v1/charges/7e9b105f-3c1e-4e5e-8a4e-4c0f9d2b6a1f/pay", {})
    assert (unknown.status, unknown.code) == (404, "CHARGE_NOT_FOUND")


async def _offer_and_payment(shop: Shop, charge: dict[str, Any]) -> tuple[dict[str, Any], SignedPayment]:
    offer = await shop.offer(charge)
    return offer, shop.till.sign(offer)


NOT_ITS_PAYMENT: Final[dict[str, dict[str, Any]]] = {
    "another recipient": {"to": STRANGER.address},
    "less than it lacks": {"amount_raw": RAW - 1},
    "more than it lacks": {"amount_raw": RAW + 1},
    "in another's name": {"payer": STRANGER.address},
    "expired": {"valid_before": 1},
    "valid for years": {"valid_before": 2**48},
}


async def test_what_does_not_pay_the_charge_is_refused_and_not_kept(shop: Shop) -> None:
    charge = await shop.charge()
    offer = await shop.offer(charge)
    for name, changes in NOT_ITS_PAYMENT.items():
        reply = await shop.post(charge, offer, shop.till.sign(offer, **changes))
        assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED"), name
        assert await shop.till.rows("SELECT 1 FROM charge_authorizations") == [], name


async def test_what_is_valid_for_longer_than_others_can_wait_is_refused(shop: Shop) -> None:
    charge = await shop.charge()
    offer = await shop.offer(charge)
    late = await shop.soon() + 25 * 60
    assert (await shop.post(charge, offer, shop.till.sign(offer, valid_before=late))).status == 422


async def test_a_signature_for_one_charge_pays_no_other(shop: Shop) -> None:
    first, second = await shop.charge(), await shop.charge()
    payment = await shop.signed(first)
    reply = await shop.post(second, await shop.offer(second), payment)
    assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED")


async def test_of_two_who_sign_at_once_one_pays(shop: Shop) -> None:
    charge = await shop.charge()
    offers = [await shop.offer(charge) for _ in range(4)]
    payments = [shop.till.sign(offer, wallet) for offer, wallet in zip(offers, (PAYER, OTHER) * 2, strict=True)]
    replies = await asyncio.gather(
        *(shop.post(charge, offer, payment) for offer, payment in zip(offers, payments, strict=True))
    )
    assert sorted(reply.status for reply in replies) == [202, 409, 409, 409]
    assert {reply.code for reply in replies if reply.status == 409} == {"AUTHORIZATION_IN_USE"}
    assert len(await shop.till.rows("SELECT 1 FROM charge_authorizations")) == 1


async def test_a_payer_is_asked_for_what_is_missing(shop: Shop) -> None:
    charge = await shop.charge()
    offer = await shop.offer(charge)
    see_deposit(shop.till.engine.database, charge["address"], 1_000_000)
    late = await shop.post(charge, offer, shop.till.sign(offer))
    assert (late.status, late.code) == (422, "AUTHORIZATION_REFUSED")
    assert (await shop.offer(charge))["authorization"]["message"]["value"] == str(RAW - 1_000_000)
    see_deposit(shop.till.engine.database, charge["address"], 500_000)
    assert (await shop.offer(charge))["authorization"]["message"]["value"] == "1000000", "the least is enough"
    see_deposit(shop.till.engine.database, charge["address"], 500_000)
    little = await shop.ask(charge)
    assert (little.status, little.code) == (422, "AUTHORIZATION_REFUSED"), "half a dollar is not worth the gas"


async def test_only_the_relays_token_at_a_contracts_address_can_be_signed(shop: Shop) -> None:
    """Of a wallet's address the relay cannot know whose it is; another token has no such signature."""
    database, chain = shop.till.engine.database, shop.till.chain
    add_method(database, "USDC:key", address=chain.token_address, ring_id=add_ring(database))
    add_method(database, "DAI:local", address="0x" + "77" * 20)
    for method in ("USDC:key", "DAI:local"):
        charge = (await shop.till.payee.post("/api/v1/charges", {"method": method, "amountUsdCents": CENTS})).body
        reply = await shop.ask(charge)
        assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED"), reply.body
        page = await shop.visitor.get(f"/pay/{charge['chargeId']}")
        assert 'id="sign"' not in page.body


async def test_the_relay_sends_to_no_address_that_does_not_follow_from_the_charge(shop: Shop) -> None:
    """The API's password can write addresses: the relay's gas moves nothing to any other."""
    charge = await shop.charge()
    await shop.signed(charge)
    stolen = shop.till.chain.sign_payment(
        PAYER.private_key, to=STRANGER.address, amount_raw=RAW, valid_before=await shop.soon() + 300, nonce=b"\7" * 32
    )
    with connect(shop.till.engine.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE charge_authorizations SET to_address = %s, nonce = %s, signature = %s, valid_after = %s,"
            " valid_before = %s",
            (STRANGER.address, "0x" + stolen.nonce.hex(), stolen.signature, stolen.valid_after, stolen.valid_before),
        )
    await shop.till.relay.run_once()
    assert await shop.till.rows("SELECT 1 FROM relay_nonces") == []


# The relay's steps are the same for an attempt, for which `make test` has the other three.
@pytest.mark.slow(
    but=("before the nonce", "while it is stored: rolled back", "while that is recorded: rolled back"),
)
@pytest.mark.parametrize(("owner", "name", "after"), POINTS)
async def test_killed_at_each_commit_the_relay_sends_each_signature_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    charge = await shop.charge()
    payment = await shop.signed(charge)
    key = await new_key(shop.till.chain)
    with monkeypatch.context() as patched:
        kill(patched, owner, name, after=after)
        async with opened_relay(shop.till.engine, key, block_time=SLOW) as relay:
            with pytest.raises(Killed):
                await relay.run_once()
    async with opened_relay(shop.till.engine, key, block_time=SLOW) as relay:
        await relay.run_once()
        await shop.till.chain.mine(MIN_CONFIRMATIONS)
        await relay.run_once()
        await relay.run_once()
    assert await shop.till.rows("SELECT nonce, outcome FROM relay_nonces") == [(0, "succeeded")]
    assert len(await shop.till.rows("SELECT 1 FROM relay_transactions")) == 1
    assert await shop.till.chain.token_balance_raw(charge["address"]) == RAW
    assert await shop.states(charge) == ["succeeded"]
    assert payment.amount_raw == RAW


async def test_two_relays_at_once_send_it_once(shop: Shop) -> None:
    await shop.signed(await shop.charge())
    keys = [await new_key(shop.till.chain), await new_key(shop.till.chain)]
    async with opened_relay(shop.till.engine, keys[0]) as first, opened_relay(shop.till.engine, keys[1]) as second:
        await asyncio.gather(first.run_once(), second.run_once())
    assert len(await shop.till.rows("SELECT 1 FROM relay_transactions")) == 1


async def test_a_refusal_on_the_chain_is_no_failure_until_it_is_proved_and_another_may_sign(shop: Shop) -> None:
    """The payer moves the balance after signing: it may be executed until it expires, and only then it is said."""
    till = shop.till
    charge = await shop.charge()
    soon = await shop.soon()
    payment = await shop.signed(charge, valid_before=soon)
    await till.relay.run_once()
    balance = await till.chain.token_balance_raw(PAYER.address)
    await till.chain.pay(PAYER.private_key, OTHER.address, balance)
    await till.chain.mine(MIN_CONFIRMATIONS)
    await till.relay.run_once()
    assert await till.rows("SELECT outcome FROM relay_nonces") == [("reverted",)]
    assert await till.claims.end_of_charges() == 0
    assert await shop.states(charge) == ["reverted"]
    await shop.signed(charge, OTHER)

    await till.chain.rpc("evm_setNextBlockTimestamp", soon + 1)
    await till.chain.mine(6)

    async def is_proved() -> bool:
        return await till.claims.end_of_charges() == 1

    await wait_until(is_proved, timeout_seconds=10, what="proof that it is never executed")
    assert await shop.states(charge) == ["claimed", "expired"]
    late = await shop.post(charge, {"accepts": [{}], "resource": {"url": "x"}} | _accepted(charge, till), payment)
    assert (late.status, late.code) == (409, "AUTHORIZATION_IN_USE")
    await till.chain.pay(OTHER.private_key, PAYER.address, balance)
    await till.chain.mine(1)


def _accepted(charge: dict[str, Any], till: Till) -> dict[str, Any]:
    accepted = {
        "scheme": "exact", "network": f"eip155:{till.chain.chain_id}", "amount": str(RAW),
        "asset": till.chain.token_address, "payTo": charge["address"],
    }  # fmt: skip
    return {"accepts": [accepted]}


async def test_what_a_stranger_broadcasts_is_found_and_sent_no_more(shop: Shop) -> None:
    charge = await shop.charge()
    payment = await shop.signed(charge, valid_before=await shop.soon())
    await shop.till.chain.pay_relayed(STRANGER.private_key, payment)
    await shop.till.chain.mine(1)
    await shop.till.chain.rpc("evm_increaseTime", 10)
    await shop.till.chain.mine(6)
    await shop.till.relay.run_once()
    assert await shop.till.rows("SELECT 1 FROM relay_nonces") == []

    async def is_found() -> bool:
        await shop.till.chain.mine(1)
        return await shop.till.claims.end_of_charges() == 1

    await wait_until(is_found, timeout_seconds=PATIENCE_SECONDS, what="a stranger's transaction")
    assert await shop.states(charge) == ["executed"]


@pytest.mark.parametrize(
    ("failed", "status"), [pytest.param(1, 202, id="one has failed"), pytest.param(2, 429, id="two have failed")]
)
async def test_reverted_transactions_of_a_charge_are_limited_by_the_day(shop: Shop, failed: int, status: int) -> None:
    """And use up nothing of what the account itself may sign."""
    till = shop.till
    charge = await shop.charge()
    await shop.signed(charge)
    await till.relay.run_once()
    await till.rows("UPDATE relay_nonces SET outcome = 'reverted', ended_at = now() RETURNING 1")
    if failed == 2:
        await till.rows(
            "WITH more AS (INSERT INTO relay_nonces"
            " (chain_id, relayer, nonce, charge_authorization_id, outcome, ended_at)"
            " SELECT chain_id, relayer, 9, charge_authorization_id, 'reverted', now() FROM relay_nonces RETURNING 1)"
            " SELECT 1 FROM more"
        )
    offer = await shop.offer(charge)
    assert (await shop.post(charge, offer, till.sign(offer, OTHER))).status == status
    await till.claimed()


async def test_signatures_of_a_charge_are_limited_by_the_day(shop: Shop) -> None:
    charge = await shop.charge()
    for _ in range(5):
        await shop.signed(charge)
        await shop.till.rows("UPDATE charge_authorizations SET outcome = 'expired', ended_at = now() RETURNING 1")
    offer = await shop.offer(charge)
    refused = await shop.post(charge, offer, shop.till.sign(offer))
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    await shop.signed(await shop.charge())


async def test_a_node_that_does_not_answer_loses_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    charge = await shop.charge()
    await shop.signed(charge)
    with monkeypatch.context() as patched:
        kill(patched, TransactionCalls, "send", after=False)
        with pytest.raises(Killed):
            await shop.till.relay.run_once()
    assert await shop.states(charge) == ["claimed"], "stored, and not known to be sent"
    await shop.till.relay.run_once()
    assert await shop.states(charge) == ["sent"]


def test_no_other_role_may_end_or_relay_what_was_signed(till: Till) -> None:
    database = till.engine.database
    calls = {
        database.relay_url: ("end_charge_authorization(NULL, NULL)", "charge_authorizations_of(NULL)"),
        database.app_url: ("end_charge_authorization(NULL, NULL)", "relay_charge_claims(1, 1, 1, 1)"),
        database.service_url: ("relay_charge_claims(1, 1, 1, 1)", "relay_seen(1, '', 1, 1)"),
    }
    for url, functions in calls.items():
        with psycopg.connect(url) as connection:
            for call in functions:
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(f"SELECT {call}".encode())
    for url in (database.relay_url, database.app_url):
        with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT 1 FROM charge_authorizations")
