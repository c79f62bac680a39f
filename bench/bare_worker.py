"""The process that runs the bare workflow, with everything of the product's worker that is not the product's work."""

from __future__ import annotations

import asyncio
import os
import signal

from temporalio.worker import Worker

from bench.bare import (
    BARE_TASK_QUEUE,
    BareSettlement,
    await_nothing,
    credit_nobody,
    find_nothing_final,
    mint_nothing,
    record_nothing,
)
from starter.temporal import connect
from worker import WORKER_OPTIONS, sdk_runtime


async def main() -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await connect(dict(os.environ), runtime=sdk_runtime("127.0.0.1:0"))
    async with Worker(
        client,
        task_queue=BARE_TASK_QUEUE,
        workflows=[BareSettlement],
        activities=[record_nothing, await_nothing, credit_nobody, mint_nothing, find_nothing_final],
        **WORKER_OPTIONS,
    ):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
