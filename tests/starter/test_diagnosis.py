"""Why is my payment not credited? One sentence for every state that a payment can be in."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from temporalio.client import Client

from chain.reader import ChainReader
from devstack.chain import LocalChain, payer_wallets
from devstack.processes import quiet_port
from domain.errors import AttemptNotFound
from domain.money import DEFAULT_REVENUE_SHARE
from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from domain.payments.verification import Refused
from services.payments import lifecycle as payments
from starter import diagnosis
from starter.diagnosis import Diagnosis, diagnose
from tests.support.engine import Engine, open_engine
from tests.support.payments import transfer_for
from tests.support.postgres import Database
from tests.support.servers import Namespace

A = "0x" + "aa" * 32


async def _diagnose(
    engine: Engine,
    attempt_id: UUID,
    *,
    temporal: Client | None = None,
    reader: ChainReader | None = None,
    ui_url: str | None = None,
) -> Diagnosis:
    return await diagnose(
        attempt_id,
        database=engine.service,
        temporal=temporal or engine.namespace.client,
        chain=reader or engine.reader,
        min_confirmations=engine.settings.min_confirmations,
        ui_url=ui_url,
    )


async def _record(engine: Engine, user_id: str, attempt_id: UUID, tx_hash: str) -> None:
    """What a submission leaves in the database whose workflow is lost."""
    async with engine.tenants.transaction(user_id) as connection:
        await payments.submit(connection, attempt_id, tx_hash, submitted_at=datetime.now(UTC))


async def test_an_attempt_that_does_not_exist(engine: Engine) -> None:
    with pytest.raises(AttemptNotFound):
        await _diagnose(engine, uuid4())


async def test_an_intent_without_a_transaction(engine: Engine) -> None:
    _, intent = await engine.intent()
    found = await _diagnose(engine, intent.attempt_id)
    assert found.explanation == diagnosis.NO_TRANSACTION
    assert (found.chain, found.workflow, found.workflow_url) == (None, "there is none", None)
    assert [event.event_type for event in found.events] == ["intent_created"]


async def test_an_intent_that_expired_unpaid(namespace: Namespace, database: Database, chain: LocalChain) -> None:
    async with open_engine(namespace, database, chain, PAYMENT_INTENT_TTL_SECONDS="1") as engine:
        _, intent = await engine.intent()
        await asyncio.sleep((intent.expires_at - datetime.now(UTC)).total_seconds() + 0.01)
        found = await _diagnose(engine, intent.attempt_id)
    assert f"expired at {intent.expires_at:%F %T} UTC" in found.explanation


async def test_an_intent_whose_hash_came_too_late(namespace: Namespace, database: Database, chain: LocalChain) -> None:
    async with open_engine(namespace, database, chain, PAYMENT_INTENT_TTL_SECONDS="1") as engine:
        payer, intent = await engine.intent()
        await asyncio.sleep((intent.expires_at - datetime.now(UTC)).total_seconds() + 0.01)
        await engine.submit(payer, intent, A)
        found = await _diagnose(engine, intent.attempt_id)
    assert found.explanation.startswith(diagnosis.ended(AttemptStatus.FAILED, "INTENT_EXPIRED"))
    assert found.events[-1].metadata == {"submittedTxHash": A}


async def test_a_payment_that_waits_says_what_for_from_all_three_sides(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        await engine.submit(payer, intent, sent)
        await chain.mine(1)
        await engine.polled(intent.attempt_id, "1 of 2 confirmations")
        found = await _diagnose(engine, intent.attempt_id, ui_url="http://ui.example/")
        assert found.explanation == f"{diagnosis.NOT_YET}: {found.chain}."
        assert found.chain == "1 of 2 confirmations"
        assert found.workflow is not None
        assert found.workflow.startswith("RUNNING, ")
        assert "; await_confirmation, attempt " in found.workflow
        assert ": 1 of 2 confirmations, next in " in found.workflow
        assert found.workflow_url == (
            f"http://ui.example/namespaces/{engine.namespace.name}/workflows/verify-and-settle-{intent.attempt_id}"
        )
        await chain.mine(1)
        await engine.result(intent.attempt_id)


async def test_a_payment_without_a_worker_says_what_to_do(engine: Engine) -> None:
    payer, intent = await engine.intent()
    await _record(engine, payer.user_id, intent.attempt_id, A)
    found = await _diagnose(engine, intent.attempt_id)
    assert diagnosis.NO_WORKFLOW in found.explanation
    assert diagnosis.SUBMIT_AGAIN in found.explanation


async def test_a_payment_whose_run_was_terminated_says_what_to_do(engine: Engine) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        await engine.submit(payer, intent, A)
        await engine.handle(intent.attempt_id).terminate("by an operator")
    found = await _diagnose(engine, intent.attempt_id)
    assert f"its workflow is TERMINATED; {diagnosis.SUBMIT_AGAIN}" in found.explanation


async def test_a_confirmed_payment_without_a_worker_points_at_the_workflow(engine: Engine) -> None:
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)
    found = await _diagnose(engine, intent.attempt_id)
    assert found.explanation.startswith(diagnosis.NOT_YET)
    assert found.explanation.endswith(f"{diagnosis.RUN_WORKER}.")
    assert found.chain is not None
    assert found.chain.startswith(diagnosis.RIGHT_PAYMENT)


async def test_with_temporal_down_the_answer_says_so_and_keeps_the_rest(engine: Engine, dead_temporal: Client) -> None:
    payer, intent, sent = await engine.buy()
    await _record(engine, payer.user_id, intent.attempt_id, sent)
    found = await _diagnose(engine, intent.attempt_id, temporal=dead_temporal)
    assert found.workflow is not None
    assert found.workflow.startswith("Temporal does not answer: ")
    assert "Temporal does not answer" in found.explanation
    assert found.chain is not None
    assert found.chain.startswith("the right payment")
    assert "\n" not in found.explanation


async def test_with_the_node_down_the_answer_says_so_and_keeps_the_rest(engine: Engine) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        await engine.submit(payer, intent, A)
        async with ChainReader([f"http://127.0.0.1:{quiet_port()}/v2/an-api-key"], engine.chain.chain_id) as dead:
            found = await _diagnose(engine, intent.attempt_id, reader=dead)
    assert found.chain is not None
    assert found.explanation.startswith(f"{diagnosis.NOT_YET}: {found.chain}; the workflow is RUNNING, ")
    assert "an-api-key" not in found.model_dump_json()


async def test_each_end_of_a_payment_is_named(engine: Engine) -> None:
    wanted = ((Purpose.SELF, 0), (Purpose.SELF, 7), (Purpose.SYSTEM, 0), (Purpose.SELF, -1))
    intents = []
    async with engine.worker():
        for wallet, (purpose, too_much) in zip(payer_wallets(), wanted, strict=False):
            payer, intent = await engine.intent(purpose=purpose, wallet=wallet)
            sent = await engine.pay_and_confirm(intent, wallet=wallet, amount_raw=intent.amount_raw + too_much)
            await engine.submit(payer, intent, sent)
            intents.append(intent)
        for intent in intents:
            await engine.result(intent.attempt_id)
    bought, more, gave, less = intents

    found = await _diagnose(engine, bought.attempt_id)
    assert found.explanation == diagnosis.credited(1_000_000_000, ", 750,000,000 to the system tenant")
    assert found.workflow is not None
    assert found.workflow.startswith("COMPLETED, ")
    assert {row.reason: row.amount for row in found.ledger} == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    assert found.surplus_raw == 0
    assert (await _diagnose(engine, more.attempt_id)).surplus_raw == 7
    assert (await _diagnose(engine, gave.attempt_id)).explanation == diagnosis.donated(1_000_000_000)

    found = await _diagnose(engine, less.attempt_id)
    assert found.explanation.startswith(diagnosis.ended(AttemptStatus.REJECTED, "INSUFFICIENT_AMOUNT"))
    assert found.chain is not None
    assert found.chain.startswith(f"INSUFFICIENT_AMOUNT: {less.amount_raw - 1} raw units")
    assert str(less.amount_raw) in found.chain


async def test_a_credited_purchase_whose_bonus_is_still_due(engine: Engine) -> None:
    payer, intent = await engine.intent()
    await _record(engine, payer.user_id, intent.attempt_id, A)
    async with engine.settlement.transaction(payer.user_id) as connection:
        transfer = transfer_for(await engine.attempt(intent.attempt_id))
        await payments.credit_buyer(connection, intent.attempt_id, transfer, revenue_share=DEFAULT_REVENUE_SHARE)
    found = await _diagnose(engine, intent.attempt_id)
    assert found.explanation.startswith(diagnosis.credited(1_000_000_000, "; its bonus is missing")[:-1])
    assert "there is none" in found.explanation


async def test_a_payment_that_appeared_after_it_had_failed_is_distinguished(engine: Engine) -> None:
    payer, intent, sent = await engine.buy()
    await _record(engine, payer.user_id, intent.attempt_id, sent)
    given_up = Refused(
        status=AttemptStatus.FAILED, error_code=ErrorCode.RECEIPT_NOT_FOUND, message="not confirmed in time"
    )
    async with engine.settlement.transaction(payer.user_id) as connection:
        await payments.refuse(connection, intent.attempt_id, given_up)
    found = await _diagnose(engine, intent.attempt_id)
    assert found.explanation.startswith(diagnosis.ended(AttemptStatus.FAILED, "RECEIPT_NOT_FOUND"))
    assert found.chain is not None
    assert found.chain in found.explanation
