"""The payment methods of a local system: its test USDC and a token with a price, at addresses that pay its treasury."""

from __future__ import annotations

from typing import Final

from chain.reader import ChainReader
from composition import chain_reader, open_prices, service_database
from db.deposits.methods import find_method
from db.deposits.prices import find_source
from db.engine import ServiceDatabase
from devstack.chain import LocalChain, call_data, payer_wallets
from domain.deposits.methods import Scheme
from domain.money import USDC_DECIMALS
from services.deposits.price_sources import AGE_SECONDS_MAX, AskedSource, check_source, register_source
from services.deposits.registration import NewMethod, parse_method, register
from settings import Settings

LOCAL_METHOD: Final = "USDC:local"

PRICED_METHOD: Final = "WETH:local"
PRICED_SYMBOL: Final = "WETH"
PRICED_DECIMALS: Final = 18
PRICED_MINT_RAW: Final = 1_000 * 10**PRICED_DECIMALS

FEED_DESCRIPTION: Final = "ETH / USD"
FEED_DECIMALS: Final = 8
FIRST_ANSWER: Final = 2_500 * 10**FEED_DECIMALS
"""US dollars for one, until the feed's owner says another price."""


def _method(settings: Settings, method_id: str, token: str, decimals: int) -> NewMethod:
    return parse_method(
        method_id=method_id,
        chain_id=settings.chain_id,
        token=token,
        decimals=decimals,
        scheme=Scheme.CREATE2,
        xpub=None,
        path=None,
        min_amount_raw=1,
        confirmations=None,
    )


async def seed_local_method(settings: Settings) -> None:
    """Register `USDC:local` unless it is there: one that was disabled stays so. The chain was set up with its token."""
    new = _method(settings, LOCAL_METHOD, settings.usdc_token_address, USDC_DECIMALS)
    async with service_database(settings) as database, database.transaction() as connection:
        if await find_method(connection, LOCAL_METHOD) is None:
            await register(connection, new, own_chain_id=settings.chain_id, usdc=settings.usdc_token_address)


async def seed_priced_method(settings: Settings, chain: LocalChain) -> None:
    """Register `WETH:local` unless it is there, with a token that the local wallets hold and a feed that prices it.

    The feed says its price again, so that it is not too old after a pause of the system. Token and feed are the last
    local wallet's. Raises `ChainCallError`, and `SettleError` where the chain's node does not answer.
    """
    async with service_database(settings) as database:
        async with database.transaction() as connection:
            known = await find_method(connection, PRICED_METHOD)
            source = await find_source(connection, PRICED_METHOD)
        if known is None:
            token, feed = await _deploy(chain)
            # A chain that is killed goes on from what it has saved, and the row that names them would be left.
            await chain.save()
            async with chain_reader(settings) as reader:
                await _register(settings, database, reader, token=token, feed=feed)
        elif source is not None:
            await _answer_again(chain, source.feed)


async def _deploy(chain: LocalChain) -> tuple[str, str]:
    """The token, which each wallet gets some of, and its feed, which says the first price."""
    token = await chain.deploy_token("PlainToken", PRICED_SYMBOL, PRICED_DECIMALS)
    feed = await chain.deploy_token("PriceFeed", FEED_DESCRIPTION, FEED_DECIMALS)
    owner = payer_wallets()[-1]
    sent = [await chain.mint(one.address, PRICED_MINT_RAW, token=token, owner=owner) for one in payer_wallets()]
    sent.append(await chain.send(owner.private_key, feed, call_data("PriceFeed", "answer", FIRST_ANSWER)))
    await chain.mine()
    for tx_hash in sent:
        await chain.wait_for_receipt(tx_hash)
    return token, feed


async def _answer_again(chain: LocalChain, feed: str) -> None:
    _, answer, *_ = await chain.read("PriceFeed", "latestRoundData", address=feed)
    sent = await chain.send(payer_wallets()[-1].private_key, feed, call_data("PriceFeed", "answer", answer))
    await chain.mine()
    await chain.wait_for_receipt(sent)


async def _register(
    settings: Settings, database: ServiceDatabase, reader: ChainReader, *, token: str, feed: str
) -> None:
    asked = AskedSource(feed, max_age_seconds=AGE_SECONDS_MAX, chain_id=settings.chain_id)
    async with open_prices(settings, reader) as prices:
        source, _ = await check_source(prices, PRICED_METHOD, asked, chain_id=settings.chain_id)
    new = _method(settings, PRICED_METHOD, token, PRICED_DECIMALS)
    async with database.transaction() as connection:
        await register(connection, new, own_chain_id=settings.chain_id, usdc=settings.usdc_token_address)
        await register_source(connection, source)
