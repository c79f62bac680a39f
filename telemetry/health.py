"""The health port of a worker or relay: liveness, readiness and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from domain.errors import ConfigurationError, SettleError, TemporalUnavailable
from telemetry.logs import redact

CHECK_TIMEOUT_SECONDS: Final = 8.0
"""Above the time-out of one chain node: a single node that hangs must not make the worker unready."""
DEFAULT_PORT: Final = 9464

_abandoned: Final[set[asyncio.Task[str]]] = set()
"""Abandoned checks, referenced here because the event loop does not keep a task from being collected."""

Check = Callable[[], Awaitable[object]]
"""Returns where the dependency is healthy, raises where it is not."""


async def run_checks(checks: Mapping[str, Check]) -> dict[str, str]:
    """Check all dependencies concurrently; each by name: "ok", or one line that says what is wrong.

    Bounded in time, whatever a check does when it is cancelled: its clean-up may wait for the dependency once more.
    """
    if not checks:
        return {}
    running = {name: asyncio.create_task(_run(check)) for name, check in checks.items()}
    try:
        await asyncio.wait(running.values(), timeout=CHECK_TIMEOUT_SECONDS)
        late = f"no answer within {CHECK_TIMEOUT_SECONDS:g} s"
        return {name: task.result() if task.done() else late for name, task in running.items()}
    finally:
        for task in running.values():
            if not task.done():
                _abandon(task)


async def _run(check: Check) -> str:
    try:
        await check()
    except TimeoutError:
        return "no answer in time"
    except SettleError as error:
        return error.message
    except Exception as error:  # a fault of the check, reported in its place: it must not hide the others
        return f"{type(error).__name__}: {first_line(error)}"
    return "ok"


def _abandon(task: asyncio.Task[str]) -> None:
    """Let an abandoned check end by itself; `_run` catches every error."""
    _abandoned.add(task)
    task.add_done_callback(_abandoned.discard)
    task.cancel()


async def _metrics_of_sdk(address: str | None) -> bytes:
    """Empty where they are not available: the process's own are served all the same."""
    if address is not None:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CHECK_TIMEOUT_SECONDS)) as session,
                session.get(f"http://{address}/metrics") as response,
            ):
                return await response.read()
    return b""


@asynccontextmanager
async def serve_health(
    host: str,
    port: int | None,
    *,
    is_alive: Callable[[], bool],
    checks: Mapping[str, Check],
    sdk_metrics_address: str | None,
    setting: str = "WORKER_HEALTH_PORT",
) -> AsyncIterator[int]:
    """Serve `/livez`, `/readyz` and `/metrics` while the block runs; yields the port.

    `/metrics` joins the process's own metrics with those of the Temporal SDK at `sdk_metrics_address`, if it has one.
    Without a `port` it is the usual one, or any free one where a second process on this machine has that. Raises
    `ConfigurationError` naming `setting` when a requested port is taken.
    """

    async def livez(_: web.Request) -> web.Response:
        alive = is_alive()
        return web.json_response({"status": "ok" if alive else "stopping"}, status=200 if alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        results = await run_checks(checks)
        ready = is_alive() and all(result == "ok" for result in results.values())
        return web.json_response(
            {"status": "ok" if ready else "not ready", "checks": results}, status=200 if ready else 503
        )

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest() + await _metrics_of_sdk(sdk_metrics_address)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await _listen(runner, host, port, setting)
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int | None, setting: str) -> None:
    try:
        await web.TCPSite(runner, host, DEFAULT_PORT if port is None else port).start()
    except OSError as error:
        if port is not None:
            raise ConfigurationError(
                f"{setting}: got {port}, which cannot be bound on {host} ({error.strerror}); "
                "expected a free port, or 0 for any"
            ) from error
        await web.TCPSite(runner, host, 0).start()


async def temporal_answers(check_health: Callable[[], Awaitable[bool]]) -> None:
    """Check that the service reports that it serves. Raises `TemporalUnavailable`, and our own errors of the call."""
    try:
        healthy = await check_health()
    except SettleError:
        raise
    except Exception as error:  # the SDK raises its transport's errors unchanged
        raise TemporalUnavailable(f"Temporal does not answer: {first_line(error)}") from error
    if not healthy:
        raise TemporalUnavailable("Temporal answers, but reports that it is not serving")


def first_line(error: Exception) -> str:
    """The first line of an error's message, without secrets."""
    lines = redact(str(error)).splitlines()
    return lines[0][:200] if lines else "no reason given"
