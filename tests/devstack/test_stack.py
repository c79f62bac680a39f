"""The parts together: side by side, supervised, and ended when they should be."""

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import psycopg
import pytest

from devstack import DevstackError, PartFailedError, Stack, StateInUseError
from devstack.processes import process_identity, wait_until
from tests.devstack.conftest import UNSAFE_BUT_FAST, PythonRunner, all_gone, descendants, line_of
from tests.support.parallel import process_number

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

RUN_A_STACK = "tests.devstack.stack_of_its_own"


@linux_only
async def test_nothing_is_left_of_a_stack_that_is_killed_and_it_goes_on_later(
    tmp_path: Path, run_python: PythonRunner
) -> None:
    # Ports that no other test takes between the two runs.
    number = 21_000 + 10 * process_number()
    ports = {"postgres": number, "temporal": number + 1, "temporal-ui": number + 2, "chain": number + 3}
    first = run_python(RUN_A_STACK, tmp_path, json.dumps(ports))
    facts = json.loads(await line_of(first))
    async with await psycopg.AsyncConnection.connect(facts["database"], autocommit=True) as connection:
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    below = descendants(first.pid)
    assert len(below) > 4  # the four children, and PostgreSQL's own
    first.kill()
    first.wait()
    await all_gone(below)
    async with Stack(tmp_path, without=["upstream"], postgres_settings=UNSAFE_BUT_FAST) as stack:
        assert stack.postgres.superuser_url() == facts["database"]
        assert (stack.temporal.address, stack.chain.url) == (facts["temporal"], facts["chain"])
        async with await psycopg.AsyncConnection.connect(facts["database"], autocommit=True) as connection:
            row = await (await connection.execute("SELECT n FROM kept")).fetchone()
            assert row == (1,)
        tx_hash = facts["receipt"]["transactionHash"]
        assert await stack.chain.wait_for_receipt(tx_hash) == facts["receipt"]


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_all_within_ten_seconds(
    tmp_path: Path, run_python: PythonRunner, number: signal.Signals
) -> None:
    process = run_python(RUN_A_STACK, tmp_path)
    await line_of(process)
    below = descendants(process.pid)
    started = time.monotonic()
    process.send_signal(number)
    _, errors = await asyncio.to_thread(process.communicate, timeout=15)
    assert time.monotonic() - started < 10
    assert (process.returncode, errors) == (0, "")
    await all_gone(below, timeout_seconds=0.1)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
async def test_two_folders_side_by_side_and_one_folder_only_once(tmp_path: Path) -> None:
    async with (
        Stack(tmp_path / "a", postgres_settings=UNSAFE_BUT_FAST) as a,
        Stack(tmp_path / "b", postgres_settings=UNSAFE_BUT_FAST, ports={"postgres": a.postgres.port}) as b,
    ):
        addresses = [
            [stack.postgres.superuser_url().rpartition("@")[2], stack.temporal.address, stack.temporal.ui_url,
             stack.chain.url]
            for stack in (a, b)
        ]  # fmt: skip
        assert len({address for of_one in addresses for address in of_one}) == 8
        with pytest.raises(StateInUseError, match=r"another stack \(process \d+\)") as caught:
            await Stack(tmp_path / "a").__aenter__()
        assert "\n" not in str(caught.value)
        number = await b.chain.block_number()
        await a.chain.mine(50)
        assert await b.chain.block_number() < number + 40
        assert a.chain.is_running
    assert not a.chain.is_running
    assert not b.postgres.is_running


@pytest.mark.slow
async def test_parts_that_start_at_the_same_time_do_not_take_each_others_ports(tmp_path: Path) -> None:
    stacks = [Stack(tmp_path / name, without=["postgres"]) for name in ("a", "b", "c")]
    try:
        await asyncio.gather(*(stack.__aenter__() for stack in stacks))
        assert len({stack.temporal.address for stack in stacks}) == 3
        assert len({stack.chain.url for stack in stacks}) == 3
        assert all(stack.chain.is_running and stack.temporal.is_running for stack in stacks)
    finally:
        await asyncio.gather(*(stack.__aexit__(None, None, None) for stack in stacks))


@pytest.mark.slow
async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    async with Stack(
        tmp_path, without=["temporal"], postgres_settings=UNSAFE_BUT_FAST, on_progress=told.append
    ) as stack:
        worker = await stack.add_process("worker", ["sleep", "1000"])
        parts = [stack.postgres, stack.chain, worker]
        pids = [part.pid for part in parts]
        url = stack.postgres.superuser_url()
        await asyncio.gather(*(part.kill() for part in parts))
        await wait_until(
            lambda: all(part.is_running and not part.is_busy for part in parts), timeout_seconds=10, what="restart"
        )
        assert not set(pids) & {part.pid for part in parts}
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute("SELECT 1")
        await stack.remove_process("worker")
        assert not worker.is_running
    for name in ("postgres", "chain", "worker"):
        assert any(text.startswith(f"{name} was ended by SIGKILL") for text in told)
    assert process_identity(stack.postgres.pid) is None


@pytest.mark.slow
async def test_a_process_that_keeps_dying_ends_the_stack_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devstack.stack.RESTART_DELAYS_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("devstack.stack.WATCH_SECONDS", 0.02)
    async with Stack(tmp_path, without=["postgres", "temporal", "chain"]) as stack:
        told = tmp_path / "told"
        lives = f"echo settings: DATABASE_URL is missing; until [ -e {told} ]; do sleep 0.02; done; exit 1"
        await stack.add_process("worker", ["sh", "-c", lives])
        told.touch()
        with pytest.raises(PartFailedError, match=r"3 times .* DATABASE_URL is missing"):
            await asyncio.wait_for(stack.wait(), 10)


@pytest.mark.slow
async def test_a_stack_that_cannot_start_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETTLE_NODE_MODULES", str(tmp_path))
    stack = Stack(tmp_path / "state", without=["temporal"], postgres_settings=UNSAFE_BUT_FAST)
    with pytest.raises(DevstackError, match="run: npm install"):
        await stack.__aenter__()
    assert not stack.postgres.is_running
    assert not list((tmp_path / "state" / "run").glob("*.pid"))
    monkeypatch.delenv("SETTLE_NODE_MODULES")
    async with stack:
        assert stack.chain.is_running


@pytest.mark.slow
async def test_parts_can_be_left_out_by_name(tmp_path: Path) -> None:
    async with Stack(tmp_path, without=["postgres", "temporal"], block_time_seconds=None) as stack:
        assert stack.chain.is_running
        with pytest.raises(DevstackError, match="runs without postgres"):
            _ = stack.postgres
    with pytest.raises(DevstackError, match="'web'; .*: postgres, temporal, chain"):
        Stack(tmp_path, without=["web"])
