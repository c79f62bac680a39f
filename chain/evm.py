"""The questions to a node of an EVM chain, by Ethereum's JSON-RPC (`chain.family.ChainFamily`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID, EndpointPool, PooledEndpoint
from chain.family import NodeBlocks, NodeProgress, TaggedBlock
from chain.history import block_call, read_blocks, read_range
from chain.quorum import Reading
from chain.rpc import Call, EndpointFailure, Failure, Reply
from chain.traces import read_coin_range, transaction_traces_call, with_coin
from chain.wire import read_block, read_head, read_header, read_quantity, read_receipt, read_tagged_number
from domain.chain import BlockHeader, ChainHead, ChainView, MinedBlock, Receipt, TransferRange, TransferScope

ROUNDS_MAX: Final = 3
"""First read, second read with the block that the first one named, and one more for a reorganisation in between."""

PARSE_INLINE_LOGS_MAX: Final = 50
"""Receipts with more logs are decoded in a thread: each log takes 0.14 ms when its addresses are new (Keccak)."""

_NEWEST_BLOCK: Final = Call("eth_getBlockByNumber", ("latest", False))


class EvmFamily:
    """Every batch proves its own chain: an address may be served by another node with each request."""

    async def read_identity(self, node: PooledEndpoint) -> tuple[int, int]:
        """See `ChainFamily`."""
        chain_id, height = await node.endpoint.batch([CHAIN_ID, BLOCK_NUMBER])
        return read_quantity(chain_id), read_quantity(height)

    async def read_progress(
        self, pool: EndpointPool, node: PooledEndpoint, tags: Sequence[str], *, deadline: float
    ) -> NodeProgress:
        """See `ChainFamily`."""
        calls = [CHAIN_ID, BLOCK_NUMBER, *(_tag_call(tag) for tag in tags)]
        chain_id, height, *replies = await node.endpoint.batch(calls, deadline=deadline)
        pool.check_chain(read_quantity(chain_id))
        head = pool.saw_head(node, read_quantity(height))
        return NodeProgress(
            head, [_read_tag(node.label, tag, reply, head) for tag, reply in zip(tags, replies, strict=True)]
        )

    async def read_newest(self, pool: EndpointPool, node: PooledEndpoint, *, deadline: float) -> ChainHead:
        """See `ChainFamily`."""
        chain_id, block = await node.endpoint.batch([CHAIN_ID, _NEWEST_BLOCK], deadline=deadline)
        pool.check_chain(read_quantity(chain_id))
        newest = read_head(block)
        pool.saw_head(node, newest.number)
        return newest

    async def read_tag(self, pool: EndpointPool, node: PooledEndpoint, tag: str) -> TaggedBlock:
        """See `ChainFamily`."""
        head: int | None = None
        try:
            chain_id, block, height = await node.endpoint.batch([CHAIN_ID, _tag_call(tag), BLOCK_NUMBER])
            pool.check_chain(read_quantity(chain_id))
            head = read_quantity(height)
        except EndpointFailure as failure:
            # Not recorded as a failure: some nodes do not know the tags and serve payments well.
            return TaggedBlock(node.label, head, error=failure.message)
        return _read_tag(node.label, tag, block, head)

    async def read_hashes(
        self, pool: EndpointPool, node: PooledEndpoint, numbers: Sequence[int], tags: Sequence[str], *, deadline: float
    ) -> NodeBlocks:
        """See `ChainFamily`."""
        calls = [
            CHAIN_ID,
            BLOCK_NUMBER,
            *(_tag_call(tag) for tag in tags),
            *(block_call(number) for number in numbers),
        ]
        chain_id, height, *replies = await node.endpoint.batch(calls, deadline=deadline)
        pool.check_chain(read_quantity(chain_id))
        head = pool.saw_head(node, read_quantity(height))
        tagged = [_read_tag(node.label, tag, reply, head) for tag, reply in zip(tags, replies, strict=False)]
        hashes: dict[int, str] = {}
        for number, reply in zip(numbers, replies[len(tags) :], strict=True):
            try:
                block = read_block(reply, number)
            except EndpointFailure as failure:
                if failure.failure in {Failure.RATE_LIMITED, Failure.CONTRADICTION}:
                    raise
                continue  # pruned, or faulty at this height: it has no vote there
            # A block above its own head is none.
            if block is not None and number <= head:
                hashes[number] = block.block_hash
        return NodeBlocks(NodeProgress(head, tagged), hashes)

    async def read_payment(
        self,
        pool: EndpointPool,
        node: PooledEndpoint,
        tx_hash: str,
        *,
        block_hint: int | None,
        coin: bool,
        deadline: float,
    ) -> Reading:
        """Receipt, head and the block at the receipt's height, all three of the same batch; with `coin` the trace, too.

        Questions about other payments may be in it, too.
        """
        height = block_hint
        asked: BlockHeader | None = None
        for round_number in range(ROUNDS_MAX):
            calls = [CHAIN_ID, BLOCK_NUMBER, Call("eth_getTransactionReceipt", (tx_hash,))]
            if coin:
                calls.append(transaction_traces_call(tx_hash))
            if height is not None:
                calls.append(block_call(height))
            replies = await node.joined.ask(calls, deadline=deadline)
            chain_id = pool.check_chain(read_quantity(replies[0]))
            head = pool.saw_head(node, read_quantity(replies[1]))
            receipt = await _receipt(replies[2], tx_hash)
            block = read_header(replies[-1], height) if height is not None else None
            if round_number == 0:
                asked = block
            there = receipt is not None and receipt.block_number <= head
            if receipt is None or not there or receipt.block_number == height:
                if receipt is not None and there and coin:
                    receipt = await with_coin(receipt, replies[3])
                view = ChainView(
                    chain_id=chain_id,
                    endpoint=node.label,
                    head_number=head,
                    receipt=receipt,
                    canonical=block if there else None,
                )
                return Reading(view, asked, stalled=node.breaker.is_stalled(pool.clock()))
            height = receipt.block_number
        raise EndpointFailure(Failure.CONTRADICTION, f"the receipt was in another block at each of {ROUNDS_MAX} reads")

    async def read_transfers(
        self,
        pool: EndpointPool,
        node: PooledEndpoint,
        scope: TransferScope,
        first: int,
        last: int,
        *,
        anchor: int | None,
    ) -> TransferRange:
        """One log query for each 500 recipients (`chain.history`); of the chain's own coin a trace of each block."""

        def saw_head(head: int) -> None:
            if pool.mark.is_behind(pool.saw_head(node, head)):
                raise pool.behind(node, head)

        read = read_coin_range if scope.is_of_coin else read_range
        return await read(node.history, scope, first, last, anchor=anchor, saw_head=saw_head)

    async def read_blocks(
        self, pool: EndpointPool, node: PooledEndpoint, numbers: Sequence[int]
    ) -> dict[int, MinedBlock | None]:
        """See `ChainFamily`."""
        return await read_blocks(node.history, pool.chain_id, numbers)


async def _receipt(reply: Reply, tx_hash: str) -> Receipt | None:
    raw = reply.result
    if isinstance(raw, dict) and isinstance(raw.get("logs"), list) and len(raw["logs"]) > PARSE_INLINE_LOGS_MAX:
        return await asyncio.to_thread(read_receipt, reply, tx_hash)
    return read_receipt(reply, tx_hash)


def _tag_call(tag: str) -> Call:
    return Call("eth_getBlockByNumber", (tag, False))


def _read_tag(label: str, tag: str, reply: Reply, head: int) -> TaggedBlock:
    """The block that an endpoint with this head calls `tag`; never raises for a faulty answer."""
    try:
        number = read_tagged_number(reply)
    except EndpointFailure as failure:
        return TaggedBlock(label, head, error=failure.message)
    if number is None:
        return TaggedBlock(label, head, error=f"has no {tag} block (answers null)")
    if number == 0:
        return TaggedBlock(label, head, 0, error=f"has no {tag} block but block 0")
    if number > head:
        return TaggedBlock(label, head, error=f"calls block {number} {tag}, its head is {head}")
    return TaggedBlock(label, head, number)
