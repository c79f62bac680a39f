"""Record the histories of the watcher's workflows: `python -m tests.watcher.record_histories`.

To be run by hand after a change that is meant to change histories, and the files committed with that change.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker

from activities.messages import Followed, Rescan, WatchedChain
from devstack.processes import wait_until
from domain.transfers.rescan import RescanReport
from tests.support.histories import RECORDER, Recorded
from tests.support.servers import TASK_QUEUE
from workflows.jobs.rescan_chain import RescanChain
from workflows.watch_chain import WatchChain

CHAIN_ID: Final = 31_337


@activity.defn(name="follow_chain")
async def follow_chain(chain: WatchedChain) -> Followed:
    """Follows nothing; without end where it is asked to follow for hours."""
    while chain.follow_seconds > 3_600:
        activity.heartbeat("block 7, 0 behind, 1 transfers")
        await asyncio.sleep(0.1)
    return Followed(block_number=7, words="block 7, 0 behind, 1 transfers")


@activity.defn(name="rescan_chain")
async def rescan_chain(rescan: Rescan) -> RescanReport:
    """Finds one transfer."""
    return RescanReport(first=1, last=rescan.blocks, endpoints=("node",), added=1)


async def _watch(client: Client, name: str, chain: WatchedChain) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(WatchChain.run, chain, id=name, task_queue=TASK_QUEUE)


async def _follows_and_begins_anew(client: Client, name: str) -> WorkflowHandle[Any, Any]:
    handle = await _watch(client, name, WatchedChain(chain_id=CHAIN_ID, follow_seconds=1.0))

    async def begun_anew() -> bool:
        return (await handle.describe()).run_id != handle.first_execution_run_id

    await wait_until(begun_anew, timeout_seconds=30.0, what="a second run")
    await handle.terminate()
    return client.get_workflow_handle(name, run_id=handle.first_execution_run_id)


async def _is_cancelled(client: Client, name: str) -> WorkflowHandle[Any, Any]:
    handle = await _watch(client, name, WatchedChain(chain_id=CHAIN_ID, follow_seconds=10_000.0))

    async def follows() -> bool:
        description = (await handle.describe()).raw_description
        return any(pending.HasField("last_started_time") for pending in description.pending_activities)

    await wait_until(follows, timeout_seconds=30.0, what="the activity")
    await handle.cancel()
    with suppress(WorkflowFailureError):
        await handle.result()
    return handle


async def _reads_again(client: Client, name: str) -> WorkflowHandle[Any, Any]:
    handle = await client.start_workflow(RescanChain.run, Rescan(), id=name, task_queue=TASK_QUEUE)
    await handle.result()
    return handle


PATHS: Final[dict[str, Callable[[Client, str], Awaitable[WorkflowHandle[Any, Any]]]]] = {
    "watch_begins_anew": _follows_and_begins_anew,
    "watch_is_cancelled": _is_cancelled,
    "rescan": _reads_again,
}


async def walk(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end."""
    async with Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[WatchChain, RescanChain],
        activities=[follow_chain, rescan_chain],
        identity=RECORDER,
    ):
        return await PATHS[path](client, path)


def workflow_of(path: str) -> type[Any]:
    """The workflow whose path it is."""
    return RescanChain if path == "rescan" else WatchChain


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk, workflow_of)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
