"""Deposits through the product's own worker: the chain watcher, the workflow, finality."""

from __future__ import annotations

from uuid import UUID

import pytest

from activities.messages import WatchedChain
from devstack.chain import call_data, payer_wallets
from devstack.processes import wait_until
from domain.money import credits_for_raw
from domain.payments.attempt import AttemptStatus
from tests.deposits.coin import CREDITS, EXCHANGE_GAS, ONE, add_coin_method, deploy_exchange
from tests.deposits.given import USDC, add_method, give_address
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import query
from workflows.naming import watch_workflow_id
from workflows.watch_chain import WatchChain


async def start_watch(engine: Engine) -> None:
    """The workflow that follows the engine's chain."""
    chain_id = engine.chain.chain_id
    await engine.namespace.client.start_workflow(
        WatchChain.run,
        WatchedChain(chain_id=chain_id, follow_seconds=1_200.0),
        id=watch_workflow_id(chain_id),
        task_queue=TASK_QUEUE,
    )


async def attempts_of(engine: Engine, account: str, count: int) -> list[UUID]:
    """The account's deposits' attempts, when there are so many credited ones."""
    statement = (
        "SELECT a.id FROM payment_attempts a WHERE a.kind = 'deposit' AND a.status = 'CREDITED'"
        f"   AND a.billing_account_id = '{account}'"
    )
    found: list[UUID] = []

    async def are_there() -> bool:
        found[:] = [id_ for (id_,) in query(engine.database.service_url, statement)]
        return len(found) >= count

    await wait_until(are_there, timeout_seconds=PATIENCE_SECONDS, what=f"{count} credited deposits")
    return found


@pytest.mark.slow
async def test_a_deposit_of_a_wallet_that_never_signed_in_becomes_credits_and_final(engine: Engine) -> None:
    add_method(engine.database, engine.chain, USDC, engine.chain.token_address)
    payer = await engine.payer()
    own = give_address(engine.database, engine.chain, payer)
    charge = give_address(engine.database, engine.chain, payer, charge_cents=250)
    stranger = payer_wallets()[5]
    for address, value_raw in ((own.address, 1_234_567), (charge.address, 2_500_000)):
        await engine.chain.pay(stranger.private_key, address, value_raw)
    await engine.chain.mine(MIN_CONFIRMATIONS)
    async with engine.worker():
        await start_watch(engine)
        attempts = await attempts_of(engine, payer.billing_account_id, 2)
        results = [await engine.result(attempt_id) for attempt_id in attempts]
        await engine.chain.mine()
        await wait_until(
            lambda: is_final(engine, 2), timeout_seconds=PATIENCE_SECONDS, what="both deposits to be final"
        )
    assert {result.status for result in results} == {AttemptStatus.CREDITED}
    assert sum(result.buyer_credits for result in results) == credits_for_raw(1_234_567 + 2_500_000)
    assert query(engine.database.service_url, "SELECT status FROM charges") == [("paid",)]
    assert query(engine.database.service_url, "SELECT kind FROM findings") == []
    assert query(engine.database.service_url, "SELECT count(*) FROM chain_cursors") == [(3,)], "a treasury, two lanes"
    assert await engine.books(nothing_stuck=True) == []


async def test_a_deposit_of_the_chains_own_coin_becomes_credits_and_final_where_it_is_read(engine: Engine) -> None:
    await add_coin_method(engine.database, engine.chain)
    payer = await engine.payer()
    own = give_address(engine.database, engine.chain, payer)
    exchange = await deploy_exchange(engine.chain)
    pays = call_data("CoinSender", "pay", [(own.address, ONE), (own.address, ONE)])
    await engine.chain.send(payer_wallets()[5].private_key, exchange, pays, gas=EXCHANGE_GAS)
    await engine.chain.mine(MIN_CONFIRMATIONS)
    lanes = "SELECT count(*) FROM chain_cursors WHERE retired_at IS NULL"
    async with engine.worker():
        await start_watch(engine)
        await wait_until(
            lambda: is_answer(engine, lanes, 3), timeout_seconds=PATIENCE_SECONDS, what="the lanes to be read"
        )
    assert query(engine.database.service_url, "SELECT count(*) FROM deposits") == [(0,)], "it is off by default"
    async with engine.worker(NATIVE_COIN_DEPOSITS="true"):
        attempts = await attempts_of(engine, payer.billing_account_id, 2)
        results = [await engine.result(attempt_id) for attempt_id in attempts]
        await engine.chain.mine()
        await wait_until(
            lambda: is_final(engine, 2), timeout_seconds=PATIENCE_SECONDS, what="both deposits to be final"
        )
    assert {result.status for result in results} == {AttemptStatus.CREDITED}
    assert sum(result.buyer_credits for result in results) == 2 * CREDITS
    assert query(engine.database.service_url, "SELECT kind FROM findings") == []
    assert query(engine.database.service_url, lanes) == [(4,)], "a treasury, two lanes, and that of the coin"
    assert await engine.books(nothing_stuck=True) == []


async def is_answer(engine: Engine, statement: str, answer: int) -> bool:
    """Whether a query has this answer by now."""
    return query(engine.database.service_url, statement) == [(answer,)]


async def is_final(engine: Engine, count: int) -> bool:
    """Whether so many transfers are."""
    return await is_answer(engine, "SELECT count(*) FROM transfer_finality WHERE outcome = 'final'", count)
