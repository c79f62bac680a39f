"""The gateway of a local system: its upstreams, its key and credits, and that all of it goes on after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from commands.local_gateway import (
    BOUGHT_USD_CENTS,
    LocalServiceKey,
    StoredKey,
    read_stored_key,
    upstreams_document,
    write_upstreams_file,
)
from commands.local_system import (
    _NOT_OF_THE_API,
    _NOT_OF_THE_GATEWAY,
    _NOT_OF_THE_RELAY,
    _NOT_OF_THE_WORKER,
    GATEWAY_STOP_SECONDS,
    RELAY_STOP_SECONDS,
    WORKER_STOP_SECONDS,
    LocalSystem,
)
from db.accounts.wallets import find_funds
from db.billing.keys import KeyState, find_key, revoke_key
from devstack import DevstackError
from devstack.chain import wallet_address
from devstack.upstream.prices import PRICES
from domain.billing.keys import hash_key
from domain.billing.upstreams import read_upstreams
from domain.money import credits_for_usd_cents
from settings import read_env_file
from tests.devstack.conftest import ROOT, all_gone, descendants
from tests.support.engine import Engine
from tests.support.service_process import clean_environment
from tests.support.sql import scalar

BOUGHT = credits_for_usd_cents(BOUGHT_USD_CENTS)
CALL = {"model": "dev-small", "messages": [{"role": "user", "content": "hi"}]}
UP_SECONDS_MAX = 180


# -- the file of upstreams


def test_the_upstreams_file_has_the_local_upstreams_own_prices() -> None:
    read = read_upstreams(upstreams_document("http://127.0.0.1:1234"), where="test")
    [upstream] = read.upstreams
    assert upstream.base_url == "http://127.0.0.1:1234/v1"
    assert set(read.prices) == set(PRICES)
    for model, price in PRICES.items():
        override = read.prices[model]
        assert override.input_per_million_usd == price.input
        assert override.output_per_million_usd == price.output
        assert override.cached_input_per_million_usd == price.cached


def test_the_upstreams_file_is_written_again_with_the_new_address(tmp_path: Path) -> None:
    path = tmp_path / "upstreams.yaml"
    for port in (1, 2):
        write_upstreams_file(path, f"http://127.0.0.1:{port}")
    assert yaml.safe_load(path.read_text())["upstreams"][0]["base_url"] == "http://127.0.0.1:2/v1"
    assert read_upstreams(yaml.safe_load(path.read_text()), where="test").prices["dev-small"].rates.rates[
        "output_tokens"
    ].usd == Decimal("0.4")


def test_a_file_of_upstreams_in_the_settings_leaves_the_local_one_out(tmp_path: Path) -> None:
    system = LocalSystem(tmp_path, {"UPSTREAMS_FILE": str(tmp_path / "own.yaml")})
    with pytest.raises(DevstackError, match="runs without upstream"):
        _ = system.stack.upstream


def test_the_relays_key_is_in_no_other_parts_environment(tmp_path: Path) -> None:
    of_the_relay = {"RELAY_PRIVATE_KEY": "0x" + "42" * 32, "RELAY_PRIVATE_KEY_FILE": "/x", "RELAY_DATABASE_URL": "p"}
    system = LocalSystem(tmp_path, of_the_relay)
    for names in (_NOT_OF_THE_WORKER, _NOT_OF_THE_API, _NOT_OF_THE_GATEWAY):
        environment = system._without_settings(names)
        assert {environment[name] for name in of_the_relay} == {""}
    relays = system._without_settings(_NOT_OF_THE_RELAY)
    assert {name: relays[name] for name in of_the_relay} == of_the_relay
    assert {relays[name] for name in ("DATABASE_URL", "SERVICE_DATABASE_URL", "MIGRATION_DATABASE_URL")} == {""}


# -- the key


def service_key(engine: Engine, path: Path) -> LocalServiceKey:
    return LocalServiceKey(path, engine.settings, engine.chain, engine.payments, lambda _: None)


async def account_of(engine: Engine, stored: StoredKey) -> tuple[str, int]:
    """The account that a key's wallet owns, and its balance."""
    payer = await engine.payments.provision(wallet_address(stored.wallet_key))
    async with engine.service.transaction() as connection:
        found = await find_key(connection, stored.key_id)
        funds = await find_funds(connection, payer.billing_account_id)
    assert found is not None
    assert funds is not None
    assert (found.billing_account_id, found.state) == (payer.billing_account_id, KeyState.ACTIVE)
    key_hash = scalar(engine.database.service_url, "SELECT key_hash FROM virtual_keys WHERE id = %s", stored.key_id)
    assert key_hash == hash_key(stored.key)
    return payer.billing_account_id, funds.balance_credits


@pytest.mark.slow
async def test_the_key_is_made_once_and_its_account_buys_credits_once(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "service-key.json"
    async with engine.worker():
        first = await service_key(engine, path).prepare(waits=True)
        assert read_stored_key(path) == first
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = await service_key(engine, path).prepare(waits=True)
    assert again == first
    assert await account_of(engine, first) == (
        (await engine.payments.provision(wallet_address(first.wallet_key))).billing_account_id,
        BOUGHT,
    )
    assert await engine.books() == []


async def test_credits_that_are_on_their_way_are_waited_for_and_not_bought_twice(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "service-key.json"
    first = await service_key(engine, path).prepare(waits=False)  # no worker: as if the system had been killed then
    assert (await account_of(engine, first))[1] == 0
    async with engine.worker():
        assert await service_key(engine, path).prepare(waits=True) == first
    assert (await account_of(engine, first))[1] == BOUGHT


async def test_a_revoked_key_is_replaced_by_one_of_the_same_account(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "service-key.json"
    first = await service_key(engine, path).prepare(waits=False)
    payer = await engine.payments.provision(wallet_address(first.wallet_key))
    async with engine.tenants.transaction(payer.user_id) as connection:
        await revoke_key(connection, first.key_id)
    second = await service_key(engine, path).prepare(waits=False)
    assert second.key != first.key
    assert second.wallet_key == first.wallet_key
    assert read_stored_key(path) == second


# -- the whole


@asynccontextmanager
async def up(folder: Path, *options: str) -> AsyncIterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`settle up` in a process of its own, and what it has written to its env file; killed at the end."""
    command = [sys.executable, "-P", "-m", "cli", "up", "--state-dir", str(folder), "--without", "api", "--json"]
    environment = {**clean_environment({}), "SETTLE_NODE_MODULES": str(ROOT / "node_modules")}
    with (folder.parent / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*command, *options], cwd=folder.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(UP_SECONDS_MAX):
            shown = await asyncio.to_thread(_document, process)
        variables = read_env_file(folder / "env")
        assert {name: variables[name] for name in ("GATEWAY_URL", "DEV_SERVICE_KEY")} == {
            name: shown[name] for name in ("GATEWAY_URL", "DEV_SERVICE_KEY")
        }
        yield process, variables
    finally:
        below = descendants(process.pid)
        process.kill()
        process.wait()
        process.stdout.close()
        # All are asked to end at once, and a worker whose Temporal ends first takes all of its time.
        await all_gone(below, timeout_seconds=max(WORKER_STOP_SECONDS, GATEWAY_STOP_SECONDS, RELAY_STOP_SECONDS))


def _document(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            found: dict[str, Any] = json.loads("".join(lines))
            return found
    pytest.fail(f"settle up ended without a document: {lines}")


async def call(variables: dict[str, str]) -> int:
    """One call with the key; the credits that are left."""
    headers = {"Authorization": f"Bearer {variables['DEV_SERVICE_KEY']}"}
    async with (
        aiohttp.ClientSession(variables["GATEWAY_URL"], headers=headers) as http,
        http.post("/v1/chat/completions", json=CALL) as response,
    ):
        assert response.status == 200, await response.text()
        assert int(response.headers["X-Credits-Charged"]) > 0
        return int(response.headers["X-Credits-Remaining"])


@pytest.mark.slow
async def test_a_gateway_and_a_key_with_credits_that_go_on_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with up(folder) as (_, first):
        left = await call(first)
        assert left < BOUGHT
        async with aiohttp.ClientSession() as http, http.get(f"{first['DEV_UPSTREAM_URL']}/_calls") as answer:
            assert len((await answer.json())["calls"]) == 1
        for name in ("GATEWAY_HOST", "GATEWAY_PORT", "UPSTREAMS_FILE", "BILLING_INGEST_SECRET"):
            assert first[name]
        assert stat.S_IMODE(os.stat(folder / "env").st_mode) == 0o600
    async with up(folder) as (_, second):
        assert {
            name: second[name] for name in ("DEV_SERVICE_KEY", "BILLING_INGEST_SECRET", "GATEWAY_URL", "UPSTREAMS_FILE")
        } == {
            name: first[name] for name in ("DEV_SERVICE_KEY", "BILLING_INGEST_SECRET", "GATEWAY_URL", "UPSTREAMS_FILE")
        }
        assert await call(second) < left
    # Of a version without a gateway, the folder has neither key nor secret: both are made, and all else goes on.
    (folder / "service-key.json").unlink()
    passwords = json.loads((folder / "passwords.json").read_text())
    del passwords["billing_ingest"]
    (folder / "passwords.json").write_text(json.dumps(passwords))
    async with up(folder, "--without", "gateway", "--without", "upstream") as (process, third):
        assert third["DEV_SERVICE_KEY"] != first["DEV_SERVICE_KEY"]
        assert third["BILLING_INGEST_SECRET"] != first["BILLING_INGEST_SECRET"]
        assert "DEV_UPSTREAM_URL" not in third
        commands = _command_lines(process.pid)
        assert any(" cli worker" in command for command in commands)
        assert not any(" cli gateway" in command or " devstack.upstream" in command for command in commands)


def _command_lines(pid: int) -> list[str]:
    return [Path(f"/proc/{below}/cmdline").read_bytes().replace(b"\0", b" ").decode() for below in descendants(pid)]
