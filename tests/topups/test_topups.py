"""A signature becomes credits: offered, claimed, relayed, verified, credited."""

from __future__ import annotations

import asyncio
import base64
import json
from uuid import UUID

import pytest

from chain.authorizations import attempt_nonce
from devstack.chain import call_data
from devstack.processes import wait_until
from domain.payments import x402
from domain.payments.attempt import AttemptStatus, ErrorCode
from tests.support.engine import MIN_CONFIRMATIONS
from tests.topups.conftest import CENTS, HOLDER, OTHER, PATH, PAYER, RAW, STRANGER, Till, payment_header, with_worker


async def test_what_is_to_be_signed_names_the_attempt_twice(till: Till) -> None:
    offer = await till.offer()
    attempt_id = UUID(offer["attemptId"])
    message = offer["authorization"]["message"]
    assert message["nonce"] == attempt_nonce(till.chain.chain_id, attempt_id)
    assert x402.attempt_of_resource(offer["resource"]["url"]) == attempt_id
    assert (message["to"], message["value"]) == (till.chain.treasury_address, str(RAW))
    [accepted] = offer["accepts"]
    assert (accepted["network"], accepted["asset"]) == (f"eip155:{till.chain.chain_id}", till.chain.token_address)
    assert accepted["extra"]["name"] == "USD Coin"
    assert accepted["maxTimeoutSeconds"] >= 60
    attempt = await till.engine.attempt(attempt_id)
    assert (attempt.kind, attempt.status, attempt.authorization_nonce) == ("authorization", "CREATED_INTENT", None)


@with_worker
@pytest.mark.parametrize("own_nonce", [True, False], ids=["its own nonce", "a random nonce"])
async def test_a_signature_is_relayed_and_credited_and_the_payer_spends_no_gas(till: Till, own_nonce: bool) -> None:
    async with till.engine.worker():
        attempt_id, payment = await till.claimed(own_nonce=own_nonce)
        before = await till.chain.rpc("eth_getBalance", PAYER.address, "latest")
        await till.relay.run_once()
        await till.settle(attempt_id)
    attempt = await till.engine.attempt(attempt_id)
    assert (attempt.status, attempt.from_address) == (AttemptStatus.CREDITED, payment.payer)
    assert await till.engine.credits(attempt_id) == {
        "credits_purchase": CENTS * 100_000,
        "platform_revenue_share": CENTS * 75_000,
    }
    assert attempt.billing_account_id == (await till.engine.payer(HOLDER)).billing_account_id
    assert await till.chain.rpc("eth_getBalance", PAYER.address, "latest") == before
    assert await till.engine.books() == []


@with_worker
async def test_a_donation_by_signature_is_the_system_tenants(till: Till) -> None:
    async with till.engine.worker():
        offer = await till.offer(purpose="system")
        header = {x402.PAYMENT_SIGNATURE: payment_header(offer, till.sign(offer)), "Prefer": "wait=0"}
        reply = await till.payee.post(PATH, {"amountUsdCents": CENTS, "purpose": "system"}, headers=header)
        assert reply.status == 202, reply.body
        await till.relay.run_once()
        await till.settle(UUID(offer["attemptId"]))
    assert await till.engine.credits(UUID(offer["attemptId"])) == {"system_donation": CENTS * 100_000}


@with_worker
async def test_the_same_signature_again_gives_the_same_payment_and_never_402(till: Till) -> None:
    offer = await till.offer()
    payment = till.sign(offer)
    first, again = [await till.post(offer, payment) for _ in range(2)]
    asked = await till.payee.post(f"{PATH}?attemptId={offer['attemptId']}", {"amountUsdCents": CENTS})
    assert [first.status, again.status, asked.status] == [202, 202, 202]
    assert first.body["attemptId"] == again.body["attemptId"] == asked.body["attemptId"] == offer["attemptId"]
    async with till.engine.worker():
        await till.relay.run_once()
        sent = await till.post(offer, payment)
        assert sent.body["txHash"] is not None
        await till.settle(UUID(offer["attemptId"]))
        done = await till.post(offer, payment)
    assert done.status == 200
    response = json.loads(base64.b64decode(done.headers[x402.PAYMENT_RESPONSE]))
    assert (response["success"], response["transaction"]) == (True, sent.body["txHash"])
    assert response["payer"].lower() == PAYER.address.lower()
    assert len(await till.rows("SELECT 1 FROM relay_transactions")) == 1
    pending = json.loads(base64.b64decode(sent.headers[x402.PAYMENT_RESPONSE]))
    assert (pending["success"], pending["errorReason"]) == (False, "settlement_pending")


@with_worker
async def test_a_request_that_waits_is_answered_when_it_is_credited(till: Till) -> None:
    async with till.engine.worker():
        offer = await till.offer()
        waiting = asyncio.create_task(till.post(offer, till.sign(offer), wait=20))
        attempt_id = UUID(offer["attemptId"])

        async def claimed() -> bool:
            return (await till.engine.attempt(attempt_id)).is_claimed

        await wait_until(claimed, timeout_seconds=10, what="claim")
        await till.relay.run_once()
        await till.settle(attempt_id)
        reply = await waiting
    assert (reply.status, reply.body["clientStatus"]) == (200, "CONFIRMED")


@with_worker
async def test_with_the_relay_down_it_is_202_and_broadcast_when_it_is_back(till: Till) -> None:
    attempt_id, _ = await till.claimed()
    await till.chain.mine(3)
    assert await till.status(attempt_id) is AttemptStatus.CREATED_INTENT
    async with till.engine.worker():
        await till.relay.run_once()
        await till.settle(attempt_id)
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


@with_worker
async def test_a_smart_wallet_pays_by_bytes_of_its_own(till: Till) -> None:
    wallet = await till.chain.deploy_smart_wallet(OTHER.address)
    await till.chain.mint(wallet, RAW)
    await till.chain.mine(1)
    async with till.engine.worker():
        attempt_id, _ = await till.claimed(wallet=OTHER, payer=wallet)
        await till.relay.run_once()
        await till.settle(attempt_id)
    assert (await till.engine.attempt(attempt_id)).from_address == wallet
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


@with_worker
async def test_it_does_not_matter_who_broadcasts(till: Till) -> None:
    """A stranger sends the signature first: the relay's own transaction reverts, and the payment is credited."""
    async with till.engine.worker():
        attempt_id, payment = await till.claimed()
        await till.relay.run_once()  # it waits in the mempool, at a thousandth of the stranger's priority fee
        strangers = await till.chain.pay_relayed(STRANGER.private_key, payment)
        await till.chain.mine(MIN_CONFIRMATIONS)
        assert int((await till.chain.wait_for_receipt(strangers))["status"], 16) == 1
        await till.claims.submit_relayed()
        await till.engine.polled(attempt_id, "reverted, and did not use")
        await till.watch()
        await till.engine.result(attempt_id)
    attempt = await till.engine.attempt(attempt_id)
    assert (attempt.status, attempt.tx_hash) == (AttemptStatus.CREDITED, strangers)
    assert await till.rows("SELECT kind FROM findings") == []


@with_worker
async def test_what_its_payer_broadcasts_without_showing_it_pays_the_attempt_that_it_names(till: Till) -> None:
    """Its nonce is the attempt's own: nothing else has to be known. A random nonce would have named nothing."""
    async with till.engine.worker():
        offer, other = await till.offer(), await till.offer()
        await till.chain.pay_relayed(OTHER.private_key, till.sign(offer))
        await till.chain.pay_relayed(OTHER.private_key, till.sign(other, own_nonce=False))
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.watch()
        await till.engine.result(UUID(offer["attemptId"]))
    assert await till.status(UUID(offer["attemptId"])) is AttemptStatus.CREDITED
    assert await till.status(UUID(other["attemptId"])) is AttemptStatus.CREATED_INTENT
    assert await till.rows("SELECT kind FROM findings") == [("transfer_without_intent",)]


@with_worker
async def test_of_several_authorizations_in_one_transaction_each_pays_its_own_attempt(till: Till) -> None:
    async with till.engine.worker():
        claims = [await till.claimed(wallet=wallet) for wallet in (PAYER, PAYER, OTHER)]
        payments = [payment for _, payment in claims]
        await till.chain.pay_bundle(STRANGER.private_key, [payments[2], payments[0], payments[1]])
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.watch()
        for attempt_id, _ in claims:
            await till.engine.result(attempt_id)
    settled = await till.rows("SELECT attempt_id, log_index FROM settled_transfers ORDER BY log_index")
    assert [row[0] for row in settled] == [claims[index][0] for index in (2, 0, 1)]
    assert await till.rows("SELECT kind FROM findings") == []
    assert await till.engine.books() == []


@with_worker
async def test_what_was_never_sent_is_found_by_its_event_when_its_time_is_up(till: Till) -> None:
    """Executed by a stranger while the watcher does not run: the nodes are asked about payer and nonce."""
    async with till.engine.worker():
        offer = await till.offer()
        soon = int((await till.chain.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16) + 3
        payment = till.sign(offer, valid_before=soon)
        assert (await till.post(offer, payment)).status == 202
        attempt_id = UUID(offer["attemptId"])
        await till.chain.pay_relayed(STRANGER.private_key, payment)
        await till.chain.mine(MIN_CONFIRMATIONS)
        await _until_overdue(till, attempt_id)
        await till.claims.end_overdue()
        await till.engine.result(attempt_id)
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


async def test_it_expires_when_a_finalized_block_proves_that_it_can_never_pay_and_not_before(till: Till) -> None:
    offer = await till.offer()
    soon = int((await till.chain.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16) + 3
    assert (await till.post(offer, till.sign(offer, valid_before=soon))).status == 202
    attempt_id = UUID(offer["attemptId"])
    await _until_overdue(till, attempt_id)
    await till.chain.rpc("evm_setNextBlockTimestamp", soon + 1)
    await till.chain.mine(4)
    assert await till.claims.end_overdue() == 0, "the finalized block is older"
    assert await till.status(attempt_id) is AttemptStatus.CREATED_INTENT
    await till.chain.mine(2)
    await _is_ended(till)
    attempt = await till.engine.attempt(attempt_id)
    assert (attempt.status, attempt.error_code) == (AttemptStatus.FAILED, ErrorCode.AUTHORIZATION_EXPIRED)
    late = await till.post(offer, till.sign(offer, valid_before=soon))
    assert (late.status, late.code) == (409, "AUTHORIZATION_IN_USE")


async def test_a_cancelled_authorization_ends_once_the_cancellation_is_final(till: Till) -> None:
    offer = await till.offer()
    soon = int((await till.chain.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16) + 3
    payment = till.sign(offer, valid_before=soon)
    assert (await till.post(offer, payment)).status == 202
    attempt_id = UUID(offer["attemptId"])
    v, r, s = till.chain.sign_cancellation(PAYER.private_key, payment.nonce)
    cancel = call_data("TestUSDC", "cancelAuthorization", PAYER.address, payment.nonce, v, r, s)
    await till.chain.send(STRANGER.private_key, till.chain.token_address, cancel)
    await till.chain.mine(1)
    await _until_overdue(till, attempt_id)
    assert await till.claims.end_overdue() == 0
    await till.chain.mine(5)
    await _is_ended(till)
    assert (await till.engine.attempt(attempt_id)).error_code is ErrorCode.AUTHORIZATION_EXPIRED


@with_worker
async def test_a_payment_that_waits_for_a_transaction_ends_by_the_same_proof(till: Till) -> None:
    """The relay's transaction reverts, because the balance was moved: failed only once that is proved."""
    async with till.engine.worker(VERIFICATION_TIMEOUT_SECONDS="1"):
        offer = await till.offer()
        soon = int((await till.chain.rpc("eth_getBlockByNumber", "latest", False))["timestamp"], 16) + 3
        assert (await till.post(offer, till.sign(offer, valid_before=soon))).status == 202
        attempt_id = UUID(offer["attemptId"])
        await till.relay.run_once()
        balance = await till.chain.token_balance_raw(PAYER.address)
        moved = await till.chain.pay(PAYER.private_key, OTHER.address, balance)
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.claims.submit_relayed()
        await till.engine.polled(attempt_id, "reverted, and did not use")
        assert await till.status(attempt_id) is AttemptStatus.PENDING_UNVERIFIED
        await till.chain.rpc("evm_setNextBlockTimestamp", soon + 1)
        await till.chain.mine(6)
        await till.engine.result(attempt_id)
    assert int((await till.chain.wait_for_receipt(moved))["status"], 16) == 1
    attempt = await till.engine.attempt(attempt_id)
    assert (attempt.status, attempt.error_code) == (AttemptStatus.FAILED, ErrorCode.AUTHORIZATION_EXPIRED)
    await till.chain.pay(OTHER.private_key, PAYER.address, balance)
    await till.chain.mine(1)


async def _is_ended(till: Till) -> None:
    """By a later poll: the tagged block is cached for a second."""

    async def is_ended() -> bool:
        return await till.claims.end_overdue() == 1

    await wait_until(is_ended, timeout_seconds=10, what="proof that it never pays")


async def _until_overdue(till: Till, attempt_id: UUID) -> None:
    """The database's clock decides what is overdue; the chain's, what that means."""
    await till.rows(
        f"WITH moved AS (UPDATE payment_attempts SET expires_at = now() - interval '1 second' WHERE id = '{attempt_id}'"
        " RETURNING id) SELECT id FROM moved"
    )
