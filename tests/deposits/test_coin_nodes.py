"""The chain's own coin by several nodes: some lie, some do not trace, and all are asked before anything is final."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from temporalio.testing import ActivityEnvironment

from activities.messages import CreditedPayment
from activities.payments.finality import FinalityActivities
from chain.reader import ChainReader
from db.payments import attempts
from domain.chain import DepositLane
from domain.coin import COIN_PLACES_FROM
from domain.errors import ChainUnavailable
from domain.payments.finality import Final as FinalPayment
from domain.payments.finality import FinalityLevel, FinalityPolicy
from domain.payments.verification import Verified, Waiting, WaitReason, terms_of
from tests.chain.faulty_node import FaultyNode
from tests.chain.test_traces import spoil_traces, without_traces
from tests.deposits.coin import CREDITS, ONE, CoinDeposits, lane
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.test_coin import reverse
from tests.deposits.test_operators_credit import credit
from tests.deposits.test_verification import poll
from tests.support.sql import connect

FINAL_AFTER: Final = FinalityPolicy(
    level=FinalityLevel.CONFIRMATIONS, large_level=FinalityLevel.CONFIRMATIONS, confirmations=MIN_CONFIRMATIONS
)


@pytest.fixture
async def coin(deposits: Deposits) -> CoinDeposits:
    """The coin as a payment method."""
    return await CoinDeposits.open(deposits)


@asynccontextmanager
async def through(coin: CoinDeposits, count: int = 1) -> AsyncIterator[tuple[CoinDeposits, list[FaultyNode]]]:
    """The same seen through so many proxies, which are asked before the node itself."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultyNode.in_front_of(coin.chain.url)) for _ in range(count)]
        urls = [*(proxy.url for proxy in proxies), coin.chain.url]
        reader = await stack.enter_async_context(ChainReader(urls, coin.chain.chain_id, timeout_seconds=5.0))
        deposits = replace(coin.deposits, reader=reader)
        yield CoinDeposits(deposits, coin.exchange, lane(deposits, DepositLane.COIN), coin.feed), proxies


def of_inner_calls(**changes: Any) -> Any:
    """Every call of a contract with another action."""
    return lambda traces: [
        one | {"action": one["action"] | changes} if one["traceAddress"] else one for one in traces or []
    ]


async def test_a_deposit_is_verified_where_all_nodes_that_trace_agree(coin: CoinDeposits) -> None:
    await coin.do("pay", [((await coin.deposits.give()).address, ONE)])
    coin.deposits.settling.is_idle = True
    await coin.act()
    [attempt_id] = coin.deposits.settling.resumed
    async with through(coin) as (seen, [other]):
        assert isinstance(await poll(seen.deposits, attempt_id), Verified)
        spoil_traces(other, of_inner_calls(value=hex(2 * ONE)))
        found = await poll(seen.deposits, attempt_id)
        assert isinstance(found, Waiting)
        assert found.reason is WaitReason.CONTRADICTION
        other.heal()
        without_traces(other)
        found = await poll(seen.deposits, attempt_id)
        assert isinstance(found, Waiting)
        assert found.reason is WaitReason.CHAIN_UNAVAILABLE


async def test_what_one_node_left_out_is_added_and_what_it_has_invented_is_removed(coin: CoinDeposits) -> None:
    given, stranger = await coin.deposits.give(1), coin.deposits.payer(5).address
    async with through(coin, 2) as (seen, [liar, _]):
        spoil_traces(liar, of_inner_calls(value="0x0"))
        left_out = await coin.do("pay", [(given.address, ONE)])
        await seen.read()
        assert coin.deposits.deposits() == []
        liar.heal()
        spoil_traces(liar, of_inner_calls(to=given.address))
        invented = await coin.do("pay", [(stranger, ONE)])
        await seen.read()
        assert [tx_hash for tx_hash, *_ in coin.deposits.deposits()] == [invented]
        report = await seen.scan.rescan(60)
    assert (report.added, report.orphaned) == (1, 1)
    assert [tx_hash for tx_hash, *_ in coin.deposits.deposits()] == [left_out]


async def test_the_newest_blocks_are_traced_once_and_a_rescan_traces_a_quarter(coin: CoinDeposits) -> None:
    await coin.deposits.give()
    async with through(coin) as (seen, [proxy]):
        await seen.read()
        for _ in range(3):
            await coin.chain.mine()
            proxy.requests.clear()
            await seen.read()
            asked = [method for request in proxy.requests for method in request]
            assert (asked.count("trace_block"), len(proxy.requests)) == (1, 2)
        await coin.chain.mine(8)
        await seen.read()
        proxy.requests.clear()
        await seen.scan.rescan(24)
        assert [method for request in proxy.requests for method in request].count("trace_block") == 6


async def test_where_no_node_traces_the_coin_waits_and_tokens_are_read(coin: CoinDeposits) -> None:
    given = await coin.deposits.give()
    async with through(coin) as (seen, [proxy]):
        without_traces(proxy)
        async with ChainReader([proxy.url], coin.chain.chain_id, timeout_seconds=5.0) as reader:
            bare = replace(seen.deposits, reader=reader)
            await coin.pay(given)
            with pytest.raises(ChainUnavailable, match="trace_block"):
                await lane(bare, DepositLane.COIN).advance()
            await coin.deposits.pay(given, 1_000_000)
            await lane(bare, DepositLane.BUSY).advance()
    assert [value for _, _, value, _ in coin.deposits.deposits()] == [1_000_000]


async def test_a_credited_one_that_moves_is_final_at_its_new_place(coin: CoinDeposits) -> None:
    """By the workflow of its own, which asks for the trace in the new block."""
    given = await coin.deposits.give()
    sent = await coin.do("pay", [(given.address, ONE)])
    await coin.act()
    [(attempt_id,)] = coin.deposits.rows("SELECT id FROM payment_attempts")
    transaction = await coin.chain.raw_transaction(sent)
    await coin.chain.reorg(MIN_CONFIRMATIONS, [(transaction, 1)])
    await coin.chain.mine(MIN_CONFIRMATIONS)
    async with coin.deposits.roles.service.autocommit() as connection:
        attempt = await attempts.find_attempt(connection, attempt_id)
    assert attempt is not None
    async with through(coin) as (seen, _):
        activities = FinalityActivities(
            seen.deposits.reader, coin.deposits.roles.service, policy=FINAL_AFTER, block_time=timedelta(seconds=1)
        )
        tracked = CreditedPayment(
            attempt_id=attempt.id,
            owner_user_id=attempt.owner_user_id,
            billing_account_id=attempt.billing_account_id,
            terms=terms_of(attempt),
        )
        found = await ActivityEnvironment().run(activities.await_finality, tracked)
    assert isinstance(found, FinalPayment)
    receipt = await coin.chain.wait_for_receipt(sent)
    assert (found.transfer.log_index, found.transfer.block_hash) == (COIN_PLACES_FROM, receipt["blockHash"])
    # The money moved with it: what the lane reads is the same deposit, and credits nothing again.
    await coin.act()
    assert await coin.deposits.balance(given) == CREDITS


async def test_one_that_returns_after_its_reversal_is_credited_by_an_operators_remedy(coin: CoinDeposits) -> None:
    deposits = coin.deposits
    given = await deposits.give()
    sent = await coin.pay(given)
    await coin.act()
    transaction = await coin.chain.raw_transaction(sent)
    await reverse(coin)
    await coin.chain.reorg(1, [(transaction, 0)])
    await coin.chain.mine(MIN_CONFIRMATIONS)
    await coin.act()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute(b"DELETE FROM findings WHERE kind = 'payment_reversed'")
    assert deposits.findings() == [("returned_after_reversal", sent)]
    await credit(deposits, given)
    assert await deposits.balance(given) == CREDITS
