"""The relay's key, and the transactions that it signs (EIP-1559).

Written out, with the curve's library: a wallet library raises the interpreter's recursion limit, and can do more than
this process needs.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from eth_keys.datatypes import PrivateKey
from eth_utils.crypto import keccak

from db.payments.relay import SignedTransaction
from domain.errors import ConfigurationError

KEY_EXPECTED: Final = "a private key, 0x and 64 hex digits, that holds gas and nothing else"

_KEY: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{64})", re.ASCII)
_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_TRANSACTION_TYPE: Final = b"\x02"

_Item = bytes | list["_Item"]


class RelayKey:
    """A private key. It is never shown: not in a log line, not in an error."""

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)
        self.address: str = self._key.public_key.to_checksum_address()

    def __repr__(self) -> str:
        return f"RelayKey({self.address})"

    @classmethod
    def parse(cls, text: str, *, setting: str) -> RelayKey:
        """The key of a setting's text. Raises `ConfigurationError` that does not show it."""
        found = _KEY.fullmatch(text.strip())
        if found is None or not 0 < int(found[1], 16) < _CURVE_ORDER:
            raise ConfigurationError.invalid(setting, "something else (not shown)", KEY_EXPECTED)
        return cls(bytes.fromhex(found[1]))

    @classmethod
    def read(cls, path: Path, *, setting: str) -> RelayKey:
        """The key of a file that its owner alone may read. Raises `ConfigurationError`."""
        try:
            mode = path.stat().st_mode
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigurationError.invalid(setting, f"{path} ({reason})", f"a file with {KEY_EXPECTED}") from None
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise ConfigurationError.invalid(setting, f"{path}, which others may read", "a file of mode 0600")
        return cls.parse(text, setting=setting)

    def sign(
        self,
        *,
        chain_id: int,
        nonce: int,
        to: str | None,
        calldata: bytes,
        gas: int,
        max_fee_wei: int,
        priority_fee_wei: int,
    ) -> SignedTransaction:
        """A signed transaction without value; without `to` a creation. The same arguments give the same bytes (RFC
        6979).
        """
        fields: list[_Item] = [
            _number(chain_id),
            _number(nonce),
            _number(priority_fee_wei),
            _number(max_fee_wei),
            _number(gas),
            b"" if to is None else bytes.fromhex(to[2:]),
            _number(0),
            calldata,
            [],
        ]
        signature = self._key.sign_msg_hash(keccak(_TRANSACTION_TYPE + _rlp(fields)))
        signed = [*fields, _number(signature.v), _number(signature.r), _number(signature.s)]
        raw = _TRANSACTION_TYPE + _rlp(signed)
        return SignedTransaction("0x" + keccak(raw).hex(), raw, gas, max_fee_wei, priority_fee_wei)

    def resign(self, raw: bytes, max_fee_wei: int, priority_fee_wei: int) -> SignedTransaction:
        """The same transaction for other fees: it replaces `raw`, which this key has signed."""
        items = _unrlp(raw[1:])
        assert isinstance(items, list), "it was signed by `sign`"
        chain_id, nonce, _, _, gas, to, _, calldata, *_ = (item if isinstance(item, bytes) else b"" for item in items)
        return self.sign(
            chain_id=int.from_bytes(chain_id, "big"),
            nonce=int.from_bytes(nonce, "big"),
            to="0x" + to.hex() if to else None,
            calldata=calldata,
            gas=int.from_bytes(gas, "big"),
            max_fee_wei=max_fee_wei,
            priority_fee_wei=priority_fee_wei,
        )


def _number(value: int) -> bytes:
    """An integer as RLP has it: without leading zeros, and zero is empty."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _rlp(item: _Item) -> bytes:
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _head(len(item), 0x80) + item
    content = b"".join(_rlp(part) for part in item)
    return _head(len(content), 0xC0) + content


def _head(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    size = _number(length)
    return bytes([offset + 55 + len(size)]) + size


def _unrlp(encoded: bytes) -> _Item:
    item, rest = _unrlp_first(encoded)
    assert not rest, "one item"
    return item


def _unrlp_first(encoded: bytes) -> tuple[_Item, bytes]:
    first = encoded[0]
    if first < 0x80:
        return encoded[:1], encoded[1:]
    offset = 0x80 if first < 0xC0 else 0xC0
    length, start = first - offset, 1
    if length > 55:
        start += length - 55
        length = int.from_bytes(encoded[1:start], "big")
    content, rest = encoded[start : start + length], encoded[start + length :]
    if offset == 0x80:
        return content, rest
    items: list[_Item] = []
    while content:
        item, content = _unrlp_first(content)
        items.append(item)
    return items, rest
