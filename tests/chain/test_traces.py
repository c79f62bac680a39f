"""Movements of a chain's own coin: by traces of blocks and transactions, of which nothing is believed that lacks."""

from __future__ import annotations

from typing import Any

import pytest

from chain.endpoint_pool import EndpointsFailed
from chain.history import HistoryRefused
from chain.quorum import EndpointsDisagree
from chain.reader import ChainReader
from chain.traces import METHOD_NOT_FOUND, TracesRefused
from domain.chain import ChainView, Transfer, TransferRange
from domain.coin import COIN_PLACES_FROM, NATIVE_COIN
from domain.errors import ChainUnavailable
from tests.chain.anvil import ALICE, BOB, Node, emitting, transfer, until
from tests.chain.coin import COINS, Coins
from tests.chain.conftest import FaultyNodes, Readers
from tests.chain.faulty_node import FaultyNode, Refusal

NO_TRACES = Refusal("the method trace_block does not exist/is not available", code=METHOD_NOT_FOUND)


def without_traces(node: FaultyNode) -> None:
    """Serves everything but traces, as many providers do."""
    node.answers(lambda method, _params, real: NO_TRACES if method.startswith("trace_") else real)


def spoil_traces(node: FaultyNode, change: Any) -> None:
    """Answers these in place of the true traces."""
    node.answers(lambda method, _params, real: change(real) if method.startswith("trace_") else real)


async def read(reader: ChainReader, first: int = 0, **options: Any) -> TransferRange:
    return await reader.logs.transfers(COINS, first, await reader.heads.height(), **options)


def places(transfers: tuple[Transfer, ...], tx_hash: str) -> list[tuple[int, int]]:
    """Place and value of what a transaction brought."""
    return [(one.log_index - COIN_PLACES_FROM, one.value_raw) for one in transfers if one.tx_hash == tx_hash]


async def test_what_reaches_an_address_is_read_whatever_moved_it_and_nothing_else_is(
    node: Node, readers: Readers
) -> None:
    coins, reader = await Coins.on(node), await readers(node)
    plain = await coins.send(BOB, value=5)
    two = await coins.pay(2, 2)
    taken_back = await coins.do("payAndTakeBack", BOB, 3)
    borrowed = await coins.do("borrowCode", BOB, 1)
    destroyed = await coins.do("payByDestruction", BOB, value=7)
    await coins.do("payAndRevert", BOB, 3)
    await node.pay(reverting=True, confirmations=1)  # a contract that is not made
    found = await read(reader)
    assert sum(one.value_raw for one in found.transfers) == await coins.held_by() == 16
    by_transaction = {tx_hash: places(found.transfers, tx_hash) for tx_hash in (plain, two, destroyed)}
    # The value that the transaction itself carries to the contract is a movement, and has a place.
    assert by_transaction == {plain: [(0, 5)], two: [(0, 2), (1, 2)], destroyed: [(2, 7)]}
    assert not {one.tx_hash for one in found.transfers} & {taken_back, borrowed}
    one = found.transfers[0]
    assert (one.token, one.to_address.lower() if one.to_address else None) == (NATIVE_COIN, BOB)
    assert one.from_address.lower() == coins.payer
    block = await node.call("eth_getBlockByNumber", hex(one.block_number), False)
    assert (one.block_hash, int(one.block_time.timestamp())) == (block["hash"], int(block["timestamp"], 16))


async def test_a_payment_is_verified_by_its_own_trace_at_the_same_places(node: Node, readers: Readers) -> None:
    coins, reader = await Coins.on(node), await readers(node)
    sent = await coins.pay(2, 4)
    found = await read(reader)
    view = await reader.payments.look(sent, coin=True)
    assert view.receipt is not None
    ours = [one for one in view.receipt.transfers if one.to_address.lower() == BOB]
    assert [(one.log_index, one.value_raw, one.emitter) for one in ours] == [
        (one.log_index, one.value_raw, NATIVE_COIN) for one in found.transfers
    ]
    reverted = await coins.do("payAndRevert", BOB, 3)
    view = await reader.payments.look(reverted, coin=True)
    assert view.receipt is not None
    assert (view.receipt.succeeded, view.receipt.transfers) == (False, ())


async def test_a_token_and_the_coin_in_one_transaction_have_places_apart(node: Node, readers: Readers) -> None:
    coins, reader = await Coins.on(node), await readers(node)
    sender = (await node.call("eth_accounts"))[0]
    # A contract that logs a transfer as it is made, with coin.
    fields = {"from": sender, "data": emitting([transfer(ALICE, BOB, 9)]), "value": hex(4), "gas": hex(3_000_000)}
    sent = await node.call("eth_sendTransaction", fields)
    await node.mine()
    await until(lambda: node.call("eth_getTransactionReceipt", sent))
    made = str((await node.call("eth_getTransactionReceipt", sent))["contractAddress"])
    view = await reader.payments.look(sent, coin=True)
    assert view.receipt is not None
    said = [(one.log_index, one.value_raw) for one in view.receipt.transfers]
    assert said == [(0, 9), (COIN_PLACES_FROM, 4)]
    assert view.receipt.transfers[1].to_address.lower() == made.lower()
    without = await reader.payments.look(sent)
    assert without.receipt is not None
    assert [one.log_index for one in without.receipt.transfers] == [0]
    assert coins.contract


async def test_an_endpoint_without_traces_is_passed_over_and_serves_everything_else(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    coins = await Coins.on(node)
    sent = await coins.pay(2)
    (bare,) = await faulty_nodes(1)
    without_traces(bare)
    reader = await readers(bare, node)
    found = await read(reader)
    assert (found.endpoint, len(found.transfers)) == (reader.labels[1], 1)
    assert (await reader.payments.look(sent, coin=True)).endpoint == reader.labels[1]
    # It is not taken for one that fails: it is the first one that is asked about tokens.
    assert (await reader.payments.look(sent)).endpoint == reader.labels[0]
    alone = await readers(bare)
    # What a transaction that reverted has moved, needs no trace.
    assert (await alone.payments.look(await coins.do("payAndRevert", BOB, 3), coin=True)).receipt is not None
    with pytest.raises(EndpointsFailed, match="trace_block") as refused:
        await read(alone)
    assert [type(one) for one in refused.value.history_refusals] == [TracesRefused]
    with pytest.raises(ChainUnavailable, match="trace_transaction"):
        await alone.payments.look(sent, coin=True)


async def viewed(reader: ChainReader, sent: str) -> ChainView:
    return await reader.payments.cross_check(sent, await reader.payments.look(sent, coin=True), coin=True)


async def test_nothing_is_decided_where_half_of_the_endpoints_do_not_trace(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    coins = await Coins.on(node)
    sent = await coins.pay(2)
    first, second = await faulty_nodes(2)
    without_traces(first)
    reader = await readers(node, first, second)
    assert (await viewed(reader, sent)).receipt is not None
    without_traces(second)
    with pytest.raises(ChainUnavailable, match="too few endpoints trace"):
        await viewed(reader, sent)


async def test_a_movement_that_one_endpoint_invents_is_outvoted(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    coins = await Coins.on(node)
    sent = await coins.pay(2)
    liar, other = await faulty_nodes(2)

    def invent(traces: Any) -> Any:
        return [
            {**one, "action": {**one["action"], "value": hex(10**18)}} if one["traceAddress"] == [0] else one
            for one in traces
        ]

    spoil_traces(liar, invent)
    reader = await readers(liar, node, other)
    seen = await reader.payments.look(sent, coin=True)
    assert seen.receipt is not None
    assert [one.value_raw for one in seen.receipt.transfers] == [10**18]
    agreed = await reader.payments.cross_check(sent, seen, coin=True)
    assert agreed.receipt is not None
    assert [one.value_raw for one in agreed.receipt.transfers] == [2]
    two = await readers(liar, node)
    with pytest.raises(EndpointsDisagree):
        await viewed(two, sent)


ANOTHER_BLOCK = "0x" + "ee" * 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda traces: [], "lack their calls"),
        (lambda traces: [{**one, "transactionHash": ANOTHER_BLOCK} for one in traces], "lack their calls"),
        (lambda traces: [{**one, "blockHash": ANOTHER_BLOCK} for one in traces], "of another block"),
        (lambda traces: [*traces, traces[0]], "the same place"),
        (lambda traces: [one for one in traces if one["traceAddress"] != []], "not there"),
        (lambda traces: [{**one, "type": "gift"} for one in traces], "trace_"),
        (lambda traces: [{**one, "action": {**one["action"], "value": 5}} for one in traces], "trace_"),
        (lambda traces: {"traces": traces}, "trace_"),
        (lambda traces: [{**one, "type": "create", "result": None} for one in traces], "trace_"),
        (lambda traces: [{**one, "action": {**one["action"], "from": "be" * 21}} for one in traces], "trace_"),
    ],
    ids=[
        *("none", "other-transactions", "other-block", "twice", "orphan", "unknown-kind", "no-quantity", "no-array"),
        *("nothing-made", "no-address"),
    ],
)
async def test_traces_that_do_not_fit_their_block_count_for_nothing(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, change: Any, words: str
) -> None:
    coins = await Coins.on(node)
    sent = await coins.pay(2)
    head = await node.head()
    (faulty,) = await faulty_nodes(1)
    spoil_traces(faulty, change)
    reader = await readers(faulty)
    with pytest.raises(ChainUnavailable, match=words):
        await reader.logs.transfers(COINS, head, head)
    with pytest.raises(ChainUnavailable):
        await reader.payments.look(sent, coin=True)


async def test_a_blocks_reward_is_no_transfer(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    coins = await Coins.on(node)
    await coins.pay(2)
    (faulty,) = await faulty_nodes(1)

    def rewarded(traces: Any) -> Any:
        reward = {"author": BOB, "rewardType": "block", "value": hex(10**18)}
        block = {"blockHash": traces[0]["blockHash"], "blockNumber": traces[0]["blockNumber"]} if traces else {}
        own = {"action": reward, **block, "result": None, "subtraces": 0, "traceAddress": [], "type": "reward"}
        return [*traces, {**own, "transactionHash": None}] if traces else traces

    spoil_traces(faulty, rewarded)
    found = await read(await readers(faulty))
    assert [one.value_raw for one in found.transfers] == [2]


async def test_a_range_is_read_in_parts_and_smaller_ones_where_the_answer_is_too_large(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    coins = await Coins.on(node)
    await coins.pay(2)
    await node.mine(30)
    (faulty,) = await faulty_nodes(1)
    reader = await readers(faulty, response_bytes_max=20_000)
    found = await reader.logs.transfers(COINS, 0, 32)
    assert 0 < found.last < 9, "it is too large as a whole"
    begin, seen = 0, 0
    while begin <= 32:
        found = await reader.logs.transfers(COINS, begin, 32)
        seen += len(found.transfers)
        begin = found.last + 1
    assert seen == 1
    assert faulty.requests[-1].count("trace_block") <= 10
    # Nothing of that limits what is asked about logs.
    assert reader._pool.nodes()[0].log_range.size > 10


async def test_blocks_whose_state_is_pruned_are_history_that_is_missing(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    await node.mine(3)
    (faulty,) = await faulty_nodes(1)
    pruned = Refusal("missing trie node: state is not available", code=-32000)
    faulty.answers(lambda method, _params, real: pruned if method == "trace_block" else real)
    reader = await readers(faulty)
    with pytest.raises(EndpointsFailed) as refused:
        await reader.logs.transfers(COINS, 1, 2)
    assert all(isinstance(one, HistoryRefused) for one in refused.value.history_refusals)
    assert refused.value.history_refusals


async def test_a_log_that_claims_a_place_of_the_coin_is_refused(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    sent = await node.pay()
    (faulty,) = await faulty_nodes(1)

    def claim(receipt: Any) -> None:
        receipt["logs"][0]["logIndex"] = hex(COIN_PLACES_FROM)

    faulty.change_receipt(claim)
    with pytest.raises(ChainUnavailable, match="logIndex"):
        await (await readers(faulty)).payments.look(sent)
