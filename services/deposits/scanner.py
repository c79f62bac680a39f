"""Reads the transfers to deposit addresses, a lane at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from chain.reader import ChainReader
from db.engine import ServiceDatabase
from domain.chain import DepositLane, DepositScope
from domain.transfers.rescan import RescanReport
from services.deposits.lanes import DepositAddresses
from services.transfers.block_scanner import GAP_SECONDS_MAX, OVERLAP_BLOCKS, BlockScanner

RESCANNED_PART: Final = 4
"""Of the blocks that a re-scan names, so much less is read again of the coin's lane: a trace costs a node more than any
other question, and says by itself that no transaction is missing. At the usual numbers each block is read once more.
"""


class DepositScanner(BlockScanner):
    """A block scanner whose addresses change: before each range it asks which there are.

    One that is given out between that and the query is found all the same: the newest blocks are read again with the
    next range (`services.transfers.block_scanner.OVERLAP_BLOCKS`). Not those of the coin's lane, where each costs a
    trace: an address that was asked for after the head was known is paid in a later block.
    """

    def __init__(
        self,
        chain: ChainReader,
        database: ServiceDatabase,
        addresses: DepositAddresses,
        lane: DepositLane,
        *,
        chain_id: int,
        look_back_blocks: int,
        from_block: int | None = None,
    ) -> None:
        super().__init__(
            chain,
            database,
            DepositScope.of(chain_id, lane),
            from_block=from_block,
            look_back_blocks=look_back_blocks,
            overlap_blocks=0 if lane is DepositLane.COIN else OVERLAP_BLOCKS,
        )
        self._addresses = addresses
        self._lane = lane

    async def _choose_scope(self) -> None:
        self.scope = await self._addresses.scope(self._lane)

    async def read_again(
        self,
        first: int,
        last: int,
        *,
        seconds_max: float = GAP_SECONDS_MAX,
        on_range: Callable[[int], None] | None = None,
    ) -> int:
        """Read blocks below the cursor, for the lane as it is now: what was not read is not taken for read."""
        await self._choose_scope()
        return await super().read_again(first, last, seconds_max=seconds_max, on_range=on_range)

    async def rescan(self, blocks: int) -> RescanReport:
        """Read the last blocks again, with every endpoint, for the lane as it is now."""
        await self._choose_scope()
        return await super().rescan(blocks if self._lane is not DepositLane.COIN else blocks // RESCANNED_PART)
