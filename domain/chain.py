"""Values read from a chain node. `chain/` reads them, `domain.payments.verification` evaluates them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from domain.errors import WorkerOfAnotherChain
from domain.identifiers import Address, TxHash


def require_own_chain(what: str, chain_id: int | None, *, own: int) -> None:
    """Refuse to decide about another chain's data: a process that reads chain `own` must not.

    Raises `WorkerOfAnotherChain`. `what` names the subject for the operator. A `chain_id` of None belongs to no chain,
    so that any process may handle it.
    """
    if chain_id is not None and chain_id != own:
        raise WorkerOfAnotherChain(what, chain_id, own)


class ChainValue(BaseModel):
    """Immutable value read from a node."""

    model_config = ConfigDict(frozen=True)


class TransferLog(ChainValue):
    """One ERC-20 `Transfer` event; `emitter` is the contract that logged it."""

    log_index: int
    emitter: Address
    from_address: Address
    to_address: Address
    value_raw: int
    authorization_nonce: str | None = None
    """Of a transfer by signature (EIP-3009), in a receipt: the nonce of the event directly before it, of the same token
    and sender."""


class Receipt(ChainValue):
    """A transaction's receipt, reduced to the fields that a payment needs."""

    tx_hash: TxHash
    succeeded: bool
    block_number: int
    block_hash: TxHash
    transfers: tuple[TransferLog, ...] = ()


class BlockHeader(ChainValue):
    """The block that a node currently has at a height."""

    number: int
    block_hash: TxHash
    tx_hashes: frozenset[str] = frozenset()
    mined_at: datetime | None = None
    """As reported by the node; no decision depends on it."""


class ChainHead(ChainValue):
    """The newest block of a node."""

    number: int
    mined_at: datetime


class MinedBlock(ChainValue):
    """A block that a node currently has, and its timestamp by the chain's clock."""

    number: int
    block_hash: TxHash
    mined_at: datetime


class TransferScope(ChainValue):
    """Scope of the transfers to watch: of `token`, to `treasury`, on chain `chain_id`."""

    chain_id: int
    token: Address
    treasury: Address


class Transfer(ChainValue):
    """One transfer of the token to the treasury, at its position on the canonical chain."""

    tx_hash: TxHash
    log_index: int
    block_number: int
    block_hash: TxHash
    block_time: datetime
    from_address: Address
    value_raw: int


class TransferRange(ChainValue):
    """All transfers in blocks `first` to `last`, as reported by one node whose head is at or above `last`."""

    endpoint: str
    head_number: int
    first: int
    last: int
    last_block: MinedBlock
    anchor: MinedBlock | None = None
    """The anchor block that the reader asked for, read in the same batch."""
    transfers: tuple[Transfer, ...] = ()


class ChainView(ChainValue):
    """One node's answer about one transaction, all parts read in one batch.

    `canonical` is the block that the node has *now* at the receipt's height. It is None without a receipt, and where
    the node has no block at that height yet (a pre-confirmed receipt).
    """

    chain_id: int
    endpoint: str
    head_number: int
    receipt: Receipt | None = None
    canonical: BlockHeader | None = None
