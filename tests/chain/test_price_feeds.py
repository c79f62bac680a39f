"""What is no price: every way in which a feed, a second one, a sequencer or a node may be wrong, on a real chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest

from chain.reader import ChainReader
from devstack.chain import KEPT_STATES, LocalChain
from domain.deposits.prices import PriceProblem, PriceSource, Quote, quote_of
from domain.errors import InvalidInput, PriceUnavailable
from services.deposits.price_sources import AskedSource, check_source, parse_source
from services.deposits.pricing import Prices
from tests.chain.faulty_node import FaultyNode
from tests.deposits.feeds import DECIMALS, Feed, deploy_feed
from tests.support.parallel import process_number

FIRST_CHAIN_PORT: Final = 28_975
PRICE: Final = 2_500
SECOND_FEED: Final = {"second_decimals": DECIMALS}


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """A chain of the module's own; it mines only on request."""
    running = LocalChain(
        tmp_path_factory.mktemp("feeds-chain"), FIRST_CHAIN_PORT + process_number(), block_time_seconds=None
    )
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def prices(chain: LocalChain) -> AsyncIterator[Prices]:
    async with ChainReader([chain.url], chain.chain_id, timeout_seconds=5.0) as reader:
        yield Prices({chain.chain_id: reader.prices})


def source(chain: LocalChain, feed: str, **fields: Any) -> PriceSource:
    """A method's price from a feed."""
    values: dict[str, Any] = {
        "id": UUID(int=1),
        "method_id": "WETH:test",
        "chain_id": chain.chain_id,
        "feed": feed,
        "description": "ETH / USD",
        "decimals": DECIMALS,
        "created_at": datetime.now(UTC),
    }
    return PriceSource(**values | fields)


async def time_of(chain: LocalChain, block: str = "latest") -> int:
    return int((await chain.rpc("eth_getBlockByNumber", block, False))["timestamp"], 16)


async def problem_of(asked: Awaitable[Quote]) -> PriceProblem:
    """Why there is no price."""
    with pytest.raises(PriceUnavailable) as refused:
        await asked
    assert "WETH:test" in refused.value.message
    return PriceProblem(refused.value.problem)


async def test_a_price_is_read_with_the_round_that_it_is_of(chain: LocalChain, prices: Prices) -> None:
    feed = await deploy_feed(chain)
    round_id = await feed.answer("250012345678")
    quote = await prices.now(source(chain, feed.address))
    assert (quote.price.text, quote.round_id, quote.decimals) == ("2500.12345678", round_id, 8)
    assert quote.block_number == int(await chain.rpc("eth_blockNumber"), 16)
    assert quote.block_time.timestamp() == await time_of(chain)


Broken = Callable[[Feed], Awaitable[Any]]


async def _at(feed: Feed, later: int) -> int:
    return await time_of(feed.chain) + later


BROKEN: Final[dict[str, tuple[Broken, PriceProblem]]] = {
    "zero": (lambda feed: feed.answer(0), PriceProblem.NOT_POSITIVE),
    "negative": (lambda feed: feed.answer("-1"), PriceProblem.NOT_POSITIVE),
    "never updated": (lambda feed: feed.set(9, 10**11, 0), PriceProblem.INCOMPLETE),
    "stale": (lambda feed: feed.answer(PRICE, age=3_700), PriceProblem.STALE),
    "decimals": (lambda feed: feed.send("setDecimals", 18), PriceProblem.DECIMALS_CHANGED),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_an_answer_that_is_wrong_is_no_price(chain: LocalChain, prices: Prices, what: str) -> None:
    """Fault 19: from a stale or missing price to anything, and in the end to one dollar."""
    spoil, problem = BROKEN[what]
    feed = await deploy_feed(chain, PRICE)
    assert (await prices.now(source(chain, feed.address))).price.text == str(PRICE)
    await spoil(feed)
    assert await problem_of(prices.now(source(chain, feed.address))) is problem


async def test_a_round_of_the_future_or_carried_over_is_no_price(chain: LocalChain, prices: Prices) -> None:
    feed = await deploy_feed(chain, PRICE)
    await feed.set(2, 10**11, await time_of(chain) + 100)
    assert await problem_of(prices.now(source(chain, feed.address))) is PriceProblem.FUTURE
    await feed.set(3, 10**11, await time_of(chain), answered_in=2)
    assert await problem_of(prices.now(source(chain, feed.address))) is PriceProblem.INCOMPLETE


async def test_an_age_at_the_edge_is_a_price_and_a_second_more_is_none(chain: LocalChain, prices: Prices) -> None:
    feed = await deploy_feed(chain, PRICE)
    updated = (await prices.now(source(chain, feed.address))).feed_updated_at
    exact = source(chain, feed.address, max_age_seconds=60)
    later = updated + timedelta(seconds=60)
    assert (await prices.at(exact, later, chain_id=0, block_number=None)).price.text == str(PRICE)
    late = later + timedelta(seconds=1)
    assert await problem_of(prices.at(exact, late, chain_id=0, block_number=None)) is PriceProblem.STALE


async def test_a_chain_that_stands_still_gives_no_price(chain: LocalChain) -> None:
    """Its feed is as fresh as its block; by the clock it is stale."""
    feed = await deploy_feed(chain, PRICE)
    behind = source(chain, feed.address, max_age_seconds=60)
    async with ChainReader([chain.url], chain.chain_id) as reader:
        reading = await reader.prices.now(behind)
    assert reading.main is not None
    until = datetime.fromtimestamp(reading.main.updated_at, UTC) + timedelta(seconds=61)
    assert quote_of(behind, reading).price.text == str(PRICE)
    with pytest.raises(PriceUnavailable) as refused:
        quote_of(behind, reading, now=until)
    assert refused.value.problem == PriceProblem.STALE


async def test_a_price_outside_of_its_bounds_is_none(chain: LocalChain, prices: Prices) -> None:
    feed = await deploy_feed(chain, PRICE)
    raw = PRICE * 10**DECIMALS
    for bounds, is_refused in (
        ({"min_answer_raw": raw}, False),
        ({"min_answer_raw": raw + 1}, True),
        ({"max_answer_raw": raw}, False),
        ({"max_answer_raw": raw - 1}, True),
    ):
        bounded = source(chain, feed.address, **bounds)
        if is_refused:
            assert await problem_of(prices.now(bounded)) is PriceProblem.OUT_OF_BOUNDS
        else:
            await prices.now(bounded)


@pytest.mark.parametrize(
    ("other", "is_refused"), [("252500000000", False), ("252500000001", True), ("247500000000", True)]
)
async def test_a_second_source_has_to_agree(chain: LocalChain, prices: Prices, other: str, is_refused: bool) -> None:
    """Within one percent of the lower one."""
    first, second = await deploy_feed(chain, PRICE), await deploy_feed(chain, other)
    both = source(chain, first.address, second_feed=second.address, **SECOND_FEED)
    if is_refused:
        assert await problem_of(prices.now(both)) is PriceProblem.DIVERGING
        return
    quote = await prices.now(both)
    assert (quote.price.text, quote.second_answer_raw) == (str(PRICE), int(other))


async def test_a_second_source_that_says_nothing_is_no_agreement(chain: LocalChain, prices: Prices) -> None:
    first, second = await deploy_feed(chain, PRICE), await deploy_feed(chain)
    both = source(chain, first.address, second_feed=second.address, **SECOND_FEED)
    assert await problem_of(prices.now(both)) is PriceProblem.NO_ROUND
    await second.answer(PRICE, age=3_700)
    assert await problem_of(prices.now(both)) is PriceProblem.STALE


async def test_without_its_sequencer_an_l2_has_no_price(chain: LocalChain, prices: Prices) -> None:
    feed, sequencer = await deploy_feed(chain, PRICE), await deploy_feed(chain, description="L2 Sequencer Uptime")
    guarded = source(chain, feed.address, sequencer_feed=sequencer.address, sequencer_grace_seconds=600)
    assert await problem_of(prices.now(guarded)) is PriceProblem.NO_ROUND
    now = await time_of(chain)
    await sequencer.set(1, 1, now)
    assert await problem_of(prices.now(guarded)) is PriceProblem.SEQUENCER_DOWN
    await sequencer.set(2, 0, now, started_at=now)
    assert await problem_of(prices.now(guarded)) is PriceProblem.SEQUENCER_STARTING
    await sequencer.set(3, 0, now, started_at=now - 1_000)
    assert (await prices.now(guarded)).price.text == str(PRICE)


async def test_where_there_is_no_feed_there_is_no_price(chain: LocalChain, prices: Prices) -> None:
    nothing = "0x" + "12" * 20
    assert await problem_of(prices.now(source(chain, nothing))) is PriceProblem.NO_ROUND
    assert await problem_of(prices.now(source(chain, chain.token_address))) is PriceProblem.NO_ROUND
    elsewhere = source(chain, nothing, chain_id=1)
    assert await problem_of(prices.now(elsewhere)) is PriceProblem.UNREADABLE


# -- a time in the past


async def test_the_price_of_a_block_is_that_of_the_round_current_then(chain: LocalChain, prices: Prices) -> None:
    """By the block's state, and without it by the rounds: the same."""
    feed = await deploy_feed(chain)
    blocks = []
    for usd in (1_000, 2_000, 3_000, 4_000, 5_000):
        await chain.rpc("evm_increaseTime", 10)
        await chain.mine()
        await feed.answer(usd)
        blocks.append((usd, int(await chain.rpc("eth_blockNumber"), 16), await time_of(chain)))
        await chain.mine(2)
    priced = source(chain, feed.address)
    for usd, number, seconds in blocks:
        time = datetime.fromtimestamp(seconds, UTC)
        by_state = await prices.at(priced, time, chain_id=chain.chain_id, block_number=number)
        by_rounds = await prices.at(priced, time, chain_id=0, block_number=None)
        assert by_state.price.text == by_rounds.price.text == str(usd)
        assert by_state.says_the_same(by_rounds)
        assert (by_state.block_number, by_rounds.block_number) == (number, None)


async def test_a_block_whose_state_is_kept_nowhere_is_priced_by_the_rounds(chain: LocalChain, prices: Prices) -> None:
    feed = await deploy_feed(chain, 1_000)
    number, seconds = int(await chain.rpc("eth_blockNumber"), 16), await time_of(chain)
    await chain.rpc("evm_increaseTime", 10)
    await chain.mine(2 * KEPT_STATES)
    await feed.answer(9_000)
    time = datetime.fromtimestamp(seconds, UTC)
    quote = await prices.at(source(chain, feed.address), time, chain_id=chain.chain_id, block_number=number)
    assert (quote.price.text, quote.block_number) == ("1000", None), "not by the block's state, which is not kept"


async def test_before_the_first_round_and_where_one_is_missing_there_is_no_price(
    chain: LocalChain, prices: Prices
) -> None:
    """Never the present one in its place."""
    feed = await deploy_feed(chain, 1_000)
    first = datetime.fromtimestamp(await time_of(chain), UTC)
    priced = source(chain, feed.address, max_age_seconds=10**6)
    before = prices.at(priced, first - timedelta(days=1), chain_id=0, block_number=None)
    assert await problem_of(before) is PriceProblem.NO_ROUND
    await feed.set(40, 10**11, await time_of(chain))
    between = prices.at(priced, first - timedelta(seconds=1), chain_id=0, block_number=None)
    assert await problem_of(between) is PriceProblem.NO_ROUND


# -- several nodes


def _lie(method: str, params: list[Any], result: Any) -> Any:
    """Ten times the price, in the answer of the code that reads the feeds at a block."""
    if method != "eth_call" or params[1] == "latest" or not isinstance(result, str) or len(result) != 2 + 2 * 32 * 22:
        return result
    answer = 2 + 64 * 4
    return result[:answer] + f"{10 * int(result[answer : answer + 64], 16):064x}" + result[answer + 64 :]


async def test_nodes_that_contradict_each_other_give_no_price(chain: LocalChain) -> None:
    feed = await deploy_feed(chain, PRICE)
    async with (
        FaultyNode.in_front_of(chain.url) as honest,
        FaultyNode.in_front_of(chain.url) as lying,
        ChainReader([honest.url, lying.url], chain.chain_id, timeout_seconds=5.0) as reader,
    ):
        prices, priced = Prices({chain.chain_id: reader.prices}), source(chain, feed.address)
        assert (await prices.now(priced)).price.text == str(PRICE)
        lying.answers(_lie)
        assert await problem_of(prices.now(priced)) is PriceProblem.UNREADABLE
        then = datetime.fromtimestamp(await time_of(chain), UTC)
        number = int(await chain.rpc("eth_blockNumber"), 16)
        at_block = prices.at(priced, then, chain_id=chain.chain_id, block_number=number)
        assert await problem_of(at_block) is PriceProblem.UNREADABLE


async def test_a_node_that_invents_a_block_gives_no_price_by_itself(chain: LocalChain) -> None:
    """It alone has that block, so that no other one could contradict what it says there."""
    feed = await deploy_feed(chain, PRICE)
    said: list[str] = []

    def note(method: str, params: list[Any], result: Any) -> Any:
        said.extend([result] if method == "eth_call" else [])
        return result

    async with (
        FaultyNode.in_front_of(chain.url) as lying,
        ChainReader([lying.url], chain.chain_id, timeout_seconds=5.0) as alone,
        ChainReader([lying.url, chain.url, chain.url + "/"], chain.chain_id, timeout_seconds=5.0) as reader,
    ):
        lying.answers(note)
        assert (await Prices({chain.chain_id: alone.prices}).now(source(chain, feed.address))).price.text == str(PRICE)
        lying.answers(lambda method, _, real: hex(int(real, 16) + 50) if method == "eth_blockNumber" else real)
        lie = _lie("eth_call", [None, "0x1"], said[-1])
        lying.batches(
            lambda asked, replies: [
                {"jsonrpc": "2.0", "id": one["id"], "result": lie} if one["method"] == "eth_call" else reply
                for one, reply in zip(asked, replies, strict=True)
            ]
        )
        asked = Prices({chain.chain_id: reader.prices}).now(source(chain, feed.address))
        assert await problem_of(asked) is PriceProblem.UNREADABLE


# -- registered


async def test_what_is_no_feed_is_not_registered(chain: LocalChain, prices: Prices) -> None:
    feed, nothing = (await deploy_feed(chain, PRICE)).address, "0x" + "12" * 20
    for option, asked, chain_id in (
        ("--price-feed", AskedSource(nothing), chain.chain_id),
        ("--second-feed", AskedSource(feed, second_feed=nothing), chain.chain_id),
        ("--price-chain", AskedSource(feed), 99),
        ("--max-price", AskedSource(feed, min_price=Decimal(9), max_price=Decimal(8)), chain.chain_id),
    ):
        with pytest.raises(InvalidInput) as refused:
            await check_source(prices, "WETH:test", asked, chain_id=chain_id)
        assert refused.value.field == option
    bounded = AskedSource(feed, max_price=Decimal(PRICE - 1))
    assert await problem_of(_quote(check_source(prices, "WETH:test", bounded, chain_id=chain.chain_id))) is (
        PriceProblem.OUT_OF_BOUNDS
    )


async def _quote(asked: Awaitable[tuple[PriceSource, Quote]]) -> Quote:
    return (await asked)[1]


@pytest.mark.parametrize(
    ("symbol", "changes", "option"),
    [
        ("USDC", {}, "--price-feed"),
        ("WETH", {"price_feed": "0x1234"}, "--price-feed"),
        ("WETH", {"price_feed": None, "max_age": 60}, "--max-age"),
        ("WETH", {"price_feed": None, "min_price": "1"}, "--min-price"),
        ("WETH", {"max_age": 0}, "--max-age"),
        ("WETH", {"max_divergence_bps": 5}, "--max-divergence-bps"),
        ("WETH", {"second_feed": "0x" + "12" * 20, "max_divergence_bps": 0}, "--max-divergence-bps"),
        ("WETH", {"sequencer_grace": 5}, "--sequencer-grace"),
        ("WETH", {"min_price": "-1"}, "--min-price"),
        ("WETH", {"max_price": "NaN"}, "--max-price"),
    ],
)
def test_options_about_a_price_that_contradict_each_other_are_refused(
    symbol: str, changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_source(symbol, **{"price_feed": "0x" + "34" * 20} | changes)
    assert refused.value.field == option
