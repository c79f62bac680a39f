"""What the reader asks after a credit: how far the chain is final, and who still sees a transaction."""

from __future__ import annotations

import pytest

from chain.head_reader import TAG_SECONDS
from domain.errors import ChainUnavailable
from tests.chain.anvil import ALICE, TREASURY, Clock, Node, transfer
from tests.chain.conftest import FaultyNodes, Readers

FINALIZED_TRAILS = 64
SAFE_TRAILS = 32


async def _mined(node: Node, blocks: int) -> int:
    await node.call("anvil_mine", hex(blocks))
    return int(await node.call("eth_blockNumber"), 16)


async def test_each_tag_has_the_block_that_the_node_names(node: Node, readers: Readers) -> None:
    head = await _mined(node, 100)
    reader = await readers(node)
    assert await reader.heads.tagged_number("safe") == head - SAFE_TRAILS
    assert await reader.heads.tagged_number("finalized") == head - FINALIZED_TRAILS


async def test_a_tag_is_asked_for_once_by_all_who_wait_at_the_moment(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    await _mined(node, 100)
    [proxy] = await faulty_nodes(1)
    reader = await readers(proxy)
    first = await reader.heads.tagged_number("finalized")
    asked = reader.request_count
    await _mined(node, 10)
    assert await reader.heads.tagged_number("finalized") == first
    assert reader.request_count == asked
    clock.now += TAG_SECONDS
    assert await reader.heads.tagged_number("finalized") == first + 10


async def test_one_node_alone_makes_nothing_final_and_holds_nothing_up(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    head = await _mined(node, 100)
    for invented in (1_000, -50):
        proxies = await faulty_nodes(3)
        reader = await readers(*proxies)

        def lie(method: str, params: list[object], result: object, invented: int = invented) -> object:
            if method == "eth_getBlockByNumber" and params[0] == "finalized" and isinstance(result, dict):
                return {**result, "number": hex(int(result["number"], 16) + invented)}
            return result

        proxies[1].answers(lie)
        assert await reader.heads.tagged_number("finalized") == head - FINALIZED_TRAILS


async def test_a_node_that_does_not_know_the_tag_is_no_worse_for_payments(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    tx_hash = await node.pay(transfer(ALICE, TREASURY, 100))
    await _mined(node, 100)
    [ignorant, knowing] = await faulty_nodes(2)

    def forget(method: str, params: list[object], result: object) -> object:
        return None if method == "eth_getBlockByNumber" and params[0] == "finalized" else result

    ignorant.answers(forget)
    reader = await readers(ignorant, knowing)
    assert await reader.heads.tagged_number("finalized") > 0
    assert (await reader.payments.look(tx_hash)).endpoint == reader.labels[0]
    alone = await readers(ignorant)
    with pytest.raises(ChainUnavailable, match="has no finalized block"):
        await alone.heads.tagged_number("finalized")


async def test_a_transaction_is_seen_where_it_is(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(transfer(ALICE, TREASURY, 100))
    reader = await readers(node)
    view = await reader.payments.look(tx_hash)
    assert view.receipt is not None
    [inclusion_report] = await reader.payments.inclusion_reports(tx_hash, view.receipt.block_number)
    assert inclusion_report.receipt == view.receipt
    assert inclusion_report.block_at_height == view.receipt.block_hash


async def test_after_a_reorganisation_another_block_is_seen_at_its_height(node: Node, readers: Readers) -> None:
    tx_hash = await node.pay(transfer(ALICE, TREASURY, 100))
    reader = await readers(node)
    before = (await reader.payments.look(tx_hash)).receipt
    assert before is not None
    await node.call("anvil_reorg", 5, [])
    [inclusion_report] = await reader.payments.inclusion_reports(tx_hash, before.block_number)
    assert inclusion_report.receipt is None
    assert inclusion_report.block_at_height not in {None, before.block_hash}


async def test_who_is_silent_behind_or_stuck_is_not_counted(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    tx_hash = await node.pay(transfer(ALICE, TREASURY, 100))
    await _mined(node, 20)
    proxies = await faulty_nodes(3)
    reader = await readers(*proxies)
    await reader.heads.height()
    proxies[1].status(500)
    proxies[2].shift_head(-10)
    assert [inclusion_report.endpoint for inclusion_report in await reader.payments.inclusion_reports(tx_hash, 1)] == [
        reader.labels[0]
    ]
