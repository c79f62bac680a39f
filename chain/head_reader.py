"""Reads the head of a chain: its newest block, and the blocks that the nodes call safe or finalized."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID, EndpointPool, PooledEndpoint
from chain.quorum import reached_by_most
from chain.rpc import Call, EndpointFailure, Reply
from chain.wire import read_head, read_quantity, read_tagged_number
from domain.chain import ChainHead
from domain.errors import ChainUnavailable

TAG_SECONDS: Final = 1.0
"""How long a tag's block is cached: half a block of Base, and the tags trail by minutes."""

_NEWEST_BLOCK: Final = Call("eth_getBlockByNumber", ("latest", False))


@dataclass(frozen=True, slots=True)
class TaggedBlock:
    """The block that one endpoint calls "safe" or "finalized". `error` is one line, None where the block is usable.

    Block 0 has both a height and an error: it is a true answer on a chain of a few blocks, and a fault on any other.
    """

    label: str
    head_number: int | None = None
    number: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ChainProgress:
    """The height of the chain, and the blocks that one endpoint calls by the tags that were asked for.

    A tag that it has no block for is missing.
    """

    head_number: int
    tagged: Mapping[str, int]


class HeadReader:
    """The endpoints' view of their own progress."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self._tags: dict[str, tuple[float, int]] = {}

    async def height(self) -> int:
        """The height of the chain; never below a height returned before, unless that one was discarded as false.

        Raises `ChainUnavailable`.
        """
        return (await self.progress(())).head_number

    async def progress(self, tags: Sequence[str]) -> ChainProgress:
        """The same height, and the blocks that the endpoint it comes from calls `tags`: one request.

        One endpoint's word, good for asking all of them, and for nothing irreversible. Raises `ChainUnavailable`.
        """

        async def read(node: PooledEndpoint, deadline: float) -> ChainProgress:
            calls = [CHAIN_ID, BLOCK_NUMBER, *(tag_call(tag) for tag in tags)]
            chain_id, height, *replies = await node.endpoint.batch(calls, deadline=deadline)
            self._pool.check_chain(chain_id)
            head = self._pool.saw_head(node, read_quantity(height))
            if self._pool.mark.is_behind(head):
                raise self._pool.behind(node, head)
            tagged = [read_tag(node.label, tag, reply, head) for tag, reply in zip(tags, replies, strict=True)]
            numbers = {tag: block.number for tag, block in zip(tags, tagged, strict=True) if block.number is not None}
            return ChainProgress(max(head, self._pool.mark.value), numbers)

        return await self._pool.ask_first(read)

    async def newest_block(self) -> ChainHead:
        """The newest block of the first endpoint that is not behind, with its time. Raises `ChainUnavailable`."""

        async def read(node: PooledEndpoint, deadline: float) -> ChainHead:
            chain_id, block = await node.endpoint.batch([CHAIN_ID, _NEWEST_BLOCK], deadline=deadline)
            self._pool.check_chain(chain_id)
            newest = read_head(block)
            if self._pool.mark.is_behind(self._pool.saw_head(node, newest.number)):
                raise self._pool.behind(node, newest.number)
            return newest

        return await self._pool.ask_first(read)

    async def tagged_number(self, tag: str) -> int:
        """The highest block that more than half of the answering endpoints call `tag` ("safe" or "finalized").

        All are asked concurrently. An answer is cached for `TAG_SECONDS`, because every waiting payment needs the same.
        Raises `ChainUnavailable` naming each endpoint's reason when none knows the tag.
        """
        kept = self._tags.get(tag)
        if kept is not None and self._pool.clock() - kept[0] < TAG_SECONDS:
            return kept[1]
        number = reached_by_tag(tag, await self.tagged_blocks(tag))
        self._tags[tag] = (self._pool.clock(), number)
        return number

    async def tagged_blocks(self, tag: str) -> list[TaggedBlock]:
        """The block that each endpoint calls `tag` now, in order of preference; never raises for a faulty endpoint.

        Block 0 means that nothing is final yet; a block above the endpoint's own head is not usable.
        """
        calls = [CHAIN_ID, tag_call(tag), BLOCK_NUMBER]

        async def hear(node: PooledEndpoint) -> TaggedBlock:
            if pause := self._pool.pause(node):
                return TaggedBlock(node.label, error=pause)
            head: int | None = None
            try:
                chain_id, block, height = await node.endpoint.batch(calls)
                self._pool.check_chain(chain_id)
                head = read_quantity(height)
            except EndpointFailure as failure:
                # Not recorded as a failure: some nodes do not know the tags and serve payments well.
                return TaggedBlock(node.label, head, error=failure.message)
            return read_tag(node.label, tag, block, head)

        return list(await asyncio.gather(*(hear(node) for node in self._pool.nodes())))


def tag_call(tag: str) -> Call:
    """The call for the block that a node calls `tag`."""
    return Call("eth_getBlockByNumber", (tag, False))


def read_tag(label: str, tag: str, reply: Reply, head: int) -> TaggedBlock:
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


def reached_by_tag(tag: str, blocks: Sequence[TaggedBlock]) -> int:
    """The highest block that more than half of the endpoints with a usable one call `tag`.

    0 where only block 0 has the tag. Raises `ChainUnavailable` naming each endpoint's reason when there is none.
    """
    numbers = [block.number for block in blocks if block.number is not None]
    # A node on which nothing has ever become final has no vote on how far others are.
    numbers = [number for number in numbers if number > 0] or numbers
    if not numbers:
        reasons = "; ".join(f"{block.label}: {block.error}" for block in blocks)
        raise ChainUnavailable(f"the nodes have no {tag} block: {reasons}")
    return reached_by_most(numbers)
