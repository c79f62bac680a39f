"""A block of Bitcoin, read from its bytes: amounts are exact, and its hash commits to all that is in it.

A node's JSON has amounts as decimal fractions of a coin, which parsers make floats of, and says whatever the node
likes. Of the bytes, the hash that was asked for proves the header, and the header's Merkle root the transactions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

HEADER_BYTES: Final = 80
COINBASE_INPUT: Final = bytes(32) + b"\xff" * 4


class BlockMalformed(ValueError):
    """The bytes are no block, or not the one that was asked for."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first 80 bytes. Hashes in hex, as they are written."""

    block_hash: str
    previous_hash: str
    merkle_root: bytes
    mined_at: datetime
    """What its miner says; the rules allow it two hours from the others' clocks."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a transaction, in satoshis."""

    value_raw: int
    script: bytes


@dataclass(frozen=True, slots=True)
class Transaction:
    """What of a transaction is paid. `txid` in hex, as it is written."""

    txid: str
    is_coinbase: bool
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A block whose transactions are those that its hash commits to."""

    header: Header
    transactions: tuple[Transaction, ...]


def read_header(data: bytes, block_hash: str) -> Header:
    """The header of the block with this hash. Raises `BlockMalformed`."""
    if len(data) < HEADER_BYTES:
        raise BlockMalformed(f"a header has {HEADER_BYTES} bytes, got {len(data)}")
    raw = data[:HEADER_BYTES]
    found = _written(_double_sha256(raw))
    if found != block_hash:
        raise BlockMalformed(f"the header is of block {found}, not of {block_hash}")
    return Header(
        block_hash=found,
        previous_hash=_written(raw[4:36]),
        merkle_root=raw[36:68],
        mined_at=datetime.fromtimestamp(int.from_bytes(raw[68:72], "little"), UTC),
    )


def read_block(data: bytes, block_hash: str) -> Block:
    """The block with this hash. Raises `BlockMalformed`."""
    header = read_header(data, block_hash)
    reader = _Reader(data, HEADER_BYTES)
    transactions = tuple(_read_transaction(reader) for _ in range(reader.count()))
    if reader.position != len(data):
        raise BlockMalformed("there are bytes after the last transaction")
    if not transactions or _merkle_root([bytes.fromhex(one.txid)[::-1] for one in transactions]) != header.merkle_root:
        raise BlockMalformed(f"the transactions are not those of block {block_hash}")
    return Block(header, transactions)


class _Reader:
    """Goes through bytes; raises `BlockMalformed` at their end."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise BlockMalformed("the bytes end within a transaction")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def count(self) -> int:
        """A number in as many bytes as its first one says (CompactSize)."""
        first = self.number(1)
        return first if first < 0xFD else self.number(2 ** (first - 0xFC))


def _read_transaction(reader: _Reader) -> Transaction:
    """A transaction; its id is the hash without the witnesses (BIP-141)."""
    version = reader.take(4)
    has_witness = reader.data[reader.position : reader.position + 2] == b"\x00\x01"
    if has_witness:
        reader.take(2)
    start = reader.position
    inputs = reader.count()
    is_coinbase = False
    for number in range(inputs):
        is_coinbase = reader.take(36) == COINBASE_INPUT and number == 0
        reader.take(reader.count())
        reader.take(4)
    outputs = tuple(Output(reader.number(8), reader.take(reader.count())) for _ in range(reader.count()))
    body = reader.data[start : reader.position]
    if has_witness:
        for _ in range(inputs):
            for _ in range(reader.count()):
                reader.take(reader.count())
    txid = _written(_double_sha256(version + body + reader.take(4)))
    return Transaction(txid, is_coinbase, outputs)


def _merkle_root(hashes: Sequence[bytes]) -> bytes:
    """The root of a tree whose odd ends are paired with themselves.

    Raises `BlockMalformed` where a pair is of equals that are not such an end: a list with transactions repeated has
    the same root as the one without (CVE-2012-2459).
    """
    level = list(hashes)
    while len(level) > 1:
        if any(level[at] == level[at + 1] for at in range(0, len(level) - 1, 2)):
            raise BlockMalformed("a transaction is in the block twice")
        if len(level) % 2:
            level.append(level[-1])
        level = [_double_sha256(level[at] + level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


def _double_sha256(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()


def _written(digest: bytes) -> str:
    """Hashes are written in the reverse of their bytes."""
    return digest[::-1].hex()
