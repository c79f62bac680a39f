"""Record the history of every path of `Sweep`: `python -m tests.deposits.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.deposits.signatures import SweepEnded, SweptBooked, SweptToBook
from activities.messages import SweepRef
from starter.sweeps import start_sweep
from tests.support.histories import RECORDER, Recorded
from workflows.naming import sweep_workflow_id, task_queue
from workflows.sweep import Sweep

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


async def walk(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end."""
    async with Worker(
        client, task_queue=task_queue(CHAIN), workflows=[Sweep], activities=_activities(path), identity=RECORDER
    ):
        await start_sweep(client, SWEEP_ID, CHAIN, summary="collects from 2 deposit addresses")
        handle = client.get_workflow_handle(sweep_workflow_id(SWEEP_ID))
        with suppress(WorkflowFailureError):
            await handle.result()
    return handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk, lambda _: Sweep)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
