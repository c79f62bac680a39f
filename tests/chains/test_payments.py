"""A payment belongs to one chain: a worker of another one decides nothing about it, whatever its nodes say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.messages import Rescan
from activities.payments.finality import FinalityActivities
from composition import chain_reader, payment_policy
from devstack.chain import LocalChain
from devstack.processes import wait_until
from domain.errors import WrongChain
from domain.payments.attempt import AttemptStatus
from settings import load
from starter.payments import PaymentsClient
from tests.chains.conftest import (
    FINAL_AFTER,
    OTHER_CHAIN_ID,
    OtherWorker,
    as_before,
    becomes_final,
    credited,
    credited_as_before,
    has_been_asked,
    keep_house,
    outcome,
    variables_of,
)
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from tests.support.servers import Namespace
from tests.support.sql import query
from workflows.jobs.rescan_chain import RescanChain
from workflows.naming import PLATFORM_TASK_QUEUE, task_queue

CREDITS = {"credits_purchase": 1_000_000_000, "platform_revenue_share": 750_000_000}
OTHER_HEIGHT: Final = 10**9


async def test_a_payment_that_is_not_final_yet_is_not_reversed_by_a_worker_of_another_chain(
    engine: Engine, other_worker: OtherWorker, other_chain: LocalChain
) -> None:
    """On the queue that all chains shared: nothing but the check keeps the two apart."""
    intent = await credited_as_before(engine)
    async with other_worker():
        await has_been_asked(engine, intent.attempt_id, "await_finality")
        # What was missed there, by its nodes, is final there.
        await other_chain.mine(2 * FINAL_AFTER)
        await has_been_asked(engine, intent.attempt_id, "await_finality")
        state = await engine.polled(intent.attempt_id, f"belongs to chain {engine.chain.chain_id}")
        assert state.is_running
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREDITED
    assert await engine.credits(intent.attempt_id) == CREDITS
    await becomes_final(engine, intent.attempt_id)
    assert await engine.books() == []


@pytest.mark.slow
async def test_a_payment_that_waits_for_confirmations_is_left_to_its_own_chain(
    engine: Engine, other_worker: OtherWorker
) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        await engine.chain.mine(1)
        with as_before():
            await engine.submit(payer, intent, sent)
        await engine.polled(intent.attempt_id, f"1 of {MIN_CONFIRMATIONS} confirmations")
    async with other_worker(MIN_CONFIRMATIONS="1"):
        await has_been_asked(engine, intent.attempt_id, "await_confirmation")
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
    await engine.chain.mine(1)
    await becomes_final(engine, intent.attempt_id)
    assert await engine.credits(intent.attempt_id) == CREDITS


@pytest.mark.slow
async def test_each_chain_has_its_own_queue_and_what_is_on_it_is_not_even_asked_about_by_the_other(
    engine: Engine, other_worker: OtherWorker, other_chain: LocalChain
) -> None:
    intent, _ = await credited(engine)
    history = await engine.handle(intent.attempt_id).fetch_history()
    started = history.events[0].workflow_execution_started_event_attributes
    assert started.task_queue.name == f"settlement-{engine.chain.chain_id}"
    async with other_worker():
        await keep_house(engine, other_chain.chain_id)
        await other_chain.mine(2 * FINAL_AFTER)
        await keep_house(engine, other_chain.chain_id)
    assert outcome(engine, intent.attempt_id) is None
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREDITED
    await becomes_final(engine, intent.attempt_id)


@pytest.mark.slow
async def test_what_a_worker_of_another_chain_once_took_for_missing_does_not_shorten_the_time_to_come_back(
    engine: Engine, other_worker: OtherWorker
) -> None:
    """The payment is reorganised away: the height at which it was missed first is its own chain's."""
    intent = await credited_as_before(engine)
    async with other_worker():
        await has_been_asked(engine, intent.attempt_id, "await_finality")
    await engine.chain.reorg(MIN_CONFIRMATIONS)
    await engine.chain.mine(1)
    async with engine.worker():
        await engine.polled(intent.attempt_id, "not on the canonical chain since block")
        assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREDITED
        await engine.chain.mine(2 * FINAL_AFTER)
        result = await engine.result(intent.attempt_id)
    assert result.status is AttemptStatus.REVERSED
    assert await engine.books() == []


async def test_housekeeping_of_one_chain_picks_nothing_up_of_another(
    engine: Engine, other_worker: OtherWorker, other_chain: LocalChain
) -> None:
    intent, _ = await credited(engine)
    payer, waiting = await engine.intent(20_000)
    sent = await engine.pay_and_confirm(waiting)
    await engine.submit(payer, waiting, sent)
    assert (await engine.handle(waiting.attempt_id).describe()).task_queue == task_queue(engine.chain.chain_id)
    await engine.handle(waiting.attempt_id).terminate("a test")
    query(
        engine.database.superuser_url,
        "UPDATE payment_attempts SET submitted_at = now() - interval '1 hour' WHERE id = %s RETURNING 1",
        waiting.attempt_id,
    )
    async with other_worker():
        assert (await keep_house(engine, other_chain.chain_id)).payments_picked_up == {}
    async with engine.worker():
        picked_up = (await keep_house(engine, engine.chain.chain_id)).payments_picked_up
        await engine.result(waiting.attempt_id)
    assert picked_up == {AttemptStatus.PENDING_UNVERIFIED.value: 1}
    assert outcome(engine, intent.attempt_id) is None


async def test_work_for_one_chain_that_lands_with_a_worker_of_another_is_not_done(
    engine: Engine, other_worker: OtherWorker
) -> None:
    """A tick, too, says for which chain it is: on the queue of all chains any worker may be given it."""
    wanted = Rescan(blocks=10, chain_id=engine.chain.chain_id)
    async with other_worker():
        handle = await engine.namespace.client.start_workflow(
            RescanChain.run, wanted, id="rescan", task_queue=PLATFORM_TASK_QUEUE
        )
        [pending] = await _pending(engine, "rescan", "belongs to chain")
        assert pending.activity_type.name == "rescan_chain"
    async with engine.worker():
        await handle.result(rpc_timeout=RESULT_TIMEOUT)


async def test_confirmations_are_counted_on_the_payments_own_chain(
    engine: Engine, other_chain: LocalChain, namespace: Namespace
) -> None:
    """An API of another chain reports what the last poll found; its own chain's blocks confirm nothing."""
    settings = load(variables_of(engine, other_chain))
    async with chain_reader(settings) as reader, engine.worker(MIN_CONFIRMATIONS="100"):
        strangers = PaymentsClient(
            engine.tenants, namespace.client, payment_policy(settings), read_head=reader.heads.height
        )
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        await engine.polled(intent.attempt_id, f"{MIN_CONFIRMATIONS} of 100 confirmations")
        view = await strangers.status(payer.user_id, intent.attempt_id)
        assert (view.confirmations, view.confirmations_needed) == (MIN_CONFIRMATIONS, 100)
        with pytest.raises(WrongChain):
            await strangers.submit(payer.user_id, intent.attempt_id, sent)
        await engine.handle(intent.attempt_id).terminate("a test")
        with pytest.raises(WrongChain):
            await strangers.resume_payment(payer.user_id, intent.attempt_id)


async def _pending(engine: Engine, workflow_id: str, words: str) -> list[Any]:
    """The workflow's pending activities, once a failure of theirs says `words`."""
    found: list[Any] = []

    async def says() -> bool:
        description = await engine.namespace.client.get_workflow_handle(workflow_id).describe()
        found[:] = description.raw_description.pending_activities
        return any(words in pending.last_failure.message for pending in found)

    await wait_until(says, timeout_seconds=PATIENCE_SECONDS, what=f"an activity that says {words!r}")
    return found


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("remembered", [[OTHER_HEIGHT, OTHER_CHAIN_ID], [OTHER_HEIGHT], [], ["words"]])
async def test_the_height_of_another_chain_is_not_the_one_at_which_a_payment_was_missed_first(
    engine: Engine, remembered: list[Any]
) -> None:
    """What an activity remembers from one call to the next names its chain; what an earlier version wrote does not."""
    payer, intent = await engine.intent()
    await engine.credit_without_bonus(payer, intent)
    await engine.chain.reorg(MIN_CONFIRMATIONS)
    await engine.chain.mine(1)
    finality = FinalityActivities(
        engine.reader, engine.service, policy=engine.settings.finality_policy, block_time=engine.settings.block_time
    )
    payment = await engine.credited_payment(intent.attempt_id)
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, heartbeat_details=remembered)
    heard: list[tuple[Any, ...]] = []
    environment.on_heartbeat = lambda *details: heard.append(details)
    with pytest.raises(ApplicationError) as caught:
        await environment.run(finality.await_finality, payment)
    head = await engine.chain.block_number()
    # Without a chain it is believed: that makes the payment wait longer, and never shorter than its own height says.
    expected = OTHER_HEIGHT if remembered == [OTHER_HEIGHT] else head
    assert caught.value.details[0].missing_since_head == expected
    assert heard == ([] if expected == OTHER_HEIGHT else [(head, engine.chain.chain_id)])
