"""A worker that is asked to stop while Temporal does not answer."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.engine import Engine
from tests.support.relay import Relay, relay_to
from tests.worker.process import running_worker
from worker import GRACEFUL_SHUTDOWN, STOP_SECONDS_MAX

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
        assert exit_code == 0
        assert seconds > GRACEFUL_SHUTDOWN.total_seconds()
        assert worker.said("worker stops without Temporal")
        assert worker.lines()[-1]["event"] == "worker stopped"
