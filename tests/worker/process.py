"""A worker as operators run it, and its health port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.support.service_process import ServiceProcess, running_service


class WorkerProcess(ServiceProcess):
    """A running worker."""

    async def get(self, path: str) -> tuple[int, str]:
        """Ask the health port."""
        address = (await self.says("worker runs"))["health"]
        async with aiohttp.ClientSession() as session, session.get(f"{address}{path}") as response:
            return response.status, await response.text()

    async def readiness(self) -> tuple[int, dict[str, str]]:
        """`/readyz`: status and what it says of each dependency."""
        status, body = await self.get("/readyz")
        return status, json.loads(body)["checks"]


@asynccontextmanager
async def running_worker(folder: Path, variables: Mapping[str, str], **changes: str) -> AsyncIterator[WorkerProcess]:
    """A worker process for the length of the block."""
    async with running_service("worker", folder, {**variables, "WORKER_HEALTH_PORT": "0", **changes}) as running:
        yield WorkerProcess(running.process, running.log_path)
