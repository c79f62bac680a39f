"""Payments from the submitted hash to the credits: real server, real activities, real database, real chain."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, ApplicationError

from activities.messages import Settlement, Submission
from devstack.chain import LocalChain, payer_wallets
from devstack.processes import wait_until
from domain.errors import HashInUse
from domain.payments.attempt import AttemptStatus, ClientStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.verification import PaymentTerms, Refused
from services.payments import lifecycle as payments
from tests.support.engine import Engine
from tests.support.servers import TASK_QUEUE
from workflows.naming import SUBMIT_UPDATE, workflow_id
from workflows.verify_and_settle import VerifyAndSettle

CREDITS = 1_000_000_000
BONUS = 750_000_000


async def test_a_purchase_credits_the_buyer_and_on_top_the_system_tenant(engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        view = await engine.submit(payer, intent, sent)
        assert (view.status, view.client_status) == (
            AttemptStatus.PENDING_UNVERIFIED,
            ClientStatus.PENDING_VERIFICATION,
        )
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code, result.tx_hash) == (AttemptStatus.CREDITED, None, sent)
    assert (result.buyer_credits, result.system_tenant_credits) == (CREDITS, BONUS)
    assert await engine.credits(intent.attempt_id) == {"credits_purchase": CREDITS, "platform_revenue_share": BONUS}
    assert await engine.books() == []


async def test_a_donation_credits_the_system_tenant_with_all_of_it_and_mints_no_bonus(engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy(purpose=Purpose.SYSTEM)
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.buyer_credits, result.system_tenant_credits) == (AttemptStatus.CREDITED, 0, CREDITS)
    assert await engine.credits(intent.attempt_id) == {"system_donation": CREDITS}
    assert await engine.books() == []


async def test_a_payment_of_too_little_is_rejected_and_not_credited(engine: Engine) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay_and_confirm(intent, amount_raw=intent.amount_raw - 1)
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.INSUFFICIENT_AMOUNT)
    assert await engine.credits(intent.attempt_id) == {}
    assert await engine.books() == []


async def test_a_reverted_transaction_ends_failed(engine: Engine) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay_and_confirm(intent, amount_raw=10**18)
        await engine.submit(payer, intent, sent)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.TX_REVERTED)
    assert await engine.books() == []


async def test_a_hash_that_no_node_knows_ends_failed_when_its_time_is_up(short_lived_engine: Engine) -> None:
    engine = short_lived_engine
    async with engine.worker():
        payer, intent = await engine.intent()
        await engine.submit(payer, intent, "0x" + "ab" * 32)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)
    last_event = (await engine.events(intent.attempt_id))[-1]
    assert "final poll said: transaction" in last_event.details["message"]
    assert await engine.books() == []


async def test_a_payment_confirmed_while_no_worker_ran_is_found_by_the_final_poll(short_lived_engine: Engine) -> None:
    engine = short_lived_engine
    payer, intent, sent = await engine.buy()
    started = datetime.now(UTC)
    submitting = asyncio.create_task(engine.submit(payer, intent, sent))
    # A little more, because the attempt's own clock began when `submit` read it.
    timeout = engine.settings.verification_timeout * 1.2
    await wait_until(lambda: datetime.now(UTC) > started + timeout, timeout_seconds=5, what="the verification's end")
    async with engine.worker():
        await submitting
        result = await engine.result(intent.attempt_id)
    assert result.status is AttemptStatus.CREDITED


async def test_a_hash_that_replaces_the_first_is_polled_at_once(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        slow = await engine.pay(intent)
        await engine.submit(payer, intent, slow)
        await engine.polled(intent.attempt_id, f"transaction {slow} not found yet")
        fast = await chain.speed_up(payer_wallets()[0].private_key, slow)
        assert (await engine.submit(payer, intent, fast)).tx_hash == fast
        state = await engine.polled(intent.attempt_id, f"transaction {fast} not found yet")
        assert state.pending[0].attempt <= 3
        await chain.mine(2)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.tx_hash) == (AttemptStatus.CREDITED, fast)
    assert [event.event_type for event in await engine.events(intent.attempt_id)] == [
        "intent_created",
        "submitted",
        "hash_replaced",
        "credited",
    ]


async def test_a_payer_may_go_back_to_an_earlier_hash(engine: Engine, chain: LocalChain) -> None:
    first, second = "", "0x" + "bb" * 32
    async with engine.worker():
        payer, intent = await engine.intent()
        first = await engine.pay(intent)
        answers = [await engine.submit(payer, intent, sent) for sent in (first, second, first)]
        assert [answer.tx_hash for answer in answers] == [first, second, first]
        await chain.mine(2)
        result = await engine.result(intent.attempt_id)
    assert (result.status, result.tx_hash) == (AttemptStatus.CREDITED, first)
    assert (await engine.attempt(intent.attempt_id)).submission_count == 3


async def test_a_repeated_start_joins_the_run_that_is_there(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        answers = await asyncio.gather(*(engine.submit(payer, intent, sent) for _ in range(10)))
        run = (await engine.state(intent.attempt_id)).run_id
        answers.append(await engine.submit(payer, intent, sent))
        assert len({answer.model_dump_json() for answer in answers}) == 1
        assert (await engine.state(intent.attempt_id)).run_id == run
        await chain.mine(2)
        await engine.result(intent.attempt_id)
    assert (await engine.attempt(intent.attempt_id)).submission_count == 1


async def test_a_submission_after_the_end_is_answered_with_the_end_and_starts_nothing(engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
        run = (await engine.state(intent.attempt_id)).run_id
        for late in (sent, "0x" + "bb" * 32):
            view = await engine.submit(payer, intent, late)
            assert (view.status, view.tx_hash) == (AttemptStatus.CREDITED, sent)
        assert (await engine.state(intent.attempt_id)).run_id == run


def _settlement(attempt: PaymentAttempt, sent: str) -> Settlement:
    return Settlement(
        submission=Submission(
            attempt_id=attempt.id,
            owner_user_id=attempt.owner_user_id,
            billing_account_id=attempt.billing_account_id,
            tx_hash=sent,
            submitted_at=datetime.now(UTC),
        ),
        purpose=attempt.purpose,
        amount_usd_cents=attempt.amount_usd_cents,
        terms=PaymentTerms(
            chain_id=attempt.chain_id,
            token=attempt.token,
            payer=attempt.from_address,
            treasury=attempt.to_address,
            amount_raw=attempt.amount_raw,
        ),
    )


async def _credit_without_bonus(engine: Engine) -> PaymentAttempt:
    """What a run leaves that was terminated between the two credits."""
    payer, intent = await engine.intent()
    await engine.credit_without_bonus(payer, intent)
    assert await engine.credits(intent.attempt_id) == {"credits_purchase": CREDITS}
    return await engine.attempt(intent.attempt_id)


async def test_a_run_for_an_attempt_that_is_already_credited_mints_the_bonus_once(engine: Engine) -> None:
    attempt = await _credit_without_bonus(engine)
    async with engine.worker():
        for _ in range(2):
            result = await engine.namespace.client.execute_workflow(
                VerifyAndSettle.run,
                _settlement(attempt, str(attempt.tx_hash)),
                id=workflow_id(attempt.id),
                task_queue=TASK_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            )
            assert (result.status, result.system_tenant_credits) == (AttemptStatus.CREDITED, BONUS)
    assert await engine.credits(attempt.id) == {"credits_purchase": CREDITS, "platform_revenue_share": BONUS}
    assert await engine.books() == []


async def _two_intents_of_one_payer(engine: Engine) -> tuple[PaymentAttempt, PaymentAttempt]:
    payer, first = await engine.intent()
    second = await engine.payments.create_intent(payer, 10_000)
    return await engine.attempt(first.attempt_id), await engine.attempt(second.attempt_id)


async def test_a_refused_first_submission_fails_its_run_and_a_later_one_starts_another(
    engine: Engine, chain: LocalChain
) -> None:
    async with engine.worker():
        holder, other = await _two_intents_of_one_payer(engine)
        sent = await chain.pay(payer_wallets()[0].private_key, other.to_address, other.amount_raw)
        async with engine.tenants.transaction(holder.owner_user_id) as connection:
            await payments.submit(connection, holder.id, sent, submitted_at=datetime.now(UTC))

        # The starter refuses it earlier; between its check and the run another submission may take the hash.
        handle = await engine.namespace.client.start_workflow(
            VerifyAndSettle.run, _settlement(other, sent), id=workflow_id(other.id), task_queue=TASK_QUEUE
        )
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(SUBMIT_UPDATE, _settlement(other, sent).submission, id=f"submit-0-{sent}")
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type == HashInUse.code
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == HashInUse.code
        assert (await engine.attempt(other.id)).status is AttemptStatus.CREATED_INTENT

        # The holder goes over to another hash, and the same submission as before is a good one now.
        async with engine.tenants.transaction(holder.owner_user_id) as connection:
            await payments.submit(connection, holder.id, "0x" + "cc" * 32, submitted_at=datetime.now(UTC))
        view = await engine.payments.submit(other.owner_user_id, other.id, sent)
        assert (view.status, view.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, sent)
        await chain.mine(2)
        result = await engine.result(other.id)
    assert result.status is AttemptStatus.CREDITED
    assert (await engine.state(other.id)).run_id != handle.first_execution_run_id


async def test_an_activitys_no_carries_its_code_and_is_not_retried(engine: Engine) -> None:
    async with engine.worker():
        holder, other = await _two_intents_of_one_payer(engine)
        sent = "0x" + "ab" * 32
        async with engine.tenants.transaction(holder.owner_user_id) as connection:
            await payments.submit(connection, holder.id, sent, submitted_at=datetime.now(UTC))
        handle = await engine.namespace.client.start_workflow(
            VerifyAndSettle.run, _settlement(other, sent), id=workflow_id(other.id), task_queue=TASK_QUEUE
        )
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    cause = failed.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.non_retryable) == ("TX_HASH_IN_USE", True)
    [failure] = [
        event.activity_task_failed_event_attributes
        for event in (await handle.fetch_history()).events
        if event.HasField("activity_task_failed_event_attributes")
    ]
    assert failure.failure.application_failure_info.type == "TX_HASH_IN_USE"
    description = await handle.describe()
    assert description.status is WorkflowExecutionStatus.FAILED
    assert not isinstance(cause, ActivityError)


async def test_a_refusal_does_not_end_an_attempt_whose_hash_was_replaced_concurrently(
    engine: Engine, chain: LocalChain
) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        bad = await engine.pay_and_confirm(intent, amount_raw=10**18)
        good = await engine.pay_and_confirm(intent)
        # The database moves on from `bad` to `good` between the poll and the refusal.
        async with engine.settlement.transaction(payer.user_id) as connection:
            await payments.submit(connection, intent.attempt_id, bad, submitted_at=datetime.now(UTC))
            await payments.submit(connection, intent.attempt_id, good, submitted_at=datetime.now(UTC))
            reverted = await payments.refuse(connection, intent.attempt_id, _reverted(bad))
        assert (reverted.changed, reverted.attempt.status) == (False, AttemptStatus.PENDING_UNVERIFIED)
        await engine.submit(payer, intent, good)
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED


def _reverted(tx_hash: str) -> Refused:
    return Refused(status=AttemptStatus.FAILED, error_code=ErrorCode.TX_REVERTED, message="reverted", tx_hash=tx_hash)
