"""What `settle doctor` says of optional parts: the HTTP interface and the operators' role."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from aiohttp import web

from commands import doctor
from devstack.processes import quiet_port
from domain.errors import ApiNotReady, BooksDoNotBalance
from domain.payments.attempt import Purpose
from tests.cli.command import settle
from tests.database.test_outages import read_only
from tests.gateway.support import upstreams_document
from tests.support.api import running_api
from tests.support.engine import Engine
from tests.support.postgres import ROLE_PASSWORD
from tests.support.sql import connect

API: Final = "API"
OPERATORS: Final = "database, role settle_operator"
FACTORIES: Final = "smart wallet factories"
WORKERS: Final = "workers"
GATEWAY: Final = "gateway"
UPSTREAMS: Final = "upstreams"
SPENDING: Final = "spending"
SECRET: Final = "sekret"
"""Part of a node's URL."""


def upstreams_file(folder: Path, urls: Mapping[str, str], **changes: Any) -> str:
    """An UPSTREAMS_FILE."""
    path = folder / "upstreams.yaml"
    path.write_text(yaml.safe_dump(upstreams_document(urls, **changes)))
    return str(path)


async def findings(engine: Engine, folder: Path, **changes: str) -> dict[str, tuple[bool, str]]:
    """What it says of each part: whether it is fine, and why."""
    variables: Mapping[str, str] = {**engine.variables, **changes}
    answer = await asyncio.to_thread(settle, ("doctor", "--json"), variables, folder)
    for secret in (ROLE_PASSWORD, SECRET):
        assert secret not in answer.stdout + answer.stderr
    found = answer.json()
    assert (answer.exit_code == 0) == found["ok"] == all(check["ok"] for check in found["checks"])
    assert answer.exit_code == 1 or answer.stderr == ""
    assert all(set(check) == {"name", "ok", "detail"} for check in found["checks"])
    return {check["name"]: (check["ok"], check["detail"]) for check in found["checks"]}


def failed(found: Mapping[str, tuple[bool, str]]) -> set[str]:
    """The parts that are not fine."""
    return {name for name, (is_fine, _) in found.items() if not is_fine}


async def test_without_a_worker_it_alone_is_missing_and_what_is_not_set_up_is_not_listed(
    engine: Engine, tmp_path: Path
) -> None:
    found = await findings(engine, tmp_path)
    assert failed(found) == {WORKERS}
    assert not {API, OPERATORS, FACTORIES, GATEWAY, UPSTREAMS} & found.keys()
    assert found[SPENDING][0], "which is listed always"


async def test_an_api_that_is_ready_and_the_operators_role_are_fine(engine: Engine, tmp_path: Path) -> None:
    async with engine.worker(), running_api(engine) as api:
        where = {"API_URL": api.url, "OPERATOR_DATABASE_URL": engine.database.operator_url}
        found = await findings(engine, tmp_path, **where, RELAY_HEALTH_PORT=str(quiet_port()))
    assert found[API] == (True, f"ready at {api.url}")
    assert found[OPERATORS][0]
    assert found[FACTORIES][0]
    assert failed(found) == set()


async def test_what_is_not_there_is_not_right_says_what_to_run_and_the_rest_is_fine(
    engine: Engine, tmp_path: Path
) -> None:
    api, gateway, upstream = (f"http://127.0.0.1:{quiet_port()}" for _ in range(3))
    found = await findings(
        engine,
        tmp_path,
        CHAIN_RPC_URLS=f"http://127.0.0.1:{quiet_port()}/v2/{SECRET}",
        TEMPORAL_ADDRESS="x:1",
        OPERATOR_DATABASE_URL=engine.database.app_url,
        API_URL=api,
        GATEWAY_URL=gateway,
        UPSTREAMS_FILE=upstreams_file(tmp_path, {"away": upstream}),
        UPSTREAM_KEY="sk-upstream",
    )
    assert failed(found) == {
        "Temporal", WORKERS, "chain nodes", "finality", "token and treasury", OPERATORS, API, GATEWAY, UPSTREAMS,
    }  # fmt: skip
    assert f"nothing answers at {api}" in found[API][1]
    assert "run: settle api" in found[API][1]
    assert f"nothing answers at {gateway}" in found[GATEWAY][1]
    assert "run: settle gateway" in found[GATEWAY][1]
    assert found[UPSTREAMS][1].endswith("away")
    assert "OPERATOR_DATABASE_URL: role settle_app has more rights" in found[OPERATORS][1]


async def test_an_api_that_is_not_ready_says_what_it_misses(engine: Engine) -> None:
    async with running_api(engine, TEMPORAL_ADDRESS=f"127.0.0.1:{quiet_port()}") as api:
        with pytest.raises(ApiNotReady, match=f"not ready at {api.url}: temporal: ") as refused:
            await doctor._api(api.url)
    assert "schema" not in refused.value.message, "what is fine is not news"


@pytest.mark.slow
async def test_another_role_than_the_operators_is_not_right(engine: Engine, tmp_path: Path) -> None:
    found = await findings(engine, tmp_path, OPERATOR_DATABASE_URL=engine.database.service_url)
    is_fine, detail = found[OPERATORS]
    assert not is_fine
    assert "OPERATOR_DATABASE_URL: role settle_service has more rights" in detail


# -- what may answer in its place ------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(documents: Mapping[str, Any]) -> AsyncIterator[str]:
    """A server with these JSON documents, and 404 elsewhere."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path not in documents:
            raise web.HTTPNotFound
        return web.json_response(documents[request.path])

    server = web.Server(answer)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_behind_a_proxy_that_keeps_readiness_inside_it_is_alive() -> None:
    async with answering({"/livez": {"status": "ok"}}) as url:
        detail = await doctor._api(url)
    assert detail.startswith(f"alive at {url}")
    assert detail.endswith("(HTTP 404)")


@pytest.mark.parametrize("document", [None, [], {}, "ok", {"status": "UP"}, {"status": "ok", "checks": ["x"]}], ids=str)
async def test_what_is_not_the_api_is_not_taken_for_it(document: object) -> None:
    async with answering({"/readyz": document, "/livez": document}) as url:
        with pytest.raises(ApiNotReady, match="is not the API"):
            await doctor._api(url)


async def test_one_that_is_stopping_is_not_ready() -> None:
    async with answering({"/readyz": {"status": "not ready", "checks": {"database": "ok"}}}) as url:
        with pytest.raises(ApiNotReady, match="it is stopping"):
            await doctor._api(url)


@pytest.mark.parametrize(
    ("said", "words"), [(b"", "does not answer within 0.5 s"), (b"220 mail.example.com ESMTP\r\n", "is not the API")]
)
async def test_one_that_says_nothing_or_speaks_another_language_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, said: bytes, words: str
) -> None:
    monkeypatch.setattr(doctor, "API_SECONDS_MAX", 0.5)
    writers: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(said)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        started = time.monotonic()
        with pytest.raises(ApiNotReady, match=words):
            await doctor._api(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert time.monotonic() - started < 10
        for writer in writers:
            writer.close()


async def test_of_a_small_ledger_also_what_was_tampered_with_long_ago_is_seen(engine: Engine) -> None:
    payer, intent = await engine.intent(purpose=Purpose.SYSTEM)
    await engine.credit_without_bonus(payer, intent)
    with connect(engine.database.superuser_url, triggers=False) as owner:
        # Young rows are checked again, and would be found without a check of every row.
        owner.execute("UPDATE payment_events SET created_at = created_at - interval '1 hour'")
    assert await doctor._books(engine.settings, full=False)
    with connect(engine.database.superuser_url) as owner:
        owner.execute("SET session_replication_role = replica")
        owner.execute("DELETE FROM settled_transfers")
    with pytest.raises(BooksDoNotBalance, match=f"attempt {intent.attempt_id} is CREDITED without"):
        await doctor._books(engine.settings, full=False)


# -- a report in any case --------------------------------------------------------------------------------------------


async def test_whatever_a_check_raises_the_others_are_reported(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a database that takes no writes, which a command says in one line."""

    async def break_down(*_: object, **__: object) -> str:
        raise ZeroDivisionError("of a check")

    async def hang(*_: object) -> str:
        await asyncio.Event().wait()
        return "never"

    monkeypatch.setattr(doctor, "CHECK_SECONDS_MAX", 8)
    monkeypatch.setattr(doctor, "_workers", hang)
    monkeypatch.setattr(doctor, "_settings", break_down)
    monkeypatch.setattr(doctor, "_books", break_down)
    create = ("attempt", "create", "--wallet", "0x" + "1" * 40, "--cents", "1000")
    with read_only(engine.database):
        assert not await doctor.doctor(engine.settings, engine.variables, full=False, as_json=True)
        answer = await asyncio.to_thread(settle, create, engine.variables, tmp_path)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "ZeroDivisionError" in checks["settings"]["detail"]
    assert not checks["workers"]["ok"]
    for role in ("settle_app", "settle_settlement", "settle_service"):
        check = checks[f"database, role {role}"]
        assert not check["ok"]
        assert "read-only" in check["detail"]
    assert checks["chain nodes"]["ok"]
    assert len(checks) > 6, "the other checks are in it"
    assert answer.exit_code == 1
    assert "read-only" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
