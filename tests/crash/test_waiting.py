"""The wait for the chain: what it costs, what may happen to the transaction during it, and how it ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

import pytest

from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from starter.progress import WorkflowState
from tests.crash.conftest import Systems
from tests.support.system import Payment, PaymentSystem, wallets

POLLS: Final = 8
UNKNOWN: Final = "0x" + "ab" * 32


def looks(state: WorkflowState) -> int:
    """How often the chain has been asked in the present wait."""
    return sum(pending.attempt for pending in state.pending if pending.name == "await_confirmation")


@pytest.mark.slow
async def test_the_history_of_a_waiting_payment_does_not_grow_however_often_the_chain_is_asked(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase(confirmed=False)
    async with system.worker():
        await system.submit_payment(payment)
        early = await system.polled(payment.attempt_id, "not found yet")
        later = await system.waits(payment.attempt_id, lambda state: looks(state) >= looks(early) + POLLS, what="polls")
        await system.chain.mine()
        counted = await system.polled(payment.attempt_id, "1 of 3 confirmations")
        view = await system.payments.status(payment.payer.user_id, payment.attempt_id)
        await system.chain.mine()
        nearly = await system.polled(payment.attempt_id, "2 of 3 confirmations")
        await system.chain.mine()
        await system.must_be_settled(payment)

    assert early.history_length == later.history_length == counted.history_length == nearly.history_length
    assert (view.confirmations, view.confirmations_needed) == (1, 3)
    assert view.waiting_for == "1 of 3 confirmations"
    assert (await system.state(payment.attempt_id)).history_length < 50
    await system.books_are_right()


@pytest.mark.slow
async def test_a_hash_that_never_appears_ends_as_not_found_and_its_history_stays_short(systems: Systems) -> None:
    # A block time beyond what is left at the end: then no further poll fits, and none may be made in haste.
    system = await systems(VERIFICATION_TIMEOUT_SECONDS="4", CHAIN_BLOCK_TIME_SECONDS="2")
    payer, intent = await system.intent()
    async with system.worker():
        await system.submit(payer, intent, UNKNOWN)
        result = await system.finished(intent.attempt_id)

    attempt = await system.attempt(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    assert attempt.submitted_at is not None
    [*_, ended] = await system.events(intent.attempt_id)
    assert (ended.created_at - attempt.submitted_at).total_seconds() >= 4
    assert (await system.state(intent.attempt_id)).history_length < 50
    await system.books_are_right()


async def test_a_payment_that_was_there_in_time_is_credited_although_no_worker_ran_before_the_deadline(
    systems: Systems,
) -> None:
    system = await systems(VERIFICATION_TIMEOUT_SECONDS="4")
    payment = await system.purchase()
    await system.record_without_worker(payment)
    await past_deadline(system, payment, seconds=4)
    async with system.worker():
        await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
@pytest.mark.parametrize("purpose", list(Purpose))
async def test_a_payment_that_is_not_there_when_no_worker_ran_before_the_deadline_fails(
    systems: Systems, purpose: Purpose
) -> None:
    system = await systems(VERIFICATION_TIMEOUT_SECONDS="4")
    payer, intent = await system.intent(purpose=purpose)
    payment = Payment(payer, intent, UNKNOWN)
    await system.record_without_worker(payment)
    await past_deadline(system, payment, seconds=4)
    async with system.worker():
        result = await system.finished(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    await system.books_are_right()


async def past_deadline(system: PaymentSystem, payment: Payment, *, seconds: float) -> None:
    """Wait until the verification has timed out."""
    submitted_at = (await system.attempt(payment.attempt_id)).submitted_at
    assert submitted_at is not None
    await system.until(lambda: (datetime.now(UTC) - submitted_at).total_seconds() > seconds, "deadline")


async def test_a_hash_submitted_after_the_intent_has_expired_fails_it_and_starts_nothing(systems: Systems) -> None:
    system = await systems(PAYMENT_INTENT_TTL_SECONDS="1")
    payment = await system.purchase()
    await system.until(lambda: datetime.now(UTC) >= payment.intent.expires_at, "expiry of the intent")

    view = await system.submit_payment(payment)

    assert (view.status, view.error_code) == (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)
    assert await system.submit_payment(payment) == view
    assert (await system.events(payment.attempt_id))[-1].details == {"submittedTxHash": payment.tx_hash}
    await system.books_are_right()


async def test_a_sped_up_transaction_is_credited_by_the_hash_that_was_mined(system: PaymentSystem) -> None:
    wallet = wallets(1)[0]
    slow = await system.purchase(confirmed=False)
    async with system.worker():
        await system.submit_payment(slow)
        await system.polled(slow.attempt_id, "not found yet")
        fast = Payment(slow.payer, slow.intent, await system.chain.speed_up(wallet.private_key, slow.tx_hash))
        await system.confirm(fast.tx_hash)
        view = await system.submit_payment(fast)
        assert (view.status, view.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, fast.tx_hash)
        await system.must_be_settled(fast)
    assert [event.event_type for event in await system.events(slow.attempt_id)] == [
        "intent_created",
        "submitted",
        "hash_replaced",
        "credited",
    ]
    await system.books_are_right()


@pytest.mark.slow
async def test_going_back_to_the_first_hash_waits_for_the_first_hash_again(system: PaymentSystem) -> None:
    payment = await system.purchase(confirmed=False)
    other = Payment(payment.payer, payment.intent, UNKNOWN)
    async with system.worker():
        for handed_in in (payment, other, payment):
            assert (await system.submit_payment(handed_in)).tx_hash == handed_in.tx_hash
        await system.polled(payment.attempt_id, f"{payment.tx_hash} not found yet")
        await system.confirm(payment.tx_hash)
        await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_of_two_hashes_submitted_while_no_worker_ran_the_later_one_counts(system: PaymentSystem) -> None:
    payment = await system.purchase()
    await system.record_without_worker(Payment(payment.payer, payment.intent, UNKNOWN))
    await system.record_without_worker(payment)
    async with system.worker():
        await system.must_be_settled(payment)
    await system.books_are_right()


async def test_a_hash_that_replaces_a_wrong_payment_in_its_last_moment_is_not_refused_in_its_place(
    system: PaymentSystem,
) -> None:
    wrong = await system.purchase(amount_raw=1, confirmed=False)
    right = Payment(wrong.payer, wrong.intent, await system.pay(wrong.intent))
    async with system.worker():
        await system.submit_payment(wrong)
        await system.polled(wrong.attempt_id, "not found yet")
        async with system.locked_attempts(wrong.attempt_id):
            replacing = asyncio.create_task(system.submit_payment(right))
            await system.lock_waiters(1)
            await system.confirm(wrong.tx_hash, right.tx_hash)
            await system.pending(wrong.attempt_id, "end_without_credits")
            await system.lock_waiters(2)
        assert (await replacing).tx_hash == right.tx_hash
        await system.must_be_settled(right)
    await system.books_are_right()


async def test_a_transaction_that_a_reorganisation_removed_is_waited_for_and_credited_when_it_comes_back(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase(confirmed=False)
    raw = await system.chain.raw_transaction(payment.tx_hash)
    async with system.worker():
        await system.confirm(payment.tx_hash, blocks=2)
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, "2 of 3 confirmations")
        await system.chain.reorg(2)
        await system.chain.mine(5)
        await system.polled(payment.attempt_id, "not found yet")
        assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
        if await system.chain.rpc("eth_getTransactionByHash", payment.tx_hash) is None:
            await system.chain.rpc("eth_sendRawTransaction", raw)
        await system.confirm(payment.tx_hash)
        await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_transaction_that_a_reorganisation_moved_is_credited_once_at_its_new_block(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase(confirmed=False)
    raw = await system.chain.raw_transaction(payment.tx_hash)
    async with system.worker():
        await system.confirm(payment.tx_hash, blocks=2)
        before = await system.chain.wait_for_receipt(payment.tx_hash)
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, "2 of 3 confirmations")
        await system.chain.reorg(2, [(raw, 1)])
        after = await system.chain.wait_for_receipt(payment.tx_hash)
        await system.polled(payment.attempt_id, "1 of 3 confirmations")
        await system.chain.mine(2)
        await system.must_be_settled(payment)
    transfer = await system.settled_by(payment.attempt_id)
    assert int(after["blockNumber"], 16) == int(before["blockNumber"], 16) + 1
    assert (transfer.block_number, transfer.block_hash) == (int(after["blockNumber"], 16), after["blockHash"])
    await system.books_are_right()
