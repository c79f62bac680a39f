"""What can be paid with, and the addresses that are given out for it. Rows of the tables of the same names."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.identifiers import Address

WORTH_CREDITS_MAX: Final = 10**18
"""A hundred billion dollars. A token may log any number: above this it is no payment, and integers end soon."""


class MethodKind(StrEnum):
    """How a payment by a method is seen on its chain."""

    ERC20 = "erc20"
    """Logs of a token's contract."""

    NATIVE = "native"
    """The coin in which gas is paid."""

    UTXO = "utxo"
    """Outputs of transactions, as on Bitcoin."""


class Scheme(StrEnum):
    """How an address is derived, and with that who controls what is paid to it."""

    CREATE2 = "create2"
    """A contract's address; the contract sends everything to the treasury, and no key controls it."""

    XPUB = "xpub"
    """A key's address, derived from an extended public key; who holds its private key controls it."""


EXTERNAL_CHAIN: Final = 0
"""Deposit addresses are `xpub/0/index`: the chain that wallets show, not that of their change."""

INDEX_MAX: Final = 2**31 - 1
"""From 2^31 on a child is hardened, and cannot be derived from a public key (BIP-32)."""

GAP_LIMIT_MAX: Final = 100_000


class DepositValue(BaseModel):
    """Immutable row."""

    model_config = ConfigDict(frozen=True)


class AddressRing(DepositValue):
    """An extended public key at account level, the path that it was derived by, and how far it is used up."""

    id: UUID
    curve: str = "secp256k1"
    path: str
    """From the seed to the account, such as m/84'/0'/0'."""

    xpub: str
    fingerprint: str
    """The first four bytes of the key's identifier (BIP-32), in hex: the same for one key, whatever its prefix."""

    next_index: int
    gap_limit: int
    """A wallet that restores the account stops to search after so many addresses without a payment."""

    created_at: datetime


class PaymentMethod(DepositValue):
    """A token on a chain that is accepted at deposit addresses."""

    id: str
    """`USDC:base`: the token's symbol, and a word for the chain."""

    chain_id: int
    token: str
    """The symbol; the ledger accounts of all methods of one symbol are the same."""

    address: Address | None
    """The token's contract; None for a chain's own coin."""

    decimals: int
    kind: MethodKind
    scheme: Scheme
    ring_id: UUID | None
    min_amount_raw: int
    confirmations: int | None
    """None: as many as the installation waits for."""

    enabled: bool
    created_at: datetime


class DepositAddress(DepositValue):
    """An address that belongs to one account, for good: its own one, or that of a charge."""

    id: UUID
    chain_id: int
    address: str
    scheme: Scheme
    ring_id: UUID | None
    index: int | None
    salt: str | None
    treasury: Address | None
    """Of create2: where everything that the address receives goes. It is part of the address."""

    billing_account_id: str
    charge_id: UUID | None
    active_at: datetime
    created_at: datetime
