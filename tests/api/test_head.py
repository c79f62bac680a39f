"""HEAD wherever there is GET: the same status and headers, and no body."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import pytest
from structlog.testing import capture_logs

from api import health
from devstack.processes import wait_until
from tests.api.write_openapi import DOCUMENT, as_text
from tests.support.api import PATIENCE_SECONDS, RunningApi, Visitor
from tests.support.sql import no_write_is_proved

OF_THE_REQUEST: Final = {"X-Request-ID", "Date"}
PATHS: Final = (
    "/",
    "/credits",
    "/static/credits.css",
    "/static/nothing.css",
    "/livez",
    "/openapi.json",
    "/api/v1/auth/session",
    "/api/v1/payments/attempts",
    "/api/v1/payments/credits/summary",
    "/api/v1/payments/attempts/11111111-2222-4333-8444-555555555555",
    "/nowhere",
)


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


@pytest.mark.slow(but=4)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_signed_in", [True, False], ids=["signed in", "signed out"])
async def test_it_is_answered_as_get_is_without_a_body(
    api: RunningApi, payer: Visitor, path: str, is_signed_in: bool
) -> None:
    async with api.visitor() as stranger:
        visitor = payer if is_signed_in else stranger
        got = await visitor.get(path, allow_redirects=False)
        head = await visitor.call("HEAD", path, allow_redirects=False)
    assert (head.status, head.body or "") == (got.status, "")
    assert _comparable(head.headers) == _comparable(got.headers)
    assert "Content-Length" in head.headers


async def test_readiness_too(payer: Visitor, api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "READINESS_SECONDS", 0.0)
    got, head = await payer.get("/readyz"), await payer.call("HEAD", "/readyz")
    assert (head.status, head.headers["Content-Length"]) == (got.status, got.headers["Content-Length"])
    fine = dict.fromkeys(("database", "schema", "system_tenant", "temporal", "chain", "token"), "ok")
    assert (got.status, got.body["checks"]) == (200, fine)
    with no_write_is_proved(api.engine.database.superuser_url):
        got = await payer.get("/readyz")
    assert (got.status, got.body["checks"]) == (503, fine | {"database": got.body["checks"]["database"]})
    assert "no write" in got.body["checks"]["database"]
    api.services.stopping.set()
    try:
        assert (await payer.get("/readyz")).status == 503
    finally:
        api.services.stopping.clear()


async def test_nothing_but_the_head_is_sent(api: RunningApi) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    # On a connection that stays open a body would be taken for the next answer.
    writer.write(b"HEAD /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
    with capture_logs() as logged:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        await wait_until(lambda: len(logged) >= 2, timeout_seconds=PATIENCE_SECONDS, what="both requests' lines")
    writer.close()
    assert {line["event"] for line in logged} == {"request"}, "the server complains of words after the end"


async def test_of_a_stream_there_is_the_head_and_no_stream_is_held_open(api: RunningApi, payer: Visitor) -> None:
    path = f"/api/v1/payments/attempts/{(await payer.intent())['attemptId']}/events"
    head = await payer.call("HEAD", path)
    assert (head.status, head.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    await wait_until(
        lambda: not len(api.services.streams), timeout_seconds=PATIENCE_SECONDS, what="an end of the stream"
    )


async def test_it_is_counted_and_logged_as_what_it_is(payer: Visitor) -> None:
    await payer.call("HEAD", "/livez")
    metrics = (await payer.get("/metrics")).body
    assert re.search(r'settle_http_requests_total\{method="HEAD",route="/livez",status="200"\} [1-9]', metrics)


async def test_what_takes_no_get_takes_no_head_and_the_answer_says_what_is_taken(payer: Visitor) -> None:
    head = await payer.call("HEAD", "/api/v1/payments/intents")
    assert (head.status, head.headers["Allow"]) == (405, "POST")
    wrong = await payer.call("DELETE", "/credits")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD")


async def test_it_changes_nothing_from_another_site_either(payer: Visitor) -> None:
    reply = await payer.call("HEAD", "/credits", headers={"Sec-Fetch-Site": "cross-site"})
    assert reply.status == (await payer.get("/credits", headers={"Sec-Fetch-Site": "cross-site"})).status == 200


def test_the_document_has_no_operations_for_it() -> None:
    assert '"head"' not in as_text()
    assert DOCUMENT.read_text(encoding="utf-8") == as_text()


def _comparable(headers: object) -> dict[str, str]:
    return {name: value for name, value in dict(headers).items() if name not in OF_THE_REQUEST}  # type: ignore[call-overload]
