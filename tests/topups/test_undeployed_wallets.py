"""Smart wallets that pay before they are on the chain (ERC-6492): deployed and paid from at once, or not at all.

What a stranger could make of it, such as the relay's gas for something else, is a test each.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from chain.authorizations import DEPLOYING_GAS_MAX, execution_of
from chain.quorum import EndpointsDisagree
from chain.reader import ChainReader
from devstack.chain import SignedPayment, call_data, dev_wallets
from devstack.processes import wait_until
from domain.payments.attempt import AttemptStatus
from domain.payments.authorizations import (
    DEPLOYMENT_BYTES_MAX,
    UNDEPLOYED_WALLET_MAGIC,
    WALLET_SIGNATURE_BYTES_MAX,
    Authorization,
    SignedAuthorization,
)
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.support.deposits import add_method
from tests.support.engine import MIN_CONFIRMATIONS
from tests.support.smart_wallets import (
    INVALID,
    LOOPING,
    burning,
    contract_address,
    put_contract,
    wrap,
)
from tests.topups.conftest import (
    ODD_FACTORY,
    OTHER,
    PAYER,
    RAW,
    STRANGER,
    Till,
    UndeployedWallet,
    new_key,
    opened_relay,
    wallet_factories,
    with_worker,
)
from tests.topups.test_charges import Shop
from tests.topups.test_relay import POINTS, SLOW, Killed, kill

ODD = 6492
"""The number of `ODD_FACTORY`."""
REVERTING = bytes.fromhex("60006000fd")
MUCH = DEPLOYING_GAS_MAX // 26
"""Rounds that take more than a transaction may."""


@with_worker
async def test_a_wallet_pays_in_the_transaction_that_deploys_it_and_by_itself_from_then_on(till: Till) -> None:
    wallet = await till.new_wallet(amount_raw=2 * RAW)
    async with till.engine.worker():
        first = await till.claimed_by(wallet)
        await till.relay.run_once()
        await till.settle(first)
        assert await wallet.is_there()
        second = await till.claimed_by(wallet)
        await till.relay.run_once()
        await till.settle(second)
    for attempt_id in (first, second):
        attempt = await till.engine.attempt(attempt_id)
        assert (attempt.status, attempt.from_address) == (AttemptStatus.CREDITED, wallet.address)
    sent = [await till.chain.rpc("eth_getTransactionByHash", tx_hash) for (tx_hash,) in await _sent(till)]
    assert [transaction["to"] for transaction in sent] == [None, till.chain.token_address.lower()]
    created = (await till.chain.wait_for_receipt(sent[0]["hash"]))["contractAddress"]
    assert await till.chain.rpc("eth_getCode", created, "latest") == "0x", "nothing stays that could act"
    assert await till.engine.books() == []


async def test_no_other_deployment_is_paid_for(till: Till) -> None:
    """Refused before anything is claimed, each for its own reason."""
    wallet = await till.new_wallet()
    other = await till.new_wallet(amount_raw=0)
    factory = till.chain.smart_wallet_factory_address
    deploy = bytes.fromhex(call_data("SmartWalletFactory", "deploy", OTHER.address, _salt(wallet))[2:])
    await put_contract(till.chain, ODD, REVERTING)
    offer = await till.offer()
    payment = till.sign(offer, OTHER, payer=wallet.address)
    signature = "0x" + payment.signature.hex()
    keys = till.sign(offer, PAYER)
    strangers = till.sign(offer, STRANGER, payer=wallet.address)
    whole = bytes.fromhex(wallet.wrapped(payment)[2:])

    def shifted(word: int, value: int) -> str:
        return "0x" + (whole[: 32 * word] + value.to_bytes(32, "big") + whole[32 * word + 32 :]).hex()

    unlisted = "is called for no payer here"
    malformed = "is not encoded so"
    elsewhere = "its factory has not deployed the wallet"
    attacks: list[tuple[SignedPayment, str, str]] = [
        (keys, other.wrapped(keys), elsewhere),
        *(
            (payment, wrap(address, deploy, signature), unlisted)
            for address in (
                contract_address(1),
                till.chain.token_address,
                till.chain.treasury_address,
                wallet.address,
                "0x" + "00" * 20,
            )
        ),
        (payment, other.wrapped(payment), elsewhere),
        (payment, wrap(factory, b"", signature), elsewhere),
        (payment, wrap(ODD_FACTORY, deploy, signature), elsewhere),
        (strangers, wallet.wrapped(strangers), "invalid signature"),
        (payment, wallet.wrapped(payment)[:-64], "expected 65"),
        (payment, wrap(factory, deploy, wallet.wrapped(payment)), "says twice"),
        (payment, "0x" + UNDEPLOYED_WALLET_MAGIC.hex(), malformed),
        (payment, shifted(0, 2**160 + int(factory, 16)), malformed),
        (payment, shifted(1, 64), malformed),
        (payment, shifted(2, 2**255), malformed),
        (payment, shifted(3, 2**20), malformed),
        (payment, wrap(factory, bytes(DEPLOYMENT_BYTES_MAX + 1), signature), "factory's call has 4097 bytes"),
        (payment, wrap(factory, deploy, "0x" + "01" * (WALLET_SIGNATURE_BYTES_MAX + 1)), "signature has 4097 bytes"),
    ]
    for signed, sent, reason in attacks:
        reply = await till.post(offer, signed, signature=sent)
        assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED"), reason
        assert reason in reply.body["detail"]
    assert not (await till.engine.attempt(UUID(offer["attemptId"]))).is_claimed
    assert (await till.post(offer, payment, signature=wallet.wrapped(payment))).status == 202


async def test_the_relay_compares_the_factory_with_its_own_list_and_sends_nothing_that_fails(till: Till) -> None:
    """Whatever was true when it was claimed: no gas is spent."""
    wallet = await till.new_wallet()
    await put_contract(till.chain, ODD, burning(1, till.chain.smart_wallet_factory_address))
    offer = await till.offer()
    payment = till.sign(offer, OTHER, payer=wallet.address)
    assert (await till.post(offer, payment, signature=_by_odd_factory(wallet, payment))).status == 202
    known = wallet_factories(till.chain)[:1]
    for code, changes in (
        (None, {"wallet_factories": known}),
        (REVERTING, {}),
        (LOOPING, {}),
        (burning(MUCH, till.chain.smart_wallet_factory_address), {}),
    ):
        if code is not None:
            await put_contract(till.chain, ODD, code)
        async with opened_relay(till.engine, await new_key(till.chain), **changes) as relay:
            await relay.run_once()
        assert await till.rows("SELECT 1 FROM relay_nonces") == []
    await put_contract(till.chain, ODD, burning(1, till.chain.smart_wallet_factory_address))
    await till.relay.run_once()
    assert len(await _sent(till)) == 1


@pytest.mark.slow
async def test_what_takes_more_gas_than_a_transaction_may_have_is_refused(till: Till) -> None:
    wallet = await till.new_wallet()
    offer = await till.offer()
    payment = till.sign(offer, OTHER, payer=wallet.address)
    factory = till.chain.smart_wallet_factory_address
    for code in (burning(MUCH, factory), LOOPING, INVALID, b""):
        await put_contract(till.chain, ODD, code)
        reply = await till.post(offer, payment, signature=_by_odd_factory(wallet, payment))
        assert (reply.status, reply.code) == (422, "AUTHORIZATION_REFUSED")
    await put_contract(till.chain, ODD, burning(MUCH // 6, factory))
    assert (await till.post(offer, payment, signature=_by_odd_factory(wallet, payment))).status == 202
    await till.relay.run_once()
    [(gas,)] = await till.rows("SELECT gas FROM relay_transactions")
    assert DEPLOYING_GAS_MAX // 2 < gas <= DEPLOYING_GAS_MAX


@with_worker
@pytest.mark.slow
@pytest.mark.parametrize("when", ["before it is broadcast", "in the block before it is mined"])
async def test_a_wallet_that_a_stranger_deploys_in_between_pays_and_its_factory_is_not_called(
    till: Till, when: str
) -> None:
    wallet = await till.new_wallet()
    await put_contract(till.chain, ODD, burning(1, till.chain.smart_wallet_factory_address))
    offer = await till.offer()
    payment = till.sign(offer, OTHER, payer=wallet.address)
    assert (await till.post(offer, payment, signature=_by_odd_factory(wallet, payment))).status == 202
    async with till.engine.worker():
        if when == "before it is broadcast":
            await wallet.deploy()
            await put_contract(till.chain, ODD, LOOPING)  # asked again, it would use up all gas
            await till.relay.run_once()
        else:
            await till.relay.run_once()
            deploy = call_data("SmartWalletFactory", "deploy", OTHER.address, _salt(wallet))
            # For a thousand times the relay's priority fee: it is mined before.
            await till.chain.send(STRANGER.private_key, till.chain.smart_wallet_factory_address, deploy, gas=500_000)
            await put_contract(till.chain, ODD, LOOPING)
        await till.settle(UUID(offer["attemptId"]))
    assert await till.status(UUID(offer["attemptId"])) is AttemptStatus.CREDITED
    assert len(await _sent(till)) == 1


@pytest.mark.slow
async def test_a_transfer_that_fails_on_the_chain_leaves_no_wallet_that_was_not_paid_from(till: Till) -> None:
    """All of it happens or nothing: the token is paused in the same block, before it."""
    wallet = await till.new_wallet()
    await till.claimed_by(wallet)
    await till.relay.run_once()
    owner = dev_wallets()[0].private_key
    await till.chain.send(owner, till.chain.token_address, call_data("TestUSDC", "pause"))
    await till.chain.mine(MIN_CONFIRMATIONS)
    await till.chain.send(owner, till.chain.token_address, call_data("TestUSDC", "unpause"))
    await till.chain.mine(1)
    assert not await wallet.is_there()
    await till.relay.run_once()
    assert await till.rows("SELECT outcome FROM relay_nonces ORDER BY nonce") == [("reverted",), (None,)]
    await till.chain.mine(1)
    assert await wallet.is_there()


@pytest.mark.slow
async def test_a_wallet_that_is_there_and_adds_how_it_is_deployed_pays_whatever_its_factory(till: Till) -> None:
    wallet = await till.new_wallet()
    await wallet.deploy()
    offer = await till.offer()
    payment = till.sign(offer, OTHER, payer=wallet.address)
    wrapped = wrap(contract_address(1), b"", "0x" + payment.signature.hex())
    assert (await till.post(offer, payment, signature=wrapped)).status == 202
    await till.relay.run_once()
    [(tx_hash,)] = await _sent(till)
    transaction = await till.chain.rpc("eth_getTransactionByHash", tx_hash)
    assert transaction["to"] == till.chain.token_address.lower()


@with_worker
@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "after"), POINTS)
async def test_killed_at_each_commit_the_relay_deploys_and_pays_once(
    till: Till, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    wallet = await till.new_wallet()
    async with till.engine.worker():
        attempt_id = await till.claimed_by(wallet)
        key = await new_key(till.chain)
        with monkeypatch.context() as patched:
            kill(patched, owner, name, after=after)
            async with opened_relay(till.engine, key, block_time=SLOW) as relay:
                with pytest.raises(Killed):
                    await relay.run_once()
        stored = await _sent(till)
        async with opened_relay(till.engine, key, block_time=SLOW) as relay:
            await relay.run_once()
            await till.settle(attempt_id)
            await relay.run_once()
    assert await till.status(attempt_id) is AttemptStatus.CREDITED
    assert len(await _sent(till)) == 1
    assert stored in ([], await _sent(till)), "the same bytes"
    assert await till.rows("SELECT nonce, outcome FROM relay_nonces") == [(0, "succeeded")]


@with_worker
@pytest.mark.slow
async def test_it_is_replaced_on_its_nonce_by_the_same_creation(till: Till) -> None:
    wallet = await till.new_wallet()
    async with till.engine.worker():
        attempt_id = await till.claimed_by(wallet)
        await till.relay.run_once()

        async def is_replaced() -> bool:
            await till.relay.run_once()
            return len(await _sent(till)) == 2

        await wait_until(is_replaced, timeout_seconds=15, what="replacement")
        await till.settle(attempt_id)
    sent = [await till.chain.rpc("eth_getTransactionByHash", tx_hash) for (tx_hash,) in await _sent(till)]
    assert [transaction is not None and transaction["to"] for transaction in sent] == [False, None]
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


@pytest.mark.slow
async def test_a_charge_is_paid_by_a_wallet_that_is_yet_to_be_deployed(till: Till) -> None:
    add_method(till.engine.database, address=till.chain.token_address)
    wallet = await till.new_wallet(amount_raw=10 * RAW)
    async with till.api.visitor() as visitor:
        shop = Shop(till, visitor)
        charge = await shop.charge()
        offer = await shop.offer(charge)
        payment = till.sign(offer, OTHER, payer=wallet.address)
        unlisted = wrap(contract_address(1), b"", "0x" + payment.signature.hex())
        refused = await shop.post(charge, offer, payment, signature=unlisted)
        assert (refused.status, refused.code) == (422, "AUTHORIZATION_REFUSED")
        assert (await shop.post(charge, offer, payment, signature=wallet.wrapped(payment))).status == 202
        await till.relay.run_once()
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.relay.run_once()
        assert await shop.states(charge) == ["succeeded"]
    assert await till.chain.token_balance_raw(charge["address"]) == payment.amount_raw


@pytest.mark.slow
async def test_a_node_that_says_otherwise_than_another_lets_nothing_be_claimed(till: Till) -> None:
    wallet = await till.new_wallet()
    payment = till.chain.sign_payment(OTHER.private_key, till.chain.treasury_address, RAW, payer=wallet.address)
    signed = SignedAuthorization(
        authorization=Authorization(
            payer=wallet.address, to=payment.to, value_raw=RAW, valid_after=0, valid_before=2**48,
            nonce="0x" + payment.nonce.hex(),
        ),
        signature=bytes.fromhex(wallet.wrapped(payment)[2:]),
    )  # fmt: skip
    execution = execution_of(
        till.chain.token_address, signed, is_contract=False, factories=wallet_factories(till.chain)
    )
    async with FaultyNode.in_front_of(till.chain.url) as liar, FaultyNode.in_front_of(till.chain.url) as honest:
        liar.fixed("eth_call", Refusal("execution reverted: no", code=3))
        async with ChainReader([liar.url, honest.url], till.chain.chain_id, timeout_seconds=5.0) as reader:
            with pytest.raises(EndpointsDisagree):
                await reader.authorizations.refusal(execution)
            honest.fixed("eth_call", Refusal("VM Exception: revert", code=-32000))
            assert await reader.authorizations.refusal(execution) is not None, "nodes word it differently"
            for node in (liar, honest):
                node.heal()
            assert await reader.authorizations.refusal(execution) is None


async def _sent(till: Till) -> list[tuple[Any, ...]]:
    return await till.rows("SELECT tx_hash FROM relay_transactions ORDER BY nonce, stored_at")


def _salt(wallet: UndeployedWallet) -> bytes:
    return wallet.salt.to_bytes(32, "big")


def _by_odd_factory(wallet: UndeployedWallet, payment: SignedPayment) -> str:
    deploy = call_data("SmartWalletFactory", "deploy", wallet.owner.address, _salt(wallet))
    return wrap(ODD_FACTORY, bytes.fromhex(deploy[2:]), "0x" + payment.signature.hex())
