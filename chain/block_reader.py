"""Which block each endpoint has at given heights, and how far it says that its chain is final: one request to each.

All endpoints are asked, since what follows is irreversible and one node may lie; `chain.quorum.agreed_hash` counts the
votes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from chain.endpoint_pool import NO_ENDPOINT, EndpointPool, PooledEndpoint
from chain.family import ChainFamily, TaggedBlock
from chain.head_reader import reached_by_tag
from chain.quorum import agreed_hash, reached_by_most
from chain.rpc import EndpointFailure
from domain.errors import ChainUnavailable

BLOCKS_MAX: Final = 45
"""Blocks in one request: with head, tags and the chain's id below the 50 calls that providers allow in a second."""


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One endpoint's answer; `hashes` has the heights at which it has a block."""

    endpoint: str
    head_number: int
    hashes: Mapping[int, str]
    tagged: Mapping[str, TaggedBlock]
    is_stalled: bool = False
    is_behind: bool = False


@dataclass(frozen=True, slots=True)
class CanonicalBlocks:
    """What all the endpoints that answered say about some heights, at one moment."""

    reports: Sequence[BlockReport]
    silent: Mapping[str, str] = field(default_factory=dict)
    """Why each of the other endpoints gave no usable answer."""

    def hash_at(self, number: int) -> str | None:
        """Hash of the canonical block at that height; None where no hash outnumbers all others.

        A single vote counts only from an endpoint that is not behind: it may still be on an abandoned branch.
        """
        voters = [report for report in self.reports if number in report.hashes]
        if len(voters) == 1 and voters[0].is_behind:
            return None
        return agreed_hash([report.hashes[number] for report in voters])

    @property
    def head_number(self) -> int:
        """The height that most of the endpoints have reached, stuck ones excepted unless all are."""
        moving = [report for report in self.reports if not report.is_stalled] or self.reports
        return reached_by_most([report.head_number for report in moving])

    def tagged_number(self, tag: str) -> int:
        """The highest block that most of the endpoints with a usable one call `tag`. Raises `ChainUnavailable`."""
        return reached_by_tag(tag, [report.tagged[tag] for report in self.reports])


class BlockReader:
    """The endpoints' blocks by height."""

    def __init__(self, pool: EndpointPool, family: ChainFamily) -> None:
        self._pool = pool
        self._family = family

    async def canonical(self, numbers: Sequence[int], *, tags: Sequence[str] = ()) -> CanonicalBlocks:
        """What every endpoint has at these heights, at most `BLOCKS_MAX` of them, and as its tagged blocks.

        They are asked concurrently, each with one request and for at most `timeout_seconds`; only a pause that an
        endpoint requested is respected. Raises `ChainUnavailable` with each one's reason when none answers.
        """
        if len(numbers) > BLOCKS_MAX:
            raise ValueError(f"expected at most {BLOCKS_MAX} blocks, got {len(numbers)}")
        nodes = self._pool.nodes()
        heard = await asyncio.gather(*(self._hear(node, numbers, tags) for node in nodes))
        silent = {
            node.label: answer for node, answer in zip(nodes, heard, strict=True) if not isinstance(answer, BlockReport)
        }
        reports = [answer for answer in heard if isinstance(answer, BlockReport)]
        if not reports:
            raise ChainUnavailable(NO_ENDPOINT + "; ".join(f"{label}: {reason}" for label, reason in silent.items()))
        # Compared with the highest head when all have answered: which one answers first says nothing.
        return CanonicalBlocks(
            [replace(report, is_behind=self._pool.mark.is_behind(report.head_number)) for report in reports],
            silent,
        )

    async def _hear(self, node: PooledEndpoint, numbers: Sequence[int], tags: Sequence[str]) -> BlockReport | str:
        """Its answer, or why there is none."""
        if pause := self._pool.pause(node):
            return pause

        async def read(node: PooledEndpoint, deadline: float) -> BlockReport:
            return await self._read(node, deadline, numbers, tags)

        try:
            report = await self._pool.ask(node, read)
        except EndpointFailure as failure:
            return failure.message
        if not self._pool.mark.is_behind(report.head_number):
            self._pool.served(node)
        return report

    async def _read(
        self, node: PooledEndpoint, deadline: float, numbers: Sequence[int], tags: Sequence[str]
    ) -> BlockReport:
        blocks = await self._family.read_hashes(self._pool, node, numbers, tags, deadline=deadline)
        return BlockReport(
            node.label,
            blocks.progress.head_number,
            blocks.hashes,
            dict(zip(tags, blocks.progress.tagged, strict=True)),
            is_stalled=node.breaker.is_stalled(self._pool.clock()),
        )
