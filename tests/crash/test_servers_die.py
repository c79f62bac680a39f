"""PostgreSQL, Temporal and the chain node die and come back; each of these tests has its own server to kill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from devstack.chain import LocalChain
from domain.errors import DatabaseUnavailable, TemporalUnavailable
from domain.payments.attempt import AttemptStatus, Purpose
from tests.crash.conftest import Systems
from tests.support.faults import Moment, paused, shortened
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, running_cluster, state_folder
from tests.support.servers import TemporalServer, running_chain, running_temporal
from tests.support.system import PaymentSystem, open_system

OTHER_WORKER_NUMBER: Final = 40
"""The preferred ports of these servers lie beyond those of the session's."""


@pytest.fixture
async def own_cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A PostgreSQL server that may be killed."""
    with state_folder(tmp_path / "cluster") as folder:
        async with running_cluster(folder, worker_number=OTHER_WORKER_NUMBER) as running:
            yield running


@pytest.fixture
async def own_temporal(tmp_path: Path) -> AsyncIterator[TemporalServer]:
    """A Temporal server that may be killed."""
    async with running_temporal(tmp_path / "temporal") as running:
        yield running


@pytest.fixture
async def own_chain(tmp_path: Path) -> AsyncIterator[LocalChain]:
    """A chain node that may be killed."""
    async with running_chain(tmp_path / "chain") as running:
        yield running


async def on(
    stack: AsyncExitStack, cluster: Cluster, temporal: TemporalServer, chain: LocalChain, folder: Path
) -> PaymentSystem:
    """A system on these servers."""
    database = await stack.enter_async_context(cluster.temporary(template=MIGRATED_TEMPLATE))
    namespace = await temporal.namespace()
    return await stack.enter_async_context(open_system(namespace, database, chain, folder / "system"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("purpose", "activity"),
    [(Purpose.SELF, "credit_buyer"), (Purpose.SELF, "mint_bonus"), (Purpose.SYSTEM, "credit_donation")],
)
async def test_postgresql_killed_in_the_middle_of_a_transaction_costs_no_credit_and_doubles_none(
    own_cluster: Cluster,
    temporal_server: TemporalServer,
    chain: LocalChain,
    tmp_path: Path,
    purpose: Purpose,
    activity: str,
) -> None:
    async with AsyncExitStack() as stack:
        system = await on(stack, own_cluster, temporal_server, chain, tmp_path)
        payment = await system.purchase(purpose=purpose)
        async with system.workflows_only():
            held = system.start_worker(paused(activity, Moment.BEFORE_COMMIT))
            await asyncio.gather(system.submit_payment(payment), held.paused_itself())
            await own_cluster.server.kill()
            # The same worker finds its connection dead, and all others are refused.
            held.go_on()
            with pytest.raises(DatabaseUnavailable):
                await system.submit_payment(payment)
            await own_cluster.server.start()
            await system.must_be_settled(payment)
        await system.books_are_right()


@pytest.mark.slow
async def test_a_commit_whose_answer_was_lost_with_postgresql_is_not_made_again(
    own_cluster: Cluster, temporal_server: TemporalServer, chain: LocalChain, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        system = await on(stack, own_cluster, temporal_server, chain, tmp_path)
        payment = await system.purchase()
        async with system.workflows_only():
            held = system.start_worker(paused("credit_buyer", Moment.AFTER_COMMIT))
            await asyncio.gather(system.submit_payment(payment), held.paused_itself())
            await own_cluster.server.kill()
            await own_cluster.server.start()
            held.go_on()
            await system.must_be_settled(payment)
        await system.books_are_right()


@pytest.mark.slow
async def test_temporal_killed_while_a_payment_waits_and_between_the_credits_forgets_neither(
    cluster: Cluster, own_temporal: TemporalServer, chain: LocalChain, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        system = await on(stack, cluster, own_temporal, chain, tmp_path)
        between = await system.purchase()
        waiting = await system.purchase(confirmed=False)
        doomed = system.start_worker(shortened("mint_bonus", Moment.BEFORE_COMMIT))
        await system.submit_payment(waiting)
        await system.polled(waiting.attempt_id, "not found yet")
        await asyncio.gather(system.submit_payment(between), doomed.killed_itself())

        await own_temporal.server.kill()
        assert await system.books(pending_bonus_ok=True) == []
        survivor = system.start_worker()
        await own_temporal.server.start()
        if not survivor.is_running:
            # One that was started while Temporal was down has said so and ended; a supervisor starts it again.
            assert "Temporal" in survivor.log()
        system.start_worker()

        await system.must_be_settled(between)
        await system.confirm(waiting.tx_hash)
        await system.must_be_settled(waiting)
        await system.books_are_right()


@pytest.mark.slow
async def test_a_submission_while_temporal_is_down_is_refused_as_unavailable_and_its_repetition_is_settled(
    cluster: Cluster, own_temporal: TemporalServer, chain: LocalChain, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        system = await on(stack, cluster, own_temporal, chain, tmp_path)
        payment = await system.purchase()
        await own_temporal.server.kill()
        with pytest.raises(TemporalUnavailable):
            await system.submit_payment(payment)
        # The hash is recorded, and a workflow is started by whatever is first: a repetition, or housekeeping.
        assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
        await own_temporal.server.start()
        async with system.worker():
            await system.submit_payment(payment)
            await system.must_be_settled(payment)
        await system.books_are_right()


@pytest.mark.slow
async def test_a_chain_node_that_is_down_for_a_while_only_delays_the_payment(
    cluster: Cluster, temporal_server: TemporalServer, own_chain: LocalChain, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        system = await on(stack, cluster, temporal_server, own_chain, tmp_path)
        payment = await system.purchase(confirmed=False)
        async with system.worker():
            await system.confirm(payment.tx_hash, blocks=1)
            await system.submit_payment(payment)
            await system.polled(payment.attempt_id, "1 of 3 confirmations")
            await own_chain.save()
            await own_chain.kill()
            await system.polled(payment.attempt_id, "no usable chain endpoint")
            assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
            await own_chain.start()
            await own_chain.mine(2)
            await system.must_be_settled(payment)
        await system.books_are_right()


@pytest.mark.slow
async def test_a_bonus_whose_worker_dies_before_it_has_the_servers_answer_is_not_minted_again(
    system: PaymentSystem,
) -> None:
    async with system.bonus_that_waits() as (payment, worker):
        # The statement is on the server and waits for the row; no client will read its answer. Not killed yet: the
        # server cancels statements of disconnected clients.
        worker.pause()

    async def has_bonus() -> bool:
        return "platform_revenue_share" in await system.credits(payment.attempt_id)

    await system.until(has_bonus, "the bonus, committed by a server without a listener")
    await worker.kill()
    assert (await system.state(payment.attempt_id)).is_running
    system.start_worker()
    await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_bonus_whose_worker_dies_while_it_waits_for_its_row_is_given_up_and_minted_by_the_next(
    system: PaymentSystem,
) -> None:
    async with system.bonus_that_waits() as (payment, worker):
        await worker.kill()

        async def is_given_up() -> bool:
            return await system.waits_for_locks() == 0

        await system.until(is_given_up, "the server to notice that its client has disconnected")
    assert "platform_revenue_share" not in await system.credits(payment.attempt_id)
    system.start_worker()
    await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_with_no_worker_at_all_a_submission_is_recorded_and_settled_when_one_comes(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase()
    await system.record_without_worker(payment)
    attempt = await system.attempt(payment.attempt_id)
    assert (attempt.status, attempt.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, payment.tx_hash)
    assert (await system.state(payment.attempt_id)).is_running
    system.start_worker()
    await system.must_be_settled(payment)
    assert [event.event_type for event in await system.events(payment.attempt_id)].count("submitted") == 1
    await system.books_are_right()


@pytest.mark.slow
async def test_a_client_process_that_is_killed_before_it_has_its_answer_has_submitted(system: PaymentSystem) -> None:
    payment = await system.purchase()
    client = system.start_command("attempt", "submit", str(payment.attempt_id), payment.tx_hash)
    await system.started(payment.attempt_id)
    await client.kill()
    async with system.worker():
        await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_workflow_terminated_between_the_credits_mints_the_bonus_when_the_hash_is_submitted_again(
    system: PaymentSystem,
) -> None:
    payment = await system.purchase()
    doomed = system.start_worker(shortened("mint_bonus", Moment.BEFORE_COMMIT))
    await asyncio.gather(system.submit_payment(payment), doomed.killed_itself())
    await system.handle(payment.attempt_id).terminate("an operator's mistake")
    # No workflow runs any more: until it is submitted again, or reconciled, the bonus is missing.
    assert len(await system.books(nothing_stuck=True)) == 1

    async with system.worker():
        assert (await system.submit_payment(payment)).status is AttemptStatus.CREDITED
        await system.finished(payment.attempt_id)
    assert await system.credits(payment.attempt_id) == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    await system.books_are_right()


@pytest.mark.slow
async def test_a_workflow_terminated_while_it_waits_is_followed_by_another_when_the_hash_is_submitted_again(
    systems: Systems,
) -> None:
    system = await systems()
    payment = await system.purchase(confirmed=False)
    async with system.worker():
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, "not found yet")
        await system.handle(payment.attempt_id).terminate("an operator's mistake")
        await system.submit_payment(payment)
        await system.confirm(payment.tx_hash)
        await system.must_be_settled(payment)
    await system.books_are_right()
