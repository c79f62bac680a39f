"""Submissions and polls at the worst moment: around a deadline, and on a database that was restored from a backup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.api.operatorservice.v1 import RemoveSearchAttributesRequest

from domain.payments.attempt import AttemptStatus, ErrorCode
from starter.submission import settlement_of, submission_of
from tests.crash.conftest import Systems
from tests.crash.test_waiting import UNKNOWN, past_deadline
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect
from tests.support.system import Payment, PaymentSystem
from workflows.naming import workflow_id
from workflows.verify_and_settle import VerifyAndSettle

TIMEOUT_SECONDS = 4


@pytest.mark.slow
async def test_a_payment_that_lacks_only_confirmations_at_the_deadline_gets_the_time_for_them(
    systems: Systems,
) -> None:
    # Three confirmations of 4 s, twice: 24 s of grace, whatever else this machine does.
    system = await systems(VERIFICATION_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS), CHAIN_BLOCK_TIME_SECONDS="4")
    payment = await system.purchase(confirmed=False)
    await system.confirm(payment.tx_hash, blocks=1)
    async with system.worker():
        await system.submit_payment(payment)
        await past_deadline(system, payment, seconds=TIMEOUT_SECONDS)
        await system.polled(payment.attempt_id, "1 of 3 confirmations")
        await system.confirm(payment.tx_hash, blocks=2)
        await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_payment_whose_chain_stands_still_before_the_confirmations_ends_after_the_grace(
    systems: Systems,
) -> None:
    system = await systems(VERIFICATION_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS), CHAIN_BLOCK_TIME_SECONDS="0.2")
    payment = await system.purchase(confirmed=False)
    await system.confirm(payment.tx_hash, blocks=1)
    async with system.worker():
        await system.submit_payment(payment)
        result = await system.finished(payment.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_hash_recorded_while_no_worker_ran_has_its_own_time(systems: Systems) -> None:
    """The first hash's time is up when a worker comes; the second one was submitted a moment before."""
    timeout = 12
    system = await systems(VERIFICATION_TIMEOUT_SECONDS=str(timeout))
    payment = await system.purchase(confirmed=False)
    first = Payment(payment.payer, payment.intent, UNKNOWN)
    async with system.worker():
        await system.submit(payment.payer, payment.intent, UNKNOWN)
        await system.polled(payment.attempt_id, "not found yet")
    submitted_at = (await system.attempt(payment.attempt_id)).submitted_at
    assert submitted_at is not None
    await system.until(lambda: datetime.now(UTC) > submitted_at + timedelta(seconds=timeout - 5), "nearly the end")
    # Only the database hears of the second hash: as if its sender had died before it signalled the run.
    await system.record_only(payment)
    await system.until(lambda: datetime.now(UTC) > submitted_at + timedelta(seconds=timeout), "the first hash's end")
    async with system.worker():
        await system.confirm(payment.tx_hash)
        await system.must_be_settled(payment)
    assert first.tx_hash != (await system.attempt(payment.attempt_id)).tx_hash
    await system.books_are_right()


async def test_a_submission_repeated_after_the_expiry_does_not_spoil_the_one_that_was_in_time(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase()
    attempt = await system.attempt(payment.attempt_id)
    # Of a starter up to schema revision 0006: the run is started, and is to record the hash.
    await system.namespace.client.start_workflow(
        VerifyAndSettle.run,
        settlement_of(attempt, submission_of(attempt, payment.tx_hash, datetime.now(UTC))),
        id=workflow_id(attempt.id),
        task_queue=TASK_QUEUE,
    )
    submitted_in_time = datetime.now(UTC)
    with connect(system.database.superuser_url) as superuser:
        superuser.execute("UPDATE payment_attempts SET expires_at = %s WHERE id = %s", (submitted_in_time, attempt.id))
    assert (await system.submit_payment(payment)).error_code is ErrorCode.INTENT_EXPIRED
    async with system.worker():
        await system.must_be_settled(payment)
    await system.books_are_right()


def set_back(database_url: str, payment: Payment) -> None:
    """Take the end of a payment out of the database, as restoring a backup of a moment ago does."""
    with connect(database_url, triggers=False) as superuser:
        superuser.execute(
            "DELETE FROM journal_lines USING credit_ledger e WHERE e.id = entry_id AND e.reference = %s",
            (str(payment.attempt_id),),
        )
        superuser.execute("DELETE FROM credit_ledger WHERE reference = %s", (str(payment.attempt_id),))
        superuser.execute("DELETE FROM settled_transfers WHERE attempt_id = %s", (payment.attempt_id,))
        superuser.execute(
            "DELETE FROM payment_events WHERE attempt_id = %s AND to_status = 'CREDITED'", (payment.attempt_id,)
        )
        superuser.execute(
            "UPDATE payment_attempts SET status = 'PENDING_UNVERIFIED', revenue_share = NULL WHERE id = %s",
            (payment.attempt_id,),
        )
        superuser.execute("UPDATE billing_accounts SET balance_credits = 0")


async def test_a_payment_that_a_restored_database_has_forgotten_is_settled_by_submitting_it_again(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase()
    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
        set_back(system.database.superuser_url, payment)
        assert await system.credits(payment.attempt_id) == {}

        assert (await system.submit_payment(payment)).status is AttemptStatus.PENDING_UNVERIFIED
        await system.must_be_settled(payment)
    await system.books_are_right()


async def test_a_submission_before_the_first_worker_registers_what_temporal_must_know(system: PaymentSystem) -> None:
    client = system.namespace.client
    await client.operator_service.remove_search_attributes(
        RemoveSearchAttributesRequest(namespace=client.namespace, search_attributes=["TxHash", "ChainId"])
    )
    payment = await system.purchase()
    assert (await system.submit_payment(payment)).status is AttemptStatus.PENDING_UNVERIFIED
    async with system.worker():
        await system.must_be_settled(payment)
    await system.books_are_right()
