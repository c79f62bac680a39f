"""PostgreSQL stands still: it takes every byte and answers nothing. The interface answers in time, stops, recovers."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from api.app import build_app
from api.http import sse as feed
from api.pages import credits as pages
from api.process import DATABASE_CONNECTIONS, open_services
from api.server import GRACEFUL_SHUTDOWN_SECONDS, http_server, listen
from devstack.processes import wait_until
from settings import load
from telemetry import health
from tests.support.api import PATIENCE_SECONDS, Reply, RunningApi, Visitor, first_wallet
from tests.support.engine import Engine
from tests.support.frozen import frozen
from tests.support.postgres import Cluster
from tests.support.service_process import running_service

ANSWER_SECONDS: Final = 3.0
LIMIT_SECONDS: Final = 1.0
"""Of a page, a check and a reading, while the database stands still."""

SECONDS_MAX: Final = 9.0
"""Much more than the limits, on a machine that stalls; less than the ten seconds for which the driver by itself says
goodbye to a server that does not listen."""

STOP_SECONDS_MAX: Final = GRACEFUL_SHUTDOWN_SECONDS + 5.0
_ASKED: Final = b'{"address": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}'
CHALLENGE: Final = (
    b"POST /api/v1/auth/challenge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_ASKED), _ASKED)
)
INTENTS: Final = "/api/v1/payments/intents"
DATABASE_CHECKS: Final = {"database", "schema", "system_tenant"}


@dataclass
class Impatient:
    """An interface with short limits, and what its event loop complained about."""

    api: RunningApi
    complaints: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lent_connections(self) -> int:
        """Of the pool, now."""
        return int(self.api.services.database.engine.pool.checkedout())  # type: ignore[attr-defined]


@pytest.fixture
async def impatient(engine: Engine) -> AsyncIterator[Impatient]:
    """The interface, which answers within `ANSWER_SECONDS`."""
    with listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        variables = dict(engine.variables) | {"API_URL": url}
        async with open_services(load(variables), variables) as services:
            server = http_server(build_app(services, answer_seconds=ANSWER_SECONDS))
            serving = asyncio.create_task(server.serve([listening]))
            await wait_until(lambda: server.started, timeout_seconds=PATIENCE_SECONDS, what="API")
            found = Impatient(RunningApi(url, engine, services))
            asyncio.get_running_loop().set_exception_handler(lambda _, context: found.complaints.append(context))
            try:
                yield found
            finally:
                asyncio.get_running_loop().set_exception_handler(None)
                services.stopping.set()
                server.should_exit = True
                await serving


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """The block takes no more than `SECONDS_MAX`."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    assert seconds < SECONDS_MAX, f"it took {seconds:.1f} s"


async def test_every_request_is_answered_in_time_and_once_and_the_next_ones_work(
    impatient: Impatient, cluster: Cluster
) -> None:
    async with impatient.api.visitor(first_wallet()) as payer:
        async with frozen(cluster.server), in_time():
            # More than there are connections: some wait for one, and some for the server.
            flood = [payer.post(INTENTS, {"amountUsdCents": 500}) for _ in range(2 * DATABASE_CONNECTIONS)]
            replies = await asyncio.gather(*flood)
        assert {(reply.status, reply.code) for reply in replies} == {(503, "OUT_OF_TIME")}
        assert all(int(reply.headers["Retry-After"]) > 0 for reply in replies)
        assert (await payer.intent())["attemptId"]
        await wait_until(
            lambda: impatient.lent_connections == 0, timeout_seconds=PATIENCE_SECONDS, what="connections given back"
        )
        assert len((await payer.get("/api/v1/payments/attempts")).body["attempts"]) == 1, "one that was not committed"
    gc.collect()
    assert impatient.complaints == []


async def test_readiness_names_the_database_in_time_and_recovers(
    impatient: Impatient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient.api.visitor() as visitor:
        await _is_ready(visitor)
        with monkeypatch.context() as hasty:
            hasty.setattr(health, "CHECK_TIMEOUT_SECONDS", LIMIT_SECONDS)
            async with frozen(cluster.server), in_time():
                reply = await _not_ready(visitor)
        assert {name for name, result in reply.body["checks"].items() if result != "ok"} == DATABASE_CHECKS
        await _is_ready(visitor)
    gc.collect()
    assert impatient.complaints == []


async def test_a_person_gets_a_page_in_time(
    impatient: Impatient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient.api.visitor(first_wallet()) as payer:
        with monkeypatch.context() as hasty:
            hasty.setattr(pages, "PAGE_SECONDS_MAX", LIMIT_SECONDS)
            async with frozen(cluster.server), in_time():
                reply = await payer.get("/credits")
        assert reply.status == 503
        assert reply.headers["Content-Type"].startswith("text/html")
        assert (await payer.get("/credits")).status == 200


async def test_a_stream_that_waits_for_the_database_gives_way_to_the_others(
    impatient: Impatient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = asyncio.Semaphore(1)
    monkeypatch.setattr(impatient.api.services.streams, "reads", readings)
    monkeypatch.setattr(feed, "UNPAID_TICK_SECONDS", 0.05)
    monkeypatch.setattr(impatient.api.services.streams, "read_seconds_max", LIMIT_SECONDS)
    monkeypatch.setattr(feed, "SESSION_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(feed, "KEEPALIVE_SECONDS", 0.5)
    async with impatient.api.visitor(first_wallet()) as payer:
        path = f"/api/v1/payments/attempts/{(await payer.intent())['attemptId']}/events"
        async with payer.session.get(path) as stream:
            assert (await stream.content.readline()).startswith(b"event: status")
            async with frozen(cluster.server):
                await wait_until(readings.locked, timeout_seconds=PATIENCE_SECONDS, what="a reading")
                # A check of the session, and a poll of the payment: both are cancelled.
                for _ in range(2):
                    async with in_time(), readings:
                        pass
            async with asyncio.timeout(PATIENCE_SECONDS):
                while line := await stream.content.readline():
                    if line.startswith(b":"):
                        break
            assert line, "what is not known ends nothing"


@pytest.mark.slow
async def test_sigterm_ends_it_although_the_database_is_frozen(
    engine: Engine, cluster: Cluster, tmp_path: Path
) -> None:
    async with running_service("api", tmp_path, engine.variables, API_PORT="0", API_URL="http://127.0.0.1:8080") as api:
        host, port = (await api.says("api serves"))["listens_on"].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        async with frozen(cluster.server), aiohttp.ClientSession(f"http://{host}:{port}") as session:
            writer.write(CHALLENGE)
            await writer.drain()
            async with session.get("/livez") as reply:
                assert reply.status == 200, "which was asked later than the challenge, so that is under way"
            api.process.send_signal(signal.SIGTERM)
            exit_code, seconds = await api.ends(timeout_seconds=PATIENCE_SECONDS)
        writer.close()
    assert exit_code == 0
    assert GRACEFUL_SHUTDOWN_SECONDS <= seconds < STOP_SECONDS_MAX
    assert "never retrieved" not in api.log


async def _is_ready(visitor: Visitor) -> None:
    async def says_yes() -> bool:
        return (await visitor.get("/readyz")).status == 200

    await wait_until(says_yes, timeout_seconds=PATIENCE_SECONDS, what="readiness")


async def _not_ready(visitor: Visitor) -> Reply:
    """The first answer that says so: the former result is still served for a second."""
    seen: list[Reply] = []

    async def says_no() -> bool:
        seen.append(await visitor.get("/readyz"))
        return seen[-1].status == 503

    await wait_until(says_no, timeout_seconds=PATIENCE_SECONDS, what="503")
    return seen[-1]
