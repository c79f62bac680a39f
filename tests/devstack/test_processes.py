"""Children end when they should, and no other process does."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from devstack.errors import MissingPartError, PartFailedError, StateInUseError
from devstack.processes import (
    PortBook,
    ProcessService,
    ProcessSpec,
    end_leftovers,
    is_port_free,
    process_identity,
    quiet_port,
    start_process,
    wait_until,
)
from tests.devstack.conftest import PythonRunner, all_gone, descendants, line_of

STUBBORN = """trap "" TERM; sleep 1000 & echo ready; wait; wait; wait"""
LEFT_BEHIND = "tests.devstack.left_behind"


async def test_a_child_that_ignores_the_polite_signal_is_killed_with_its_own_children(tmp_path: Path) -> None:
    spec = ProcessSpec(name="stubborn", argv=["/bin/sh", "-c", STUBBORN], state_dir=tmp_path, stop_timeout_seconds=0.3)
    child = start_process(spec)
    await wait_until(lambda: child.last_log_line() == "ready", timeout_seconds=5, what="the child")
    below = descendants(child.pid)
    assert below
    started = time.monotonic()
    await child.stop()
    assert time.monotonic() - started < 3
    assert child.exit_code == -signal.SIGKILL
    await all_gone(below, timeout_seconds=2)
    assert not list((tmp_path / "run").iterdir())


async def test_a_child_is_not_in_the_terminals_process_group(tmp_path: Path) -> None:
    child = start_process(ProcessSpec(name="sleeper", argv=["/bin/sleep", "1000"], state_dir=tmp_path))
    try:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
    finally:
        await child.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a parent's death to its children")
async def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path, run_python: PythonRunner) -> None:
    parent = run_python(LEFT_BEHIND, tmp_path, "echo ready; exec sleep 1000")
    child_pid = int(await line_of(parent))
    child = {child_pid: process_identity(child_pid) or ""}
    parent.kill()
    await all_gone(child, timeout_seconds=5)


async def test_what_an_earlier_run_left_behind_is_ended(tmp_path: Path, run_python: PythonRunner) -> None:
    parent = run_python(LEFT_BEHIND, tmp_path, STUBBORN)
    child_pid = int(await line_of(parent))
    with pytest.raises(StateInUseError, match="already running"):
        await end_leftovers(tmp_path)
    parent.kill()
    parent.wait()
    assert process_identity(child_pid) is not None
    assert await end_leftovers(tmp_path, timeout_seconds=2) == ["left"]
    assert process_identity(child_pid) is None
    assert await end_leftovers(tmp_path) == []


@pytest.fixture
def bystander() -> Generator[subprocess.Popen[bytes], None, None]:
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        yield process
        process.kill()


async def test_a_process_that_only_has_the_pid_of_a_leftover_is_spared(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "run").mkdir()
    record = {
        "name": "old",
        "pid": bystander.pid,
        "identity": "another-boot:1",
        "parent_pid": 1,
        "parent_identity": "another-boot:1",
        "stop_signal": int(signal.SIGTERM),
    }
    (tmp_path / "run" / "old.pid").write_text(json.dumps(record))
    assert await end_leftovers(tmp_path) == []
    assert bystander.poll() is None
    assert not (tmp_path / "run" / "old.pid").exists()


async def test_a_damaged_pid_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.pid").write_text("{")
    assert await end_leftovers(tmp_path) == []


def test_a_port_is_kept_as_long_as_it_is_free(tmp_path: Path) -> None:
    wanted = quiet_port()
    assert PortBook(tmp_path).pick("a", wanted) == wanted
    assert PortBook(tmp_path).pick("a", quiet_port()) == wanted
    assert PortBook(tmp_path).pick("b", wanted) != wanted
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", wanted))
        taker.listen()
        assert not is_port_free(wanted)
        moved = PortBook(tmp_path).pick("a", wanted)
        assert moved != wanted
    assert PortBook(tmp_path).pick("a", wanted) == moved


async def test_a_service_that_ends_at_once_says_why_in_one_line(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    service = ProcessService(
        "broken", tmp_path, ["/bin/sh", "-c", "echo no such table; exit 3"], ready=never, ready_timeout_seconds=5
    )
    with pytest.raises(PartFailedError, match=r"^broken .* 3: no such table") as caught:
        await service.start()
    assert "\n" not in str(caught.value)
    assert not service.is_running


async def test_a_start_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    answers = False

    async def ready() -> bool:
        return answers

    service = ProcessService("slow", tmp_path, ["sleep", "1000"], ready=ready)
    first = asyncio.create_task(service.start())
    try:
        await wait_until(lambda: service.is_running, timeout_seconds=10, what="its process")
        second = asyncio.create_task(service.start())
        await asyncio.sleep(0)
        assert not second.done(), "a start that returns says that the part answers"
        answers = True
        await asyncio.gather(first, second)
    finally:
        await service.stop()


async def test_a_service_that_never_answers_is_ended(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    service = ProcessService("mute", tmp_path, ["sleep", "1000"], ready=never, ready_timeout_seconds=0.2)
    with pytest.raises(PartFailedError, match=r"^mute .* 0.2 s"):
        await service.start()
    assert not service.is_running


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPartError, match="there is no program /no/such"):
        ProcessService("absent", tmp_path, ["/no/such"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals it")
def test_ports_that_are_picked_are_not_those_that_the_system_gives_away() -> None:
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    given_away = range(lowest, highest + 1)
    assert not {quiet_port() for _ in range(100)} & set(given_away)


PICK_AND_WAIT = """
import sys
from pathlib import Path
from devstack.processes import PortBook
print(PortBook(Path(sys.argv[1])).pick("part", int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_stacks_that_start_together_do_not_pick_one_port(tmp_path: Path) -> None:
    wanted = quiet_port()
    picked = []
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            # No process listens yet: what was picked is all that there is to see.
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PICK_AND_WAIT, tmp_path / name, str(wanted)],
                    cwd=Path(__file__).parents[2],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            assert process.stdout is not None
            picked.append(int(process.stdout.readline()))
    assert picked[0] == wanted
    assert picked[1] != wanted
    (tmp_path / "three").mkdir()
    assert PortBook(tmp_path / "three").pick("part", wanted) == wanted, "who ends lets go"
