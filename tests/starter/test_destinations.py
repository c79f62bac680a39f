"""Workers' settings define where payments may go: an intent written in SQL defines nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from db.accounts.wallets import Payer
from devstack.chain import Wallet, payer_wallets
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.verification import WaitReason
from services.payments import lifecycle as payments
from tests.support.engine import MIN_CONFIRMATIONS, Engine
from tests.support.sql import query


async def _forge(engine: Engine, payer: Payer, *, to: str) -> PaymentAttempt:
    """What the API's password can write: an own intent that names any treasury."""
    now = datetime.now(UTC)
    attempt = PaymentAttempt(
        id=uuid4(),
        billing_account_id=payer.billing_account_id,
        owner_user_id=payer.user_id,
        from_address=payer.wallet_address,
        chain_id=engine.chain.chain_id,
        token=engine.settings.usdc_token_address,
        to_address=to,
        amount_raw=100_000_000,
        amount_usd_cents=10_000,
        purpose=Purpose.SELF,
        status=AttemptStatus.CREATED_INTENT,
        expires_at=now + timedelta(minutes=30),
        created_at=now,
    )
    async with engine.tenants.transaction(payer.user_id) as connection:
        await payments.create_intent(connection, attempt)
    return attempt


async def _pay(engine: Engine, wallet: Wallet, attempt: PaymentAttempt) -> str:
    sent = await engine.chain.pay(wallet.private_key, attempt.to_address, attempt.amount_raw)
    await engine.chain.mine(MIN_CONFIRMATIONS)
    await engine.chain.wait_for_receipt(sent)
    return sent


async def _settles_one(engine: Engine) -> None:
    """A worker has settled a payment, so it has written down where payments go to."""
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)
    assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED


async def _waits(engine: Engine, attempt_id: UUID) -> None:
    await engine.waits(
        attempt_id,
        lambda state: any(
            one.waiting is not None and one.waiting.reason is WaitReason.UNKNOWN_TREASURY for one in state.pending
        ),
        what="a payment to an unknown treasury",
    )


async def test_an_intent_that_names_its_writers_own_address_is_not_credited(engine: Engine) -> None:
    payer_wallet, friend = payer_wallets()[:2]
    async with engine.worker():
        await _settles_one(engine)
        payer = await engine.payer(payer_wallet)
        forged = await _forge(engine, payer, to=friend.address)
        sent = await _pay(engine, payer_wallet, forged)
        await engine.payments.submit(payer.user_id, forged.id, sent)
        await _waits(engine, forged.id)
    assert await engine.credits(forged.id) == {}
    assert (await engine.attempt(forged.id)).status is AttemptStatus.PENDING_UNVERIFIED


async def test_a_new_treasury_counts_as_soon_as_a_worker_has_it_in_its_settings(engine: Engine) -> None:
    payer_wallet, friend = payer_wallets()[:2]
    async with engine.worker():
        await _settles_one(engine)
        payer = await engine.payer(payer_wallet)
        early = await _forge(engine, payer, to=friend.address)
        sent = await _pay(engine, payer_wallet, early)
        await engine.payments.submit(payer.user_id, early.id, sent)
        await _waits(engine, early.id)
    async with engine.worker(TREASURY_ADDRESS=friend.address):
        assert (await engine.result(early.id)).status is AttemptStatus.CREDITED


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("by", ["a former worker", "the first intents"])
async def test_what_was_promised_is_credited_under_other_settings(engine: Engine, by: str) -> None:
    if by == "a former worker":
        async with engine.worker():
            await _settles_one(engine)
    payer, intent, sent = await engine.buy()
    async with engine.worker(TREASURY_ADDRESS=payer_wallets()[1].address):
        await engine.submit(payer, intent, sent)
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
    noted = query(engine.database.service_url, "SELECT noted_by FROM payment_destinations ORDER BY created_at")
    former = [("worker",)] if by == "a former worker" else []
    assert noted == [("intent",), *former, ("worker",)], "a worker's word stays beside an intent's"
