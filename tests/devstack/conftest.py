"""What the tests of the embedded parts share."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest

from devstack.chain import LocalChain
from devstack.processes import process_identity, wait_until

ROOT = Path(__file__).resolve().parents[2]

# The data of these servers is thrown away: no need to wait for the disk.
UNSAFE_BUT_FAST = {"fsync": "off"}


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[LocalChain, None]:
    """A chain that mines only on request."""
    node = LocalChain(tmp_path_factory.mktemp("chain"), block_time_seconds=None)
    await node.start()
    yield node
    await node.stop()


PythonRunner = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run_python() -> Generator[PythonRunner, None, None]:
    """Runs a script in a process of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


async def line_of(process: subprocess.Popen[str], *, timeout_seconds: float = 30) -> str:
    """The next line a process prints; fails with its errors when there is none."""
    assert process.stdout is not None
    line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), timeout_seconds)
    if not line:
        _, errors = process.communicate()
        pytest.fail(f"the process ended without a word: {errors}")
    return line.strip()


def descendants(pid: int) -> dict[int, str]:
    """Every process below this one, with what distinguishes it from a later one of the same pid."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: dict[int, str] = {}
    waiting = list(children.get(pid, ()))
    while waiting:
        child = waiting.pop()
        waiting.extend(children.get(child, ()))
        identity = process_identity(child)
        if identity is not None:
            found[child] = identity
    return found


async def all_gone(processes: dict[int, str], *, timeout_seconds: float = 10) -> None:
    """Waits until none of these processes is left."""
    await wait_until(
        lambda: not any(process_identity(pid) == identity for pid, identity in processes.items()),
        timeout_seconds=timeout_seconds,
        what="end of all processes",
    )
