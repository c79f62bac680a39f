"""Housekeeping as a workflow on real servers: what was abandoned ends, what was interrupted continues."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prometheus_client import Counter
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.operations.housekeeping import HousekeepingActivities
from activities.operations.signatures import IntentsToExpire, PaymentsToPickUp, RowsToPrune
from composition import charge_policy, singleton_workflows
from devstack.chain import payer_wallets
from domain.errors import HashInUse, TemporalUnavailable
from domain.payments.attempt import AttemptStatus, ErrorCode
from services.deposits.charges import Charges
from services.deposits.pricing import Prices
from services.payments import lifecycle as payments
from settings import load
from starter.singletons import SingletonWorkflow, list_missing, start_missing
from starter.temporal import connect
from telemetry.metrics.worker import INTENTS_EXPIRED, ROWS_PRUNED, WORKFLOWS_RESTARTED
from tests.governance.conftest import Heard, working
from tests.support.deposits import add_method, status_of
from tests.support.engine import RESULT_TIMEOUT, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect as connect_sql
from tests.support.sql import query
from tests.support.starter import ScriptedStarter, housekeeping_activities
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput, HousekeepingResult
from workflows.naming import VERIFY_AND_SETTLE, watch_workflow_id

AT_ONCE = HousekeepingInput(pick_up_after_seconds=1)


async def keep_house(engine: Engine, wanted: HousekeepingInput = AT_ONCE) -> HousekeepingResult:
    """One run from start to end."""
    return await engine.namespace.client.execute_workflow(
        Housekeeping.run, wanted, id=f"house-{uuid4()}", task_queue=TASK_QUEUE, rpc_timeout=RESULT_TIMEOUT
    )


def shift(engine: Engine, interval: str) -> None:
    """Everything that was submitted was submitted earlier."""
    with connect_sql(engine.database.superuser_url, triggers=False) as connection:
        connection.execute(
            "UPDATE payment_attempts SET submitted_at = submitted_at - %s::interval WHERE submitted_at IS NOT NULL",
            (interval,),
        )
        connection.execute("UPDATE payment_attempts SET updated_at = updated_at - %s::interval", (interval,))


def counted(counter: Counter, **labels: str) -> float:
    """A counter's value now."""
    [metric] = counter.collect()
    return sum(
        sample.value
        for sample in metric.samples
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )


async def test_unpaid_intents_end_without_polling_and_without_a_workflow_for_each(engine: Engine, heard: Heard) -> None:
    before = counted(INTENTS_EXPIRED)
    over = [(await engine.intent(wallet=wallet))[1] for wallet in payer_wallets()[:3]]
    with connect_sql(engine.database.superuser_url) as connection:
        connection.execute("UPDATE payment_attempts SET expires_at = now() - interval '11 seconds'")
    _, waits = await engine.intent()
    async with working(engine, heard.publish):
        done = await keep_house(engine, HousekeepingInput(batch_size=2))
    assert done.intents_expired == {"self": 3}
    for intent in over:
        attempt = await engine.attempt(intent.attempt_id)
        assert (attempt.status, attempt.error_code) == (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)
    assert (await engine.attempt(waits.attempt_id)).status is AttemptStatus.CREATED_INTENT
    assert counted(INTENTS_EXPIRED) - before == 3
    listed = engine.namespace.client.list_workflows(f"WorkflowType = '{VERIFY_AND_SETTLE}'")
    assert [workflow.id async for workflow in listed] == []


@pytest.mark.slow(but=("0", "4", "5"))
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
async def test_batches_end_when_one_is_not_full(engine: Engine, count: int) -> None:
    for number in range(count):
        await engine.intent(wallet=payer_wallets()[number])
    environment, beats = ActivityEnvironment(), list[object]()
    environment.on_heartbeat = lambda *_: beats.append(1)
    wanted = IntentsToExpire(due_at=datetime.now(UTC) + timedelta(days=1), batch_size=2)
    done = await environment.run(activities(engine).expire_intents, wanted)
    assert done.counts == ({"self": count} if count else {})
    assert len(beats) == count // 2 + 1, "each batch says that it lives"


@pytest.mark.parametrize("count", [0, 2, 5])
async def test_charges_whose_price_has_run_out_are_expired_batch_by_batch(engine: Engine, count: int) -> None:
    payer, method = await engine.payer(), add_method(engine.database)
    settings = load({**engine.variables, "API_URL": "https://pay.example.com"})
    charges = Charges(engine.tenants, charge_policy(settings), prices=Prices({}), read_head=engine.reader.heads.height)
    over = [await charges.create_charge(payer, method, 500) for _ in range(count)]
    with connect_sql(engine.database.superuser_url) as connection:
        connection.execute("UPDATE charges SET price_expires_at = now() - interval '1 second'")
    waits = await charges.create_charge(payer, method, 500)
    wanted = IntentsToExpire(due_at=datetime.now(UTC), batch_size=2)
    await ActivityEnvironment().run(activities(engine).expire_intents, wanted)
    assert {status_of(engine.database, charge.charge_id) for charge in over} == ({"expired"} if count else set())
    assert status_of(engine.database, waits.charge_id) == "new"


async def test_what_is_over_is_pruned_batch_by_batch(engine: Engine) -> None:
    with connect_sql(engine.database.superuser_url) as connection:
        connection.execute(
            "INSERT INTO rate_limits (bucket, full_at) SELECT n::text, now() - interval '1 hour'"
            " FROM generate_series(1, 5) n"
        )
    before = counted(ROWS_PRUNED, table="rate_limits")
    done = await ActivityEnvironment().run(
        activities(engine).prune_expired_rows, RowsToPrune(idempotency_keys_hours=24, batch_size=2)
    )
    assert done.counts["rate_limits"] == 5
    assert counted(ROWS_PRUNED, table="rate_limits") - before == 5


async def test_a_payment_whose_workflow_was_terminated_is_picked_up_and_credited(engine: Engine, heard: Heard) -> None:
    """So is one that never had a workflow."""
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)  # no worker answers, the starter records it
    await engine.handle(intent.attempt_id).terminate("by mistake")
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
    other, without = await engine.intent(wallet=payer_wallets()[1])
    sent = await engine.pay_and_confirm(without, wallet=payer_wallets()[1])
    async with engine.tenants.transaction(other.user_id) as connection:
        await payments.submit(connection, without.attempt_id, sent, submitted_at=datetime.now(UTC))
    shift(engine, "1 minute")
    before = counted(WORKFLOWS_RESTARTED, status="PENDING_UNVERIFIED")
    async with working(engine, heard.publish):
        done = await keep_house(engine)
        assert done.payments_picked_up == {"PENDING_UNVERIFIED": 2}
        results = [await engine.result(one.attempt_id) for one in (intent, without)]
        again = await keep_house(engine)
    assert {result.status for result in results} == {AttemptStatus.CREDITED}
    assert (await engine.credits(intent.attempt_id)) == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    assert again.payments_picked_up == {}
    assert counted(WORKFLOWS_RESTARTED, status="PENDING_UNVERIFIED") - before == 2
    assert await engine.books() == []


async def test_a_credited_purchase_without_its_bonus_is_picked_up(engine: Engine, heard: Heard) -> None:
    payer, intent, sent = await engine.buy()
    with connect_sql(engine.database.superuser_url) as connection:
        connection.execute("REVOKE EXECUTE ON FUNCTION post_entry FROM settle_service")
    async with working(engine, heard.publish):
        await engine.submit(payer, intent, sent)
        await engine.waits(
            intent.attempt_id,
            lambda state: any(pending.name == "mint_bonus" and pending.last_failure for pending in state.pending),
            what="a bonus that cannot be posted",
        )
        shift(engine, "1 minute")
        assert (await keep_house(engine)).payments_picked_up == {}, "its workflow is at work on it"
    # With the worker, so that no attempt is under way that would post the bonus after the right is back.
    await engine.handle(intent.attempt_id).terminate("by mistake")
    with connect_sql(engine.database.superuser_url) as connection:
        connection.execute("GRANT EXECUTE ON FUNCTION post_entry TO settle_service")
    async with working(engine, heard.publish):
        done = await keep_house(engine)
        await engine.result(intent.attempt_id)
    assert done.payments_picked_up == {"CREDITED": 1}
    assert (await engine.credits(intent.attempt_id))["platform_revenue_share"] == 750_000_000


async def test_a_payment_that_waits_is_left_to_its_workflow(engine: Engine, heard: Heard) -> None:
    async with working(engine, heard.publish):
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        await engine.submit(payer, intent, sent)
        shift(engine, "1 minute")
        run_id = (await engine.state(intent.attempt_id)).run_id
        assert (await keep_house(engine)).payments_picked_up == {}
        assert (await engine.state(intent.attempt_id)).run_id == run_id
        await engine.chain.mine(2)
        await engine.result(intent.attempt_id)


async def wait_for_nobody(engine: Engine, count: int) -> list[UUID]:
    """So many payments that wait, and have no workflow."""
    waiting = []
    for number in range(count):
        payer, intent = await engine.intent(wallet=payer_wallets()[number])
        async with engine.tenants.transaction(payer.user_id) as connection:
            a_minute_ago = datetime.now(UTC) - timedelta(minutes=1)
            hash_ = "0x" + f"{number + 1:064x}"
            await payments.submit(connection, intent.attempt_id, hash_, submitted_at=a_minute_ago)
        waiting.append(intent.attempt_id)
    return waiting


async def test_one_payment_that_cannot_be_resumed_does_not_stand_in_the_way(engine: Engine) -> None:
    waiting = await wait_for_nobody(engine, 3)
    resumed = []

    async def resume(_: str, attempt_id: UUID) -> bool:
        if attempt_id == waiting[0]:
            raise HashInUse("0x" + "ab" * 32)
        resumed.append(attempt_id)
        return True

    assert await pick_up(engine, resume) == {"refused": 1, "PENDING_UNVERIFIED": 2}
    assert set(resumed) == set(waiting[1:])


async def test_a_temporal_that_does_not_answer_is_one_error_and_is_asked_no_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.payments.recovery.ASKED_AT_ONCE_MAX", 1)
    await wait_for_nobody(engine, 4)
    asked = 0

    async def resume(*_: object) -> bool:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        raise TemporalUnavailable("gone")

    with pytest.raises(TemporalUnavailable):
        await pick_up(engine, resume)
    assert asked < 4


async def pick_up(engine: Engine, resume: Callable[[str, UUID], Awaitable[bool]]) -> dict[str, int]:
    now = datetime.now(UTC)
    wanted = PaymentsToPickUp(submitted_before=now, credited_since=now - timedelta(hours=1), limit=100)
    return (
        await ActivityEnvironment().run(activities(engine, ScriptedStarter(resume)).pick_up_payments, wanted)
    ).counts


async def test_the_chain_watcher_that_ended_is_started_again_and_one_that_runs_is_left(
    engine: Engine, heard: Heard
) -> None:
    client, watch = engine.namespace.client, watch_workflow_id(engine.settings.chain_id)
    async with working(engine, heard.publish):
        assert (await keep_house(engine)).standing_started == (watch,)
        assert (await keep_house(engine)).standing_started == ()
        await client.get_workflow_handle(watch).terminate("by mistake")
        assert (await keep_house(engine)).standing_started == (watch,)
        assert await list_missing(client, singleton_workflows(engine.settings)) == []
        await client.get_workflow_handle(watch).terminate("the test is over")


async def test_starting_what_stands_many_times_at_once_starts_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, [standing] = engine.namespace.client, singleton_workflows(engine.settings)
    assert await start_missing(client, [standing]) == [standing.workflow_id]
    assert await start_missing(client, [standing]) == []
    watch = client.get_workflow_handle(standing.workflow_id)
    run_id = (await watch.describe()).run_id

    async def was_not_there_a_moment_ago(*_: object) -> bool:
        return False

    monkeypatch.setattr("starter.singletons._is_running", was_not_there_a_moment_ago)
    await asyncio.gather(*(start_missing(client, [standing]) for _ in range(5)))
    assert (await watch.describe()).run_id == run_id
    await watch.terminate("the test is over")


async def test_an_unavailable_temporal_is_reported() -> None:
    client = await connect({"TEMPORAL_ADDRESS": "127.0.0.1:1"}, lazy=True)
    with pytest.raises(TemporalUnavailable):
        await start_missing(client, [SingletonWorkflow("w", "W", HousekeepingInput(), "words")])


async def test_a_step_that_fails_is_reported_and_the_others_are_done(
    engine: Engine, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.BATCHES_RETRY.maximum_attempts", 1)
    await engine.intent()
    with connect_sql(engine.database.superuser_url) as connection:
        connection.execute("UPDATE payment_attempts SET expires_at = now() - interval '1 minute'")
        connection.execute("REVOKE EXECUTE ON FUNCTION prune_expired FROM settle_service")
    async with working(engine, heard.publish):
        with pytest.raises(WorkflowFailureError) as caught:
            await keep_house(engine)
        watch = engine.namespace.client.get_workflow_handle(watch_workflow_id(engine.settings.chain_id))
        await watch.terminate("the test is over")
    assert isinstance(caught.value.cause, ApplicationError)
    assert not isinstance(caught.value.cause, ActivityError)
    assert caught.value.cause.type == "HOUSEKEEPING_INCOMPLETE"
    assert caught.value.cause.message.startswith("prune_expired_rows: ")
    assert query(engine.database.superuser_url, "SELECT status FROM payment_attempts") == [("FAILED",)]


def activities(engine: Engine, starter: ScriptedStarter | None = None) -> HousekeepingActivities:
    return housekeeping_activities(engine, starter)
