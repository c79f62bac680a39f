"""The right transfer, through the product's own worker and client: who pays, and from which block on."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from composition import payment_policy
from db.accounts.wallets import Payer
from devstack.chain import Wallet, dev_wallets, payer_wallets
from domain.errors import PayerRefused
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from domain.transfers.income import ZERO_ADDRESS
from services.payments import lifecycle as payments
from starter.models import Intent
from starter.payments import PaymentsClient
from tests.support.engine import Engine
from tests.support.payments import new_attempt, note_former_treasury
from tests.support.sql import connect, scalar

TREASURY: Final = dev_wallets()[9]
CENTS: Final = 10_000


async def old_intent(
    engine: Engine, wallet: Wallet, *, to: str, purpose: Purpose = Purpose.SELF
) -> tuple[Payer, Intent]:
    """An intent that was made before such were refused."""
    payer = await engine.payer(wallet)
    intents = await engine.payments.create_intent(await engine.payer(payer_wallets()[3]), CENTS, purpose)
    attempt = new_attempt(
        payer,
        cents=CENTS,
        purpose=purpose,
        chain_id=engine.chain.chain_id,
        token=engine.chain.token_address,
        to_address=to,
        created_at=intents.expires_at,
        expires_at=intents.expires_at,
    )
    async with engine.tenants.transaction(payer.user_id) as connection:
        await payments.create_intent(connection, attempt)
    return payer, Intent.of(attempt, intents.expires_at)


def was_treasury(engine: Engine, wallet: Wallet) -> None:
    """A worker ran with this treasury once."""
    with connect(engine.database.service_url) as service:
        note_former_treasury(service, wallet.address)


def follow(engine: Engine, *, first_block: int) -> None:
    """The treasury is followed from this block on."""
    with connect(engine.database.service_url) as service:
        service.execute(
            "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, block_hash,"
            " head_number) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (
                engine.chain.chain_id,
                engine.chain.token_address,
                engine.chain.treasury_address,
                first_block,
                first_block,
                "0x" + "11" * 32,
                first_block,
            ),
        )


@pytest.mark.parametrize("purpose", list(Purpose))
async def test_the_treasury_makes_no_intent(engine: Engine, purpose: Purpose) -> None:
    payer = await engine.payer(TREASURY)
    for address in (payer.wallet_address, payer.wallet_address.lower()):
        with pytest.raises(PayerRefused):
            await engine.payments.create_intent(Payer(payer.user_id, payer.billing_account_id, address), CENTS, purpose)


async def test_neither_does_a_former_treasury_the_zero_address_nor_the_token(engine: Engine) -> None:
    former = payer_wallets()[2]
    await engine.payments.create_intent(await engine.payer(former), CENTS)
    was_treasury(engine, former)
    with pytest.raises(PayerRefused):
        await engine.payments.create_intent(await engine.payer(former), CENTS)
    for nobody in (ZERO_ADDRESS, engine.chain.token_address):
        with pytest.raises(PayerRefused):
            await engine.payments.require_payer(nobody)
        with pytest.raises(PayerRefused):
            await engine.payments.create_intent(Payer("u", "b", nobody), CENTS)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("purpose", list(Purpose))
async def test_an_intent_of_the_treasurys_from_before_ends_rejected(engine: Engine, purpose: Purpose) -> None:
    """It pays itself: nothing came in."""
    await engine.chain.mint(TREASURY.address, CENTS * 10_000)
    payer, intent = await old_intent(engine, TREASURY, to=engine.chain.treasury_address, purpose=purpose)
    async with engine.worker():
        sent = await engine.pay_and_confirm(intent, wallet=TREASURY)
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.SENDER_MISMATCH)
    assert await engine.credits(intent.attempt_id) == {}
    assert await engine.books() == []


async def test_a_wallet_that_has_become_the_treasury_pays_no_more_for_what_it_asked_before(engine: Engine) -> None:
    wallet = payer_wallets()[2]
    payer, intent = await engine.intent(CENTS, wallet=wallet)
    async with engine.worker():
        sent = await engine.pay_and_confirm(intent, wallet=wallet)
        was_treasury(engine, wallet)
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.SENDER_MISMATCH)


async def test_a_treasury_is_known_as_one_when_the_settings_name_another(engine: Engine) -> None:
    """A worker has processed a payment under these settings; the next ones have another treasury."""
    payer, intent, sent = await engine.buy(CENTS)
    async with engine.worker():
        await engine.submit(payer, intent, sent)
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
    later = replace(payment_policy(engine.settings), treasury=payer_wallets()[5].address)
    client = PaymentsClient(engine.tenants, engine.namespace.client, later)
    with pytest.raises(PayerRefused):
        await client.create_intent(await engine.payer(TREASURY), CENTS)
    other = await engine.payer(payer_wallets()[6])
    assert (await client.create_intent(other, CENTS)).to == later.treasury


# -- from which block on


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize(("offset", "is_paid"), [(0, True), (1, False)])
async def test_the_setting_says_which_block_is_the_first(
    engine: Engine, offset: int, is_paid: bool, purpose: Purpose
) -> None:
    payer, intent, sent = await engine.buy(CENTS, purpose)
    mined = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    async with engine.worker(CHAIN_WATCH_FROM_BLOCK=str(mined + offset)):
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    if is_paid:
        assert result.status is AttemptStatus.CREDITED
    else:
        assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.TRANSFER_TOO_OLD)
        assert await engine.credits(intent.attempt_id) == {}
    assert await engine.books() == []


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(("offset", "is_paid"), [(0, True), (1, False)])
async def test_without_a_setting_it_is_the_first_block_that_the_watcher_read(
    engine: Engine, offset: int, is_paid: bool
) -> None:
    payer, intent, sent = await engine.buy(CENTS)
    mined = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    follow(engine, first_block=mined + offset)
    async with engine.worker():
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert result.error_code is (None if is_paid else ErrorCode.TRANSFER_TOO_OLD)


async def test_a_setting_that_was_changed_counts_from_the_next_start_on(engine: Engine) -> None:
    """The database has another first block on record, a lower one or a higher one: the setting decides."""
    payer, intent, sent = await engine.buy(CENTS)
    mined = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    follow(engine, first_block=mined + 5)
    async with engine.worker(CHAIN_WATCH_FROM_BLOCK=str(mined)):
        await engine.submit(payer, intent, sent)
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
    answers_from = scalar(engine.database.service_url, "SELECT answers_from FROM chain_cursors")
    assert answers_from == mined


async def test_a_transaction_that_moves_across_the_first_block_is_judged_where_it_is(engine: Engine) -> None:
    """Seen in the first block, moved below it before it is confirmed."""
    payer, intent = await engine.intent(CENTS)
    await engine.chain.mine(2)
    sent = await engine.pay(intent)
    await engine.chain.mine()
    mined = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    raw = await engine.chain.raw_transaction(sent)
    async with engine.worker(CHAIN_WATCH_FROM_BLOCK=str(mined), MIN_CONFIRMATIONS="4"):
        await engine.submit(payer, intent, sent)
        await engine.waits(
            intent.attempt_id,
            lambda state: any(activity.waiting is not None for activity in state.pending),
            what="a poll of the unconfirmed payment",
        )
        await engine.chain.reorg(3, [(raw, 0)])
        await engine.chain.mine(6)
        result = await engine.result(intent.attempt_id)
    moved = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    assert moved < mined
    assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.TRANSFER_TOO_OLD)
