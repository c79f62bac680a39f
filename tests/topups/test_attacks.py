"""What others have lost money by: each attack on payments by signature, and what becomes of it."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Final
from uuid import UUID

import pytest

from devstack.chain import call_data, dev_wallets, payer_wallets
from domain.payments.attempt import AttemptStatus
from domain.payments.authorizations import HALF_CURVE_ORDER
from tests.support.api import running_api
from tests.support.engine import MIN_CONFIRMATIONS
from tests.topups.conftest import CENTS, OTHER, PATH, PAYER, RAW, STRANGER, Till, new_key, opened_relay, with_worker

ORDER = 2 * HALF_CURVE_ORDER + 1
BYSTANDER = payer_wallets()[5]


@with_worker
async def test_a_replayed_signature_pays_once(till: Till) -> None:
    """Claimed for another attempt, of the same account or another, in any order: one attempt is paid."""
    offer = await till.offer()
    payment = till.sign(offer, own_nonce=False)
    assert (await till.post(offer, payment)).status == 202
    again = await till.post(await till.offer(), payment)
    assert (again.status, again.code) == (409, "AUTHORIZATION_IN_USE")
    async with till.engine.worker():
        await till.relay.run_once()
        await till.settle(UUID(offer["attemptId"]))
        used = await till.post(await till.offer(), payment)
        assert (used.status, used.code) == (409, "AUTHORIZATION_IN_USE")
    assert await till.rows("SELECT count(*) FROM credit_ledger WHERE reason = 'credits_purchase'") == [(1,)]


OTHERWISE_SIGNED: Final[dict[str, dict[str, Any]]] = {
    "another recipient": {"to": STRANGER.address},
    "a smaller amount": {"amount_raw": RAW - 1},
    "a larger amount": {"amount_raw": RAW + 1},
    "expired": {"valid_before": 1},
    "valid for years": {"valid_before": 2**48},
    "not valid yet": {"valid_after": 2**40},
    "for receiveWithAuthorization": {"for_receiver": True},
    "in another's name": {"payer": STRANGER.address},
    "in another token's domain": {"token": "0x" + "77" * 20},
}


async def test_a_signature_of_anything_else_is_refused_before_anything_is_claimed(till: Till) -> None:
    offer = await till.offer()
    for name, changes in OTHERWISE_SIGNED.items():
        reply = await till.post(offer, till.sign(offer, **changes))
        assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED"), name
        attempt = await till.engine.attempt(UUID(offer["attemptId"]))
        assert (attempt.status, attempt.is_claimed) == (AttemptStatus.CREATED_INTENT, False), name


NOT_SIGNED: Final[dict[str, dict[str, Any]]] = {
    "another recipient than was signed": {"authorization_to": STRANGER.address},
    "another amount": {"authorization_value": str(RAW - 1)},
    "another nonce": {"authorization_nonce": "0x" + "12" * 32},
    "another payer": {"authorization_from": OTHER.address},
    "no signature": {"signature": "0x" + "00" * 65},
    "an undeployed wallet's": {"signature": "0x" + "6492" * 16},
    "nothing accepted": {"accepted": None},
    "no resource": {"resource": None},
}


async def test_what_was_not_signed_is_refused(till: Till) -> None:
    offer = await till.offer()
    for name, changes in NOT_SIGNED.items():
        reply = await till.post(offer, till.sign(offer), **changes)
        assert reply.status == 422, (name, reply.body)


async def test_a_refusal_names_the_wallet_whose_signature_it_is_not(till: Till) -> None:
    offer = await till.offer()
    reply = await till.post(offer, till.sign(offer, payer=STRANGER.address))
    assert f"not that of {STRANGER.address}" in reply.body["detail"]


async def test_the_second_form_of_a_signature_is_refused_and_another_v_is_the_same(till: Till) -> None:
    offer = await till.offer()
    payment = till.sign(offer)
    high = payment.r + (ORDER - int.from_bytes(payment.s, "big")).to_bytes(32, "big") + bytes([55 - payment.v])
    assert (await till.post(offer, payment, signature="0x" + high.hex())).status == 422
    compact = payment.r + payment.s + bytes([payment.v - 27])
    assert (await till.post(offer, payment, signature="0x" + compact.hex())).status == 202
    await till.relay.run_once()
    await till.chain.mine(1)
    [(tx_hash,)] = await till.rows("SELECT tx_hash FROM relay_transactions")
    assert int((await till.chain.wait_for_receipt(tx_hash))["status"], 16) == 1


async def test_a_nonce_that_is_claimed_twice_at_once_pays_one_attempt(till: Till) -> None:
    offers = [await till.offer() for _ in range(6)]
    nonce = secrets.token_bytes(32)
    payments = [till.sign(offer, nonce=nonce, valid_before=_later(offers[0])) for offer in offers]
    replies = await asyncio.gather(
        *(till.post(offer, payment) for offer, payment in zip(offers, payments, strict=True))
    )
    assert sorted(reply.status for reply in replies) == [202, 409, 409, 409, 409, 409]


@with_worker
async def test_attack_i_b_a_stranger_claims_a_signature_that_is_in_the_mempool(till: Till) -> None:
    """By its own nonce it is another attempt's, by a random one it is claimed already: the stranger gains nothing."""
    async with till.api.visitor(STRANGER) as stranger, till.engine.worker():
        for own_nonce in (True, False):
            offer = await till.offer()
            payment = till.sign(offer, own_nonce=own_nonce)
            assert (await till.post(offer, payment)).status == 202
            await till.relay.run_once()  # now it is in the mempool
            stolen = await till.offer(to=stranger)
            reply = await till.post(stolen, payment, by=stranger)
            assert (reply.status, reply.code) == (409, "AUTHORIZATION_IN_USE")
            await till.settle(UUID(offer["attemptId"]))
        strangers = await till.engine.payer(STRANGER)
    assert await till.rows(
        f"SELECT balance_credits FROM billing_accounts WHERE id = '{strangers.billing_account_id}'"
    ) == [(0,)]


async def test_a_nonce_of_another_attempt_is_refused_before_that_one_is_claimed(till: Till) -> None:
    """What is signed says what it pays, also while its payer has not shown it yet."""
    async with till.api.visitor(STRANGER) as stranger:
        offer, stolen = await till.offer(), await till.offer(to=stranger)
        payment = till.sign(offer)
        reply = await till.post(stolen, payment, by=stranger)
        assert (reply.status, reply.code) == (409, "AUTHORIZATION_IN_USE")
        assert (await till.post(offer, payment)).status == 202


@with_worker
async def test_a_stranger_cannot_claim_what_a_wallet_of_another_account_has_signed_for_something_else(
    till: Till,
) -> None:
    """Such as its own payment, relayed by a third party, with a nonce that says nothing of what it pays."""
    async with till.api.visitor(BYSTANDER) as bystander, till.api.visitor(STRANGER) as stranger:
        intent = await bystander.intent(CENTS)
        offer = await till.offer(to=stranger)
        payment = till.sign(offer, BYSTANDER, own_nonce=False)
        reply = await till.post(offer, payment, by=stranger)
        assert (reply.status, reply.code) == (409, "AUTHORIZATION_IN_USE")
        async with till.engine.worker():
            sent = await till.chain.pay_relayed(OTHER.private_key, payment)
            await till.chain.mine(MIN_CONFIRMATIONS)
            await bystander.submit(intent["attemptId"], sent)
            assert (await bystander.ends(intent["attemptId"]))["status"] == "CREDITED"


@with_worker
async def test_a_claimed_transfer_pays_no_attempt_of_its_sender_too(till: Till) -> None:
    """The wallet that signed has an intent of the same amount, and submits the relay's transaction for it."""
    async with till.api.visitor(PAYER) as payer, till.engine.worker():
        intent = await payer.intent(CENTS)
        attempt_id, _ = await till.claimed()
        await till.relay.run_once()
        [(tx_hash,)] = await till.rows("SELECT tx_hash FROM relay_transactions")
        await till.chain.mine(MIN_CONFIRMATIONS)
        await payer.submit(intent["attemptId"], tx_hash)
        ended = await payer.ends(intent["attemptId"])
        assert (ended["status"], ended["errorCode"]) == ("REJECTED", "TX_ALREADY_SETTLED")
        await till.settle(attempt_id)
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


async def test_another_accounts_attempt_is_not_found(till: Till) -> None:
    async with till.api.visitor(STRANGER) as stranger:
        offer = await till.offer()
        reply = await till.post(offer, till.sign(offer), by=stranger)
        assert (reply.status, reply.code) == (404, "ATTEMPT_NOT_FOUND")


@with_worker
async def test_a_wrong_hash_neither_pays_nor_ends_it(till: Till) -> None:
    async with till.engine.worker():
        attempt_id, _ = await till.claimed()
        wrong = await till.chain.pay(STRANGER.private_key, OTHER.address, 1)
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.payee.submit(attempt_id, wrong)
        await till.engine.polled(attempt_id, "does not use")
        await till.relay.run_once()
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.watch()
        await till.engine.result(attempt_id)
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


async def test_gas_griefing_by_a_balance_that_is_moved_before_it_is_sent_costs_nothing(till: Till) -> None:
    balance = await till.chain.token_balance_raw(PAYER.address)
    await till.claimed()
    await till.chain.pay(PAYER.private_key, OTHER.address, balance)
    await till.chain.mine(1)
    await till.relay.run_once()
    assert await till.rows("SELECT 1 FROM relay_transactions") == [], "it would revert"
    await till.chain.pay(OTHER.private_key, PAYER.address, balance)
    await till.chain.mine(1)


async def test_who_has_let_too_many_transactions_revert_is_not_relayed_for_on_that_day(till: Till) -> None:
    balance = await till.chain.token_balance_raw(PAYER.address)
    for _ in range(5):
        await till.claimed()
    await till.relay.run_once()
    # The balance is moved in the same block, before them.
    await till.chain.pay(PAYER.private_key, OTHER.address, balance)
    await till.chain.mine(MIN_CONFIRMATIONS)
    await till.relay.run_once()
    outcomes = await till.rows("SELECT outcome, count(*) FROM relay_nonces GROUP BY 1")
    assert outcomes == [("reverted", 5)]
    await till.chain.pay(OTHER.private_key, PAYER.address, balance)
    await till.chain.mine(1)
    offer = await till.offer()
    reply = await till.post(offer, till.sign(offer))
    assert (reply.status, reply.code) == (429, "RATE_LIMITED")
    async with opened_relay(till.engine, await new_key(till.chain)) as another:  # which has refused none of them yet
        await another.run_once()
    assert len(await till.rows("SELECT 1 FROM relay_nonces")) == 5, "those that wait are not sent again either"


async def test_gas_griefing_by_cancelling_is_not_paid_for(till: Till) -> None:
    _, payment = await till.claimed()
    v, r, s = till.chain.sign_cancellation(PAYER.private_key, payment.nonce)
    cancel = call_data("TestUSDC", "cancelAuthorization", PAYER.address, payment.nonce, v, r, s)
    await till.chain.send(PAYER.private_key, till.chain.token_address, cancel)
    await till.chain.mine(1)
    await till.relay.run_once()
    assert await till.rows("SELECT 1 FROM relay_transactions") == []


@pytest.mark.parametrize("call", [("pause", "unpause"), ("blacklist", "unBlacklist")])
async def test_what_the_token_would_refuse_now_is_refused(till: Till, call: tuple[str, str]) -> None:
    owner, arguments = dev_wallets()[0], [PAYER.address] if call[0] == "blacklist" else []
    await till.chain.send(owner.private_key, till.chain.token_address, call_data("TestUSDC", call[0], *arguments))
    await till.chain.mine(1)
    try:
        offer = await till.offer()
        reply = await till.post(offer, till.sign(offer))
        assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED")
    finally:
        await till.chain.send(owner.private_key, till.chain.token_address, call_data("TestUSDC", call[1], *arguments))
        await till.chain.mine(1)


async def test_offers_of_an_account_are_limited_by_the_minute(till: Till) -> None:
    async with running_api(till.engine, RATE_LIMIT_TOPUPS_PER_ACCOUNT="2") as api, api.visitor(STRANGER) as stranger:
        replies = [await stranger.post(PATH, {"amountUsdCents": CENTS}) for _ in range(3)]
    assert [reply.status for reply in replies] == [402, 402, 429]


async def test_a_wallet_without_the_balance_is_refused(till: Till) -> None:
    poor = dev_wallets()[9]
    offer = await till.offer()
    assert (await till.post(offer, till.sign(offer, poor))).status in {403, 422}


def _later(offer: dict[str, Any]) -> int:
    return int(offer["authorization"]["message"]["validBefore"])
