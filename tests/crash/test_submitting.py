"""The process that submits is killed around the commit of the hash: what is recorded is settled."""

from __future__ import annotations

import pytest

from activities.transfers import recent_submissions
from composition import singleton_workflows
from domain.payments.attempt import AttemptStatus
from services.payments import recovery
from starter.progress import read_workflow
from starter.singletons import start_missing
from tests.support.faults import Fault, Moment
from tests.support.system import Payment, PaymentSystem

RECORDS_THE_HASH = "record_own_submission("


async def _killed_while_submitting(system: PaymentSystem, payment: Payment, moment: Moment) -> None:
    fault = Fault(statement=RECORDS_THE_HASH, moment=moment)
    command = system.start_command("attempt", "submit", str(payment.attempt_id), payment.tx_hash, fault=fault)
    await system.until(lambda: not command.is_running, "the end of the submitting process")
    assert command.exit_code == -9, command.log_text()


@pytest.mark.slow
async def test_killed_before_the_commit_nothing_is_submitted_and_the_repetition_is_settled(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase()
    await _killed_while_submitting(system, payment, Moment.BEFORE_COMMIT)
    assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.CREATED_INTENT
    assert await read_workflow(system.namespace.client, payment.attempt_id) is None
    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
    await system.books_are_right()


async def test_killed_after_the_commit_the_payment_is_settled_although_nothing_is_submitted_again(
    system: PaymentSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the product's own times it takes up to half a minute.
    monkeypatch.setattr(recent_submissions, "EVERY_SECONDS", recent_submissions.EVERY_SECONDS / 100)
    monkeypatch.setattr(recovery, "STRANDED_AFTER", recovery.STRANDED_AFTER / 100)
    payment = await system.purchase()
    await _killed_while_submitting(system, payment, Moment.AFTER_COMMIT)
    assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
    assert await read_workflow(system.namespace.client, payment.attempt_id) is None
    async with system.worker():
        await start_missing(system.namespace.client, singleton_workflows(system.settings))
        await system.started(payment.attempt_id)
        await system.must_be_settled(payment)
    await system.books_are_right()


def test_what_a_dead_process_left_is_found_within_a_minute() -> None:
    assert recovery.STRANDED_AFTER.total_seconds() + 2 * recent_submissions.EVERY_SECONDS <= 60
