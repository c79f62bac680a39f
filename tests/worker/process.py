"""A worker as operators run it: `settle worker` in a process of its own, and relays that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from devstack.processes import wait_until
from tests.support.engine import PATIENCE_SECONDS

ROOT: Final = Path(__file__).resolve().parents[2]


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """These settings and nothing of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}


@dataclass
class WorkerProcess:
    """A running worker. What it says goes to a file."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self.log_path.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The same, each line as the JSON that it is. The last one may be half written yet."""
        return [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    def said(self, event: str) -> dict[str, Any] | None:
        """The first line about this event."""
        return next((line for line in self.lines() if line["event"] == event), None)

    async def says(self, event: str) -> dict[str, Any]:
        """The same, when it comes."""
        await wait_until(
            lambda: self.said(event) is not None or self.process.poll() is not None,
            timeout_seconds=PATIENCE_SECONDS,
            what=f"the worker says {event!r}",
        )
        line = self.said(event)
        assert line is not None, self.log
        return line

    async def get(self, path: str) -> tuple[int, str]:
        """Ask the health port."""
        address = (await self.says("worker runs"))["health"]
        async with aiohttp.ClientSession() as session, session.get(f"{address}{path}") as response:
            return response.status, await response.text()

    async def readiness(self) -> tuple[int, dict[str, str]]:
        """`/readyz`: status and what it says of each dependency."""
        status, body = await self.get("/readyz")
        return status, json.loads(body)["checks"]

    async def ends(self, *, timeout_seconds: float) -> tuple[int, float]:
        """Its exit code, and the seconds that it took."""
        started = time.monotonic()
        exit_code = await asyncio.to_thread(self.process.wait, timeout_seconds)
        return exit_code, time.monotonic() - started


@asynccontextmanager
async def running_worker(folder: Path, variables: Mapping[str, str], **changes: str) -> AsyncIterator[WorkerProcess]:
    """A worker process for the length of the block."""
    log_path = folder / "worker.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "worker"],
            cwd=folder,  # no .env of whoever runs the tests
            env=clean_environment({**variables, "WORKER_HEALTH_PORT": "0", **changes}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield WorkerProcess(process, log_path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


class Relay:
    """Passes one TCP port on to another, until it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        """Listen, again on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Take no more connections and end those that are there."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            other_reader, other_writer = await asyncio.open_connection(*self._target)
            self._writers |= {writer, other_writer}
            await asyncio.gather(_pipe(reader, other_writer), _pipe(other_reader, writer))
            self._writers -= {writer, other_writer}


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(65_536):
            writer.write(content)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
