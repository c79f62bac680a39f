"""The governance heartbeat on a real database, chain and Temporal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import uuid4

import pytest
from psycopg.errors import UniqueViolation
from temporalio.client import WorkflowFailureError
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.operations.governance import GovernanceActivities
from activities.operations.signatures import HeartbeatToTake
from db.schema import SCHEMA_REVISION
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.events import HEARTBEAT, LOW_BALANCE, PlatformEvent
from domain.operations.governance import TENANT_NOT_FLAGGED, TENANT_NOT_VISIBLE, Heartbeat, HeartbeatStatus
from domain.payments.attempt import Purpose
from tests.governance.conftest import Heard, working
from tests.support.engine import RESULT_TIMEOUT, Engine
from tests.support.postgres import Database
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect, query, refused, scalar
from workflows.jobs.governance_heartbeat import GovernanceHeartbeat, HeartbeatInput
from workflows.naming import SCHEDULED_START_TIME

ROWS = "SELECT status, is_low, crossed, low_balance_announced_at IS NOT NULL FROM governance_heartbeats ORDER BY id"
NO_AGE_MATTERS = 2**31
"""The tests' chain stands still until a test mines."""


async def beat(
    engine: Engine, *, threshold: int = 0, head_age: int = NO_AGE_MATTERS, at: datetime | None = None
) -> Heartbeat:
    """One heartbeat from start to end; `at` is when a schedule meant it to be."""
    return await engine.namespace.client.execute_workflow(
        GovernanceHeartbeat.run,
        HeartbeatInput(low_balance_credits=threshold, head_age_seconds_max=head_age),
        id=f"beat-{uuid4()}",
        task_queue=TASK_QUEUE,
        search_attributes=TypedSearchAttributes([SearchAttributePair(SCHEDULED_START_TIME, at)]) if at else None,
        rpc_timeout=RESULT_TIMEOUT,
    )


def execute(url: str, statement: LiteralString) -> None:
    with connect(url) as connection:
        connection.execute(statement)


def activities(engine: Engine) -> GovernanceActivities:
    return GovernanceActivities(engine.settlement, engine.service, engine.reader, worker_version="1.2.3")


def wanted(key: str, *, threshold: int = 1) -> HeartbeatToTake:
    return HeartbeatToTake(
        key=key, scheduled_at=datetime.now(UTC), low_balance_credits=threshold, head_age_seconds_max=NO_AGE_MATTERS
    )


async def test_a_heartbeat_is_one_row_and_one_event_with_everything_that_it_saw(engine: Engine, heard: Heard) -> None:
    async with working(engine, heard.publish):
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
        taken = await beat(engine)
    assert taken.status is HeartbeatStatus.OK
    assert (taken.account_present, taken.is_flagged, taken.balance_credits) == (True, True, 750_000_000)
    assert taken.last_revenue_share_at == scalar(
        engine.database.superuser_url,
        "SELECT created_at FROM credit_ledger WHERE reason = 'platform_revenue_share'",
    )
    assert (taken.schema_revision, taken.worker_version) == (SCHEMA_REVISION, "0.1.0")
    assert (taken.chain_id, taken.head_number) == (engine.chain.chain_id, await engine.reader.heads.height())
    assert taken.head_age_seconds is not None
    assert taken.problems == ()
    [(balance, head)] = query(
        engine.database.superuser_url, "SELECT balance_credits, head_number FROM governance_heartbeats"
    )
    assert (balance, head) == (taken.balance_credits, taken.head_number)
    [event] = heard.of_type(HEARTBEAT)
    assert event.subject == SYSTEM_TENANT_ACCOUNT_ID
    assert event.data["balanceCredits"] == 750_000_000
    assert event.data["status"] == "ok"
    assert heard.of_type(LOW_BALANCE) == []


async def test_a_low_balance_is_published_once_per_crossing_over_many_ticks(engine: Engine, heard: Heard) -> None:
    async with working(engine, heard.publish):
        for threshold in (0, 1, 1, 1, 0, 1):  # the balance is 0: below 1, and not below 0
            await beat(engine, threshold=threshold)
    crossed = [("low", True, True, True)]
    low = [("low", True, False, False)]
    ok = [("ok", False, False, False)]
    assert query(engine.database.superuser_url, ROWS) == ok + crossed + low + low + ok + crossed
    assert len(heard.of_type(HEARTBEAT)) == 6
    told = heard.of_type(LOW_BALANCE)
    assert len({event.id for event in told}) == len(told) == 2
    assert told[0].data == {"balanceCredits": 0, "thresholdCredits": 1}


@pytest.mark.slow
async def test_the_very_first_heartbeat_publishes_a_low_balance(engine: Engine, heard: Heard) -> None:
    async with working(engine, heard.publish):
        await beat(engine, threshold=1)
    assert len(heard.of_type(LOW_BALANCE)) == 1


async def test_an_account_that_gets_credits_is_above_again(engine: Engine, heard: Heard) -> None:
    threshold = 100_000_000
    async with working(engine, heard.publish):
        await beat(engine, threshold=threshold)
        payer, intent, sent = await engine.buy(1_000, Purpose.SYSTEM)
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
        assert not (await beat(engine, threshold=threshold)).is_low
        assert (await beat(engine, threshold=threshold + 1)).crossed


async def test_an_event_that_did_not_arrive_is_sent_again_with_the_same_id_and_then_no_more(
    engine: Engine, heard: Heard
) -> None:
    refused: list[PlatformEvent] = []

    async def publish(event: PlatformEvent) -> None:
        if event.type == LOW_BALANCE and not refused:
            refused.append(event)
            raise ApplicationError("no", non_retryable=True)
        await heard.publish(event)

    async with working(engine, publish):
        await beat(engine, threshold=1)
        await beat(engine, threshold=1)
        assert heard.of_type(LOW_BALANCE) == [], "its own heartbeat may still be trying"
        execute(
            engine.database.superuser_url,
            "UPDATE governance_heartbeats SET created_at = created_at - interval '3 minutes'",
        )
        await beat(engine, threshold=1)
        await beat(engine, threshold=1)
    assert [event.id for event in heard.of_type(LOW_BALANCE)] == [event.id for event in refused]
    assert len(heard.of_type(HEARTBEAT)) == 4


async def test_an_activity_that_runs_again_finds_its_row_and_the_same_crossing(engine: Engine) -> None:
    environment, acting = ActivityEnvironment(), activities(engine)
    first = await environment.run(acting.take_heartbeat, wanted("beat/1"))
    again = await environment.run(acting.take_heartbeat, wanted("beat/1", threshold=0))
    assert again == first
    assert [low.key for low in first.low_balances] == ["beat/1"]
    assert scalar(engine.database.superuser_url, "SELECT count(*) FROM governance_heartbeats") == 1


def test_no_two_heartbeats_follow_the_same_one(database: Database) -> None:
    post = (
        "INSERT INTO governance_heartbeats (key, previous_id, scheduled_at, status, account_present, is_flagged,"
        " threshold_credits, is_low, crossed, worker_version, chain_id)"
        " VALUES (%s, %s, now(), 'ok', true, true, 0, false, false, 'x', 1) RETURNING id"
    )
    [(first,)] = query(database.superuser_url, post, "first", None)
    query(database.superuser_url, post, "second", first)
    for key, previous in (("another first", None), ("another second", first)):
        with refused(UniqueViolation, "governance_heartbeats_one_after_another"):
            query(database.superuser_url, post, key, previous)


async def test_of_many_heartbeats_at_once_one_finds_the_crossing(engine: Engine) -> None:
    acting = activities(engine)
    taken = await asyncio.gather(
        *(ActivityEnvironment().run(acting.take_heartbeat, wanted(f"beat/{number % 6}")) for number in range(12))
    )
    rows = query(engine.database.superuser_url, "SELECT key, crossed FROM governance_heartbeats")
    assert len(rows) == 6
    [crossed] = [key for key, crossed in rows if crossed]
    assert {low.key for one in taken for low in one.low_balances} <= {crossed}


async def test_what_is_missing_is_a_problem_and_no_reason_to_be_silent(engine: Engine, heard: Heard) -> None:
    superuser = engine.database.superuser_url
    async with working(engine, heard.publish):
        execute(superuser, "UPDATE billing_accounts SET is_system_tenant = false WHERE id = 'cogni_system'")
        unflagged = await beat(engine)
        execute(superuser, "DROP POLICY own_accounts ON billing_accounts")
        unseen = await beat(engine, threshold=1)
    assert (unflagged.status, unflagged.account_present, unflagged.is_flagged) == (HeartbeatStatus.FAILED, True, False)
    assert unflagged.problems == (TENANT_NOT_FLAGGED,)
    assert (unseen.status, unseen.account_present, unseen.balance_credits) == (HeartbeatStatus.FAILED, False, None)
    assert unseen.problems == (TENANT_NOT_VISIBLE,)
    assert not unseen.is_low, "it is unknown, so it is as it was"
    assert [event.data["status"] for event in heard.of_type(HEARTBEAT)] == ["failed", "failed"]


async def test_a_chain_that_stands_still_is_a_problem(engine: Engine, heard: Heard) -> None:
    async with working(engine, heard.publish):
        await engine.chain.mine(1)
        moving = await beat(engine, head_age=3600)
        assert moving.status is HeartbeatStatus.OK
        assert moving.head_age_seconds is not None

        async def old_enough() -> None:
            while (await engine.reader.heads.newest_block()).mined_at > datetime.now(UTC) - timedelta(seconds=2):
                await asyncio.sleep(0.2)

        await asyncio.wait_for(old_enough(), 30)
        still = await beat(engine, head_age=1)
    assert still.status is HeartbeatStatus.FAILED
    [problem] = still.problems
    assert "newest block" in problem


async def test_a_heartbeat_belongs_to_the_time_that_its_schedule_meant(engine: Engine) -> None:
    at = datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
    key = HeartbeatToTake(key="beat/1", scheduled_at=at, low_balance_credits=1, head_age_seconds_max=NO_AGE_MATTERS)
    taken = await ActivityEnvironment().run(activities(engine).take_heartbeat, key)
    assert taken.heartbeat.scheduled_at == at


@pytest.mark.usefixtures("sandboxed")
async def test_without_a_database_there_is_still_an_event(
    engine: Engine, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.JOB_SCHEDULE_TO_CLOSE", timedelta(seconds=3))
    execute(engine.database.superuser_url, "ALTER TABLE governance_heartbeats RENAME TO gone")
    async with working(engine, heard.publish):
        with pytest.raises(WorkflowFailureError):
            await beat(engine)
    [event] = heard.of_type(HEARTBEAT)
    assert event.data["status"] == "failed"
    assert "governance_heartbeats" in event.data["problems"][0]
