"""Reads the head of a chain: its newest block, and the blocks that the nodes call safe or finalized."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chain.endpoint_pool import EndpointHealth, EndpointPool, PooledEndpoint
from chain.family import ChainFamily, TaggedBlock
from chain.quorum import reached_by_most
from chain.rpc import EndpointFailure
from domain.chain import ChainHead
from domain.errors import ChainUnavailable

TAG_SECONDS: Final = 1.0
"""How long a tag's block is cached: half a block of Base, and the tags trail by minutes."""


@dataclass(frozen=True, slots=True)
class ChainProgress:
    """The height of the chain, and the blocks that one endpoint calls by the tags that were asked for.

    A tag that it has no block for is missing.
    """

    head_number: int
    tagged: Mapping[str, int]


class HeadReader:
    """The endpoints' view of their own progress."""

    def __init__(self, pool: EndpointPool, family: ChainFamily) -> None:
        self._pool = pool
        self._family = family
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
            found = await self._family.read_progress(self._pool, node, tags, deadline=deadline)
            if self._pool.mark.is_behind(found.head_number):
                raise self._pool.behind(node, found.head_number)
            numbers = {
                tag: block.number for tag, block in zip(tags, found.tagged, strict=True) if block.number is not None
            }
            return ChainProgress(max(found.head_number, self._pool.mark.value), numbers)

        return await self._pool.ask_first(read)

    async def newest_block(self) -> ChainHead:
        """The newest block of the first endpoint that is not behind, with its time. Raises `ChainUnavailable`."""

        async def read(node: PooledEndpoint, deadline: float) -> ChainHead:
            newest = await self._family.read_newest(self._pool, node, deadline=deadline)
            if self._pool.mark.is_behind(newest.number):
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

        async def hear(node: PooledEndpoint) -> TaggedBlock:
            if pause := self._pool.pause(node):
                return TaggedBlock(node.label, error=pause)
            return await self._family.read_tag(self._pool, node, tag)

        return list(await asyncio.gather(*(hear(node) for node in self._pool.nodes())))

    async def health(self) -> list[EndpointHealth]:
        """What each endpoint answers now, in order of preference; never raises for a faulty endpoint."""

        async def check(node: PooledEndpoint) -> EndpointHealth:
            try:
                chain_id, head = await self._family.read_identity(node)
            except EndpointFailure as failure:
                return EndpointHealth(node.label, reachable=False, error=failure.message)
            error = None
            if chain_id != self._pool.chain_id:
                error = self._pool.wrong_chain(chain_id).message
            elif self._pool.mark.is_behind(head):
                error = f"head {head} is behind {self._pool.mark.value}, the highest seen"
            return EndpointHealth(node.label, reachable=True, chain_id=chain_id, head_number=head, error=error)

        return list(await asyncio.gather(*(check(node) for node in self._pool.nodes())))


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
