"""Payments beside a chain watcher that lives, dies and freezes: its rows save requests, and nothing depends on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from devstack.chain import LocalChain
from domain.payments.attempt import AttemptStatus, ErrorCode
from tests.chain.faulty_node import FaultyNode
from tests.crash.conftest import Systems
from tests.crash.follower import FOLLOWS
from tests.support.sql import scalar
from tests.support.system import Payment, PaymentSystem, WorkerProcess, wallets

NEEDED: Final = 5
MANY: Final = 24
BY_WATCHER: Final = " by the chain watcher, head "

Watched = tuple[PaymentSystem, FaultyNode, WorkerProcess]


@pytest.fixture
async def watched(systems: Systems, chain: LocalChain) -> AsyncIterator[Watched]:
    """A system whose requests are counted, and a process that follows the chain."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(FaultyNode.in_front_of(chain.url))
        system = await systems(CHAIN_RPC_URLS=node.url, CHAIN_BLOCK_TIME_SECONDS="1", MIN_CONFIRMATIONS=str(NEEDED))
        follower = system.start_follower()
        await follower.says(FOLLOWS)
        yield system, node, follower


def polls(node: FaultyNode) -> int:
    """Requests about payments."""
    return sum("eth_getTransactionReceipt" in batch for batch in node.requests)


async def is_read(system: PaymentSystem) -> None:
    """Wait until the follower has read the newest block."""
    head = await system.chain.block_number()

    async def at_head() -> bool:
        read = scalar(system.database.superuser_url, "SELECT max(block_number) FROM chain_cursors")
        return int(read) >= head

    await system.until(at_head, f"a follower at block {head}")


@asynccontextmanager
async def waiting(system: PaymentSystem, *, blocks: int = 1) -> AsyncIterator[Payment]:
    """A payment that the worker, running for the length of the block, waits for by the watcher's rows."""
    payment = await system.purchase(confirmed=False)
    async with system.worker():
        await system.confirm(payment.tx_hash, blocks=blocks)
        await is_read(system)
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, f"{blocks} of {NEEDED} confirmations{BY_WATCHER}")
        yield payment


async def test_a_payment_is_credited_with_one_request_while_the_watcher_lives(watched: Watched) -> None:
    system, node, _ = watched
    async with waiting(system) as payment:
        view = await system.payments.status(payment.payer.user_id, payment.attempt_id)
        assert (view.confirmations, view.confirmations_needed) == (1, NEEDED)
        assert view.waiting_for == f"1 of {NEEDED} confirmations", "who counts them is for operators"
        assert polls(node) == 0
        await system.chain.mine(NEEDED - 1)
        await system.must_be_settled(payment)
    assert polls(node) <= 2, "one for the verdict, and one after the credit"
    await system.books_are_right()


@pytest.mark.slow
@pytest.mark.parametrize("fate", [WorkerProcess.kill, WorkerProcess.pause], ids=["killed", "frozen"])
async def test_a_payment_goes_on_by_its_own_polls_when_the_watcher_stops_in_mid_wait(
    watched: Watched, fate: Callable[[WorkerProcess], Awaitable[None] | None]
) -> None:
    system, node, follower = watched
    async with waiting(system) as payment:
        ended = fate(follower)
        if ended is not None:
            await ended
        # Its last row is believed until the block is due, and no longer.
        await system.until(lambda: polls(node) > 0, "a poll of the payment's own")
        await system.chain.mine(NEEDED - 1)
        await system.must_be_settled(payment)

        # One that begins when there is no fresh row.
        late = await system.purchase(confirmed=False)
        await system.submit_payment(late)
        await system.polled(late.attempt_id, f"{late.tx_hash} not found yet, head is ")
        await system.confirm(late.tx_hash, blocks=NEEDED)
        await system.must_be_settled(late)
    await system.books_are_right()


@pytest.mark.slow
async def test_a_frozen_watcher_that_goes_on_after_a_reorganisation_spoils_nothing(watched: Watched) -> None:
    system, node, follower = watched
    async with waiting(system, blocks=2) as payment:
        raw = await system.chain.raw_transaction(payment.tx_hash)
        follower.pause()
        await system.chain.reorg(2, [(raw, 1)])
        after = await system.chain.wait_for_receipt(payment.tx_hash)
        await system.until(lambda: polls(node) > 0, "a poll of the payment's own")
        follower.go_on()
        await system.chain.mine(NEEDED - 1)
        await system.must_be_settled(payment)
    assert (await system.settled_by(payment.attempt_id)).block_hash == after["blockHash"]
    await system.books_are_right()


@pytest.mark.slow
async def test_a_reverted_transaction_fails_while_the_watcher_lives(watched: Watched) -> None:
    system, node, _ = watched
    payer, intent = await system.intent(wallet=wallets(1)[0])
    sent = await system.chain.pay(wallets(1)[0].private_key, intent.to, 10**30)
    async with system.worker():
        await system.confirm(sent, blocks=1)
        await is_read(system)
        await system.submit(payer, intent, sent)
        await system.polled(intent.attempt_id, f"not found yet{BY_WATCHER}")
        await system.chain.mine(NEEDED - 1)
        result = await system.finished(intent.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.FAILED, ErrorCode.TX_REVERTED)
    assert polls(node) <= 3
    await system.books_are_right()


@pytest.mark.slow
async def test_many_payments_that_become_due_together_share_requests(watched: Watched) -> None:
    system, node, _ = watched
    payments = [await system.purchase(1_000 + number, confirmed=False) for number in range(MANY)]
    async with system.worker():
        await system.confirm(*(payment.tx_hash for payment in payments), blocks=1)
        await is_read(system)
        await asyncio.gather(*(system.submit_payment(payment) for payment in payments))
        await system.chain.mine(NEEDED - 1)
        for payment in payments:
            await system.wait_for_status(payment.attempt_id, AttemptStatus.CREDITED)
        requests = [batch for batch in node.requests if "eth_getTransactionReceipt" in batch]
        for payment in payments:
            await system.must_be_settled(payment)
    assert len(requests) <= MANY / 2
    assert sum(len(batch) for batch in requests) <= 4 * MANY, "it was 12 calls each when they were asked one by one"
    await system.books_are_right()
