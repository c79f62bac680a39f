"""What `settle doctor` says of the relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from commands.factory_checks import (
    NO_ANSWER,
    NO_CODE,
    NO_RELAY,
    NONE_LISTED,
    PORT_SETTING,
    RELAY_ALONE,
    RELAY_LACKS,
    THE_SAME,
    UNKNOWN,
    check_factories,
)
from commands.relay_checks import NOT_USED, RIGHTS_ARE_CORRECT, STOPPED, UNSENT, check_relay
from composition import chain_reader
from devstack.processes import quiet_port
from domain.errors import ConfigurationError, RelayNotWorking
from relay.process import RelayOptions, running_relay
from settings import Settings
from telemetry.metrics.topups import WALLET_FACTORIES
from tests.chain.faulty_node import FaultyNode
from tests.support.api import running_api
from tests.support.smart_wallets import contract_address
from tests.topups.conftest import Till, new_key, relay_policy, wallet_factories

LONG_AGO = "now() - interval '20 minutes'"


def _settings(till: Till, **changes: object) -> Settings:
    values = {"relay_database_url": till.engine.database.relay_url, "relay_balance_alert_wei": 10**9, **changes}
    return till.engine.settings.model_copy(update=values)


async def _trouble(till: Till, **changes: object) -> str:
    with pytest.raises(RelayNotWorking) as caught:
        await check_relay(_settings(till, **changes))
    return caught.value.message


async def test_without_a_relay_it_is_content_until_something_waits_for_one(till: Till) -> None:
    assert NOT_USED in await check_relay(_settings(till, relay_database_url=None))
    await till.claimed()
    assert f"1 {UNSENT}" in await _trouble(till)


async def test_a_relay_that_works_is_named_with_its_gas(till: Till) -> None:
    await till.claimed()
    await till.relay.run_once()
    said = await check_relay(_settings(till))
    assert RIGHTS_ARE_CORRECT in said
    assert ", 1 transactions" in said
    assert "RELAY_BALANCE_ALERT_WEI" in await _trouble(till, relay_balance_alert_wei=10**24)


async def test_it_finds_a_relay_that_has_stopped_and_what_waits_for_it(till: Till) -> None:
    await till.relay.run_once()
    await till.rows(f"UPDATE relayers SET seen_at = {LONG_AGO} RETURNING 1")
    assert STOPPED in await _trouble(till)
    await till.claimed()
    assert UNSENT not in await _trouble(till), "for a moment it may wait"
    await till.rows(f"UPDATE payment_authorizations SET claimed_at = {LONG_AGO} RETURNING 1")
    assert f"1 {UNSENT}" in await _trouble(till)


async def test_it_finds_a_nonce_that_is_stuck_also_of_a_key_that_was_replaced(till: Till) -> None:
    await till.claimed()
    await till.relay.run_once()
    await till.rows(f"UPDATE relay_nonces SET created_at = {LONG_AGO} RETURNING 1")
    assert "nonce 0 of" in await _trouble(till)
    await till.rows(
        "WITH newer AS (INSERT INTO relayers (chain_id, address, next_nonce, seen_at)"
        " SELECT chain_id, '0x' || repeat('7', 40), 0, now() FROM relayers RETURNING 1) SELECT 1 FROM newer"
    )
    assert "nonce 0 of" in await _trouble(till)


async def test_more_rights_than_the_relay_may_have_are_named(till: Till) -> None:
    with pytest.raises(Exception, match="settle_relay"):
        await check_relay(_settings(till, relay_database_url=till.engine.database.service_url))


# -- the factories of smart wallets ------------------------------------------------------------------------------------


@asynccontextmanager
async def relay_with(till: Till, *factories: str) -> AsyncIterator[int]:
    """A relay's process with that list; the port of its health."""
    policy = relay_policy(till.engine, wallet_factories=factories)
    reader, key = chain_reader(till.engine.settings), await new_key(till.chain)
    async with running_relay(RelayOptions(till.engine.database.relay_url, reader, key, policy, "127.0.0.1", 0)) as port:
        yield port


async def _wrong_factories(till: Till, **changes: object) -> str:
    with pytest.raises(ConfigurationError, match="SMART_WALLET_FACTORIES") as caught:
        await check_factories(_settings(till, **changes))
    return caught.value.message


async def test_factories_are_contracts_and_the_relay_has_the_same_ones(till: Till) -> None:
    await till.chain.deploy_smart_wallet_factory()
    await till.chain.mine(1)
    there, missing = till.chain.smart_wallet_factory_address, contract_address(404)
    async with relay_with(till, there) as port:
        same = await check_factories(_settings(till, smart_wallet_factories=(there,), relay_health_port=port))
        assert same.startswith("1 ")
        assert THE_SAME in same
        said = await _wrong_factories(till, smart_wallet_factories=(missing,), relay_health_port=port)
    assert f"{missing} {NO_CODE}" in said
    assert f"{RELAY_LACKS} {missing}" in said
    assert f"{RELAY_ALONE} {there}" in said


async def test_an_empty_list_is_compared_too(till: Till) -> None:
    there = till.chain.smart_wallet_factory_address
    async with relay_with(till) as port:
        same = await check_factories(_settings(till, smart_wallet_factories=(), relay_health_port=port))
    assert (NONE_LISTED in same, THE_SAME in same) == (True, True)
    async with relay_with(till, there) as port:
        assert f"{RELAY_ALONE} {there}" in await _wrong_factories(
            till, smart_wallet_factories=(), relay_health_port=port, relay_health_host="0.0.0.0"
        )


async def test_what_cannot_be_compared_is_said_and_no_reason_to_fail(till: Till) -> None:
    def unlisted(**changes: object) -> Settings:
        return _settings(till, smart_wallet_factories=(), **changes)

    assert PORT_SETTING in await check_factories(unlisted(relay_health_port=None))
    port = quiet_port()
    assert f"{NO_ANSWER} http://127.0.0.1:{port}" in await check_factories(unlisted(relay_health_port=port))
    async with relay_with(till) as port:
        of_another_chain = await check_factories(unlisted(relay_health_port=port, chain_id=1))
    assert f"{NO_RELAY} 1" in of_another_chain


async def test_a_factory_that_one_node_does_not_know_is_named(till: Till) -> None:
    await till.chain.deploy_smart_wallet_factory()
    await till.chain.mine(1)
    there = till.chain.smart_wallet_factory_address
    async with FaultyNode.in_front_of(till.chain.url) as node:
        node.fixed("eth_getCode", "0x")
        said = await _wrong_factories(
            till, smart_wallet_factories=(there,), chain_rpc_urls=(till.chain.url, node.url), relay_health_port=None
        )
    assert f"{UNKNOWN} {there}" in said


async def test_the_interface_says_its_list_to_prometheus(till: Till) -> None:
    listed, name = wallet_factories(till.chain), next(iter(WALLET_FACTORIES.describe())).name
    WALLET_FACTORIES.clear()
    async with (
        running_api(till.engine, SMART_WALLET_FACTORIES=",".join(listed)) as api,
        aiohttp.ClientSession() as session,
        session.get(f"{api.url}/metrics") as response,
    ):
        said = [line for line in (await response.text()).splitlines() if line.startswith(name)]
    labels = f'chain="{till.chain.chain_id}",factories="{",".join(sorted(listed))}"'
    assert [line.lower() for line in said] == [f"{name}{{{labels}}} 2.0".lower()]
