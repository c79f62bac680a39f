"""Many at once: submissions, attempts and payers that want the same transfer, and who gets it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from activities.messages import BonusToMint, PaymentToCredit
from activities.payments.payer import PayerActivities
from activities.payments.system_tenant import SystemTenantActivities
from db.accounts.wallets import Payer
from domain.errors import HashInUse
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from domain.payments.verification import SettledTransfer
from services.payments.submission import RecordedHash
from starter.models import AttemptView
from tests.support.sql import connect
from tests.support.system import Payment, PaymentSystem, wallets
from workflows.naming import workflow_id

SUBMISSIONS = 20


def transfer_of(payment: Payment, **changes: Any) -> SettledTransfer:
    """The transfer that a payment's transaction holds, as a verdict would name it."""
    values: dict[str, Any] = {
        "chain_id": payment.intent.chain_id,
        "tx_hash": payment.tx_hash,
        "log_index": 0,
        "block_number": 7,
        "block_hash": "0x" + "07" * 32,
        "from_address": payment.payer.wallet_address,
        "value_raw": payment.intent.amount_raw,
        "expected_raw": payment.intent.amount_raw,
    }
    return SettledTransfer(**values | changes)


async def test_twenty_submissions_of_one_hash_at_once_are_one_workflow_and_one_answer_and_a_late_one_starts_nothing(
    system: PaymentSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late one is of a payment that ended just after the submission was recorded: it answers with the end."""
    payment = await system.purchase(confirmed=False)
    async with system.worker():
        answers = await asyncio.gather(*(system.submit_payment(payment) for _ in range(SUBMISSIONS)))
        recorded_before = RecordedHash(await system.attempt(payment.attempt_id), is_replacement=False)
        await system.confirm(payment.tx_hash)
        await system.must_be_settled(payment)
        settled_by = (await system.state(payment.attempt_id)).run_id

        async def recorded(*_: object, **__: object) -> RecordedHash:
            return recorded_before

        monkeypatch.setattr("starter.submission.record_hash", recorded)
        late = await system.submit_payment(payment)
    assert late.status is AttemptStatus.CREDITED
    assert (await system.state(payment.attempt_id)).run_id == settled_by

    assert len(answers) == SUBMISSIONS
    as_submitted = {
        "status": AttemptStatus.PENDING_UNVERIFIED,
        "client_status": answers[0].client_status,
        "confirmations": 0,
        "confirmations_needed": system.settings.min_confirmations,
    }
    assert {answer.model_dump_json() for answer in answers} == {
        AttemptView.of(await system.attempt(payment.attempt_id)).model_copy(update=as_submitted).model_dump_json()
    }
    query = f"WorkflowId = '{workflow_id(payment.attempt_id)}'"

    async def listed_once() -> bool:
        return len([run async for run in system.namespace.client.list_workflows(query)]) == 1

    await system.until(listed_once, "one run of the workflow in the list")
    assert [event.event_type for event in await system.events(payment.attempt_id)] == [
        "intent_created",
        "submitted",
        "credited",
    ]
    await system.books_are_right()


@pytest.mark.slow
async def test_twenty_submissions_at_once_after_the_end_all_answer_with_the_end_and_start_nothing(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase()
    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
        settled_by = (await system.state(payment.attempt_id)).run_id
        answers = await asyncio.gather(*(system.submit_payment(payment) for _ in range(SUBMISSIONS)))

    assert {answer.status for answer in answers} == {AttemptStatus.CREDITED}
    assert (await system.state(payment.attempt_id)).run_id == settled_by
    await system.books_are_right()


async def test_of_two_attempts_that_claim_one_transfer_at_the_same_moment_one_is_paid(system: PaymentSystem) -> None:
    payment = await system.purchase()
    others = [(await system.intent())[1] for _ in range(7)]
    intents = [payment.intent, *others]
    async with system.worker():
        answers = await asyncio.gather(
            *(system.submit(payment.payer, intent, payment.tx_hash) for intent in intents), return_exceptions=True
        )
        winners = [intent for intent, answer in zip(intents, answers, strict=True) if isinstance(answer, AttemptView)]
        assert len(winners) == 1
        assert sum(isinstance(answer, HashInUse) for answer in answers) == len(intents) - 1
        await system.must_be_settled(Payment(payment.payer, winners[0], payment.tx_hash))

    assert await system.balance(payment.payer.billing_account_id) == 1_000_000_000
    await system.books_are_right()


@pytest.mark.slow
async def test_an_attempt_that_lost_a_race_for_its_hash_can_still_be_paid_with_another(system: PaymentSystem) -> None:
    first, second = await system.purchase(), await system.purchase()
    async with system.worker():
        answers = await asyncio.gather(
            *(system.submit(first.payer, intent, first.tx_hash) for intent in (first.intent, second.intent)),
            return_exceptions=True,
        )
        loser = second.intent if isinstance(answers[1], HashInUse) else first.intent
        winner = first.intent if loser is second.intent else second.intent
        # Its workflow may have started and failed with the refusal: the next submission starts a new run.
        await system.submit(first.payer, loser, second.tx_hash)
        await system.must_be_settled(Payment(first.payer, winner, first.tx_hash))
        await system.must_be_settled(Payment(first.payer, loser, second.tx_hash))
    await system.books_are_right()


@pytest.mark.slow
async def test_two_wallets_of_one_transaction_are_both_credited_each_with_its_own_transfer(
    system: PaymentSystem,
) -> None:
    alice, bob, relayer = wallets(3)
    alice_payer, alice_intent = await system.intent(10_000, wallet=alice)
    bob_payer, bob_intent = await system.intent(25_000, Purpose.SYSTEM, wallet=bob)
    tx_hash = await system.chain.pay_bundle(
        relayer.private_key,
        [
            system.chain.sign_payment(bob.private_key, bob_intent.to, bob_intent.amount_raw),
            system.chain.sign_payment(alice.private_key, alice_intent.to, alice_intent.amount_raw),
        ],
    )
    await system.confirm(tx_hash)
    of_alice, of_bob = Payment(alice_payer, alice_intent, tx_hash), Payment(bob_payer, bob_intent, tx_hash)
    async with system.worker():
        await asyncio.gather(system.submit_payment(of_alice), system.submit_payment(of_bob))
        await system.must_be_settled(of_alice)
        await system.must_be_settled(of_bob)

    assert (await system.settled_by(bob_intent.attempt_id)).log_index < (
        await system.settled_by(alice_intent.attempt_id)
    ).log_index
    assert await system.balance(bob_payer.billing_account_id) == 0
    await system.books_are_right()


@pytest.mark.slow
async def test_two_transfers_of_one_payer_in_one_transaction_pay_one_attempt_the_other_hash_is_in_use(
    system: PaymentSystem,
) -> None:
    alice, relayer = wallets(2)
    payer, intent = await system.intent(10_000, wallet=alice)
    _, second = await system.intent(10_000, wallet=alice)
    tx_hash = await system.chain.pay_bundle(
        relayer.private_key,
        [system.chain.sign_payment(alice.private_key, intent.to, intent.amount_raw) for _ in range(2)],
    )
    await system.confirm(tx_hash)
    payment = Payment(payer, intent, tx_hash)
    async with system.worker():
        await system.submit_payment(payment)
        with pytest.raises(HashInUse):
            await system.submit(payer, second, tx_hash)
        await system.must_be_settled(payment)
    await system.books_are_right()


async def test_submitting_another_payers_hash_first_gains_nothing_and_blocks_no_payer(
    system: PaymentSystem,
) -> None:
    victim_wallet, attacker_wallet = wallets(2)
    payment = await system.purchase(wallet=victim_wallet, confirmed=False)
    attacker, attack = await system.intent(wallet=attacker_wallet)
    async with system.worker():
        await system.submit(attacker, attack, payment.tx_hash)
        await system.submit_payment(payment)
        await system.confirm(payment.tx_hash)
        await system.must_be_settled(payment)
        refused = await system.finished(attack.attempt_id)

    assert (refused.status, refused.error_code) == (AttemptStatus.REJECTED, ErrorCode.SENDER_MISMATCH)
    assert await system.balance(attacker.billing_account_id) == 0
    await system.books_are_right()


async def test_an_activity_that_runs_many_times_at_once_credits_once(system: PaymentSystem) -> None:
    purchase, donation = await system.purchase(), await system.purchase(purpose=Purpose.SYSTEM, wallet=wallets(2)[1])
    for payment in (purchase, donation):
        await system.record_only(payment)
    payer = PayerActivities(
        system.settlement,
        verification_timeout=system.settings.verification_timeout,
        revenue_share=system.settings.system_tenant_revenue_share,
    )
    system_tenant = SystemTenantActivities(system.service)

    def ref(payment: Payment) -> dict[str, Any]:
        return {
            "attempt_id": payment.attempt_id,
            "owner_user_id": payment.payer.user_id,
            "billing_account_id": payment.payer.billing_account_id,
        }

    credit = PaymentToCredit(**ref(purchase), transfer=transfer_of(purchase))
    endings = await asyncio.gather(*(payer.credit_buyer(credit) for _ in range(8)))
    gift = PaymentToCredit(**ref(donation), transfer=transfer_of(donation))
    gifts = await asyncio.gather(*(system_tenant.credit_donation(gift) for _ in range(8)))
    mints = await asyncio.gather(
        *(system_tenant.mint_bonus(BonusToMint(**ref(purchase))) for _ in range(8)), return_exceptions=True
    )

    # All give the same answer, except a mint that met another one half-way: its retry gives it.
    assert len({ending.model_dump_json() for ending in endings}) == 1
    assert len({gift.model_dump_json() for gift in gifts}) == 1
    assert (await system_tenant.mint_bonus(BonusToMint(**ref(purchase)))).amount_credits == 750_000_000
    assert any(not isinstance(mint, BaseException) for mint in mints)
    assert await system.balance(purchase.payer.billing_account_id) == 1_000_000_000
    assert await system.balance() == 750_000_000 + 1_000_000_000
    await system.books_are_right()


@pytest.mark.slow
async def test_a_transfer_that_two_accounts_of_one_wallet_claim_at_once_pays_one_and_rejects_the_other(
    system: PaymentSystem,
) -> None:
    first = await system.purchase(confirmed=False)
    second = await claim_by_second_account(system, first)
    async with system.worker():
        for payment in (first, second):
            await system.submit_payment(payment)
            await system.polled(payment.attempt_id, "not found yet")
        # Both verdicts fall while neither credit can be written: the second one meets the unique index.
        async with system.locked_attempts(first.attempt_id, second.attempt_id):
            await system.confirm(first.tx_hash)
            for payment in (first, second):
                await system.pending(payment.attempt_id, "credit_buyer")
        results = [await system.finished(payment.attempt_id) for payment in (first, second)]

    assert {(result.status, result.error_code) for result in results} == {
        (AttemptStatus.CREDITED, None),
        (AttemptStatus.REJECTED, ErrorCode.TX_ALREADY_SETTLED),
    }
    assert await system.balance() == 750_000_000
    await system.books_are_right()


async def test_a_transfer_that_has_paid_pays_no_other_attempt_of_its_payer_and_none_of_another_account(
    system: PaymentSystem,
) -> None:
    first = await system.purchase()
    _, second = await system.intent()
    of_another_account = await claim_by_second_account(system, first)
    async with system.worker():
        await system.submit_payment(first)
        with pytest.raises(HashInUse):
            await system.submit(first.payer, second, first.tx_hash)
        await system.must_be_settled(first)
        with pytest.raises(HashInUse):
            await system.submit(first.payer, second, first.tx_hash)
        await system.submit_payment(of_another_account)
        result = await system.finished(of_another_account.attempt_id)

    assert (await system.attempt(second.attempt_id)).status is AttemptStatus.CREATED_INTENT
    assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.TX_ALREADY_SETTLED)
    await system.books_are_right()


async def claim_by_second_account(system: PaymentSystem, payment: Payment) -> Payment:
    """An attempt for the same transfer past the check of hashes, which is made for each account."""
    payer = payment.payer
    with connect(system.database.superuser_url) as connection:
        connection.execute(
            "INSERT INTO billing_accounts (id, owner_user_id) VALUES ('second-account', %s)", (payer.user_id,)
        )
    second = Payer(payer.user_id, "second-account", payer.wallet_address)
    return Payment(second, await system.payments.create_intent(second, 10_000), payment.tx_hash)
