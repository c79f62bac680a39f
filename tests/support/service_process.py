"""`settle worker` or `settle api` as operators run them: a process of its own, whose log goes to a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from devstack.processes import wait_until
from tests.support import warm_process
from tests.support.engine import PATIENCE_SECONDS
from tests.support.shifted_host import CLOCK_AHEAD_VARIABLE
from tests.support.warm_process import WarmProcess

ROOT: Final = Path(__file__).resolve().parents[2]


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """These settings and nothing of the user who runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}


def start_settle(
    arguments: Sequence[str],
    variables: Mapping[str, str],
    folder: Path,
    *,
    stdin: int | None = None,
    stdout: int,
    stderr: int,
) -> WarmProcess:
    """`settle ARGUMENTS` in `folder`, with these settings and no others."""
    module = "tests.support.shifted_host" if CLOCK_AHEAD_VARIABLE in variables else "cli"
    environment = clean_environment(variables)
    return warm_process.fork(
        module, arguments, variables=environment, folder=folder, stdin=stdin, stdout=stdout, stderr=stderr
    )


@dataclass
class ServiceProcess:
    """A running process."""

    process: WarmProcess
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
            what=f"the process says {event!r}",
        )
        line = self.said(event)
        assert line is not None, self.log
        return line

    async def ends(self, *, timeout_seconds: float) -> tuple[int, float]:
        """Its exit code, and the seconds that it took."""
        started = time.monotonic()
        exit_code = await asyncio.to_thread(self.process.wait, timeout_seconds)
        return exit_code, time.monotonic() - started


@asynccontextmanager
async def running_service(
    command: str, folder: Path, variables: Mapping[str, str], **changes: str
) -> AsyncIterator[ServiceProcess]:
    """`settle COMMAND` for the length of the block; `changes` are settings by their variables' names."""
    log_path = folder / f"{command}.log"
    with log_path.open("wb") as log:
        process = start_settle([command], {**variables, **changes}, folder, stdout=log.fileno(), stderr=log.fileno())
    try:
        yield ServiceProcess(process, log_path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
