"""Transfers in a range of blocks: one log query, nothing believed that does not fit, no payment disturbed."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from chain.reader import ChainReader
from domain.chain import TransferRange, TransferScope
from domain.errors import ChainUnavailable
from tests.chain.anvil import ALICE, BOB, CHAIN_ID, TREASURY, Node, emitting, transfer, until
from tests.chain.conftest import FaultyNodes, Readers
from tests.chain.faulty_node import FaultyNode, Refusal


class Token:
    """A contract that emits whatever its callers want it to, as the token that is watched."""

    def __init__(self, node: Node, address: str) -> None:
        self.node = node
        self.scope = TransferScope(chain_id=CHAIN_ID, token=address, treasury=TREASURY)

    async def emit(self, *logs: Any) -> str:
        """A transaction, mined, in which the token emits these logs."""
        runtime = bytes.fromhex(emitting(list(logs))[2:])
        await self.node.call("anvil_setCode", self.scope.token, "0x" + runtime.hex())
        sender = (await self.node.call("eth_accounts"))[0]
        sent = await self.node.call(
            "eth_sendTransaction", {"from": sender, "to": self.scope.token, "gas": hex(12_000_000)}
        )
        await self.node.mine()
        await until(lambda: self.node.call("eth_getTransactionReceipt", sent))
        return str(sent)


@pytest.fixture
def token(node: Node) -> Token:
    return Token(node, "0x" + "70" * 20)


async def read(reader: ChainReader, token: Token, first: int = 0, last: int | None = None) -> TransferRange:
    return await reader.logs.transfers(token.scope, first, await token.node.head() if last is None else last)


async def test_all_transfers_to_the_treasury_in_the_chains_order(node: Node, token: Token, readers: Readers) -> None:
    first = await token.emit(transfer(ALICE, TREASURY, 1), transfer(BOB, TREASURY, 2), transfer(ALICE, BOB, 3))
    second = await token.emit(transfer(ALICE, TREASURY, 0), transfer(ALICE, TREASURY, 5))
    found = await read(await readers(node), token)
    assert [(one.tx_hash, one.log_index, one.value_raw) for one in found.transfers] == [
        (first, 0, 1),
        (first, 1, 2),
        (second, 1, 5),
    ]
    assert found.last_block.block_hash == found.transfers[-1].block_hash
    assert found.transfers[-1].block_time == found.last_block.mined_at


async def test_fifty_and_more_transfers_are_one_log_query(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (proxy,) = await faulty_nodes(1)
    for _ in range(3):
        await token.emit(*[transfer(ALICE, TREASURY, number) for number in range(1, 41)])
    found = await read(await readers(proxy), token)
    assert len(found.transfers) == 120
    assert sum(request.count("eth_getLogs") for request in proxy.requests) == 1
    assert len(proxy.requests) == 2


async def test_the_anchor_is_read_in_the_same_batch(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (proxy,) = await faulty_nodes(1)
    await node.mine(3)
    found = await (await readers(proxy)).logs.transfers(token.scope, 2, 3, anchor=1)
    assert found.anchor is not None
    assert found.anchor.number == 1
    assert found.anchor.block_hash == (await node.call("eth_getBlockByNumber", "0x1", False))["hash"]
    assert len(proxy.requests) == 1


async def test_a_refused_range_is_halved_until_it_is_answered(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (proxy,) = await faulty_nodes(1)
    proxy.refuse_log_ranges_over(10)
    await node.mine(100)
    reader = await readers(proxy, log_range_max=100)
    found = await reader.logs.transfers(token.scope, 1, 100)
    assert (found.first, found.last) == (1, 6)
    assert proxy.log_ranges == [100, 50, 25, 12, 6]


REFUSALS = {
    "an error": Refusal("Log response size exceeded"),
    "a rate limit's code": Refusal("query returned more than 10000 results", code=-32005),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
async def test_a_refused_range_says_nothing_about_how_payments_are_served(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes, refusal: Refusal
) -> None:
    refusing, other = await faulty_nodes(2)
    await node.mine(20)
    reader = await readers(refusing, other)
    refusing.refuse_log_ranges_over(0, refusal)
    assert (await read(reader, token)).endpoint == reader.labels[1]
    refusing.requests.clear()
    other.requests.clear()
    await reader.payments.look("0x" + "ab" * 32)
    assert refusing.requests, "the endpoint that refused a range is still asked first about payments"


async def _answers_everything_but_logs(node: FaultyNode, request: web.Request, kind: str) -> web.StreamResponse:
    document = await request.json()
    calls = document if isinstance(document, list) else [document]
    if not any(call["method"] == "eth_getLogs" for call in calls):
        return web.json_response(await node.forward(document))
    if kind == "drop":
        assert request.transport is not None
        request.transport.abort()
    return web.Response(status=413 if kind == "too large" else 504)


@pytest.mark.parametrize("kind", ["drop", "too large", "gateway time-out"])
async def test_a_batch_that_fails_for_its_log_query_says_nothing_about_how_payments_are_served(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes, kind: str
) -> None:
    failing, other = await faulty_nodes(2)
    failing.wire(lambda request: _answers_everything_but_logs(failing, request, kind))
    await node.mine(3)
    reader = await readers(failing, other)
    assert (await read(reader, token)).endpoint == reader.labels[1]
    failing.requests.clear()
    await reader.payments.look("0x" + "ab" * 32)
    assert [len(request) for request in failing.requests] == [3], "in one batch, as before"


async def test_a_log_query_that_takes_too_long_is_asked_for_less(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (slow,) = await faulty_nodes(1)

    async def hang_on_long_ranges(request: web.Request) -> web.StreamResponse:
        document = await request.json()
        if slow.log_ranges and slow.log_ranges[-1] > 4 and any(call["method"] == "eth_getLogs" for call in document):
            await slow._released.wait()
        return web.json_response(await slow.forward(document))

    slow.wire(hang_on_long_ranges)
    await node.mine(10)
    found = await read(await readers(slow, timeout_seconds=1.0, log_range_max=8), token)
    assert (found.first, found.last) == (0, 3)


async def test_a_rate_limit_is_one(node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes) -> None:
    (limited,) = await faulty_nodes(1)
    await node.mine(20)
    limited.refuse_log_ranges_over(0, Refusal("too many requests, slow down", code=429))
    reader = await readers(limited)
    with pytest.raises(ChainUnavailable, match="slow down"):
        await read(reader, token)
    assert len(limited.log_ranges) == 1, "asking for less at once would be asking more often"


async def test_a_node_whose_head_is_below_the_range_is_not_believed(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (late,) = await faulty_nodes(1)
    await node.mine(5)
    late.shift_head(-1)
    with pytest.raises(ChainUnavailable, match="has no block 5 yet"):
        await read(await readers(late), token, last=5)


def _change_logs(**changes: Any) -> Any:
    def fault(method: str, _params: list[Any], result: Any) -> Any:
        return [{**log, **changes} for log in result] if method == "eth_getLogs" else result

    return fault


WRONG_LOGS = {
    "of another block": ({"blockHash": "0x" + "ee" * 32}, "another block"),
    "out of the range": ({"blockNumber": "0x64"}, "got a log of block 100"),
    "of another token": ({"address": "0x" + "99" * 20}, "does not match the filter"),
    "without an index": ({"logIndex": None}, "expected a hex quantity"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG_LOGS.values(), ids=list(WRONG_LOGS))
async def test_logs_that_do_not_fit_are_not_believed_and_the_next_node_is_asked(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes, changes: dict[str, Any], words: str
) -> None:
    lying, good = await faulty_nodes(2)
    await token.emit(transfer(ALICE, TREASURY, 1))
    lying.answers(_change_logs(**changes))
    with pytest.raises(ChainUnavailable, match=words):
        await read(await readers(lying), token)
    reader = await readers(lying, good)
    found = await read(reader, token)
    assert (found.endpoint, len(found.transfers)) == (reader.labels[1], 1)


async def test_a_log_given_twice_is_not_believed(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (lying,) = await faulty_nodes(1)
    await token.emit(transfer(ALICE, TREASURY, 1))
    lying.answers(lambda method, _params, result: result * 2 if method == "eth_getLogs" else result)
    with pytest.raises(ChainUnavailable, match="have the index 0"):
        await read(await readers(lying), token)


async def test_removed_logs_are_passed_over(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (proxy,) = await faulty_nodes(1)
    await token.emit(transfer(ALICE, TREASURY, 1))
    proxy.answers(_change_logs(removed=True))
    assert (await read(await readers(proxy), token)).transfers == ()


async def test_a_reorganisation_between_the_two_readings_is_noticed(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (proxy,) = await faulty_nodes(1)
    await token.emit(transfer(ALICE, TREASURY, 1))
    await node.mine(2)

    def replaced(method: str, params: list[Any], result: Any) -> Any:
        changed = method == "eth_getBlockByNumber" and int(params[0], 16) == 3 and len(proxy.requests) > 1
        return {**result, "hash": "0x" + "ee" * 32} if changed else result

    proxy.answers(replaced)
    with pytest.raises(ChainUnavailable, match="changed between two reads"):
        await read(await readers(proxy), token)


async def test_another_chain_is_not_believed(
    node: Node, token: Token, readers: Readers, faulty_nodes: FaultyNodes
) -> None:
    (other,) = await faulty_nodes(1)
    other.other_chain(5)
    with pytest.raises(ChainUnavailable, match="answers for chain 5"):
        await read(await readers(other), token)
