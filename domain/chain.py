"""What a chain node said, as plain values. Reading it is `chain/`'s work; judging it is `domain.verdict`'s."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from domain.identifiers import Address, TxHash


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
