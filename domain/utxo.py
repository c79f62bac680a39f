"""Chains of Bitcoin's family: which numbers they have, and what stands in their transfers for what they lack.

A transaction there has outputs, and no sender: a transfer is an output to an address, its log index is the output's
number, its token is the chain's own coin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from domain.errors import InvalidInput
from domain.identifiers import Address

UNNAMED_SENDER: Final[Address] = "0x000000000000000000000000000000000000b17c"
"""In place of a sender: the inputs of a transaction may be of several people, and are no one's signature under it."""

COINBASE_SENDER: Final[Address] = "0x0000000000000000000000000000000000C01BB1"
"""In place of the sender of a block's reward, which no one can spend before it is mature."""

SENDERLESS: Final = frozenset({UNNAMED_SENDER, COINBASE_SENDER})

COINBASE_MATURITY: Final = 100
"""Confirmations of a reward before which the chain lets no one spend it: the next block may."""

UTXO_DECIMALS: Final = 8
"""A coin is 10^8 satoshis."""

UTXO_CHAINS_FROM: Final = 2**52
"""Chains of the family have numbers from here on; EVM chains are below."""

_REFERENCE_DIGITS: Final = 32
_NUMBER_DIGITS: Final = 13
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UtxoChain:
    """A chain that can be read. `coin` is that of its addresses' paths (SLIP-44)."""

    name: str
    genesis: str
    coin: int

    @property
    def chain_id(self) -> int:
        """Its number."""
        return chain_id_of_genesis(self.genesis)


def chain_id_of_genesis(block_hash: str) -> int:
    """The number of the chain that begins with this block: 2^52, and 52 bits of what CAIP-2 names the chain by.

    There is no registry of numbers for these chains. This one can be computed, fits a JSON number, and each node
    proves it by its block 0. Chains that have parted later (Bitcoin Cash) have the same. Raises `InvalidInput`.
    """
    if _HASH.fullmatch(block_hash) is None:
        raise InvalidInput("genesis", f"expected 64 hex digits, got {block_hash!r:.80}")
    return UTXO_CHAINS_FROM + int(block_hash[:_REFERENCE_DIGITS][-_NUMBER_DIGITS:], 16)


def is_utxo_chain(chain_id: int) -> bool:
    """Whether a chain is of Bitcoin's family, by its number."""
    return chain_id >= UTXO_CHAINS_FROM


_CHAINS: Final = (
    UtxoChain("Bitcoin", "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f", 0),
    UtxoChain("Bitcoin testnet", "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943", 1),
    UtxoChain("Bitcoin regtest", "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206", 1),
)

UTXO_CHAINS: Final = MappingProxyType({chain.chain_id: chain for chain in _CHAINS})
"""Those that can be read, by number: 6855323558289043, 8701002993072570 and 7374829192725288."""
