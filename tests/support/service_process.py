"""`settle worker` or `settle api` as operators run them: a process of its own, whose log goes to a file."""

from __future__ import annotations

import asyncio
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

from devstack.processes import wait_until
from tests.support.engine import PATIENCE_SECONDS
from tests.support.shifted_host import CLOCK_AHEAD_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]


def entry_module(variables: Mapping[str, str]) -> str:
    """What runs a command with these settings."""
    return "tests.support.shifted_host" if CLOCK_AHEAD_VARIABLE in variables else "cli"


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """These settings and nothing of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}


@dataclass
class ServiceProcess:
    """A running process."""

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
        process = subprocess.Popen(
            [sys.executable, "-m", entry_module({**variables, **changes}), command],
            cwd=folder,  # no .env of whoever runs the tests
            env=clean_environment({**variables, **changes}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield ServiceProcess(process, log_path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
