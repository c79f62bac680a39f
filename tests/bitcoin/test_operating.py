"""What an operator sets up on a Bitcoin chain, and what the reports say of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from api.process import api_settings
from commands.relay import relay_options
from composition import singleton_workflows
from devstack.bitcoin_chain import BitcoinChain
from devstack.chain import LocalChain
from domain.errors import ConfigurationError
from domain.utxo import UTXO_CHAINS_FROM
from settings import load
from starter.schedule_file import EVM_JOBS, load_schedules
from tests.bitcoin.given import REGTEST, address_of
from tests.cli.command import settle
from tests.support.addresses import chain_variables
from tests.support.deposits import BITCOIN_ACCOUNT, TESTNET_ACCOUNTS
from tests.support.postgres import Database
from tests.support.sql import query
from workflows.registry import JOBS

OF_BITCOIN: Final = {
    "CHAIN_ID": str(REGTEST.chain_id),
    "TREASURY_ADDRESS": "",
    "CHAIN_BLOCK_TIME_SECONDS": "600",
    "FINALITY": "confirmations",
    "FINALITY_LARGE": "confirmations",
    "FINALITY_CONFIRMATIONS": "6",
}


def method(*more: str, **changes: str) -> list[str]:
    """The arguments that register bitcoin at a key of the test networks, with changes."""
    path, xpub = TESTNET_ACCOUNTS[84]
    options = {
        "id": "BTC:regtest", "chain": str(REGTEST.chain_id), "token": "BTC", "decimals": "8", "scheme": "xpub",
        "xpub": xpub, "path": path,
    } | changes  # fmt: skip
    return ["methods", "add", *(part for name, value in options.items() for part in (f"--{name}", value)), *more]


async def test_bitcoin_is_registered_and_its_node_is_in_the_doctors_report(
    database: Database, chain: LocalChain, bitcoin: BitcoinChain, tmp_path: Path
) -> None:
    variables = {**chain_variables(database, chain), **OF_BITCOIN, "CHAIN_RPC_URLS": bitcoin.url}
    added = await asyncio.to_thread(settle, method("--confirm", address_of(0)), variables, tmp_path)
    assert added.exit_code == 0, added.stderr
    assert query(database.service_url, "SELECT kind, scheme, address FROM payment_methods") == [("utxo", "xpub", None)]

    report = await asyncio.to_thread(settle, ["doctor", "--json"], variables, tmp_path)
    checks = {check["name"]: check for check in report.json()["checks"]}
    for name in ("chain nodes", "token and treasury", "clocks", "chain watcher", "finality", "deposit addresses"):
        assert checks[name]["ok"], checks[name]
    assert str(await bitcoin.height()) in checks["chain nodes"]["detail"]
    assert REGTEST.name in checks["token and treasury"]["detail"]


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"decimals": "6"}, "--decimals"),
        ({"chain": str(UTXO_CHAINS_FROM)}, "--chain"),
        ({"path": BITCOIN_ACCOUNT[0], "xpub": BITCOIN_ACCOUNT[1]}, "--path"),
        ({"id": "LTC:regtest"}, "--token"),
    ],
)
async def test_what_is_not_the_chains_own_coin_is_refused(
    database: Database, chain: LocalChain, tmp_path: Path, changes: dict[str, str], option: str
) -> None:
    refused = await asyncio.to_thread(settle, method("--yes", **changes), chain_variables(database, chain), tmp_path)
    assert refused.exit_code == 2
    assert option in refused.stderr
    assert query(database.service_url, "SELECT id FROM payment_methods") == []


@pytest.mark.parametrize("name", ["FINALITY", "FINALITY_LARGE"])
def test_proof_of_work_is_final_by_depth_only(name: str) -> None:
    assert load(OF_BITCOIN).finality_policy.confirmations == 6
    with pytest.raises(ConfigurationError, match=f"{name} is invalid"):
        load({**OF_BITCOIN, name: "finalized"} | ({"FINALITY_LARGE": "finalized"} if name == "FINALITY" else {}))


def test_a_chain_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="CHAIN_ID is invalid"):
        load({**OF_BITCOIN, "CHAIN_ID": str(UTXO_CHAINS_FROM)})


def test_no_one_signs_in_or_is_relayed_for_on_bitcoin() -> None:
    settings = load({**OF_BITCOIN, "API_URL": "http://127.0.0.1:8000"})
    for of_evm_chains in (api_settings, relay_options):
        with pytest.raises(ConfigurationError, match="CHAIN_ID is invalid"):
            of_evm_chains(settings)


async def test_nothing_is_asked_for_that_would_go_to_no_treasury(tmp_path: Path) -> None:
    created = await asyncio.to_thread(
        settle, ["attempt", "create", "--wallet", "0x" + "11" * 20, "--cents", "100"], OF_BITCOIN, tmp_path
    )
    assert (created.exit_code, "CHAIN_ID is invalid" in created.stderr) == (2, True)


def test_the_watcher_follows_bitcoin_without_a_treasury() -> None:
    """Elsewhere there is nothing to follow before it is set."""
    assert len(singleton_workflows(load(OF_BITCOIN))) == 1
    assert singleton_workflows(load({})) == []


def test_jobs_about_contracts_are_not_scheduled_there() -> None:
    jobs = {one.job for one in load_schedules(None, JOBS, chain_id=REGTEST.chain_id)}
    assert jobs == {one.job for one in load_schedules(None, JOBS, chain_id=8453)} - EVM_JOBS
    assert "RescanChain" in jobs
