"""Payments as they come from a chain, from the transaction to the ledger: good ones, odd ones and wrong ones."""

from __future__ import annotations

from typing import Final

import pytest

from devstack.chain import Wallet
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from tests.crash.conftest import Systems
from tests.support.system import Payment, PaymentSystem, wallets

CREDITS: Final = 1_000_000_000
BONUS: Final = 750_000_000
VERDICTS_OF_EVERY_RUN: Final = (
    "too little by one unit-REJECTED-INSUFFICIENT_AMOUNT-self",
    "another wallet as the payer-REJECTED-SENDER_MISMATCH-self",
    "a reverted transaction-FAILED-TX_REVERTED-system",
)
"""The unit tests have each code; these show that a verdict comes from the chain into the books, also without `slow`."""


async def refused_with(system: PaymentSystem, payment: Payment, status: AttemptStatus, code: ErrorCode) -> None:
    """Submit the payment and see it refused, with nothing in the books."""
    await system.submit_payment(payment)
    result = await system.finished(payment.attempt_id)
    attempt = await system.attempt(payment.attempt_id)
    assert (result.status, result.error_code) == (attempt.status, attempt.error_code) == (status, code)
    assert (result.buyer_credits, result.system_tenant_credits) == (0, 0)
    assert await system.entries(payment.attempt_id) == []
    assert await system.balance(payment.payer.billing_account_id) == await system.balance() == 0


async def pay_in_look_alike(system: PaymentSystem, payer: Wallet, to: str, amount_raw: int) -> str:
    token = await system.chain.deploy_look_alike(payer)
    await system.chain.mint(payer.address, amount_raw, token=token, owner=payer)
    return await system.chain.pay(payer.private_key, to, amount_raw, token=token)


@pytest.mark.slow(but=VERDICTS_OF_EVERY_RUN)
@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("too little by one unit", AttemptStatus.REJECTED, ErrorCode.INSUFFICIENT_AMOUNT),
        ("a look-alike token", AttemptStatus.REJECTED, ErrorCode.INVALID_TOKEN),
        ("another wallet as the receiver", AttemptStatus.REJECTED, ErrorCode.RECIPIENT_MISMATCH),
        ("another wallet as the payer", AttemptStatus.REJECTED, ErrorCode.SENDER_MISMATCH),
        ("a transfer of nothing", AttemptStatus.REJECTED, ErrorCode.INSUFFICIENT_AMOUNT),
        ("no transfer at all", AttemptStatus.REJECTED, ErrorCode.TOKEN_TRANSFER_NOT_FOUND),
        ("a reverted transaction", AttemptStatus.FAILED, ErrorCode.TX_REVERTED),
    ],
)
async def test_a_wrong_payment_ends_with_the_code_that_says_why(
    system: PaymentSystem, purpose: Purpose, what: str, status: AttemptStatus, code: ErrorCode
) -> None:
    wallet, other = wallets(2)
    key = wallet.private_key
    payer, intent = await system.intent(10_000, purpose, wallet=wallet)
    amount_raw, chain = intent.amount_raw, system.chain
    tx_hash: str
    match what:
        case "too little by one unit":
            tx_hash = await chain.pay(key, intent.to, amount_raw - 1)
        case "a look-alike token":
            tx_hash = await pay_in_look_alike(system, wallet, intent.to, amount_raw)
        case "another wallet as the receiver":
            tx_hash = await chain.pay(key, other.address, amount_raw)
        case "another wallet as the payer":
            tx_hash = await chain.pay(other.private_key, intent.to, amount_raw)
        case "a transfer of nothing":
            tx_hash = await chain.pay(key, intent.to, 0)
        case "no transfer at all":
            tx_hash = await chain.send(key, other.address, "0x")
        case _:
            tx_hash = await chain.pay(key, intent.to, 10**30)
    await system.confirm(tx_hash)

    async with system.worker():
        await refused_with(system, Payment(payer, intent, tx_hash), status, code)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_zero_value_transfer_in_the_payers_name_does_not_spoil_their_payment(system: PaymentSystem) -> None:
    alice, poisoner = wallets(2)
    payer, intent = await system.intent(10_000, wallet=alice)
    # A transfer of zero in any address's name needs no allowance.
    tx_hash = await system.chain.pay_bundle_approved(
        poisoner.private_key, [(system.chain.token_address, alice.address, intent.to, 0)]
    )
    bundle = await system.chain.pay_bundle(
        poisoner.private_key, [system.chain.sign_payment(alice.private_key, intent.to, intent.amount_raw)]
    )
    await system.confirm(tx_hash, bundle)
    async with system.worker():
        _, poisoned = await system.intent(10_000, wallet=alice)
        await system.submit(payer, poisoned, tx_hash)
        refused = await system.finished(poisoned.attempt_id)
        payment = Payment(payer, intent, bundle)
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
    assert refused.error_code is ErrorCode.INSUFFICIENT_AMOUNT
    await system.books_are_right()


@pytest.mark.slow
async def test_a_relayed_payment_is_credited_to_its_signer(system: PaymentSystem) -> None:
    alice, relayer = wallets(2)
    payer, intent = await system.intent(10_000, wallet=alice)
    signed = system.chain.sign_payment(alice.private_key, intent.to, intent.amount_raw)
    payment = Payment(payer, intent, await system.chain.pay_relayed(relayer.private_key, signed))
    await system.confirm(payment.tx_hash)
    sender = (await system.chain.rpc("eth_getTransactionByHash", payment.tx_hash))["from"]
    assert sender.lower() == relayer.address.lower() != payer.wallet_address.lower()

    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
    await system.books_are_right()


async def test_the_relayer_of_a_payment_cannot_claim_it(system: PaymentSystem) -> None:
    alice, relayer = wallets(2)
    claimer, claim = await system.intent(10_000, wallet=relayer)
    signed = system.chain.sign_payment(alice.private_key, claim.to, claim.amount_raw)
    tx_hash = await system.chain.pay_relayed(relayer.private_key, signed)
    await system.confirm(tx_hash)
    async with system.worker():
        await refused_with(system, Payment(claimer, claim, tx_hash), AttemptStatus.REJECTED, ErrorCode.SENDER_MISMATCH)
    await system.books_are_right()


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(("share", "bonus"), [("0", 0), ("1", CREDITS), ("0.000000001", 1), ("0.0000000009", 0)])
async def test_the_bonus_is_the_floor_of_the_share_and_a_bonus_of_nothing_writes_no_row(
    systems: Systems, share: str, bonus: int
) -> None:
    system = await systems(SYSTEM_TENANT_REVENUE_SHARE=share)
    payment = await system.purchase()
    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment, share=system.settings.system_tenant_revenue_share)
    assert (await system.credits(payment.attempt_id)).get("platform_revenue_share") == (bonus or None)
    assert (await system.balance(payment.payer.billing_account_id), await system.balance()) == (CREDITS, bonus)
    await system.books_are_right(expected_share=system.settings.system_tenant_revenue_share)


async def test_a_surplus_is_recorded_and_buys_no_credits_and_a_donation_leaves_the_donors_balance(
    system: PaymentSystem,
) -> None:
    """The donation goes to the system tenant whole."""
    async with system.worker():
        own = await system.purchase(10_000, amount_raw=123_456_789)
        await system.submit_payment(own)
        await system.must_be_settled(own)
        gift = await system.purchase(12_345, Purpose.SYSTEM)
        await system.submit_payment(gift)
        await system.must_be_settled(gift)
    assert (await system.settled_by(own.attempt_id)).surplus_raw == 23_456_789
    [credited] = [event for event in await system.events(own.attempt_id) if event.event_type == "credited"]
    assert credited.details["surplusRaw"] == "23456789"
    assert await system.balance(own.payer.billing_account_id) == CREDITS
    assert await system.balance() == BONUS + 1_234_500_000
    await system.books_are_right()
