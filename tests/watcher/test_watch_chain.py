"""The watch of a chain as a workflow, with the product's own worker: no payer is left out, whatever happens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError

from activities.messages import Rescan, WatchedChain
from activities.transfers.watch_chain import PATIENCE_SECONDS_MAX, WORKER_STOPS, _Follower
from chain.endpoint_pool import NO_ENDPOINT
from db.transfers import observed
from devstack.chain import payer_wallets
from devstack.processes import wait_until
from domain.chain import TransferScope
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.verification import Refused
from services.payments import lifecycle as payments
from tests.chain.faulty_node import FaultyNode
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect, query
from tests.watcher.conftest import Watches
from workflows.jobs.rescan_chain import RescanChain
from workflows.naming import watch_workflow_id, watched_chain_of
from workflows.watch_chain import WatchChain

Handle = WorkflowHandle[WatchChain, None]


async def start_watch(engine: Engine, *, follow_seconds: float = 1_200.0) -> Handle:
    """The workflow that follows the engine's chain."""
    chain_id = engine.chain.chain_id
    return await engine.namespace.client.start_workflow(
        WatchChain.run,
        WatchedChain(chain_id=chain_id, follow_seconds=follow_seconds),
        id=watch_workflow_id(chain_id),
        task_queue=TASK_QUEUE,
    )


async def position(engine: Engine) -> int:
    """The last block whose transfers are recorded; -1 before the first."""
    scope = TransferScope(
        chain_id=engine.chain.chain_id, token=engine.chain.token_address, treasury=engine.chain.treasury_address
    )
    async with engine.service.autocommit() as connection:
        cursor = await observed.find_cursor(connection, scope)
    return cursor.block_number if cursor else -1


async def follows(engine: Engine) -> None:
    """Returns when the watcher has reached the head."""

    async def at_head() -> bool:
        return await position(engine) >= await engine.chain.block_number()

    await wait_until(at_head, timeout_seconds=PATIENCE_SECONDS, what="a watcher at the head")


async def ends(engine: Engine, attempt_id: UUID, status: AttemptStatus = AttemptStatus.CREDITED) -> None:
    """Returns when the attempt has come to that status."""

    async def has_ended() -> bool:
        return (await engine.attempt(attempt_id)).status is status

    await wait_until(has_ended, timeout_seconds=PATIENCE_SECONDS, what=f"attempt {attempt_id} to be {status}")


async def test_a_payer_who_closed_the_tab_before_submitting_is_credited(watched: Engine) -> None:
    _, intent, sent = await watched.buy()
    async with watched.worker():
        await start_watch(watched)
        await ends(watched, intent.attempt_id)
        await watched.result(intent.attempt_id)
    attempt = await watched.attempt(intent.attempt_id)
    assert attempt.tx_hash == sent
    assert await watched.credits(attempt.id) == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    assert await watched.books() == []


async def test_a_payer_whose_wallet_sped_the_transaction_up_is_credited(watched: Engine) -> None:
    payer, intent = await watched.intent()
    first = await watched.pay(intent)
    async with watched.worker():
        await start_watch(watched)
        await watched.submit(payer, intent, first)
        second = await watched.chain.speed_up(payer_wallets()[0].private_key, first)
        await watched.chain.mine(MIN_CONFIRMATIONS)
        result = await watched.result(intent.attempt_id)
    assert (result.status, result.tx_hash) == (AttemptStatus.CREDITED, second)
    assert [event.event_type for event in await watched.events(intent.attempt_id)] == [
        "intent_created",
        "submitted",
        "hash_replaced",
        "credited",
    ]


@pytest.mark.slow
async def test_payments_made_while_the_watcher_was_down_for_500_blocks_are_credited(watched: Engine) -> None:
    async with watched.worker():
        await start_watch(watched)
        await follows(watched)
    stopped_at = await position(watched)
    intents = []
    for wallet in payer_wallets()[:2]:
        intents.append((await watched.intent(wallet=wallet))[1])
        await watched.pay(intents[-1], wallet=wallet)
        await watched.chain.mine(250)
    assert await watched.chain.block_number() >= stopped_at + 500
    async with watched.worker():
        for intent in intents:
            await ends(watched, intent.attempt_id)
            await watched.result(intent.attempt_id)
        await follows(watched)
    assert await watched.books() == []


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("depth", [1, 10])
async def test_a_payment_that_a_reorganisation_takes_away_before_the_credit_is_credited_when_it_comes_back(
    watched: Engine, depth: int
) -> None:
    needed = str(depth + 2)
    _, intent = await watched.intent()
    sent = await watched.pay(intent)
    raw = await watched.chain.raw_transaction(sent)
    async with watched.worker(MIN_CONFIRMATIONS=needed):
        await start_watch(watched)
        await watched.chain.mine(depth)
        await follows(watched)
        await watched.chain.reorg(depth)
        await watched.chain.mine(depth + 2)
        await follows(watched)
        await _orphaned(watched, sent)
        assert (await watched.attempt(intent.attempt_id)).status is AttemptStatus.CREATED_INTENT
        await watched.chain.rpc("eth_sendRawTransaction", raw)
        await watched.chain.mine(depth + 2)
        await ends(watched, intent.attempt_id)
        result = await watched.result(intent.attempt_id)
    assert result.tx_hash == sent
    assert await watched.books() == []


async def _orphaned(engine: Engine, tx_hash: str) -> None:
    def is_orphaned() -> bool:
        found = query(engine.database.superuser_url, "SELECT 1 FROM orphaned_transfers WHERE tx_hash = %s", tx_hash)
        return len(found) == 1

    await wait_until(is_orphaned, timeout_seconds=PATIENCE_SECONDS, what=f"{tx_hash} to be taken out")


async def test_a_payment_made_in_time_is_credited_although_its_intent_has_ended(watched: Engine) -> None:
    payer, intent, sent = await watched.buy()
    block = (await watched.chain.wait_for_receipt(sent))["blockNumber"]
    header = await watched.chain.rpc("eth_getBlockByNumber", block, False)
    mined_at = datetime.fromtimestamp(int(header["timestamp"], 16), UTC)
    with connect(watched.database.superuser_url) as connection:
        connection.execute(
            "UPDATE payment_attempts SET expires_at = %s WHERE id = %s",
            (mined_at + timedelta(seconds=1), intent.attempt_id),
        )
    expired = Refused(status=AttemptStatus.FAILED, error_code=ErrorCode.INTENT_EXPIRED, message="expired")
    async with watched.settlement.transaction(payer.user_id) as tenant:
        await payments.refuse(tenant, intent.attempt_id, expired)
    async with watched.worker():
        await start_watch(watched)
        await ends(watched, intent.attempt_id)
        await watched.result(intent.attempt_id)
    assert (await watched.attempt(intent.attempt_id)).tx_hash == sent
    assert await watched.books() == []


async def test_a_worker_that_stops_hands_the_chain_on_at_once(watched: Engine) -> None:
    async with watched.worker():
        handle = await start_watch(watched)
        await follows(watched)
    (pending,) = (await handle.describe()).raw_description.pending_activities
    assert pending.last_failure.application_failure_info.type == WORKER_STOPS
    _, intent, _ = await watched.buy()
    async with watched.worker():
        await ends(watched, intent.attempt_id)
    assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING


async def test_a_run_ends_after_a_while_and_another_one_goes_on(watched: Engine) -> None:
    async with watched.worker():
        handle = await start_watch(watched, follow_seconds=0.5)

        async def begun_anew() -> bool:
            return (await handle.describe()).run_id != handle.first_execution_run_id

        await wait_until(begun_anew, timeout_seconds=PATIENCE_SECONDS, what="a second run")
        _, intent, _ = await watched.buy()
        await ends(watched, intent.attempt_id)
    first_run = watched.namespace.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
    history = await first_run.fetch_history()
    assert len(history.events) <= 11, "one activity a run, however many blocks"
    assert (await first_run.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW


async def test_a_watch_that_is_cancelled_ends(watched: Engine) -> None:
    async with watched.worker():
        handle = await start_watch(watched)
        await follows(watched)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result(rpc_timeout=RESULT_TIMEOUT)
    assert isinstance(ended.value.cause, CancelledError)


async def test_the_job_reads_the_last_blocks_again(watched: Engine) -> None:
    async with watched.worker():
        handle = await start_watch(watched)
        await follows(watched)
        _, intent, sent = await watched.buy()
        await ends(watched, intent.attempt_id)
        await handle.cancel()
        with connect(watched.database.superuser_url) as connection:
            connection.execute("DELETE FROM observed_transfers")
        report = await watched.namespace.client.execute_workflow(
            RescanChain.run, Rescan(blocks=50), id="rescan", task_queue=TASK_QUEUE, rpc_timeout=RESULT_TIMEOUT
        )
    assert (report.added, report.silent) == (1, ())
    assert report.last == await position(watched)
    assert sent == (await watched.attempt(intent.attempt_id)).tx_hash


async def test_what_cannot_be_reached_is_waited_for_longer_each_time_with_a_message(
    watches: Watches, faulty: FaultyNode
) -> None:
    watch = await watches(faulty)
    follower = _Follower(watch.scan, watch.roles, 0.25)
    assert await follower.go_on() == 0.25
    reached = await watch.head()
    assert follower.words == f"block {reached}, 0 behind, 0 transfers"
    faulty.drop()
    pauses = [await follower.go_on() for _ in range(8)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, PATIENCE_SECONDS_MAX, PATIENCE_SECONDS_MAX, PATIENCE_SECONDS_MAX]
    assert follower.words.startswith(f"block {reached}, waiting: {NO_ENDPOINT}")
    sent = await watch.pay()
    faulty.heal()
    assert await follower.go_on() == 0.25
    assert list(await watch.seen()) == [sent]
    assert follower.words == f"block {reached + 1}, 0 behind, 1 transfers"
    faulty.drop()
    assert await follower.go_on() == 1.0


async def test_a_gap_is_read_without_pauses(watches: Watches) -> None:
    watch = await watches(log_range_max=10)
    follower = _Follower(watch.scan, watch.roles, 0.25)
    await watch.chain.mine(35)
    assert [await follower.go_on() for _ in range(4)] == [0.0, 0.0, 0.0, 0.25]


def test_a_watchs_id_says_which_chain_it_follows() -> None:
    assert watched_chain_of(watch_workflow_id(8453)) == 8453
    for other in ("watch-chain-", "watch-chain-x", "verify-and-settle-8453"):
        with pytest.raises(ValueError, match="a WatchChain workflow"):
            watched_chain_of(other)
