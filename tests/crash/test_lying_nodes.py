"""A node that is wrong, late, slow or dishonest delays a payment; it never decides one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import pytest

from devstack.chain import LocalChain
from domain.payments.attempt import AttemptStatus
from tests.chain.faulty_node import FaultyNode
from tests.crash.conftest import Systems
from tests.support.system import MIN_CONFIRMATIONS, Payment, PaymentSystem

OTHER_HASH: Final = "0x" + "ee" * 32
Faults = Callable[[int], Awaitable[list[FaultyNode]]]


@pytest.fixture
async def faulty_nodes(chain: LocalChain) -> AsyncIterator[Faults]:
    """Makes faulty nodes in front of the session's chain."""
    async with AsyncExitStack() as stack:

        async def make(count: int) -> list[FaultyNode]:
            return [await stack.enter_async_context(FaultyNode.in_front_of(chain.url)) for _ in range(count)]

        yield make


@dataclass(frozen=True)
class Lie:
    """What a node does, and the words that the operator reads while it does it."""

    tell: Callable[[FaultyNode], Any]
    words: str


def _rename_block(receipt: Any) -> None:
    for part in (receipt, *receipt["logs"]):
        part["blockHash"] = OTHER_HASH


LIES: Final = {
    "knows no transaction": Lie(lambda node: node.null_receipt(), "not found yet"),
    "is of another chain": Lie(lambda node: node.other_chain(1), "answers for chain 1"),
    "has an older head": Lie(lambda node: node.shift_head(-1), f"2 of {MIN_CONFIRMATIONS} confirmations"),
    "is behind the transaction": Lie(lambda node: node.shift_head(-3), "does not exist yet"),
    "has the receipt of a block that does not exist": Lie(
        lambda node: node.move_receipt(10_000_000, OTHER_HASH), "does not exist yet"
    ),
    "is on another branch": Lie(lambda node: node.wrong_block_hash(), "not on the canonical chain"),
    "names another block hash in the receipt": Lie(
        lambda node: node.change_receipt(_rename_block), "not on the canonical chain"
    ),
    "never answers": Lie(lambda node: node.hang(), "no answer within"),
    "breaks down": Lie(lambda node: node.status(500), "HTTP 500"),
    "has had enough": Lie(lambda node: node.status(429, retry_after="1"), "HTTP 429"),
    "breaks off": Lie(lambda node: node.truncate(), "not JSON"),
    "closes the connection": Lie(lambda node: node.drop(), "closed without an answer"),
    "talks of something else": Lie(lambda node: node.body(b'"hello"'), "not an array"),
}


async def system_behind(systems: Systems, *nodes: FaultyNode) -> PaymentSystem:
    """A system whose workers ask these nodes."""
    return await systems(CHAIN_RPC_URLS=",".join(node.url for node in nodes), CHAIN_RPC_TIMEOUT_SECONDS="1")


@pytest.mark.slow
@pytest.mark.parametrize("what", LIES)
async def test_a_payment_waits_while_its_only_node(systems: Systems, faulty_nodes: Faults, what: str) -> None:
    [node] = await faulty_nodes(1)
    system = await system_behind(systems, node)
    payment = await system.purchase()
    LIES[what].tell(node)
    async with system.worker():
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, LIES[what].words)
        assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
        assert await system.entries(payment.attempt_id) == []
        node.heal()
        await system.must_be_settled(payment)
    await system.books_are_right()


def inflate(node: FaultyNode) -> None:
    """The payment is larger than it is."""
    node.alter_values(10**12)


def deflate(node: FaultyNode) -> None:
    """The payment is smaller than it is."""
    node.alter_values(1)


def revert(node: FaultyNode) -> None:
    """The transaction has failed."""
    node.change_receipt(lambda receipt: receipt.update(status="0x0", logs=[]))


@pytest.mark.slow
@pytest.mark.parametrize("lie", [inflate, deflate, revert])
async def test_nothing_final_follows_from_two_nodes_of_which_the_first_lies(
    systems: Systems, faulty_nodes: Faults, lie: Callable[[FaultyNode], None]
) -> None:
    faulty, honest = await faulty_nodes(2)
    system = await system_behind(systems, faulty, honest)
    payment = await system.purchase()
    lie(faulty)
    async with system.worker():
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, "endpoints disagree")
        assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
        faulty.heal()
        await system.must_be_settled(payment)
    assert (await system.settled_by(payment.attempt_id)).surplus_raw == 0
    await system.books_are_right()


async def test_an_invented_payment_buys_nothing_while_another_node_knows_better(
    systems: Systems, faulty_nodes: Faults
) -> None:
    faulty, honest = await faulty_nodes(2)
    system = await system_behind(systems, faulty, honest)
    paid = await system.purchase(cents=100)
    payer, intent = await system.intent(1_000_000)
    # A receipt that is perfect in itself, with its block, of a transaction that no chain has.
    receipt = await system.chain.wait_for_receipt(paid.tx_hash)
    block = await system.chain.rpc("eth_getBlockByNumber", receipt["blockNumber"], False)
    receipt = {**receipt, "transactionHash": OTHER_HASH}
    receipt["logs"] = [
        {**log, "transactionHash": OTHER_HASH, "data": "0x" + intent.amount_raw.to_bytes(32, "big").hex()}
        for log in receipt["logs"]
    ]
    faulty.fabricate(receipt, {**block, "transactions": [OTHER_HASH]})
    async with system.worker():
        await system.submit(payer, intent, OTHER_HASH)
        await system.polled(intent.attempt_id, "endpoints disagree")
        faulty.heal()
        await system.polled(intent.attempt_id, "not found yet")
    assert (await system.attempt(intent.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
    assert await system.balance(payer.billing_account_id) == 0


async def test_one_faulty_node_among_three_nodes_neither_credits_nor_refuses_nor_delays(
    systems: Systems, faulty_nodes: Faults
) -> None:
    faulty, *honest = await faulty_nodes(3)
    system = await system_behind(systems, faulty, *honest)
    payment = await system.purchase()
    deflate(faulty)
    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
    assert (await system.settled_by(payment.attempt_id)).value_raw == payment.intent.amount_raw
    await system.books_are_right()


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["never answers", "breaks down", "has had enough", "breaks off", "is of another chain"]
)
async def test_a_second_node_answers_while_the_first_one(systems: Systems, faulty_nodes: Faults, what: str) -> None:
    broken, healthy = await faulty_nodes(2)
    system = await system_behind(systems, broken, healthy)
    payment = await system.purchase()
    LIES[what].tell(broken)
    async with system.worker():
        await system.submit_payment(payment)
        await system.must_be_settled(payment)
    assert healthy.requests
    await system.books_are_right()


async def test_a_head_that_one_node_invents_adds_no_confirmations(systems: Systems, faulty_nodes: Faults) -> None:
    faulty, honest = await faulty_nodes(2)
    system = await system_behind(systems, faulty, honest)
    payment: Payment = await system.purchase(confirmed=False)
    faulty.shift_head(2)
    async with system.worker():
        await system.confirm(payment.tx_hash, blocks=1)
        await system.submit_payment(payment)
        await system.polled(payment.attempt_id, "1 of 3 confirmations")
        assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
        faulty.heal()
        await system.chain.mine(2)
        await system.must_be_settled(payment)
    await system.books_are_right()
