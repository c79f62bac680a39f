"""Questions about many payments at once: what joins in one batch, and that one payment's trouble is its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID
from chain.joined_batches import CALLS_MAX, JOIN_SECONDS
from chain.reader import ChainReader
from chain.rpc import EndpointFailure
from domain.chain import ChainView
from domain.errors import ChainUnavailable
from tests.chain.anvil import ALICE, TREASURY, Node, transfer, until
from tests.chain.conftest import FaultyNodes, Readers
from tests.chain.faulty_node import FaultyNode, Refusal

LONG_SECONDS = 100.0


async def many(node: Node, count: int, *, confirmations: int = 5) -> list[str]:
    """So many payments in one block."""
    await node.call("anvil_setBlockGasLimit", hex(10**10))
    hashes = [await node.send(transfer(ALICE, TREASURY, 100 + number)) for number in range(count)]
    await node.mine(confirmations)

    async def are_served() -> bool:
        return all([await node.call("eth_getTransactionReceipt", tx_hash) for tx_hash in hashes])

    await until(are_served)
    return hashes


async def block_of(node: Node, tx_hash: str) -> int:
    return int((await node.call("eth_getTransactionReceipt", tx_hash))["blockNumber"], 16)


async def look_at(reader: ChainReader, hashes: list[str], block: int | None) -> list[Any]:
    """All at once: each one's view, or its error."""
    return await asyncio.gather(
        *(reader.payments.look(tx_hash, block_hint=block) for tx_hash in hashes), return_exceptions=True
    )


def values(views: list[Any]) -> list[int]:
    """What each payment is worth, by its view."""
    assert all(isinstance(view, ChainView) for view in views), views
    return [view.receipt.transfers[0].value_raw for view in views]


@pytest.mark.parametrize("join_seconds", [0.0, JOIN_SECONDS])
async def test_payments_of_one_block_are_one_request_with_its_header_and_the_head_once(
    join_seconds: float, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty, join_seconds=join_seconds)
    hashes = await many(node, 30)
    views = await look_at(reader, hashes, await block_of(node, hashes[0]))
    assert values(views) == [100 + number for number in range(30)]
    (batch,) = faulty.requests
    assert Counter(batch) == {
        "eth_chainId": 1,
        "eth_blockNumber": 1,
        "eth_getBlockByNumber": 1,
        "eth_getTransactionReceipt": 30,
    }


async def test_a_batch_is_bounded(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 2 * CALLS_MAX)
    assert len(values(await look_at(reader, hashes, await block_of(node, hashes[0])))) == 2 * CALLS_MAX
    assert [len(batch) <= CALLS_MAX for batch in faulty.requests] == [True] * 3


async def test_a_cross_check_of_many_is_one_request_to_each_other_node(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    nodes = await faulty_nodes(3)
    reader = await readers(*nodes)
    hashes = await many(node, 20)
    views = await look_at(reader, hashes, await block_of(node, hashes[0]))
    pairs = zip(hashes, views, strict=True)
    checked = await asyncio.gather(*(reader.payments.cross_check(tx_hash, view) for tx_hash, view in pairs))
    assert values(checked) == [100 + number for number in range(20)]
    assert [len(faulty.requests) for faulty in nodes] == [1, 1, 1]


async def test_one_payments_error_is_its_own(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 10)

    def spoil(method: str, params: list[Any], result: Any) -> Any:
        return (
            Refusal("this one is bad") if method == "eth_getTransactionReceipt" and params[0] == hashes[3] else result
        )

    faulty.answers(spoil)
    views = await look_at(reader, hashes, await block_of(node, hashes[0]))
    bad = views.pop(3)
    assert isinstance(bad, ChainUnavailable)
    assert "this one is bad" in bad.message
    assert len(values(views)) == 9
    assert [batch.count("eth_getTransactionReceipt") for batch in faulty.requests] == [10, 1]


async def test_an_error_that_only_a_batch_of_many_has_is_no_payments(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    """As of a node whose answer to a batch is limited in size: it refuses the calls that come after the limit."""
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 10)

    def cut(_requests: list[Any], replies: list[Any]) -> list[Any]:
        error = {"code": -32003, "message": "response too large"}
        return replies[:6] + [{"jsonrpc": "2.0", "id": reply["id"], "error": error} for reply in replies[6:]]

    faulty.batches(cut)
    assert len(values(await look_at(reader, hashes, await block_of(node, hashes[0])))) == 10


async def test_an_answer_that_is_too_large_together_is_asked_for_apart(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty, response_bytes_max=20_000)
    hashes = await many(node, 20)
    assert len(values(await look_at(reader, hashes, await block_of(node, hashes[0])))) == 20


async def test_a_node_that_limits_batches_gets_smaller_ones_from_then_on(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 20)
    block = await block_of(node, hashes[0])

    def limit(requests: list[Any], replies: list[Any]) -> Any:
        error = {"code": -32600, "message": "batch limit is 12"}
        return {"jsonrpc": "2.0", "id": None, "error": error} if len(requests) > 12 else replies

    faulty.batches(limit)
    assert len(values(await look_at(reader, hashes, block))) == 20
    faulty.requests.clear()
    assert len(values(await look_at(reader, hashes, block))) == 20
    assert 2 <= len(faulty.requests) <= 4, "neither one too large, nor each call by itself"


async def test_a_node_without_batches_is_asked_call_by_call(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 5)
    block = await block_of(node, hashes[0])
    faulty.refuse_batches()
    assert len(values(await look_at(reader, hashes, block))) == 5
    faulty.requests.clear()
    assert len(values(await look_at(reader, hashes, block))) == 5
    assert sorted(faulty.requests) == [["eth_blockNumber"], ["eth_chainId"], ["eth_getBlockByNumber"]] + 5 * [
        ["eth_getTransactionReceipt"]
    ]


@pytest.mark.parametrize("fault", [lambda node: node.status(500), lambda node: node.refuse(), FaultyNode.drop])
async def test_a_node_that_fails_is_spared_the_rest_and_another_answers(
    fault: Any, node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    reader = await readers(first, second)
    hashes = await many(node, 20)
    block = await block_of(node, hashes[0])
    fault(first)
    assert len(values(await look_at(reader, hashes, block))) == 20
    assert len(first.requests) <= 5, "the batch, two questions on their own, and each of these as a single call"
    assert len(second.requests) <= 2, "the one that failed first moved on first"


async def test_the_failure_of_a_batch_counts_once_against_its_endpoint(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 20)
    faulty.status(429, retry_after="1")
    await look_at(reader, hashes, None)
    assert len(faulty.requests) == 1
    assert reader._pool.nodes()[0].breaker.failures == 1


async def test_a_node_of_another_chain_answers_no_payment_of_the_batch(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    """The address was served by the right chain until now, as of a load balancer whose back end is exchanged."""
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty)
    hashes = await many(node, 10)
    block = await block_of(node, hashes[0])
    assert len(values(await look_at(reader, hashes, block))) == 10
    faulty.other_chain(8453)
    for view in await look_at(reader, hashes, block):
        assert isinstance(view, ChainUnavailable)
        assert "answers for chain 8453, not 31337" in view.message


async def test_each_waits_for_its_own_deadline_and_a_cancelled_one_does_not_stop_the_others(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    first, second = await faulty_nodes(2)
    reader = await readers(first, second, timeout_seconds=2.0)
    hashes = await many(node, 4)
    first.hang()
    looks = [asyncio.ensure_future(reader.payments.look(tx_hash)) for tx_hash in hashes]
    await first.received(1)
    looks[0].cancel()
    views = await asyncio.gather(*looks, return_exceptions=True)
    assert isinstance(views[0], asyncio.CancelledError)
    assert values(views[1:]) == [101, 102, 103]
    assert len(first.requests) == 1


async def test_a_question_does_not_wait_as_long_as_another_in_its_batch_may(
    faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    joined = (await readers(faulty))._pool.nodes()[0].joined
    faulty.hang()
    now = asyncio.get_running_loop().time()
    patient = asyncio.ensure_future(joined.ask([BLOCK_NUMBER], deadline=now + LONG_SECONDS))
    with pytest.raises(EndpointFailure, match="no answer within"):
        await joined.ask([CHAIN_ID], deadline=now + 0.3)
    assert faulty.requests == [["eth_chainId", "eth_blockNumber"]]
    assert not patient.done()
    faulty.let_go()
    with pytest.raises(EndpointFailure, match="HTTP 503"):
        await patient


async def test_a_batch_that_no_one_waits_for_is_given_up(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    (faulty,) = await faulty_nodes(1)
    outcomes: list[str] = []
    reader = await readers(
        faulty, timeout_seconds=LONG_SECONDS, on_request=lambda _label, outcome, _seconds: outcomes.append(outcome)
    )
    hashes = await many(node, 4)
    faulty.hang()
    looks = [asyncio.ensure_future(reader.payments.look(tx_hash)) for tx_hash in hashes]
    await faulty.received(1)
    for look in looks:
        look.cancel()
    await asyncio.gather(*looks, return_exceptions=True)

    async def given_up() -> bool:
        return outcomes == ["cancelled"]

    await until(given_up)


async def test_a_reader_that_is_closed_leaves_no_one_waiting(node: Node, faulty_nodes: FaultyNodes) -> None:
    (faulty,) = await faulty_nodes(1)
    faulty.hang()
    async with ChainReader([faulty.url], 31337, timeout_seconds=LONG_SECONDS) as reader:
        look = asyncio.ensure_future(reader.payments.look("0x" + "12" * 32))
        await faulty.received(1)
    with pytest.raises(ChainUnavailable, match="the reader was closed"):
        await look
