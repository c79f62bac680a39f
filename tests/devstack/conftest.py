"""What the tests of the embedded parts share."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import TextIO

import pytest

from devstack.chain import LocalChain
from devstack.processes import process_identity, wait_until
from tests.support import warm_process
from tests.support.warm_process import WarmProcess

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


class PythonProcess(WarmProcess):
    """A process of a module of the tests, and what it writes."""

    def __init__(self, started: WarmProcess, stdout: TextIO, errors_path: Path) -> None:
        super().__init__(started.pid, started.args)
        self.stdout = stdout
        self._errors_path = errors_path

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of its output, and all its errors, once it has ended. Raises `subprocess.TimeoutExpired`."""
        self.wait(timeout)
        return self.stdout.read(), self._errors_path.read_text()


PythonRunner = Callable[..., PythonProcess]


@pytest.fixture
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Generator[PythonRunner, None, None]:
    """Runs a module in a process of its own, which ends with the test."""
    started: list[PythonProcess] = []

    def run(module: str, *arguments: object) -> PythonProcess:
        reading, writing = os.pipe()
        errors_path = tmp_path_factory.mktemp("python") / "errors"
        with errors_path.open("wb") as errors:
            # An interpreter of its own would import the product again, for nearly a second.
            process = warm_process.fork(
                module, list(map(str, arguments)), variables=os.environ, folder=ROOT,
                stdout=writing, stderr=errors.fileno(),
            )  # fmt: skip
        os.close(writing)
        started.append(PythonProcess(process, os.fdopen(reading), errors_path))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


async def line_of(process: PythonProcess, *, timeout_seconds: float = 30) -> str:
    """The next line a process prints; fails with its errors when there is none."""
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
