"""Reads the chain's history: the transfers in a range of blocks, and blocks by height."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from chain.endpoint_pool import EndpointPool, EndpointsFailed, PooledEndpoint
from chain.family import ChainFamily
from chain.history import HistoryRefused, RangeRefused
from chain.rpc import Failure
from chain.traces import trace_problem
from domain.chain import MinedBlock, TransferRange, TransferScope

log = logging.getLogger(__name__)


class LogReader:
    """The chain's history, read from one endpoint at a time."""

    def __init__(self, pool: EndpointPool, family: ChainFamily) -> None:
        self._pool = pool
        self._family = family

    async def transfers(
        self,
        scope: TransferScope,
        first: int,
        last: int,
        *,
        anchor: int | None = None,
        endpoint: str | None = None,
    ) -> TransferRange:
        """The transfers in blocks `first` to `last`, or to an earlier one where one answer holds no more.

        One log query, whatever the number of transfers; of the chain's own coin a question for each block. With
        `anchor`, also that block as it is at this moment. A range that an endpoint refuses is made smaller for it,
        which is remembered, and does not affect reading payments from that endpoint. With `endpoint`, a label, only
        that one is asked. Raises `EndpointsFailed` with each endpoint's reason, also where a head is below `last`; of a
        single endpoint its own failure. Both are `ChainUnavailable`.
        """

        async def read(node: PooledEndpoint, _: float) -> TransferRange:
            return await self._read_transfers(node, scope, first, last, anchor)

        if endpoint is None:
            return await self._pool.ask_first(read)
        return await self._pool.ask(self._pool.node(endpoint), read)

    async def blocks(self, numbers: Sequence[int]) -> dict[int, MinedBlock | None]:
        """The blocks at these heights as one endpoint has them now; None above its head.

        A block below their heads that no endpoint returns is missing from the answer. Raises `ChainUnavailable`.
        """

        partial: list[dict[int, MinedBlock | None]] = []

        async def read(node: PooledEndpoint, _: float) -> dict[int, MinedBlock | None]:
            blocks = await self._family.read_blocks(self._pool, node, numbers)
            if missing := sorted(set(numbers) - blocks.keys()):
                partial.append(blocks)
                raise HistoryRefused(
                    Failure.CONTRADICTION, f"does not return block {missing[0]}, which is below its head"
                )
            return blocks

        try:
            return await self._pool.ask_first(read)
        except EndpointsFailed:
            if not partial:
                raise
            return max(partial, key=len)

    async def untraced(self) -> dict[str, str]:
        """Endpoints that cannot be asked about an EVM chain's own coin, each with the reason; empty where all can.

        Never raises for a faulty endpoint.
        """
        nodes = self._pool.nodes()
        problems = await asyncio.gather(*(trace_problem(node.history, self._pool.chain_id) for node in nodes))
        return {node.label: problem for node, problem in zip(nodes, problems, strict=True) if problem is not None}

    async def _read_transfers(
        self, node: PooledEndpoint, scope: TransferScope, first: int, last: int, anchor: int | None
    ) -> TransferRange:
        """As many of the blocks as the endpoint returns in one answer."""
        limit = node.block_range if scope.is_of_coin else node.log_range
        while True:
            until = min(last, first + limit.size - 1)
            try:
                found = await self._family.read_transfers(self._pool, node, scope, first, until, anchor=anchor)
            except RangeRefused as refusal:
                if not limit.refused(until - first + 1):
                    raise
                log.info(
                    "chain endpoint %s refuses a query of %d blocks (%s), asking for %d",
                    node.label,
                    until - first + 1,
                    refusal.message,
                    limit.size,
                )
            else:
                limit.answered(until - first + 1)
                return found
