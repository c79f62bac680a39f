"""A frozen PostgreSQL: connections to it stay open and take bytes, and nothing is answered."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from devstack.postgres import EmbeddedPostgres
from devstack.processes import wait_until

PATIENCE_SECONDS: Final = 30.0


@asynccontextmanager
async def frozen(server: EmbeddedPostgres) -> AsyncIterator[None]:
    """All processes of the server are stopped (SIGSTOP) while the block runs, and go on after it."""
    # The postmaster first: no child is born while its children are counted.
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await wait_until(lambda: _state(server.pid) == "T", timeout_seconds=PATIENCE_SECONDS, what="stopped postmaster")
        for pid in _children(server.pid):
            os.kill(pid, signal.SIGSTOP)
        await wait_until(
            lambda: all(_state(pid) in {"T", "Z", ""} for pid in _children(server.pid)),
            timeout_seconds=PATIENCE_SECONDS,
            what="stopped PostgreSQL",
        )
        yield
    finally:
        for pid in (*_children(server.pid), server.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    return [pid for pid, found in _parents() if found == parent]


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            yield int(entry.name), int(fields[1])


def _state(pid: int) -> str:
    """One letter; empty where the process has ended."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
