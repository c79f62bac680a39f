"""Runs that were started when all chains shared one queue are not stranded: each comes to its end on a new worker."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from activities.messages import WatchedChain
from composition import singleton_workflows
from devstack.chain import payer_wallets
from devstack.processes import wait_until
from domain.operations.findings import Remedy
from domain.operations.resolutions import parse_request
from domain.payments.attempt import AttemptStatus
from starter.resolutions import start_remedy
from starter.singletons import start_missing
from starter.temporal import count_left_behind
from tests.chains.conftest import FINAL_AFTER, OtherWorker, as_before, credited_as_before
from tests.finality.conftest import start_as_before
from tests.reconciliation.planting import find_receipt
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from workflows.naming import PLATFORM_TASK_QUEUE, task_queue, watch_workflow_id
from workflows.watch_chain import WatchChain


async def _queue_of(engine: Engine, workflow_id: str) -> str:
    description = await engine.namespace.client.get_workflow_handle(workflow_id).describe()
    assert description.task_queue is not None
    return description.task_queue


@pytest.mark.slow
@pytest.mark.parametrize("with_another_chain", [False, True])
async def test_every_run_on_the_queue_of_all_chains_comes_to_its_end_after_the_upgrade(
    engine: Engine,
    other_worker: OtherWorker,
    with_another_chain: bool,
) -> None:
    """Also where a worker of another chain asks for the same queue: half of the work goes to the wrong one first."""
    client = engine.namespace.client
    with as_before():
        # Credited and not final; submitted and waiting for its confirmations; submitted without a worker.
        final = await credited_as_before(engine)
        waiter, thinker, operator = payer_wallets()[1:4]
        async with engine.worker():
            payer, waiting = await engine.intent(wallet=waiter)
            waiting_hash = await engine.pay(waiting, wallet=waiter)
            await engine.chain.mine(1)
            await start_as_before(engine, payer, waiting, waiting_hash, queue=PLATFORM_TASK_QUEUE)
            await engine.polled(waiting.attempt_id, "confirmations")
        hesitant, replaced = await engine.intent(wallet=thinker)
        await start_as_before(engine, hesitant, replaced, "0x" + "ab" * 32, queue=PLATFORM_TASK_QUEUE)
        # An operator's credit, and the watch of the chain.
        stray = await engine.chain.pay(operator.private_key, engine.chain.treasury_address, 5_000_000)
        await engine.chain.mine(MIN_CONFIRMATIONS)
        finding_id = await find_receipt(engine, stray, operator.address, 5_000_000)
        request = parse_request(finding_id, Remedy.CREDIT, operator="ada", reason="the payer wrote to us")
        remedy = await start_remedy(client, request)
        [standing] = singleton_workflows(engine.settings)
        await start_missing(client, [standing])
    left = [engine.handle(intent.attempt_id).id for intent in (final, waiting, replaced)]
    left += [remedy.id, standing.workflow_id]
    assert {await _queue_of(engine, name) for name in left} == {PLATFORM_TASK_QUEUE}

    async def all_are_counted() -> bool:
        return await count_left_behind(client) == len(left)

    await wait_until(all_are_counted, timeout_seconds=PATIENCE_SECONDS, what="a count of what was left behind")

    # The upgrade: new workers, a new client. The payer goes on as if nothing had been.
    replaced_hash = await engine.pay_and_confirm(replaced, wallet=thinker)
    async with engine.worker(), other_worker() if with_another_chain else nullcontext():
        view = await engine.submit(hesitant, replaced, replaced_hash)
        assert view.tx_hash == replaced_hash
        taken = await remedy.result(rpc_timeout=RESULT_TIMEOUT)
        await engine.chain.mine(FINAL_AFTER + MIN_CONFIRMATIONS)
        for intent in (final, waiting, replaced):
            result = await engine.result(intent.attempt_id)
            assert (result.status, result.final_block is None) == (AttemptStatus.CREDITED, False)
    assert (taken.amount_credits, taken.chain_id) == (50_000_000, engine.chain.chain_id)
    assert await _queue_of(engine, engine.handle(replaced.attempt_id).id) == PLATFORM_TASK_QUEUE, "the run was joined"
    await client.get_workflow_handle(standing.workflow_id).terminate("the test is over")
    assert await engine.books() == []

    async def only_the_platforms_are_left() -> bool:
        return await count_left_behind(client) == 0

    await wait_until(only_the_platforms_are_left, timeout_seconds=PATIENCE_SECONDS, what="an empty old queue")


async def test_the_watch_of_a_chain_moves_to_the_chains_own_queue_at_its_next_beginning(
    engine: Engine,
) -> None:
    client, name = engine.namespace.client, watch_workflow_id(engine.chain.chain_id)
    shortly = WatchedChain(chain_id=engine.chain.chain_id, follow_seconds=0.2)
    await client.start_workflow(WatchChain.run, shortly, id=name, task_queue=PLATFORM_TASK_QUEUE)
    async with engine.worker():

        async def has_moved() -> bool:
            return await _queue_of(engine, name) == task_queue(engine.chain.chain_id)

        await wait_until(has_moved, timeout_seconds=PATIENCE_SECONDS, what="a watch on the chain's own queue")
        await client.get_workflow_handle(name).terminate("the test is over")
