"""`settle gateway` as a process: stopped, killed, paused, and started with wrong settings."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
import yaml

from devstack.upstream import Upstream
from tests.gateway.support import (
    UPSTREAM_KEY,
    Account,
    Books,
    Client,
    chat,
    faulty,
    open_account,
    until,
    upstreams_document,
)
from tests.support.postgres import Database
from tests.support.service_process import ServiceProcess, running_service
from tests.support.sql import query, scalar

SLOW: dict[str, Any] = {"tokens": 2_000, "tokens_per_second": 200}
PATIENCE_SECONDS = 60.0

RESOLVE = """
    SELECT outcome FROM capture_hold(
        %s::uuid, true, 77, 0, 0.0000077, 0, 0, 'gateway_died', 'first', NULL, ARRAY[1, 0, 0, 1, 0], true, NULL, NULL,
        '{"lines": []}')
"""
"""What is done in the place of an owner whose lease has lapsed."""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway's process with an upstream in this one."""

    process: ServiceProcess
    client: Client
    account: Account
    upstream: Upstream
    books: Books


@asynccontextmanager
async def running(
    database: Database, folder: Path, *, usage_lookup: str = "none", **settings: str
) -> AsyncIterator[Running]:
    """`settle gateway` for the length of the block."""
    upstream, account = Upstream(), await open_account(database)
    async with upstream.serve() as url:
        file = folder / "upstreams.yaml"
        file.write_text(yaml.safe_dump(upstreams_document({"first": url}, usage_lookup=usage_lookup)))
        variables = {
            "DATABASE_URL": database.app_url,
            "UPSTREAMS_FILE": str(file),
            "UPSTREAM_KEY": UPSTREAM_KEY,
            "GATEWAY_PORT": "0",
            **settings,
        }
        async with running_service("gateway", folder, variables) as process, aiohttp.ClientSession() as session:
            address = (await process.says("gateway serves"))["listens_on"]
            yield Running(process, Client(session, address, account.key), account, upstream, Books(database))


async def read_some(response: aiohttp.ClientResponse, events: int = 6) -> bytes:
    return b"".join([await response.content.readuntil(b"\n\n") for _ in range(events)])


@pytest.mark.slow
async def test_sigterm_lets_open_streams_end_and_takes_no_others(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=60, tokens_per_second=60)) as response:
            await read_some(response)
            gateway.process.process.send_signal(signal.SIGTERM)
            await gateway.process.says("gateway drains")
            with pytest.raises(aiohttp.ClientConnectionError):
                await gateway.client.post(chat())
            rest = await response.content.read()
            assert rest.endswith(b"data: [DONE]\n\n")
        code, _ = await gateway.process.ends(timeout_seconds=PATIENCE_SECONDS)
        assert code == 0
        assert gateway.books.states() == ["captured"]
        assert gateway.books.receipt()["charge_reason"] == "completed"


@pytest.mark.slow
async def test_what_goes_on_too_long_is_charged_for_what_was_produced(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=100_000, tokens_per_second=100)) as response:
            await read_some(response)
            gateway.process.process.send_signal(signal.SIGTERM)
            rest = await response.content.read()
            assert b": credits charged=" in rest
            assert b"The gateway is stopping" in rest
        code, _ = await gateway.process.ends(timeout_seconds=PATIENCE_SECONDS)
        assert code == 0
        receipt = gateway.books.receipt()
        assert (receipt["charge_reason"], receipt["estimated"]) == ("gateway_died", True)
        assert receipt["charged_credits"] > 0


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("moment", ["before the answer", "in mid-stream"])
async def test_sigkill_leaves_a_hold_that_lapses_with_what_is_needed_to_charge_it(
    database: Database, tmp_path: Path, moment: str
) -> None:
    async with running(database, tmp_path, HOLD_LEASE_SECONDS="3") as gateway:
        body = faulty(delay=60) if moment == "before the answer" else faulty(stream=True, **SLOW)
        call = asyncio.create_task(gateway.client.post(body))
        await until(lambda: list(gateway.upstream.records.calls()))
        if moment == "in mid-stream":
            await until(lambda: scalar(database.service_url, "SELECT max(output_bytes) FROM credit_holds") > 0)
        gateway.process.process.send_signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await call
        [(state, rates, tokens, factor)] = query(
            database.service_url, "SELECT state, rates, input_tokens_estimate, markup_factor FROM credit_holds"
        )
        assert (state, factor) == ("held", 2)
        assert rates["input_tokens"]
        assert tokens > 0
        await until(
            lambda: scalar(database.service_url, "SELECT bool_and(lease_until < clock_timestamp()) FROM credit_holds")
        )


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("moment", ["while it is charged", "once it was charged"])
async def test_sigkill_at_a_charge_charges_once(database: Database, tmp_path: Path, moment: str) -> None:
    # A server that notices in time that its client has ended gives the charge up instead, and the hold lapses.
    url = f"{database.app_url}?options=-c%20client_connection_check_interval%3D0"
    async with (
        running(database, tmp_path, HOLD_LEASE_SECONDS="3", DATABASE_URL=url) as gateway,
        await psycopg.AsyncConnection.connect(database.superuser_url) as other,
    ):
        if moment == "while it is charged":
            await other.execute("LOCK TABLE charge_receipts IN EXCLUSIVE MODE")
        call = asyncio.create_task(gateway.client.post(faulty(stream=True, tokens=20, tokens_per_second=100)))
        if moment == "while it is charged":
            await until(lambda: scalar(database.superuser_url, WAITING))
        else:
            await until(lambda: gateway.books.states() == ["captured"])
        gateway.process.process.send_signal(signal.SIGKILL)
        await asyncio.wait([call])
        call.exception()
        await other.rollback()
        await until(lambda: gateway.books.states() == ["captured"])
        receipt = gateway.books.receipt()
        assert (receipt["charge_reason"], receipt["output_tokens"]) == ("completed", 20)
        # Who resolves lapsed holds is answered with what was charged.
        [(hold_id,)] = query(database.service_url, "SELECT id FROM credit_holds")
        assert query(database.service_url, RESOLVE, hold_id) == [("repeated",)]
        assert len(gateway.books.receipts()) == 1


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.slow
async def test_the_lease_of_a_long_call_is_renewed_with_its_progress(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, HOLD_LEASE_SECONDS="3") as gateway:
        async with gateway.client.open(faulty(stream=True, **SLOW)) as response:
            await read_some(response)
            ask = "SELECT lease_until, output_bytes FROM credit_holds"
            [(first, _)] = query(database.service_url, ask)
            await until(lambda: query(database.service_url, ask)[0][0] > first)
            [(_, before)] = query(database.service_url, ask)
            await until(lambda: query(database.service_url, ask)[0][1] > before > 0)
            await response.content.read()
        assert gateway.books.states() == ["captured"]


async def test_the_upstreams_id_is_noted_at_once_where_a_record_can_be_asked_for(
    database: Database, tmp_path: Path
) -> None:
    async with running(database, tmp_path, usage_lookup="openrouter") as gateway:
        async with gateway.client.open(faulty(stream=True, **SLOW)) as response:
            await read_some(response, 2)
            await until(lambda: scalar(database.service_url, "SELECT max(upstream_id) FROM credit_holds"))
            response.close()
        await until(lambda: gateway.books.states() == ["captured"])


@pytest.mark.slow
async def test_an_owner_that_was_only_paused_is_answered_with_what_was_charged(
    database: Database, tmp_path: Path
) -> None:
    async with running(database, tmp_path, HOLD_LEASE_SECONDS="3") as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=40, tokens_per_second=40)) as response:
            await read_some(response)
            os.kill(gateway.process.process.pid, signal.SIGSTOP)
            lapsed = "SELECT id::text FROM credit_holds WHERE lease_until < clock_timestamp()"
            await until(lambda: query(database.service_url, lapsed))
            [(hold_id,)] = query(database.service_url, lapsed)
            [(outcome,)] = query(database.service_url, RESOLVE, hold_id)
            assert outcome == "captured"
            os.kill(gateway.process.process.pid, signal.SIGCONT)
            rest = await response.content.read()
        assert b": credits charged=77 " in rest
        assert gateway.books.receipt()["charged_credits"] == 77
        assert gateway.books.balance(gateway.account.id) == (10_000_000 - 77, 0)


async def test_an_owner_that_was_paused_and_not_replaced_charges_late_and_once(
    database: Database, tmp_path: Path
) -> None:
    async with running(database, tmp_path, HOLD_LEASE_SECONDS="3") as gateway:
        async with gateway.client.open(faulty(stream=True, tokens=40, tokens_per_second=40)) as response:
            await read_some(response)
            os.kill(gateway.process.process.pid, signal.SIGSTOP)
            lapsed = "SELECT id FROM credit_holds WHERE lease_until < clock_timestamp()"
            await until(lambda: query(database.service_url, lapsed))
            os.kill(gateway.process.process.pid, signal.SIGCONT)
            await response.content.read()
        assert gateway.books.receipt()["output_tokens"] == 40


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"UPSTREAMS_FILE": "nowhere.yaml"}, "UPSTREAMS_FILE"),
        ({"UPSTREAM_KEY": ""}, "UPSTREAM_KEY is not set"),
        ({"USER_PRICE_MARKUP_FACTOR": "0.9"}, "USER_PRICE_MARKUP_FACTOR"),
        ({"HOLD_LEASE_SECONDS": "1"}, "HOLD_LEASE_SECONDS"),
    ],
    ids=str,
)
async def test_a_wrong_setting_stops_the_process_with_one_line(
    database: Database, tmp_path: Path, changes: dict[str, str], line: str
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(yaml.safe_dump(upstreams_document({"first": "http://127.0.0.1:9"})))
    variables = {"DATABASE_URL": database.app_url, "UPSTREAMS_FILE": str(file), "UPSTREAM_KEY": "k", **changes}
    async with running_service("gateway", tmp_path, variables) as process:
        code, _ = await process.ends(timeout_seconds=PATIENCE_SECONDS)
        assert code == 2
        assert line in process.log.splitlines()[-1]
