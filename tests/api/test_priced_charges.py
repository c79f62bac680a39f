"""Charges in a token that is no dollar: the price is read, stored with its round, and holds for a while."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from db.deposits import charges as charge_queries
from devstack.chain import payer_wallets
from domain.deposits.prices import WORDS, PriceProblem
from domain.deposits.worth import typeable_raw
from tests.api.test_charges import ADDRESS, CHARGES, METHODS, charged, rows
from tests.deposits.coin import ETH, add_coin_method
from tests.deposits.feeds import DECIMALS, Feed, add_source, deploy_feed
from tests.support.api import RunningApi, Visitor, running_api
from tests.support.deposits import add_method, add_ring, next_index
from tests.support.engine import Engine
from tests.support.sql import query

WETH: Final = "WETH:local"
ONE: Final = 10**18


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


@pytest.fixture
async def feed(api: RunningApi) -> Feed:
    """The price of a token whose addresses are a key's, so that an index could be lost."""
    database, chain = api.engine.database, api.engine.chain
    add_method(database, WETH, decimals=18, ring_id=add_ring(database))
    made = await deploy_feed(chain, "250012345678")
    add_source(database, chain, WETH, made.address)
    return made


def index(api: RunningApi) -> int:
    [(ring_id,)] = query(api.engine.database.superuser_url, "SELECT id FROM address_rings")
    return next_index(api.engine.database, ring_id)


async def refused(payer: Visitor, **options: Any) -> str:
    """The words of a refusal for lack of a price."""
    reply = await payer.post(CHARGES, {"method": WETH, "amountUsdCents": 5_000}, **options)
    assert (reply.status, reply.code) == (503, "PRICE_UNAVAILABLE")
    return str(reply.body["detail"])


async def test_a_charge_is_quoted_at_the_feeds_price_and_keeps_its_round(
    api: RunningApi, payer: Visitor, feed: Feed
) -> None:
    """Fault 8: fractions of a cent. The raw amount is rounded up: with a unit less it is not the sum."""
    charge = await charged(payer, 12_345, WETH)
    raw, answer = charge["amountRaw"], 250_012_345_678
    assert (raw - 1) * answer * 100 < 12_345 * ONE * 10**DECIMALS <= raw * answer * 100
    quote = charge["quote"]
    assert (quote["priceUsd"], quote["source"], quote["feed"]) == ("2500.12345678", "ETH / USD", feed.address)
    [stored] = query(
        api.engine.database.superuser_url,
        "SELECT q.answer_raw, q.decimals, q.round_id::text, q.block_number, c.price_expires_at, q.block_time FROM"
        " charges c JOIN price_quotes q ON q.id = c.quote_id",
    )
    assert (int(stored[0]), stored[1], stored[2]) == (answer, DECIMALS, quote["roundId"])
    lifetime = stored[4] - min(stored[5], datetime.now(UTC))
    assert timedelta(minutes=29) < lifetime <= timedelta(minutes=30)


async def test_without_a_price_nothing_is_written_and_no_index_is_lost(
    api: RunningApi, payer: Visitor, feed: Feed
) -> None:
    """Faults 7 and 19."""
    await feed.answer(2_500, age=3_700)
    assert WORDS[PriceProblem.STALE] in await refused(payer)
    assert (rows(api, "charges"), rows(api, "price_quotes"), index(api)) == (0, 0, 0)
    await feed.answer(2_500)
    assert (await charged(payer, 5_000, WETH))["amountRaw"] == ONE // 50


async def test_a_repeated_request_is_answered_with_its_charge_whatever_the_price_is_now(
    api: RunningApi, payer: Visitor, feed: Feed
) -> None:
    headers = {"Idempotency-Key": "order-8"}
    first = await charged(payer, 5_000, WETH, headers=headers)
    await feed.answer(9_000)
    assert await charged(payer, 5_000, WETH, headers=headers) == first
    await feed.answer(0)
    assert await charged(payer, 5_000, WETH, headers=headers) == first
    assert (rows(api, "charges"), rows(api, "price_quotes"), index(api)) == (1, 1, 1)
    await refused(payer, headers={"Idempotency-Key": "order-9"})


async def test_a_quote_is_stored_with_its_charge_or_not_at_all(
    api: RunningApi, payer: Visitor, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between the two."""
    owner, made = await api.engine.payer(), api.services.charges

    async def die(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(charge_queries, "insert_charge", die)
        with pytest.raises(asyncio.CancelledError):
            await made.create_charge(owner, WETH, 5_000, idempotency_key="x")
    assert (rows(api, "price_quotes"), rows(api, "deposit_addresses"), index(api)) == (0, 0, 0)
    await made.create_charge(owner, WETH, 5_000, idempotency_key="x")
    assert (rows(api, "price_quotes"), index(api)) == (1, 1)


async def test_the_page_says_the_price_and_where_it_is_from(api: RunningApi, payer: Visitor, feed: Feed) -> None:
    charge = await charged(payer, 5_000, WETH)
    page = await payer.get(f"/pay/{charge['chargeId']}")
    assert "$2,500.12345678" in page.body
    assert re.findall(r'id="amount">([0-9.]+)<', page.body) == ["0.0199991"], "six digits, more than the quote"
    assert f"uint256={typeable_raw(charge['amountRaw'])}" in page.body, "the link asks for the same"
    assert charge["amountRaw"] == 19_999_012_394_530_637, "programs are asked for the quote"
    assert "ETH / USD" in page.body


async def test_a_chains_own_coin_is_offered_where_it_is_read_only_and_its_link_says_the_amount(engine: Engine) -> None:
    await add_coin_method(engine.database, engine.chain)
    asked = {"method": ETH, "amountUsdCents": 2_500}
    async with running_api(engine) as api, api.visitor(payer_wallets()[0]) as payer:
        assert (await payer.get(METHODS)).body["methods"] == []
        for path in (CHARGES, ADDRESS):
            refused = await payer.post(path, asked if path == CHARGES else {"method": ETH})
            assert (refused.status, refused.code) == (409, "METHOD_DISABLED")
    async with (
        running_api(engine, NATIVE_COIN_DEPOSITS="true") as api,
        api.visitor(payer_wallets()[0]) as payer,
    ):
        [method] = (await payer.get(METHODS)).body["methods"]
        assert (method["kind"], method["address"]) == ("native", None)
        charge = await charged(payer, 2_500, ETH)
        assert charge["amountRaw"] == ONE // 100
        page = (await payer.get(f"/pay/{charge['chargeId']}")).body
        assert f"ethereum:{charge['address']}@{engine.chain.chain_id}?value={ONE // 100}" in page
        assert "0.01" in page and "ETH" in page and "$2,500" in page
        assert "Contract of" not in page, "a coin has none"
        own = await payer.post(ADDRESS, {"method": ETH})
        assert (own.status, own.body["token"], own.body["symbol"]) == (200, None, "ETH")
        assert f"address-of-{ETH}" in (await payer.get("/credits")).body
