"""Addresses of a wallet's key by HTTP: shared by methods without a collision, stored as their network writes them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from bip_utils import Bip44, Bip44Changes, Bip44Coins

from tests.support.api import RunningApi, Visitor
from tests.support.deposits import add_method, add_ring, next_index
from tests.support.sql import query

CHARGES: Final = "/api/v1/charges"
ADDRESS: Final = "/api/v1/deposit-address"
SEED: Final = bytes(range(32))
DOGECOIN_CHAIN: Final = 2147483651


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    return shared_payer


async def test_methods_with_the_same_key_share_its_counter_and_never_an_address(
    api: RunningApi, payer: Visitor
) -> None:
    """Fault 5: each method counted for itself, and the second one collided for good. Fault 6: max(index) + 1 races."""
    database = api.engine.database
    ring_id = add_ring(database)
    add_method(database, "USDC:wallet", ring_id=ring_id)
    add_method(database, "DAI:wallet", address="0x" + "d" * 40, decimals=18, ring_id=ring_id)
    bodies = [{"method": f"{token}:wallet", "amountUsdCents": 500} for token in ("USDC", "DAI") * 8]
    replies = await asyncio.gather(*(payer.post(CHARGES, body) for body in bodies))
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body["address"] for reply in replies}) == 16
    indices = query(database.superuser_url, 'SELECT "index" FROM deposit_addresses ORDER BY 1')
    assert [index for (index,) in indices] == list(range(16))
    assert next_index(database, ring_id) == 16
    # The account's own address is one for the key: a wallet's address takes any token.
    own: list[Any] = [(await payer.post(ADDRESS, {"method": f"{token}:wallet"})).body for token in ("USDC", "DAI")]
    assert own[0]["address"] == own[1]["address"]
    assert next_index(database, ring_id) == 17


async def test_a_base58_address_keeps_its_letters(api: RunningApi, payer: Visitor) -> None:
    """Fault 16: addresses were stored in lower case, and no payment to one was found again."""
    database = api.engine.database
    account = Bip44.FromSeed(SEED, Bip44Coins.DOGECOIN).Purpose().Coin().Account(0)
    ring_id = add_ring(database, ("m/44'/3'/0'", account.PublicKey().ToExtended()))
    add_method(
        database, "DOGE:dogecoin", address=None, decimals=8, kind="utxo", chain_id=DOGECOIN_CHAIN, ring_id=ring_id
    )
    expected = account.Change(Bip44Changes.CHAIN_EXT).AddressIndex(0).PublicKey().ToAddress()
    assert expected != expected.lower()
    assert (await payer.post(ADDRESS, {"method": "DOGE:dogecoin"})).body["address"] == expected
    assert query(database.superuser_url, "SELECT address FROM deposit_addresses") == [(expected,)]
    assert (await payer.post(ADDRESS, {"method": "DOGE:dogecoin"})).body["address"] == expected
