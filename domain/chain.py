"""Values read from a chain node. `chain/` reads them, `domain.payments.verification` evaluates them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Final

from pydantic import BaseModel, ConfigDict

from domain.coin import NATIVE_COIN
from domain.errors import WorkerOfAnotherChain
from domain.identifiers import Address, Recipient, TxHash


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
    """One ERC-20 `Transfer` event; `emitter` is the contract that logged it.

    Or a movement of the chain's own coin, whose place is in place of the log index (`domain.coin`).
    """

    log_index: int
    emitter: Address
    from_address: Address
    to_address: Recipient
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
    matures_after: int = 0
    """Confirmations before which the chain lets no one spend what it transfers: of a block's reward."""


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


def _lowered(addresses: Sequence[str]) -> frozenset[str]:
    return frozenset(address.lower() for address in addresses)


class TransferScope(ChainValue):
    """Scope of the transfers to watch: of `token`, to `treasury`, on chain `chain_id`.

    The three are also the key under which the watcher's progress is stored.
    """

    chain_id: int
    token: Address
    treasury: Recipient

    @property
    def emitters(self) -> tuple[Address, ...]:
        """The tokens whose transfers are read."""
        return (self.token,)

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The addresses to which transfers are read."""
        return (self.treasury,)

    @property
    def is_of_coin(self) -> bool:
        """Whether the chain's own coin is read, and no token."""
        return self.emitters == (NATIVE_COIN,)

    def selects(self, token: str, sender: str, recipient: str) -> bool:
        """Whether a transfer is of the scope, by token, sender and recipient in lower case."""
        return token in self._tokens and (recipient in self._to or (recipient in self._onward and sender in self._to))

    @cached_property
    def _tokens(self) -> frozenset[str]:
        return _lowered(self.emitters)

    @cached_property
    def _to(self) -> frozenset[str]:
        return _lowered(self.recipients)

    @cached_property
    def _onward(self) -> frozenset[str]:
        """To whom the recipients' own transfers are of the scope as well."""
        return frozenset()

    @property
    def words(self) -> str:
        """How a message names it."""
        return f"treasury {self.treasury}"


DEPOSITS_TOKEN: Final = "0x00000000000000000000000000000000000000DE"
"""In place of a token in the key of deposits' scopes: they are of several tokens."""


class DepositLane(StrEnum):
    """How often a deposit address is read. The value is in place of a treasury in the key of the lane's scope."""

    BUSY = "0x00000000000000000000000000000000De900001"
    """With each block: used within a day."""

    QUIET = "0x00000000000000000000000000000000DE900002"
    """Every few minutes: used within a month, the busy ones too, so that one that changes lane is always read."""

    COIN = "0x00000000000000000000000000000000dE900003"
    """All addresses, for an EVM chain's own coin: its blocks are traced whole, whatever the number of addresses."""


class DepositScope(TransferScope):
    """Transfers of several tokens to many addresses, those of one lane."""

    tokens: tuple[Address, ...] = ()
    addresses: tuple[Recipient, ...] = ()
    treasuries: tuple[Recipient, ...] = ()
    """Where the addresses send their coin to: of the coin's lane these transfers are read as well, which sweeps are."""

    @classmethod
    def of(
        cls, chain_id: int, lane: DepositLane, tokens: Sequence[Address] = (), addresses: Sequence[Recipient] = ()
    ) -> DepositScope:
        """The scope of a lane, whatever addresses are in it now."""
        return cls(
            chain_id=chain_id,
            token=DEPOSITS_TOKEN,
            treasury=lane.value,
            tokens=tuple(tokens),
            addresses=tuple(addresses),
        )

    @property
    def emitters(self) -> tuple[Address, ...]:
        """The tokens of the payment methods; while there are none, one that is no token."""
        return self.tokens or (self.token,)

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The addresses of the lane; while there are none, one that is not in use, so that progress continues."""
        return self.addresses or (self.treasury,)

    @cached_property
    def _onward(self) -> frozenset[str]:
        return _lowered(self.treasuries)

    @property
    def words(self) -> str:
        """How a message names it."""
        lane = DepositLane(self.treasury)
        return "the chain's own coin" if lane is DepositLane.COIN else f"{lane.name.lower()} deposit addresses"


def scope_of_key(chain_id: int, token: str, to_address: str) -> TransferScope:
    """The scope whose progress is stored under a key; of a lane without the addresses that are in it now."""
    if token == DEPOSITS_TOKEN:
        return DepositScope.of(chain_id, DepositLane(to_address))
    return TransferScope(chain_id=chain_id, token=token, treasury=to_address)


class Transfer(ChainValue):
    """One transfer in a scope, at its position on the canonical chain."""

    tx_hash: TxHash
    log_index: int
    block_number: int
    block_hash: TxHash
    block_time: datetime
    from_address: Address
    value_raw: int
    token: Address | None = None
    to_address: Recipient | None = None
    """Of which token and to whom, where its scope does not say: of a deposit."""


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
