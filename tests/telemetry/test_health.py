"""The health port: bounded in time, honest, and closed with its block."""

from __future__ import annotations

import asyncio
import gc
import json
import time

import aiohttp
import pytest

from devstack.processes import is_port_free, quiet_port, wait_until
from domain.errors import DatabaseUnavailable, TemporalUnavailable
from telemetry import health
from telemetry.health import run_checks, serve_health, temporal_answers


async def _fine() -> None:
    return None


async def _down() -> None:
    raise DatabaseUnavailable("PostgreSQL cannot be reached")


async def _hangs() -> None:
    await asyncio.sleep(60)


async def test_each_check_is_reported_by_name_and_one_does_not_hide_another() -> None:
    assert await run_checks({"a": _fine, "b": _down}) == {"a": "ok", "b": "PostgreSQL cannot be reached"}


async def test_a_check_that_hangs_is_cut_off_and_all_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.2)
    started = time.monotonic()
    results = await run_checks({str(number): _hangs for number in range(20)})
    assert time.monotonic() - started < 2
    assert set(results.values()) == {"no answer within 0.2 s"}


async def test_a_check_that_ignores_its_cancellation_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.2)
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    let_go = asyncio.Event()

    async def cleans_up_at_leisure() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await let_go.wait()
            raise KeyError("no check is requested")

    started = time.monotonic()
    results = await run_checks({"a": cleans_up_at_leisure, "b": _fine, "c": _down})
    assert time.monotonic() - started < 10
    assert results == {"a": "no answer within 0.2 s", "b": "ok", "c": "PostgreSQL cannot be reached"}
    gc.collect()
    assert len(health._abandoned) == 1, "it would be collected half-way"
    let_go.set()
    await wait_until(lambda: not health._abandoned, timeout_seconds=10, what="its end")
    gc.collect()
    asyncio.get_running_loop().set_exception_handler(None)
    assert complaints == []


async def test_a_disconnecting_client_cancels_its_checks() -> None:
    before = asyncio.all_tasks()
    started: list[None] = []

    async def hangs() -> None:
        started.append(None)
        await asyncio.sleep(60)

    asking = asyncio.create_task(run_checks({"a": hangs, "b": hangs}))
    await wait_until(lambda: len(started) == 2, timeout_seconds=10, what="two checks")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await wait_until(lambda: asyncio.all_tasks() <= before, timeout_seconds=10, what="their end")


async def test_a_check_that_breaks_says_so_in_its_place() -> None:
    async def broken() -> None:
        raise ZeroDivisionError("division by zero")

    assert await run_checks({"a": broken, "b": _fine}) == {"a": "ZeroDivisionError: division by zero", "b": "ok"}


async def test_it_is_ready_while_it_is_alive_and_all_that_it_needs_answers() -> None:
    state = {"alive": True, "down": False}

    async def needed() -> None:
        if state["down"]:
            raise DatabaseUnavailable("PostgreSQL cannot be reached")

    options = {"is_alive": lambda: state["alive"], "checks": {"a": _fine, "b": needed}, "sdk_metrics_address": None}
    async with serve_health("127.0.0.1", 0, **options) as port, aiohttp.ClientSession() as session:  # type: ignore[arg-type]

        async def answers() -> list[int]:
            found = []
            for path in ("livez", "readyz"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                    found.append(response.status)
            return found

        assert await answers() == [200, 200]
        state["down"] = True
        assert await answers() == [200, 503]
        state.update(down=False, alive=False)
        assert await answers() == [503, 503]


async def test_metrics_of_our_own_are_served_though_the_sdks_are_not_there() -> None:
    async with (
        serve_health(
            "127.0.0.1",
            0,
            is_alive=lambda: True,
            checks={"a": _fine},
            sdk_metrics_address=f"127.0.0.1:{quiet_port()}",
        ) as port,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.status == 200
            assert "python_info" in await response.text()
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert (response.status, json.loads(await response.text())["checks"]) == (200, {"a": "ok"})
        async with session.get(f"http://127.0.0.1:{port}/nothing") as response:
            assert response.status == 404
    assert is_port_free(port)


@pytest.mark.parametrize("words", ["transport error\nsecond line", ""])
async def test_a_temporal_that_does_not_answer_is_unavailable_in_one_line(words: str) -> None:
    async def fails() -> bool:
        raise RuntimeError(words)

    with pytest.raises(TemporalUnavailable) as refused:
        await temporal_answers(fails)
    assert "\n" not in refused.value.message


async def test_a_temporal_that_says_no_is_unavailable() -> None:
    async def unhealthy() -> bool:
        return False

    with pytest.raises(TemporalUnavailable, match="not serving"):
        await temporal_answers(unhealthy)
