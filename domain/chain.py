"""What a chain node said, as plain values. `chain/` reads it, `domain.payments.verification` evaluates it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from domain.errors import WorkerOfAnotherChain
from domain.identifiers import Address, TxHash


def require_own_chain(what: str, chain_id: int | None, *, own: int) -> None:
    """Whoever reads chain `own` decides about nothing that belongs to another. Raises `WorkerOfAnotherChain`.

    `what` names the thing for the operator; a `chain_id` of None belongs to no chain, and anybody may look after it.
    """
    if chain_id is not None and chain_id != own:
        raise WorkerOfAnotherChain(what, chain_id, own)


class ChainValue(BaseModel):
    """Immutable value read from a node."""

    model_config = ConfigDict(frozen=True)


class TransferLog(ChainValue):
    """One ERC-20 `Transfer` event, of whatever contract: `emitter` says which."""

    log_index: int
    emitter: Address
    from_address: Address
    to_address: Address
    value_raw: int


class Receipt(ChainValue):
    """A transaction's receipt, reduced to what a payment needs."""

    tx_hash: TxHash
    succeeded: bool
    block_number: int
    block_hash: TxHash
    transfers: tuple[TransferLog, ...] = ()


class BlockHeader(ChainValue):
    """The block that a node has at a height now."""

    number: int
    block_hash: TxHash
    tx_hashes: frozenset[str] = frozenset()
    mined_at: datetime | None = None
    """By the node's word; nothing is decided by it."""


class ChainHead(ChainValue):
    """The newest block that a node has."""

    number: int
    mined_at: datetime


class MinedBlock(ChainValue):
    """A block that a node has now, and when it was mined, by its own clock."""

    number: int
    block_hash: TxHash
    mined_at: datetime


class TransferScope(ChainValue):
    """Which transfers are watched: of `token` to `treasury`, on chain `chain_id`."""

    chain_id: int
    token: Address
    treasury: Address


class Transfer(ChainValue):
    """One transfer of the token to the treasury, where it is on the canonical chain."""

    tx_hash: TxHash
    log_index: int
    block_number: int
    block_hash: TxHash
    block_time: datetime
    from_address: Address
    value_raw: int


class TransferRange(ChainValue):
    """All transfers in blocks `first` to `last`, as one node has them; none is above the node's head."""

    endpoint: str
    head_number: int
    first: int
    last: int
    last_block: MinedBlock
    anchor: MinedBlock | None = None
    """The block that the reader wanted to be shown with it, read at the same moment."""
    transfers: tuple[Transfer, ...] = ()


class ChainView(ChainValue):
    """One node's answer about one transaction, all parts read in one batch.

    `canonical` is the block that the node has *now* at the receipt's height: None where there is no
    receipt, or where the node has no block there yet (a pre-confirmed receipt).
    """

    chain_id: int
    endpoint: str
    head_number: int
    receipt: Receipt | None = None
    canonical: BlockHeader | None = None
