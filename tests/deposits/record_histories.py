"""Record the history of every path of `Sweep`: `python -m tests.deposits.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.deposits.signatures import SweepEnded, SweptBooked, SweptToBook
from activities.messages import SweepRef
from devstack.processes import quiet_port
from devstack.temporal import EmbeddedTemporal
from starter.sweeps import start_sweep
from starter.temporal import connect, register_search_attributes
from tests.workflow.paths import RECORDER
from tests.workflow.record_histories import without_traces
from workflows.naming import sweep_workflow_id, task_queue
from workflows.sweep import Sweep

HISTORIES: Final = Path(__file__).parent / "histories"

SWEEP_ID: Final = UUID(int=1)
CHAIN: Final = 31337

PATHS: Final[dict[str, tuple[int, SweepEnded]]] = {
    "at_once": (0, SweepEnded(nonces=2)),
    "after_waiting": (2, SweepEnded(nonces=2)),
    "replaced": (0, SweepEnded(nonces=2, problems=("nonce 7: 0x01 replaced",))),
}
"""Path, how often it waits, and how it ends."""


def _activities(path: str) -> list[Callable[..., Any]]:
    waits, ended = PATHS[path]

    @activity.defn(name="advance_sweep")
    async def advance_sweep(sweep: SweepRef) -> SweepEnded:
        if activity.info().attempt <= waits:
            raise ApplicationError("sent", type="SWEEP_WAITING", next_retry_delay=timedelta(milliseconds=10))
        return ended

    @activity.defn(name="book_swept")
    async def book_swept(wanted: SweptToBook) -> SweptBooked:
        return SweptBooked(transfers=2)

    return [advance_sweep, book_swept]


async def _record(client: Client, path: str) -> dict[str, Any]:
    async with Worker(
        client, task_queue=task_queue(CHAIN), workflows=[Sweep], activities=_activities(path), identity=RECORDER
    ):
        await start_sweep(client, SWEEP_ID, CHAIN, summary="collects from 2 deposit addresses")
        handle = client.get_workflow_handle(sweep_workflow_id(SWEEP_ID))
        with suppress(WorkflowFailureError):
            await handle.result()
    history: dict[str, Any] = without_traces(json.loads((await handle.fetch_history()).to_json()))
    return history


async def main() -> None:
    """Record them all."""
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedTemporal(Path(folder), quiet_port())
        await server.start()
        try:
            client = await connect({"TEMPORAL_ADDRESS": server.address, "TEMPORAL_NAMESPACE": "default"})
            client.service_client.config.identity = RECORDER
            await register_search_attributes(client)
            for path in PATHS:
                history = await _record(client, path)
                (HISTORIES / f"{path}.json").write_text(json.dumps(history, indent=1) + "\n")
                sys.stdout.write(f"{path}\n")
        finally:
            await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
