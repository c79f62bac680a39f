"""The worker's life as a process: draining, health, metrics and log lines."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from temporalio.api.enums.v1 import EventType

from devstack.processes import quiet_port, wait_until
from domain.payments.attempt import AttemptStatus, ErrorCode
from tests.support import sql
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.postgres import ROLE_PASSWORD
from tests.support.relay import relay_to, through
from tests.worker.process import WorkerProcess, running_worker

API_KEY = "sekret-api-key"
DRAIN_SECONDS_MAX = 12.0


@pytest.fixture
async def worker(engine: Engine, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    """A worker process on the engine's servers; one of its chain nodes is dead and its address holds a key."""
    dead = f"http://127.0.0.1:{quiet_port()}/v2/{API_KEY}?token={API_KEY}"
    nodes = f"{dead},{engine.chain.url}"
    async with running_worker(tmp_path, engine.variables, CHAIN_RPC_URLS=nodes, LOG_LEVEL="DEBUG") as process:
        await process.says("worker runs")
        yield process
    assert ROLE_PASSWORD not in process.log
    assert API_KEY not in process.log
    assert process.lines(), "every line is JSON, also what libraries say"


@pytest.fixture
async def quiet_worker(engine: Engine, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    """A worker process that logs as it does in production."""
    async with running_worker(tmp_path, engine.variables) as process:
        await process.says("worker runs")
        yield process


@contextmanager
def _locked(engine: Engine, attempt_id: UUID) -> Any:
    """Hold the attempt's row: an activity that needs it runs until the block ends."""
    with sql.connect(engine.database.superuser_url) as connection:
        connection.execute("SELECT 1 FROM payment_attempts WHERE id = %s FOR UPDATE", (attempt_id,))
        yield


def _end_waiting_backends(engine: Engine) -> int:
    return len(
        sql.query(
            engine.database.superuser_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'settle worker' AND wait_event_type = 'Lock'",
        )
    )


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_stops_at_once_with_exit_code_0(
    worker: WorkerProcess, signal_number: signal.Signals
) -> None:
    worker.process.send_signal(signal_number)
    exit_code, _ = await worker.ends(timeout_seconds=DRAIN_SECONDS_MAX)
    assert exit_code == 0
    assert worker.said("worker drains")
    assert worker.lines()[-1]["event"] == "worker stopped"


async def test_a_worker_that_is_asked_to_stop_finishes_the_activity_it_has_begun(
    engine: Engine, worker: WorkerProcess
) -> None:
    payer, intent = await engine.intent()
    await engine.submit(payer, intent, await engine.pay(intent))
    with _locked(engine, intent.attempt_id):
        await engine.chain.mine(2)
        await engine.waits(
            intent.attempt_id,
            lambda state: any(pending.name == "credit_buyer" for pending in state.pending),
            what="the running activity",
        )
        worker.process.send_signal(signal.SIGTERM)
        await worker.says("worker drains")
        status, _ = await worker.get("/livez")
        assert status == 503
        assert (await worker.readiness())[0] == 503
        assert worker.process.poll() is None
    exit_code, seconds = await worker.ends(timeout_seconds=DRAIN_SECONDS_MAX)
    assert (exit_code, seconds < DRAIN_SECONDS_MAX) == (0, True)
    # It was the drained worker that completed it, at the first try: no worker had to wait for its timeout.
    events = (await engine.handle(intent.attempt_id).fetch_history()).events
    assert [event.event_type for event in events].count(EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED) == 2
    started = [event for event in events if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED]
    assert started[-1].activity_task_started_event_attributes.attempt == 1
    # The next worker goes on where it was.
    async with engine.worker():
        assert (await engine.result(intent.attempt_id)).status is AttemptStatus.CREDITED
    assert await engine.books() == []


@pytest.mark.slow
async def test_the_submitting_requests_id_is_found_in_the_workers_lines(
    engine: Engine, quiet_worker: WorkerProcess
) -> None:
    payer, intent, sent = await engine.buy()
    await engine.payments.submit(payer.user_id, intent.attempt_id, sent, request_id="checkout-42")
    await engine.result(intent.attempt_id)
    lines = [line for line in quiet_worker.lines() if line.get("attempt_id") == str(intent.attempt_id)]
    assert lines
    assert {line.get("request_id") for line in lines} == {"checkout-42"}


@pytest.mark.slow
async def test_metrics_join_the_sdks_with_ours(engine: Engine, worker: WorkerProcess) -> None:
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)
    await engine.result(intent.attempt_id)
    status, body = await worker.get("/metrics")
    assert status == 200
    for sample in (
        'settle_attempts_ended_total{error_code="",purpose="self",status="CREDITED"} 1.0',
        "settle_bonus_credits_total 7.5e+08",
        'settle_chain_looks_total{answered_by="node",outcome="verified"} 1.0',
        'settle_submit_to_end_seconds_count{purpose="self",status="CREDITED"} 1.0',
        "settle_chain_rpc_requests_total{",
        "settle_chain_rpc_seconds_count{",
        "\ntemporal_",
        'workflow_type="VerifyAndSettle"',
    ):
        assert sample in body, sample
    assert API_KEY not in body
    names = [line.split()[2] for line in body.splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names))


@pytest.mark.slow
async def test_every_activity_and_workflow_line_carries_attempt_workflow_and_account(
    engine: Engine, quiet_worker: WorkerProcess
) -> None:
    worker = quiet_worker
    payer, intent = await engine.intent()
    await engine.submit(payer, intent, await engine.pay(intent, amount_raw=intent.amount_raw - 1))
    with _locked(engine, intent.attempt_id):
        # The first try of the step loses its connection while it waits for the row.
        await engine.chain.mine(2)
        await wait_until(lambda: _end_waiting_backends(engine) > 0, timeout_seconds=PATIENCE_SECONDS, what="a victim")
    result = await engine.result(intent.attempt_id)
    assert result.error_code is ErrorCode.INSUFFICIENT_AMOUNT
    about = [line for line in worker.lines() if "workflow_id" in line or line["logger"].startswith("temporalio.")]
    about = [line for line in about if line["logger"] in {"temporalio.activity", "temporalio.workflow"}]
    assert {line["logger"] for line in about} == {"temporalio.activity", "temporalio.workflow"}
    for line in about:
        assert line.get("workflow_id") == f"verify-and-settle-{intent.attempt_id}", about
        assert line["attempt_id"] == str(intent.attempt_id), line
        assert line["billing_account_id"] == payer.billing_account_id, line
        assert line["workflow_run_id"], line
    failed, continued = [line for line in about if line["level"] == "warning"]
    assert (failed["activity"], failed["activity_attempt"]) == ("end_without_credits", 1)
    assert continued["logger"] == "temporalio.workflow"
    assert {"timestamp", "level", "event", "logger"} <= set.intersection(*(set(line) for line in worker.lines()))


async def test_readiness_names_each_unavailable_dependency_and_recovers(engine: Engine, tmp_path: Path) -> None:
    variables = dict(engine.variables)
    names = {
        "database": "SETTLEMENT_DATABASE_URL",
        "service_database": "SERVICE_DATABASE_URL",
        "chain": "CHAIN_RPC_URLS",
        "temporal": "TEMPORAL_ADDRESS",
    }
    relays = {name: relay_to(variables[variable]) for name, variable in names.items()}
    async with AsyncExitStack() as stack:
        for name, relay in relays.items():
            await relay.open()
            stack.push_async_callback(relay.cut)
            address = variables[names[name]]
            variables[names[name]] = f"127.0.0.1:{relay.port}" if name == "temporal" else through(relay, address)
        worker = await stack.enter_async_context(running_worker(tmp_path, variables))

        async def ready() -> bool:
            status, checks = await worker.readiness()
            return status == 200 and set(checks.values()) == {"ok"} and set(checks) == {*names, "token"}

        await wait_until(ready, timeout_seconds=PATIENCE_SECONDS, what="readiness")
        assert (await worker.get("/livez")) == (200, '{"status": "ok"}')
        for name, relay in relays.items():
            await relay.cut()
            status, checks = await worker.readiness()
            assert status == 503
            assert {other for other, words in checks.items() if words != "ok"} == {name}
            assert "\n" not in checks[name]
            assert (await worker.get("/livez"))[0] == 200, "a worker that waits for others is alive"
            await relay.open()
            await wait_until(ready, timeout_seconds=PATIENCE_SECONDS, what=f"readiness after {name}")
        assert ROLE_PASSWORD not in worker.log
