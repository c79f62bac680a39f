"""A day of heartbeats and housekeeping in no time: Temporal's clock is skipped, the database is real.

That server has no schedules: the tests start what a schedule would, when it would. Time stands while a workflow runs,
since its activities wait for a real database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.interceptors import DomainErrors
from activities.operations.events import AnnouncementActivities
from activities.operations.governance import GovernanceActivities
from db.clock import read_clock
from domain.operations.events import GOVERNANCE_REPORT, HEARTBEAT, LOW_BALANCE
from domain.payments.attempt import AttemptStatus, ErrorCode
from services.payments import lifecycle as payments
from tests.governance.conftest import Heard
from tests.support.engine import Engine
from tests.support.servers import running_skipping_temporal
from tests.support.sql import connect, query
from tests.support.starter import ScriptedStarter, housekeeping_activities
from workflows.jobs.governance_heartbeat import GovernanceHeartbeat, HeartbeatInput
from workflows.jobs.governance_report import GovernanceReport, ReportInput
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput, HousekeepingResult

QUEUE = "skipped"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    """The server."""
    async with running_skipping_temporal() as environment:
        yield environment


@asynccontextmanager
async def working(skipping: WorkflowEnvironment, engine: Engine, heard: Heard) -> AsyncIterator[None]:
    async def resume(*_: object) -> bool:
        return True

    starter = ScriptedStarter(resume)
    governance = GovernanceActivities(engine.settlement, engine.service, engine.reader, worker_version="1.2.3")
    housekeeping = housekeeping_activities(engine, starter)
    async with Worker(
        skipping.client,
        task_queue=QUEUE,
        workflows=[GovernanceHeartbeat, GovernanceReport, Housekeeping],
        activities=[
            governance.take_heartbeat,
            governance.low_balance_announced,
            governance.read_income,
            housekeeping.expire_intents,
            housekeeping.prune_expired_rows,
            housekeeping.pick_up_payments,
            housekeeping.decide_finality,
            housekeeping.ensure_standing_workflows,
            AnnouncementActivities(heard.publish).announce,
        ],
        interceptors=[DomainErrors()],
    ):
        yield


async def run(skipping: WorkflowEnvironment, workflow: Any, wanted: Any) -> Any:
    """One run, during which the clock stands."""
    with skipping.auto_time_skipping_disabled():
        return await skipping.client.execute_workflow(workflow, wanted, id=f"job-{uuid4()}", task_queue=QUEUE)


@pytest.mark.slow
async def test_a_day_of_heartbeats_publishes_each_crossing_once(
    skipping: WorkflowEnvironment, engine: Engine, heard: Heard
) -> None:
    low_hours = {*range(3, 9), *range(12, 14), 23}
    begins = await skipping.get_current_time()
    async with working(skipping, engine, heard):
        for hour in range(24):
            wanted = HeartbeatInput(low_balance_credits=int(hour in low_hours), head_age_seconds_max=2**31)
            await run(skipping, GovernanceHeartbeat.run, wanted)
            await skipping.sleep(HOUR)
    assert await skipping.get_current_time() - begins >= 24 * HOUR
    assert len(heard.of_type(HEARTBEAT)) == 24
    hours = [round((event.time - begins) / HOUR) for event in heard.of_type(LOW_BALANCE)]
    assert hours == [3, 12, 23]
    times = [at for (at,) in query(engine.database.superuser_url, "SELECT scheduled_at FROM governance_heartbeats")]
    assert sorted(times) == [event.time for event in heard.of_type(HEARTBEAT)]


# The grace is ten seconds of the real time in which the test goes on.
@pytest.mark.parametrize(("ago", "ends"), [(timedelta(0), False), (timedelta(seconds=11), True)])
async def test_an_unpaid_intent_ends_when_its_time_and_the_grace_are_over_whatever_the_time_of_temporal(
    skipping: WorkflowEnvironment, engine: Engine, heard: Heard, ago: timedelta, ends: bool
) -> None:
    _, intent = await engine.intent()
    with connect(engine.database.superuser_url) as connection:
        connection.execute("UPDATE payment_attempts SET expires_at = clock_timestamp() - %s", (ago,))
    async with working(skipping, engine, heard):
        await skipping.sleep(HOUR)
        done: HousekeepingResult = await run(skipping, Housekeeping.run, HousekeepingInput())
    assert bool(done.intents_expired) is ends
    attempt = await engine.attempt(intent.attempt_id)
    expected = (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED) if ends else (AttemptStatus.CREATED_INTENT, None)
    assert (attempt.status, attempt.error_code) == expected


@pytest.mark.parametrize(("ago", "asks"), [(timedelta(minutes=4), False), (timedelta(minutes=5), True)])
async def test_a_payment_is_asked_about_when_it_has_waited_for_five_minutes_whatever_the_time_of_temporal(
    skipping: WorkflowEnvironment, engine: Engine, heard: Heard, ago: timedelta, asks: bool
) -> None:
    payer, intent, sent = await engine.buy()
    async with engine.tenants.transaction(payer.user_id) as tenant:
        at = await read_clock(tenant.connection) - ago
        await payments.submit(tenant, intent.attempt_id, sent, submitted_at=at)
    async with working(skipping, engine, heard):
        await skipping.sleep(HOUR)
        done: HousekeepingResult = await run(skipping, Housekeeping.run, HousekeepingInput())
    assert bool(done.payments_picked_up) is asks


async def test_a_report_covers_its_day_and_no_other(
    skipping: WorkflowEnvironment, engine: Engine, heard: Heard
) -> None:
    now = await skipping.get_current_time()
    with connect(engine.database.superuser_url) as connection:
        for amount, reason, ago in (
            (700, "platform_revenue_share", 25 * HOUR),
            (300, "platform_revenue_share", 23 * HOUR),
            (50, "system_donation", HOUR),
            (-30, "usage", HOUR),
            (9, "system_donation", -HOUR),
        ):
            connection.execute(
                "SELECT * FROM post_entry('cogni_system', %s, %s, %s, 'cash:usdc', '{}')",
                (amount, reason, f"{amount} {reason}"),
            )
            with connect(engine.database.superuser_url, triggers=False) as planted:
                connection.commit()
                planted.execute(
                    "UPDATE credit_ledger SET created_at = %s WHERE reference = %s",
                    (now - ago, f"{amount} {reason}"),
                )
    async with working(skipping, engine, heard):
        income = await run(skipping, GovernanceReport.run, ReportInput())
    assert income.by_reason == {"platform_revenue_share": 300, "system_donation": 50, "usage": -30}
    assert (income.balance_credits, income.spent_credits, income.runway_days) == (1029, 30, 34)
    [event] = heard.of_type(GOVERNANCE_REPORT)
    assert event.data["creditsByReason"] == income.by_reason
    assert event.data["runwayDays"] == 34
