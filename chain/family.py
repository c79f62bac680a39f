"""What a family of chains provides: how one node is asked, and what its answers mean. Nothing else differs.

Which node is asked, what several answers together prove, and what follows for a payment is written once, for all
families: in the readers of this package, in `domain.payments` and in the watcher. A family derives addresses, reads the
transfers of blocks, and says where a transaction is (derive, scan, confirm): the first is `chain.derivation`, the
others are the methods here. EVM chains are `chain.evm`, Bitcoin's family is `chain.bitcoin.node`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from chain.endpoint_pool import EndpointPool, PooledEndpoint
from chain.quorum import Reading
from domain.chain import ChainHead, MinedBlock, TransferRange, TransferScope


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
class NodeProgress:
    """How far one node says that its chain is: its head, and its blocks of some tags, in the order asked for."""

    head_number: int
    tagged: Sequence[TaggedBlock] = ()


@dataclass(frozen=True, slots=True)
class NodeBlocks:
    """Hashes of one node's blocks, at the heights at which it has one, with how far it is at that moment."""

    progress: NodeProgress
    hashes: Mapping[int, str]


class ChainFamily(Protocol):
    """The questions to one node. Whatever several answers must have in common is asked in one request.

    An answer of another chain is refused by `EndpointPool.check_chain`, and the node's head is recorded by
    `EndpointPool.saw_head`, before anything else in it is used. Raises `EndpointFailure` where there is no usable
    answer, at `deadline` (the event loop's time) at the latest; `HistoryRefused` where a healthy node does not answer
    about blocks of the past.
    """

    async def read_identity(self, node: PooledEndpoint) -> tuple[int, int]:
        """The id of the node's chain, and its height; for a report, so that neither is recorded."""

    async def read_progress(
        self, pool: EndpointPool, node: PooledEndpoint, tags: Sequence[str], *, deadline: float
    ) -> NodeProgress:
        """The node's height, and the blocks that it calls `tags`."""

    async def read_newest(self, pool: EndpointPool, node: PooledEndpoint, *, deadline: float) -> ChainHead:
        """The node's newest block."""

    async def read_tag(self, pool: EndpointPool, node: PooledEndpoint, tag: str) -> TaggedBlock:
        """The block that the node calls `tag`; never raises, since a node may serve payments well and know no tags."""

    async def read_hashes(
        self, pool: EndpointPool, node: PooledEndpoint, numbers: Sequence[int], tags: Sequence[str], *, deadline: float
    ) -> NodeBlocks:
        """The node's blocks at these heights."""

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
        """Where the transaction is, what it transfers, and the block that is at that height now.

        `Reading.asked` is the node's block at `block_hint`. Without `coin` movements of the chain's own coin may be
        missing, where reading them costs another question.
        """

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
        """All transfers of the scope in these blocks. Raises `RangeRefused` where fewer blocks may be answered."""

    async def read_blocks(
        self, pool: EndpointPool, node: PooledEndpoint, numbers: Sequence[int]
    ) -> dict[int, MinedBlock | None]:
        """The node's blocks at these heights; None above its head, missing where it does not return one below it."""
