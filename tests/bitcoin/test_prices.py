"""What a bitcoin is worth is what a feed on another chain said at the time of its block."""

from __future__ import annotations

from typing import Final

import pytest

from chain.reader import ChainReader
from devstack.bitcoin_chain import BitcoinChain
from devstack.chain import LocalChain
from domain.money import CREDITS_PER_USD
from services.deposits.pricing import Prices
from tests.bitcoin.conftest import open_deposits
from tests.deposits.feeds import add_source, deploy_feed
from tests.support.payments import RolePair

BITCOIN: Final = "BTC:regtest"
USD: Final = 100_000
SATOSHIS: Final = 1_000_000


@pytest.mark.slow
async def test_a_bitcoin_deposit_waits_for_a_price_and_is_credited_at_it(
    bitcoin: BitcoinChain, reader: ChainReader, roles: RolePair, chain: LocalChain
) -> None:
    feed = await deploy_feed(chain, USD, description="BTC / USD")
    async with ChainReader([chain.url], chain.chain_id) as feeds:
        deposits = open_deposits(bitcoin, roles, reader, method=BITCOIN, prices=Prices({chain.chain_id: feeds.prices}))
        await deposits.act()
        given = await deposits.give()
        await deposits.pay(given, SATOSHIS)
        await deposits.act()
        assert deposits.statuses() == [None]
        add_source(roles.database, chain, BITCOIN, feed.address, description="BTC / USD", max_age_seconds=86_400)
        await deposits.pay(given, SATOSHIS)
        await deposits.act()
        assert "CREDITED" in deposits.statuses()
    worth = SATOSHIS * USD * CREDITS_PER_USD // 10**8
    assert deposits.rows("SELECT DISTINCT amount_credits FROM payment_attempts") == [(worth,)]
    assert deposits.rows("SELECT DISTINCT cash_account FROM payment_attempts") == [("cash:btc:deposits",)]
    assert await roles.books() == []
