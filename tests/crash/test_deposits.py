"""The watcher of deposit addresses killed at each of its commits: each deposit is there once, and credited once."""

from __future__ import annotations

from typing import Final

import pytest

from activities.messages import WatchedChain
from devstack.chain import call_data, payer_wallets
from devstack.processes import wait_until
from domain.money import credits_for_raw
from tests.deposits.coin import CREDITS, EXCHANGE_GAS, ONE, add_coin_method, deploy_exchange
from tests.deposits.given import USDC, add_method, give_address
from tests.support.faults import Fault, Moment
from tests.support.servers import TASK_QUEUE
from tests.support.sql import query
from tests.support.system import PaymentSystem
from workflows.naming import watch_workflow_id
from workflows.watch_chain import WatchChain

PATIENCE_SECONDS: Final = 120.0
"""A dead watcher is missed by its heartbeat after 20 s, an attempt without a run after 15 s more."""

COMMITS: Final = {"seen": "INSERT INTO deposits", "made an attempt": "UPDATE deposits SET attempt_id"}
VALUES_RAW: Final = (1_000_000, 1_000_000, 2_345_678)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT])
@pytest.mark.parametrize("commit", COMMITS)
async def test_a_watcher_killed_as_a_deposit_is_written_loses_none_and_doubles_none(
    system: PaymentSystem, commit: str, moment: Moment
) -> None:
    add_method(system.database, system.chain, USDC, system.chain.token_address)
    payer = await system.payer()
    given = give_address(system.database, system.chain, payer, charge_cents=400)
    for value_raw in VALUES_RAW:
        await system.chain.pay(payer_wallets()[6].private_key, given.address, value_raw)
    await system.chain.mine(5)
    await crash_and_settle(system, Fault(statement=COMMITS[commit], moment=moment))

    assert await system.balance(payer.billing_account_id) == credits_for_raw(sum(VALUES_RAW))
    assert deposits_of(system) == [(value_raw, "CREDITED") for value_raw in sorted(VALUES_RAW)]
    assert query(system.database.service_url, "SELECT status FROM charges") == [("paid",)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT])
@pytest.mark.parametrize("commit", COMMITS)
async def test_a_watcher_killed_as_payments_of_the_chains_own_coin_are_written_credits_each_once(
    system: PaymentSystem, commit: str, moment: Moment
) -> None:
    await add_coin_method(system.database, system.chain)
    payer = await system.payer()
    given = give_address(system.database, system.chain, payer)
    exchange = await deploy_exchange(system.chain)
    pays = call_data("CoinSender", "pay", [(given.address, ONE), (given.address, ONE), (given.address, 2 * ONE)])
    await system.chain.send(payer_wallets()[6].private_key, exchange, pays, gas=EXCHANGE_GAS)
    await system.chain.mine(5)
    await crash_and_settle(system, Fault(statement=COMMITS[commit], moment=moment), NATIVE_COIN_DEPOSITS="true")

    assert await system.balance(payer.billing_account_id) == 4 * CREDITS
    assert deposits_of(system) == [(value_raw, "CREDITED") for value_raw in (ONE, ONE, 2 * ONE)]


async def crash_and_settle(system: PaymentSystem, fault: Fault, **settings: str) -> None:
    """A worker dies of the fault; another one settles everything that has come."""
    chain_id = system.chain.chain_id
    await system.namespace.client.start_workflow(
        WatchChain.run,
        WatchedChain(chain_id=chain_id, follow_seconds=1_200.0),
        id=watch_workflow_id(chain_id),
        task_queue=TASK_QUEUE,
    )
    doomed = system.start_worker(fault, **settings)
    await doomed.killed_itself()

    system.start_worker(None, **settings)

    async def is_credited() -> bool:
        [(came, credited)] = query(
            system.database.service_url,
            "SELECT count(*), count(*) FILTER (WHERE a.status = 'CREDITED') FROM deposits d"
            "  LEFT JOIN payment_attempts a ON a.id = d.attempt_id",
        )
        return came == credited == len(VALUES_RAW) and not await system.books(nothing_stuck=True)

    await wait_until(is_credited, timeout_seconds=PATIENCE_SECONDS, what="every deposit to be credited")
    # The chain has transfers of other tests, too.
    of_deposits = "SELECT count(*) FROM findings WHERE tx_hash IN (SELECT tx_hash FROM deposits)"
    assert query(system.database.service_url, of_deposits) == [(0,)]


def deposits_of(system: PaymentSystem) -> list[tuple[int, str]]:
    """Value and status of each deposit."""
    return query(
        system.database.service_url,
        "SELECT d.value_raw::bigint, a.status FROM deposits d"
        "  JOIN payment_attempts a ON a.id = d.attempt_id ORDER BY 1",
    )
