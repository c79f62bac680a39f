"""A deposit that is credited and then flushed by a stranger, through the product's own worker."""

from __future__ import annotations

from activities.deposits.signatures import SweptToBook
from chain.collection import flush_call, forwarder_deployment
from chain.derivation.create2 import CREATE2_DEPLOYER, salt_of_account
from devstack.chain import payer_wallets
from devstack.processes import wait_until
from domain.money import credits_for_raw
from tests.deposits.given import USDC, add_method, give_address
from tests.deposits.test_settlement import attempts_of, start_watch
from tests.support.engine import MIN_CONFIRMATIONS, PATIENCE_SECONDS, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import query, scalar
from workflows.jobs.book_sweeps import BookSweeps

STRANGER = payer_wallets()[5]
PAID_RAW = 1_234_567


def cash(engine: Engine) -> dict[str, int]:
    """Debits less credits of the two accounts of USDC."""
    found = query(
        engine.database.service_url,
        "SELECT account_code, sum(CASE side WHEN 'debit' THEN amount ELSE -amount END)::bigint FROM journal_lines"
        " WHERE account_code LIKE 'cash:usdc%%' GROUP BY 1 ORDER BY 1",
    )
    return dict(found)


async def test_a_strangers_flush_is_neither_a_credit_nor_a_finding_and_the_books_follow(engine: Engine) -> None:
    chain = engine.chain
    add_method(engine.database, chain, USDC, chain.token_address)
    payer = await engine.payer()
    own = give_address(engine.database, chain, payer)
    await chain.pay(STRANGER.private_key, own.address, PAID_RAW)
    await chain.mine(MIN_CONFIRMATIONS)
    credits = credits_for_raw(PAID_RAW)
    async with engine.worker():
        await start_watch(engine)
        [attempt_id] = await attempts_of(engine, payer.billing_account_id, 1)
        await engine.result(attempt_id)
        assert cash(engine) == {"cash:usdc:deposits": credits}
        deployment = (
            "0x" + forwarder_deployment(salt_of_account(payer.billing_account_id), chain.treasury_address).hex()
        )
        await chain.send(STRANGER.private_key, CREATE2_DEPLOYER, deployment, gas=500_000)
        await chain.mine()
        flush = "0x" + flush_call([chain.token_address]).hex()
        flushed = await chain.send(STRANGER.private_key, own.address, flush, gas=500_000)
        await chain.mine(MIN_CONFIRMATIONS + 1)
        await wait_until(lambda: is_observed(engine, flushed), timeout_seconds=PATIENCE_SECONDS, what="the flush")
        booked = await engine.namespace.client.execute_workflow(
            BookSweeps.run, SweptToBook(), id="book-sweeps", task_queue=TASK_QUEUE
        )
        assert booked.transfers == 1
    assert cash(engine) == {"cash:usdc": credits, "cash:usdc:deposits": 0}
    assert scalar(engine.database.service_url, "SELECT count(*) FROM payment_attempts") == 1
    assert query(engine.database.service_url, "SELECT kind FROM findings") == []
    assert await engine.books(nothing_stuck=True) == []


async def is_observed(engine: Engine, tx_hash: str) -> bool:
    """Whether the watcher has seen the transfer to the treasury, and decided about it."""
    statement = "SELECT count(*) FROM observed_transfers WHERE tx_hash = %s AND handled_at IS NOT NULL"
    return bool(scalar(engine.database.service_url, statement, tx_hash))
