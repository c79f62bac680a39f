"""The whole engine after the credit: the watcher finds what is final, and `ReversePayment` decides about the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from temporalio.client import WorkflowHandle

from activities.messages import ReversalResult
from db.ledger import entries as ledger
from devstack.chain import payer_wallets
from devstack.processes import wait_until
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.events import PAYMENT_REVERSED, PlatformEvent
from domain.payments.attempt import AttemptStatus, Purpose
from services.payments import lifecycle
from services.payments.finality import FinalityDecider
from starter.diagnosis import diagnose
from starter.models import Intent
from starter.progress import WorkflowState, read_reversal, read_workflow
from tests.finality.conftest import FINAL_AFTER, Reversals, start_as_before
from tests.finality.test_after_the_credit import BONUS, CREDITS, _balances, _on_record
from tests.finality.test_recovery import REFUSE_REVERSED_BONUSES, age, keep_house
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from tests.support.sql import connect
from tests.watcher.test_watch_chain import start_watch
from workflows.naming import (
    BILLING_ACCOUNT_ID,
    CHAIN_ID,
    PAYMENT_PURPOSE,
    PAYMENT_STATUS,
    TX_HASH,
    reversal_workflow_id,
)
from workflows.reverse_payment import ReversePayment

HISTORY_MAX = 40
Reversal = WorkflowHandle[ReversePayment, ReversalResult]


@asynccontextmanager
async def following(engine: Engine, *, is_watched: bool = True) -> AsyncIterator[list[PlatformEvent]]:
    """A worker, and the watcher; what they publish."""
    published: list[PlatformEvent] = []

    async def publish(event: PlatformEvent) -> None:
        published.append(event)

    async with engine.publishing_worker(publish):
        if is_watched:
            await start_watch(engine)
        yield published


async def credited(engine: Engine, purpose: Purpose = Purpose.SELF, *, wallet: int = 0) -> tuple[Intent, str]:
    """A credited payment with its bonus, that no workflow tracks. No watcher runs yet, which would submit it."""
    payer, intent = await engine.intent(purpose=purpose, wallet=payer_wallets()[wallet])
    sent = await engine.credit_without_bonus(payer, intent, wallet=payer_wallets()[wallet])
    if purpose is Purpose.SELF:
        async with engine.service.autocommit() as connection:
            await lifecycle.mint_revenue_share(connection, intent.attempt_id)
    return intent, sent


def reversal_of(engine: Engine, attempt_id: UUID) -> Reversal:
    """The workflow that decides about it."""
    return engine.namespace.client.get_workflow_handle_for(ReversePayment.run, reversal_workflow_id(attempt_id))


async def waits(engine: Engine, attempt_id: UUID, condition: Callable[[WorkflowState], bool], what: str) -> None:
    """Returns when the state of its reversal is so."""

    async def holds() -> bool:
        state = await read_reversal(engine.namespace.client, attempt_id)
        return state is not None and condition(state)

    await wait_until(holds, timeout_seconds=PATIENCE_SECONDS, what=what)


async def has_outcome(engine: Engine, attempt_id: UUID) -> tuple[object, ...]:
    """The outcome on record, as soon as there is one."""
    await wait_until(
        lambda: bool(_on_record(engine, attempt_id)), timeout_seconds=PATIENCE_SECONDS, what="an outcome on record"
    )
    return _on_record(engine, attempt_id)[0]


async def is_in_doubt(engine: Engine, attempt_id: UUID) -> None:
    """Its own workflow has found it missing."""
    await waits(
        engine,
        attempt_id,
        lambda state: any("the canonical chain" in (one.last_failure or "") for one in state.pending),
        "a poll that misses the payment",
    )


async def result_of(engine: Engine, attempt_id: UUID) -> ReversalResult:
    """How its reversal has ended, once it has begun and ended."""
    await waits(engine, attempt_id, lambda _: True, "a workflow of the payment's own")
    return await reversal_of(engine, attempt_id).result(rpc_timeout=RESULT_TIMEOUT)


async def test_the_watcher_finds_payments_final_and_no_workflow_is_needed(engine: Engine) -> None:
    intent, _ = await credited(engine)
    async with following(engine):
        await engine.chain.mine(FINAL_AFTER)
        outcome, level, *_ = await has_outcome(engine, intent.attempt_id)
        assert (outcome, level) == ("final", "confirmations")
        assert await read_reversal(engine.namespace.client, intent.attempt_id) is None
    assert await engine.books() == []


async def test_a_payment_that_is_reorged_out_is_reversed_by_a_workflow_of_its_own(engine: Engine) -> None:
    intent, sent = await credited(engine)
    attempt = await engine.attempt(intent.attempt_id)
    async with following(engine) as published:
        await engine.chain.reorg(MIN_CONFIRMATIONS)
        await engine.chain.mine(FINAL_AFTER + 1)
        await is_in_doubt(engine, attempt.id)
        handle = reversal_of(engine, attempt.id)
        description = await handle.describe()
        attributes = description.typed_search_attributes
        assert attributes.get(PAYMENT_STATUS) == "CREDITED"
        assert attributes.get(PAYMENT_PURPOSE) == "self"
        assert attributes.get(BILLING_ACCOUNT_ID) == attempt.billing_account_id
        assert (attributes.get(CHAIN_ID), attributes.get(TX_HASH)) == (attempt.chain_id, sent)
        assert "100.00 USD" in (await description.static_summary() or "")
        shown = await shown_finality(engine, attempt.id)
        assert reversal_workflow_id(attempt.id) in shown, "an operator sees what it waits for"
        assert "the canonical chain" in shown
        # It has the time again to come back in another block that it had to become final.
        assert (await engine.attempt(attempt.id)).status is AttemptStatus.CREDITED
        await engine.chain.mine(2 * FINAL_AFTER)
        result = await result_of(engine, attempt.id)
        assert (result.status, result.final_block) == (AttemptStatus.REVERSED, None)
        assert len((await handle.fetch_history()).events) < HISTORY_MAX
        assert (await handle.describe()).typed_search_attributes.get(PAYMENT_STATUS) == "REVERSED"
        async with engine.service.transaction() as connection:
            rows = await ledger.list_entries(connection, str(attempt.id))
        assert [(row.billing_account_id == SYSTEM_TENANT_ACCOUNT_ID, row.reason, row.amount) for row in rows] == [
            (False, "credits_purchase", CREDITS),
            (True, "platform_revenue_share", BONUS),
            (False, "payment_reversal", -CREDITS),
            (True, "payment_reversal", -BONUS),
        ]
        assert set((await _balances(engine)).values()) == {0}
        assert [event.event_type for event in await engine.events(attempt.id)].count("reversed") == 1
        reversals = [event for event in published if event.type == PAYMENT_REVERSED]
        assert [(event.subject, event.data["bonusCredits"]) for event in reversals] == [(str(attempt.id), BONUS)]
        assert reversals[0].id == f"{PAYMENT_REVERSED}-{attempt.id}", "the same from whichever run"
    assert await engine.books() == []


async def test_a_payment_in_another_block_is_final_there(engine: Engine) -> None:
    intent, sent = await credited(engine)
    raw = await engine.chain.raw_transaction(sent)
    before = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    async with following(engine):
        await engine.chain.reorg(MIN_CONFIRMATIONS, [(raw, 1)])
        await engine.chain.mine(FINAL_AFTER + 2)
        result = await result_of(engine, intent.attempt_id)
    assert (result.status, result.final_block) == (AttemptStatus.CREDITED, before + 1)
    assert _on_record(engine, intent.attempt_id)[0][:3] == ("final", "confirmations", before + 1)
    assert await engine.books() == []


async def test_of_two_payments_in_one_block_the_one_that_is_missing_is_reversed(engine: Engine) -> None:
    """It is a donation, which has no bonus."""
    purposes = (Purpose.SELF, Purpose.SYSTEM)
    intents = [
        await engine.intent(purpose=purpose, wallet=payer_wallets()[number]) for number, purpose in enumerate(purposes)
    ]
    sent = [await engine.pay(intent, wallet=payer_wallets()[number]) for number, (_, intent) in enumerate(intents)]
    await engine.chain.mine(MIN_CONFIRMATIONS)
    for (payer, intent), tx_hash in zip(intents, sent, strict=True):
        await engine.credit_transaction(payer, intent, tx_hash)
    async with engine.service.autocommit() as connection:
        await lifecycle.mint_revenue_share(connection, intents[0][1].attempt_id)
    assert len({(await engine.chain.wait_for_receipt(tx_hash))["blockHash"] for tx_hash in sent}) == 1
    stays, goes = [intent.attempt_id for _, intent in intents]
    async with following(engine):
        await engine.chain.reorg(MIN_CONFIRMATIONS, [(await engine.chain.raw_transaction(sent[0]), 0)])
        await engine.chain.mine(FINAL_AFTER)
        assert (await result_of(engine, stays)).status is AttemptStatus.CREDITED
        await is_in_doubt(engine, goes)
        await engine.chain.mine(2 * FINAL_AFTER)
        assert (await result_of(engine, goes)).status is AttemptStatus.REVERSED
    assert [_on_record(engine, attempt_id)[0][0] for attempt_id in (stays, goes)] == ["final", "reversed"]
    assert await engine.credits(goes) == {"system_donation": CREDITS, "payment_reversal": -CREDITS}
    assert await engine.books() == []


async def test_housekeeping_decides_where_no_watcher_runs(engine: Engine) -> None:
    async with following(engine, is_watched=False):
        (stays, _), (goes, _) = await credited(engine), await credited(engine, wallet=1)
        await engine.chain.reorg(MIN_CONFIRMATIONS)
        await engine.chain.mine(FINAL_AFTER)
        done = await keep_house(engine)
        assert done.finality_decided == {"final": 1, "handed_over": 1}
        assert _on_record(engine, stays.attempt_id)[0][0] == "final"
        await is_in_doubt(engine, goes.attempt_id)
        await engine.chain.mine(2 * FINAL_AFTER)
        assert (await result_of(engine, goes.attempt_id)).status is AttemptStatus.REVERSED
        assert (await keep_house(engine)).finality_decided == {}


async def test_housekeeping_does_its_other_work_while_no_node_answers(engine: Engine) -> None:
    async with following(engine, is_watched=False):
        await credited(engine)
        await engine.chain.stop()
        try:
            done = await keep_house(engine)
        finally:
            await engine.chain.start()
        assert done.finality_decided == {}
        assert done.standing_started, "the step after it"


async def test_a_payment_that_lost_its_place_in_the_list_is_listed_again(engine: Engine) -> None:
    async with following(engine, is_watched=False):
        intent, _ = await credited(engine)
        age(engine, "2 hours")
        assert (await keep_house(engine)).payments_picked_up == {}, "it is on the list"
        with connect(engine.database.superuser_url) as superuser:
            superuser.execute("DELETE FROM transfers_awaiting_finality")
        await engine.chain.mine(FINAL_AFTER)
        age(engine, "-70 minutes")
        done = await keep_house(engine)
        assert (done.finality_decided, done.payments_picked_up) == ({}, {}), "it may still become final in time"
        age(engine, "2 hours")
        assert (await keep_house(engine)).payments_picked_up == {"CREDITED": 1}
        assert _on_record(engine, intent.attempt_id)[0][0] == "final"
        assert (await keep_house(engine)).payments_picked_up == {}
        assert await read_workflow(engine.namespace.client, intent.attempt_id) is None


async def test_half_a_reversal_whose_workflow_was_lost_is_completed(engine: Engine) -> None:
    async with following(engine, is_watched=False):
        intent, _ = await credited(engine)
        await engine.chain.reorg(MIN_CONFIRMATIONS)
        await engine.chain.mine(3 * FINAL_AFTER)
        with connect(engine.database.superuser_url) as owner:
            owner.execute(REFUSE_REVERSED_BONUSES)
        await keep_house(engine)
        await is_in_doubt(engine, intent.attempt_id)
        await engine.chain.mine(2 * FINAL_AFTER)
        await waits(
            engine,
            intent.attempt_id,
            lambda state: any(one.name == "reverse_bonus" and one.last_failure for one in state.pending),
            "a bonus that cannot be reversed",
        )
        age(engine, "1 minute")
        assert (await keep_house(engine)).payments_picked_up == {}, "its workflow is at work on it"
    # Without a worker no try is under way, which could complete the reversal before it is found.
    await reversal_of(engine, intent.attempt_id).terminate("by mistake")
    with connect(engine.database.superuser_url) as owner:
        owner.execute("DROP TRIGGER refuse_for_now ON credit_ledger")
    async with following(engine, is_watched=False):
        assert (await keep_house(engine)).payments_picked_up == {"REVERSED": 1}
        assert (await result_of(engine, intent.attempt_id)).status is AttemptStatus.REVERSED
    assert set((await _balances(engine)).values()) == {0}
    assert await engine.books() == []


@pytest.mark.slow
async def test_a_run_of_the_version_before_and_the_watcher_record_one_final_outcome(engine: Engine) -> None:
    async with following(engine, is_watched=False):
        payer, intent, sent = await engine.buy()
        await start_as_before(engine, payer, intent, sent)
        await engine.polled(intent.attempt_id, "to go")
        await start_watch(engine)
        await engine.chain.mine(FINAL_AFTER)
        result = await engine.result(intent.attempt_id)
        assert (result.status, (await has_outcome(engine, intent.attempt_id))[0]) == (AttemptStatus.CREDITED, "final")
        assert result.final_block == _on_record(engine, intent.attempt_id)[0][2]
    assert await engine.books() == []


@pytest.mark.slow
async def test_a_run_of_the_version_before_and_a_reversal_reverse_once(engine: Engine) -> None:
    async with following(engine, is_watched=False) as published:
        payer, intent, sent = await engine.buy()
        await start_as_before(engine, payer, intent, sent)
        await engine.polled(intent.attempt_id, "to go")
        await start_watch(engine)
        await engine.chain.reorg(MIN_CONFIRMATIONS)
        await engine.chain.mine(FINAL_AFTER + 1)
        await is_in_doubt(engine, intent.attempt_id)
        await engine.polled(intent.attempt_id, "not on the canonical chain")
        await engine.chain.mine(2 * FINAL_AFTER)
        assert (await result_of(engine, intent.attempt_id)).status is AttemptStatus.REVERSED
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.REVERSED
    assert [event.event_type for event in await engine.events(intent.attempt_id)].count("reversed") == 1
    assert set((await _balances(engine)).values()) == {0}
    assert len({event.id for event in published if event.type == PAYMENT_REVERSED}) == 1
    assert await engine.books() == []


async def test_an_operator_sees_what_a_credited_payment_waits_for(engine: Engine) -> None:
    await engine.chain.mine(FINAL_AFTER)
    intent, sent = await credited(engine)
    number = int((await engine.chain.wait_for_receipt(sent))["blockNumber"], 16)
    decider = FinalityDecider(engine.reader, engine.service, Reversals(), policy=engine.settings.finality_policy)
    assert await shown_finality(engine, intent.attempt_id) == f"in block {number}"
    await decider.decide_all()
    missing = FINAL_AFTER - MIN_CONFIRMATIONS
    assert f"block {number - missing}, {missing} to go" in await shown_finality(engine, intent.attempt_id)
    await engine.chain.mine(missing)
    await decider.decide_all()
    assert (await shown_finality(engine, intent.attempt_id)).startswith(f"final: block {number} ")


async def shown_finality(engine: Engine, attempt_id: UUID) -> str:
    """What `settle attempt show` says of its finality."""
    diagnosis = await diagnose(
        attempt_id,
        database=engine.service,
        temporal=engine.namespace.client,
        chain=engine.reader,
        min_confirmations=MIN_CONFIRMATIONS,
        ui_url=None,
    )
    assert diagnosis.finality is not None
    return diagnosis.finality
