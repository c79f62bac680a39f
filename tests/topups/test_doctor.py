"""What `settle doctor` says of the relay."""

from __future__ import annotations

import pytest

from commands.relay_checks import NOT_USED, RIGHTS_ARE_CORRECT, STOPPED, UNSENT, check_relay
from domain.errors import RelayNotWorking
from settings import Settings
from tests.topups.conftest import Till

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
