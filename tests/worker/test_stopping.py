"""A worker that is asked to stop while Temporal does not answer, or that Temporal does not let start."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from domain.errors import TemporalUnavailable
from starter.temporal import connect
from tests.support.engine import Engine
from tests.support.relay import Relay, relay_to
from tests.worker.process import running_worker
from worker import GRACEFUL_SHUTDOWN, STOP_SECONDS_MAX, Workers, build_worker

PROCESS_SECONDS: Final = 2.0
"""What a process takes to end, beside what its worker may take."""


@pytest.fixture
async def relay(engine: Engine) -> AsyncIterator[Relay]:
    """What a worker reaches Temporal by."""
    relay = relay_to(engine.namespace.address)
    await relay.open()
    yield relay
    relay.pass_answers()
    await relay.cut()


async def _cut(relay: Relay) -> None:
    await relay.cut()


async def _keep_answers(relay: Relay) -> None:
    relay.keep_answers()


@pytest.mark.slow(but=("unreachable",))
@pytest.mark.parametrize("fails", [_cut, _keep_answers], ids=["unreachable", "frozen"])
async def test_a_worker_stops_in_time_whatever_temporal_does(
    engine: Engine, relay: Relay, tmp_path: Path, fails: Callable[[Relay], Awaitable[None]]
) -> None:
    address = {"TEMPORAL_ADDRESS": f"127.0.0.1:{relay.port}"}
    async with running_worker(tmp_path, engine.variables, **address) as worker:
        await worker.says("worker runs")
        await fails(relay)
        worker.process.send_signal(signal.SIGTERM)
        exit_code, seconds = await worker.ends(timeout_seconds=STOP_SECONDS_MAX + PROCESS_SECONDS)
        assert exit_code == 0, worker.log
        assert seconds > GRACEFUL_SHUTDOWN.total_seconds()
        assert worker.said("worker stops without Temporal")
        # Not as its last line: the SDK's own threads go on polling, and log that, until the process ends.
        assert worker.said("worker stopped")


async def _unconfirmed_workers(engine: Engine) -> Workers:
    """Workers that Temporal will not confirm: it has no such namespace."""
    client = await connect({"TEMPORAL_ADDRESS": engine.namespace.address, "TEMPORAL_NAMESPACE": "missing"})
    return build_worker(
        client, engine.settings, chain=engine.reader, settlement=engine.settlement, service=engine.service
    )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def test_a_worker_that_fails_ends_what_runs_beside_it(engine: Engine) -> None:
    workers = await _unconfirmed_workers(engine)
    with pytest.raises(TemporalUnavailable, match="missing"):
        async with workers:
            await asyncio.Event().wait()
    assert not _is_cancelled()


async def test_a_worker_that_fails_while_it_stops_has_stopped(engine: Engine) -> None:
    workers = await _unconfirmed_workers(engine)
    with capture_logs() as logs:
        async with workers:
            assert not workers.is_running
    assert [line["reason"] for line in logs if line["event"] == "worker stops without Temporal"]
    assert not _is_cancelled()


async def test_what_a_block_raises_is_not_replaced_by_a_workers_failure(engine: Engine) -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    workers = await _unconfirmed_workers(engine)
    with pytest.raises(ZeroDivisionError):
        async with workers:
            await fails_when_cancelled()


async def test_who_is_cancelled_by_another_as_well_stays_cancelled(engine: Engine) -> None:
    async def wait(workers: Workers) -> None:
        async with workers:
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait(await _unconfirmed_workers(engine)))
    while not waiting.cancelling():
        await asyncio.sleep(0)  # the other comes in the round of the loop in which the worker fails
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
