"""From the schedules' file to a row and an event: a real Temporal, its schedules, the product's own worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from pydantic import BaseModel
from structlog.testing import capture_logs
from temporalio import workflow
from temporalio.client import (
    ScheduleActionExecutionStartWorkflow,
    ScheduleOverlapPolicy,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
)

from devstack.processes import wait_until
from domain.operations.events import HEARTBEAT, LOW_BALANCE
from starter.schedule_file import parse_schedules
from starter.schedules import apply_schedules, plan_schedules, read_schedules
from telemetry.events import EventPublisher
from tests.governance.conftest import Heard, working
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.servers import Namespace
from tests.support.sink import Sink
from tests.support.sql import query
from workflows import registry
from workflows.naming import schedule_id
from workflows.registry import JOBS

FILE = """
schedules:
  beat:
    job: GovernanceHeartbeat
    every: 1h
    input: {low_balance_credits: 1, head_age_seconds_max: 2147483648}
"""


@pytest.fixture
def namespace(scheduling_namespace: Namespace) -> Namespace:
    """On a server that runs schedules."""
    return scheduling_namespace


async def apply(engine: Engine, text: str) -> None:
    client = engine.namespace.client
    chain_id = engine.chain.chain_id
    wanted = parse_schedules(text, registry.JOBS, where="the file", chain_id=chain_id)
    await apply_schedules(client, await plan_schedules(client, wanted, chain_id=chain_id))


async def trigger(engine: Engine, name: str) -> WorkflowExecutionDescription:
    """Run a schedule now, whatever runs already; how that run ended."""
    handle = engine.namespace.client.get_schedule_handle(schedule_id(name))
    ran = (await handle.describe()).info.num_actions

    async def may_start() -> bool:
        # The ids of runs name the second: two in the same one would be one.
        last = (await handle.describe()).info.recent_actions
        return not last or datetime.now(UTC) > last[-1].started_at.replace(microsecond=0) + timedelta(seconds=1)

    async def has_started() -> bool:
        return (await handle.describe()).info.num_actions > ran

    await wait_until(may_start, timeout_seconds=PATIENCE_SECONDS, what="another second")
    await handle.trigger(overlap=ScheduleOverlapPolicy.ALLOW_ALL)
    await wait_until(has_started, timeout_seconds=PATIENCE_SECONDS, what="a run of the schedule")
    action = (await handle.describe()).info.recent_actions[-1].action
    assert isinstance(action, ScheduleActionExecutionStartWorkflow)
    run = engine.namespace.client.get_workflow_handle(action.workflow_id, run_id=action.first_execution_run_id)

    async def has_ended() -> bool:
        return (await run.describe()).close_time is not None

    await wait_until(has_ended, timeout_seconds=PATIENCE_SECONDS, what="the end of a run")
    return await run.describe()


async def test_a_schedule_of_the_file_makes_heartbeats(engine: Engine, heard: Heard) -> None:
    await apply(engine, FILE)
    async with working(engine, heard.publish):
        runs = [await trigger(engine, "beat") for _ in range(2)]
    assert {run.status for run in runs} == {WorkflowExecutionStatus.COMPLETED}
    rows = query(engine.database.superuser_url, "SELECT key, threshold_credits FROM governance_heartbeats ORDER BY id")
    assert [threshold for _, threshold in rows] == [1, 1]
    assert all(key.startswith(schedule_id("beat") + "-") for key, _ in rows)
    assert (len(heard.of_type(HEARTBEAT)), len(heard.of_type(LOW_BALANCE))) == (2, 1)
    [view] = [one for one in await read_schedules(engine.namespace.client) if one.name == "beat"]
    assert view.last_status == "completed"


@pytest.mark.slow
@pytest.mark.usefixtures("sandboxed")
async def test_a_receiver_that_is_down_stops_no_heartbeat_and_the_log_has_each_event_once(
    engine: Engine, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.BEAT_ANNOUNCE_SCHEDULE_TO_CLOSE", timedelta(seconds=6))

    async def refuse(_: web.Request) -> web.Response:
        heard_again = [document["type"] for document in sink.documents] == [HEARTBEAT, HEARTBEAT]
        return web.Response(status=204 if heard_again else 503)

    accept, sink.answer = sink.answer, refuse
    await apply(engine, FILE)
    with capture_logs() as lines:
        async with EventPublisher(sink.url) as publisher, working(engine, publisher.publish):
            first = await trigger(engine, "beat")
            assert len(sink.of_type(HEARTBEAT)) == 2, "it was tried again until it was taken"
            assert len(sink.of_type(LOW_BALANCE)) >= 1
            sink.answer = accept
            with_patience = (
                "UPDATE governance_heartbeats SET created_at = created_at - interval '3 minutes' RETURNING 1"
            )
            query(engine.database.superuser_url, with_patience)
            second = await trigger(engine, "beat")
    assert first.status == second.status == WorkflowExecutionStatus.COMPLETED
    assert query(engine.database.superuser_url, "SELECT count(*) FROM governance_heartbeats") == [(2,)]
    logged = [line["cloudevent"]["id"] for line in lines if "cloudevent" in line]
    assert len(logged) == len(set(logged)) == 3
    assert sink.of_type(LOW_BALANCE)[-1] == sink.of_type(LOW_BALANCE)[0]
    assert query(
        engine.database.superuser_url,
        "SELECT crossed, low_balance_announced_at IS NULL FROM governance_heartbeats ORDER BY id",
    ) == [(True, False), (False, True)]


class GreetingInput(BaseModel):
    name: str = "nobody"


# In the product this module is one of a package that the sandbox loads; a test is not.
@workflow.defn(name="Greeting", sandboxed=False)
class Greeting:
    @workflow.run
    async def run(self, wanted: GreetingInput) -> str:
        return f"hello {wanted.name}"


async def test_a_job_is_added_with_one_module_one_line_and_one_entry(
    engine: Engine, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "JOBS", {**JOBS, "Greeting": registry.Job("Greeting", Greeting, GreetingInput)})
    monkeypatch.setattr(registry, "WORKFLOWS", (*registry.WORKFLOWS, Greeting))
    await apply(engine, FILE + "  greeting: {job: Greeting, every: 1d, input: {name: Ada}}\n")
    async with working(engine, heard.publish):
        run = await trigger(engine, "greeting")
        result = await engine.namespace.client.get_workflow_handle(run.id).result()
    assert (run.status, result) == (WorkflowExecutionStatus.COMPLETED, "hello Ada")
