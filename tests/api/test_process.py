"""`settle api` as a process: it starts only where it can work, says what is missing, and stops on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from api import server as http_server
from db import startup
from devstack.processes import quiet_port, wait_until
from domain.errors import DatabaseUnavailable
from tests.support import sql
from tests.support.api import RunningApi, Visitor, first_wallet
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.postgres import ROLE_PASSWORD, Cluster
from tests.support.relay import relay_to, through
from tests.support.service_process import ServiceProcess, running_service

STOP_SECONDS_MAX = 12.0
START_SECONDS_MAX = 30.0


class ApiProcess(ServiceProcess):
    """A running API, and requests to it."""

    url = ""

    async def serves(self) -> None:
        """Wait until it listens."""
        self.url = f"http://{(await self.says('api serves'))['listens_on']}"

    @asynccontextmanager
    async def visitor(self) -> AsyncIterator[Visitor]:
        """A client with a cookie jar."""
        async with aiohttp.ClientSession(self.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            yield Visitor(session, self.url)


@asynccontextmanager
async def running(folder: Path, variables: Mapping[str, str], **changes: str) -> AsyncIterator[ApiProcess]:
    """An API process for the length of the block; it serves when the block begins."""
    defaults = {"API_PORT": "0", "API_URL": "http://127.0.0.1:8080"}
    async with running_service("api", folder, {**variables, **defaults, **changes}) as service:
        api = ApiProcess(service.process, service.log_path)
        await api.serves()
        yield api
        assert ROLE_PASSWORD not in api.log


async def refusal(folder: Path, variables: Mapping[str, str], **changes: str) -> tuple[int, str]:
    """Exit code and the one line that it said."""
    defaults = {"API_PORT": "0", "API_URL": "http://127.0.0.1:8080"}
    async with running_service("api", folder, {**variables, **defaults, **changes}) as service:
        exit_code, _ = await service.ends(timeout_seconds=START_SECONDS_MAX)
    [line] = service.log.splitlines()
    assert ROLE_PASSWORD not in line
    assert line.startswith("settle: ")
    return exit_code, line


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_sigterm_ends_open_event_streams_and_exits_with_0(
    engine: Engine, tmp_path: Path, signal_number: signal.Signals
) -> None:
    async with running(tmp_path, engine.variables) as api, api.visitor() as payer:
        await payer.sign_in(first_wallet())
        intent = await payer.intent()
        path = f"/api/v1/payments/attempts/{intent['attemptId']}/events"
        async with payer.session.get(path) as stream:
            assert (await stream.content.readline()).startswith(b"event: status")
            api.process.send_signal(signal_number)
            exit_code, seconds = await api.ends(timeout_seconds=STOP_SECONDS_MAX)
        assert exit_code == 0
        assert seconds < 5, "it waited for an open stream"
        assert api.lines()[-1]["event"] == "api stopped"


async def test_its_log_lines_are_json_with_ids_and_without_secrets(engine: Engine, tmp_path: Path) -> None:
    async with running(tmp_path, engine.variables, LOG_LEVEL="DEBUG") as api, api.visitor() as payer:
        session = await payer.sign_in(first_wallet())
        cookie = payer.cookie
        await payer.get("/api/v1/payments/credits/summary", headers={"X-Request-ID": "checkout-42"})
        await wait_until(
            lambda: any(line.get("request_id") == "checkout-42" for line in api.lines()),
            timeout_seconds=PATIENCE_SECONDS,
            what="the request's line",
        )
        [line] = [
            line for line in api.lines() if line.get("request_id") == "checkout-42" and line["event"] == "request"
        ]
        assert line["billing_account_id"] == session["billingAccountId"]
        assert (line["method"], line["route"], line["status"]) == ("GET", "/api/v1/payments/credits/summary", 200)
        assert cookie not in api.log


async def test_a_fault_is_one_traceback_in_the_log_and_no_detail_in_the_answer(engine: Engine, tmp_path: Path) -> None:
    async with running(tmp_path, engine.variables) as api, api.visitor() as payer:
        await payer.sign_in(first_wallet())
        # An unexpected error of the database.
        with sql.connect(engine.database.superuser_url) as superuser:
            superuser.execute("ALTER TABLE payment_events ADD CONSTRAINT surprise CHECK (false) NOT VALID")
        reply = await payer.post("/api/v1/payments/intents", {"amountUsdCents": 500})
        assert (reply.status, reply.code) == (500, "INTERNAL")
        assert "surprise" not in json.dumps(reply.body)
        await api.says("request failed")  # after the answer: the caller does not wait for the log
        faults = [line for line in api.lines() if line["event"] == "request failed"]
        assert len(faults) == 1
        assert "surprise" in faults[0]["exception"]
        assert faults[0]["request_id"] == reply.body["requestId"]
        assert "Traceback" not in api.log.replace(json.dumps(faults[0]["exception"])[1:-1], "")


async def test_metrics_count_requests_by_route_and_logins_by_outcome(engine: Engine, tmp_path: Path) -> None:
    async with running(tmp_path, engine.variables) as api, api.visitor() as payer:
        await payer.sign_in(first_wallet())
        await payer.get("/api/v1/payments/attempts/11111111-2222-4333-8444-555555555555")
        metrics = (await payer.get("/metrics")).body
    for sample in (
        'settle_http_requests_total{method="POST",route="/api/v1/auth/login",status="200"} 1.0',
        'settle_http_requests_total{method="GET",route="/api/v1/payments/attempts/{id}",status="404"} 1.0',
        'settle_logins_total{outcome="signed_in"} 1.0',
        "settle_http_request_seconds_bucket{",
        "settle_event_streams 0.0",
    ):
        assert sample in metrics, sample


@pytest.mark.slow
async def test_readiness_names_each_unavailable_dependency_and_recovers(engine: Engine, tmp_path: Path) -> None:
    variables = dict(engine.variables)
    names = {"database": "DATABASE_URL", "chain": "CHAIN_RPC_URLS", "temporal": "TEMPORAL_ADDRESS"}
    relays = {name: relay_to(variables[variable]) for name, variable in names.items()}
    async with AsyncExitStack() as stack:
        for name, relay in relays.items():
            await relay.open()
            stack.push_async_callback(relay.cut)
            address = variables[names[name]]
            variables[names[name]] = f"127.0.0.1:{relay.port}" if name == "temporal" else through(relay, address)
        api = await stack.enter_async_context(running(tmp_path, variables))
        visitor = await stack.enter_async_context(api.visitor())

        async def says(expected: set[str]) -> None:
            async def answers() -> bool:
                reply = await visitor.get("/readyz")
                wrong = {name for name, result in reply.body["checks"].items() if result != "ok"}
                assert (reply.status == 200) == (not wrong)
                return wrong == expected

            await wait_until(answers, timeout_seconds=PATIENCE_SECONDS, what=f"trouble with {expected}")

        await says(set())
        for gone, named in (
            ("chain", {"chain"}),
            ("temporal", {"temporal"}),
            ("database", {"database", "schema", "system_tenant"}),
        ):
            await relays[gone].cut()
            await says(named)
            assert (await visitor.get("/livez")).body == {"status": "ok"}
            await relays[gone].open()
            await says(set())
        with sql.connect(engine.database.superuser_url, triggers=False) as superuser:
            superuser.execute("UPDATE billing_accounts SET is_system_tenant = false")
        await says({"system_tenant"})


async def test_a_database_that_goes_away_is_a_503_that_says_when_to_come_back(engine: Engine, tmp_path: Path) -> None:
    relay = relay_to(engine.variables["DATABASE_URL"])
    await relay.open()
    changed = {"DATABASE_URL": through(relay, engine.variables["DATABASE_URL"])}
    async with running(tmp_path, engine.variables, **changed) as api, api.visitor() as payer:
        await payer.sign_in(first_wallet())
        await relay.cut()
        reply = await payer.post("/api/v1/payments/intents", {"amountUsdCents": 500})
        assert (reply.status, reply.code) == (503, "DATABASE_UNAVAILABLE")
        assert int(reply.headers["Retry-After"]) > 0
        # The server's address and the reason stay out of the answer.
        assert reply.body["detail"].startswith(DatabaseUnavailable.title)
        await relay.open()
        assert (await payer.intent())["attemptId"]
        await relay.cut()


HALF_A_HEAD = b"POST /api/v1/auth/challenge HTTP/1.1\r\nHost: x\r\nContent-Type: appl"
A_HEAD = b"POST /api/v1/auth/challenge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
A_REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (HALF_A_HEAD, b""),
        (A_HEAD + b'Content-Length: 100\r\n\r\n{"address"', b"HTTP/1.1 408"),
    ],
    ids=["nothing", "half a head", "half a body"],
)
async def test_a_connection_that_leaves_something_undone_is_closed(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch, sent: bytes, answer: bytes
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS_MAX", 0.5)
    reader, writer = await open_connection(api.url)
    writer.write(sent)
    async with api.visitor() as visitor, asyncio.timeout(STOP_SECONDS_MAX):
        assert (await visitor.get("/livez")).status == 200
        assert (await reader.read()).startswith(answer)
    writer.close()


async def test_half_a_second_head_is_not_waited_for_either(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS_MAX", 0.5)
    reader, writer = await open_connection(api.url)
    writer.write(A_REQUEST)
    async with asyncio.timeout(STOP_SECONDS_MAX):
        await reader.readuntil(b'"ok"}')
        writer.write(HALF_A_HEAD)
        assert await reader.read() == b""
    writer.close()


async def test_an_unread_body_is_drained_up_to_a_limit(api: RunningApi) -> None:
    _, writer = await open_connection(api.url)
    writer.write(A_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    written = 0
    with contextlib.suppress(ConnectionError):
        for _ in range(1_000):
            writer.write(chunk)
            await writer.drain()
            written += len(chunk)
    assert written < 40 * 2**20, "it was never closed"
    writer.close()


@pytest.mark.slow
async def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(api: RunningApi) -> None:
    reader, writer = await open_connection(api.url)
    smuggled = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(A_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled)
    async with asyncio.timeout(STOP_SECONDS_MAX):
        answers = await reader.read()
    assert answers.startswith(b"HTTP/1.1 400")
    assert answers.count(b"HTTP/1.1 ") == 1
    writer.close()


async def test_answers_on_a_kept_connection_do_not_wait_for_an_acknowledgement(api: RunningApi) -> None:
    async with api.visitor() as visitor:
        seconds = []
        for _ in range(50):
            started = time.monotonic()
            await visitor.get("/livez")
            seconds.append(time.monotonic() - started)
        # A delayed acknowledgement costs every one of them 40 ms; a busy machine some of them more.
        assert sorted(seconds)[len(seconds) // 4] < 0.04


async def open_connection(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection, and nothing said on it yet."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


# -- refusing to start -----------------------------------------------------------------------------------------------


async def test_a_role_with_more_rights_than_it_needs_stops_the_api(engine: Engine, tmp_path: Path) -> None:
    exit_code, line = await refusal(tmp_path, engine.variables, DATABASE_URL=engine.database.service_url)
    assert exit_code == 1
    assert startup.more_rights("DATABASE_URL", "settle_service") in line


async def test_a_database_without_a_schema_says_what_to_run(engine: Engine, cluster: Cluster, tmp_path: Path) -> None:
    async with cluster.temporary() as empty:
        exit_code, line = await refusal(tmp_path, engine.variables, DATABASE_URL=empty.app_url)
    assert exit_code == 1
    assert startup.NO_SCHEMA in line


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"API_URL": ""}, "API_URL"),
        ({"API_URL": "pay.example.com"}, "API_URL"),
        ({"API_URL": "https://pay.example.com/shop"}, "API_URL"),
        ({"API_PORT": "65536"}, "API_PORT"),
        ({"TRUSTED_PROXIES": "10.0.0.0/99"}, "TRUSTED_PROXIES"),
        ({"RATE_LIMIT_INTENTS_PER_ACCOUNT": "0"}, "RATE_LIMIT_INTENTS_PER_ACCOUNT"),
        ({"EXPLORER_TX_URL": "https://x.example/tx/"}, "EXPLORER_TX_URL"),
        ({"OPERATOR_WALLETS": "0x12"}, "OPERATOR_WALLETS"),
        ({"OPERATOR_WALLETS": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}, "OPERATOR_DATABASE_URL"),
    ],
    ids=lambda given: str(given)[:50],
)
async def test_a_bad_or_missing_setting_stops_the_api_as_a_usage_error(
    engine: Engine, tmp_path: Path, changes: dict[str, str], setting: str
) -> None:
    exit_code, line = await refusal(tmp_path, engine.variables, **changes)
    assert exit_code == 2
    assert f"CONFIGURATION: {setting} " in line


async def test_a_port_that_is_taken_stops_the_api(engine: Engine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exit_code, line = await refusal(tmp_path, engine.variables, API_PORT=str(port))
    assert exit_code == 2
    assert f"API_PORT: got {port}" in line


async def test_it_starts_without_temporal_and_chain_and_says_so(engine: Engine, tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {
        "TEMPORAL_ADDRESS": f"127.0.0.1:{quiet_port()}",
        "CHAIN_RPC_URLS": f"http://127.0.0.1:{quiet_port()}",
    }
    async with running(tmp_path, engine.variables, **nowhere) as api, api.visitor() as payer:
        await payer.sign_in(first_wallet())
        assert (await payer.intent())["attemptId"]
        reply = await payer.get("/readyz")
        assert reply.status == 503
        wrong = {name for name, result in reply.body["checks"].items() if result != "ok"}
        assert wrong == {"temporal", "chain", "token"}
