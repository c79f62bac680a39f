"""The bench's clients of the HTTP interface measure what they say, and notice every call that goes wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bench.http_path import SETTINGS, Client, Node, SignedPayment, Tally, client_wallet, measure_http_path
from bench.parts import Latency
from bench.report import CallLatency, HttpPath
from bench.rounds import Deadline
from bench.run import http_violations
from domain.errors import SettlementFailed
from tests.support.api import running_api
from tests.support.engine import Engine, open_engine
from tests.support.postgres import Database
from tests.support.servers import Namespace


def test_percentiles_are_samples_and_exact() -> None:
    seconds = [number / 1000 for number in range(1, 101)]
    assert Latency.of(list(reversed(seconds))) == Latency(count=100, p50_ms=50, p95_ms=95, p99_ms=99)
    assert Latency.of([0.003]) == Latency(count=1, p50_ms=3, p95_ms=3, p99_ms=3)
    assert Latency.of([]) == Latency(count=0, p50_ms=None, p95_ms=None, p99_ms=None)


def test_a_client_has_the_same_wallet_in_every_run_and_no_two_share_one() -> None:
    assert client_wallet(3) == client_wallet(3)
    assert len({client_wallet(number).address for number in range(50)}) == 50


@pytest.mark.slow
async def test_payments_of_some_clients_are_credited_and_every_call_is_counted(
    engine: Engine, namespace: Namespace, database: Database
) -> None:
    said: list[str] = []
    async with (
        open_engine(namespace, database, engine.chain, **SETTINGS) as impatient,
        running_api(impatient) as api,
        impatient.worker(),
        mined_by_and_by(impatient),
    ):
        path = await measure_http_path(
            impatient.chain, impatient.service, api.url, clients=3, payments=2, on_progress=said.append
        )
    assert (path.begun, path.credited, path.errors) == (6, 6, 0)
    assert [(found.call, found.count) for found in path.sign_in] == [("challenge", 3), ("login", 3)]
    assert [found.call for found in path.calls] == ["intent", "submit", "status"]
    assert [found.count for found in path.calls[:2]] == [6, 6]
    assert path.submit_to_credited.count == 6
    assert http_violations(path) == []
    assert said


async def test_a_call_that_is_refused_is_an_error_and_no_sample() -> None:
    answers = {"/api/v1/auth/challenge": (429, {"code": "RATE_LIMITED", "detail": "too many"})}
    tally = await a_client_of(answers)
    assert tally.failures == [("challenge", "429 RATE_LIMITED: too many")]
    assert tally.credited == []
    challenge, login = tally.latencies(("challenge", "login"))
    assert (challenge.count, challenge.errors, login.count, login.errors) == (0, 1, 0, 0)


async def test_a_payment_that_is_not_credited_is_an_error() -> None:
    attempt_id = "5f3c1e5e-8a4e-4c0f-9d2b-6a1f0c7e9b10"
    ended = {"status": "FAILED", "clientStatus": "FAILED", "errorCode": "TX_REVERTED"}
    answers = {
        "/api/v1/auth/challenge": (200, {"nonce": "12345678", "message": "sign me"}),
        "/api/v1/auth/login": (200, {}),
        "/api/v1/payments/intents": (201, {"attemptId": attempt_id}),
        f"/api/v1/payments/attempts/{attempt_id}/submit": (202, ended),
    }
    tally = await a_client_of(answers)
    assert tally.failures == [("status", f"attempt {attempt_id} ended FAILED (TX_REVERTED)")]
    assert len(tally.seconds["submit"]) == 1


async def test_a_chain_that_refuses_a_payment_ends_the_bench() -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "nonce too low"}})

    async with served({"/": refuse}) as url, aiohttp.ClientSession(url) as http:
        with pytest.raises(SettlementFailed, match="nonce too low"):
            await Node(http).send(SignedPayment("0x", "0x"))


async def test_a_client_whose_time_is_up_begins_nothing() -> None:
    answers = {
        "/api/v1/auth/challenge": (200, {"nonce": "12345678", "message": "sign me"}),
        "/api/v1/auth/login": (200, {}),
    }
    tally = await a_client_of(answers, seconds=0)
    assert (tally.begun, tally.failures) == (0, [])


def test_errors_and_missing_payments_make_the_run_invalid() -> None:
    nothing = Latency(count=0, p50_ms=None, p95_ms=None, p99_ms=None)
    path = HttpPath(
        clients=2,
        payments_per_client=3,
        begun=6,
        credited=5,
        seconds=1.0,
        payments_per_second=5.0,
        poll_seconds=0.5,
        sign_in=[],
        calls=[CallLatency(call="intent", errors=1, **dict(nothing))],
        submit_to_credited=nothing,
        errors=1,
        first_errors=["intent: 503 DATABASE_UNAVAILABLE: later"],
    )
    failed, unpaid = http_violations(path)
    assert path.first_errors[0] in failed
    assert [int(number) for number in re.findall(r"\d+", unpaid)] == [5, 6]


async def a_client_of(answers: Mapping[str, tuple[int, Any]], *, seconds: float = 30) -> Tally:
    """What a client with one payment saw of an interface that answers so."""

    async def mined(request: web.Request) -> web.Response:
        method = (await request.json())["method"]
        result = {"status": "0x1"} if method == "eth_getTransactionReceipt" else "0x"
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": result})

    def saying(status: int, body: Any) -> Any:
        async def answer(_request: web.Request) -> web.Response:
            return web.json_response(body, status=status)

        return answer

    tally = Tally()
    handlers = {path: saying(*answer) for path, answer in answers.items()}
    async with (
        served(handlers) as api,
        served({"/": mined}) as chain,
        aiohttp.ClientSession(api) as http,
        aiohttp.ClientSession(chain) as node_http,
    ):
        client = Client(http, client_wallet(0), [SignedPayment("0x", "0x" + "5e" * 32)], tally)
        await client.sign_in()
        await client.buy(Node(node_http), Deadline(seconds))
    return tally


@asynccontextmanager
async def served(handlers: Mapping[str, Any]) -> AsyncIterator[str]:
    """A server on loopback that answers POSTs so."""
    app = web.Application()
    for path, handler in handlers.items():
        app.router.add_post(path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def mined_by_and_by(engine: Engine) -> AsyncIterator[None]:
    """Blocks one after the other, as long as the block runs."""

    async def mine() -> None:
        while True:
            await engine.chain.mine()
            await asyncio.sleep(0.1)

    task = asyncio.create_task(mine())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
