"""Texts of keys and addresses: Base58Check, and Bech32 for outputs of witness version 0 (BIP-173)."""

from __future__ import annotations

import hashlib
from typing import Final

from Crypto.Hash import RIPEMD160

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def hash160(data: bytes) -> bytes:
    """RIPEMD-160 of SHA-256, 20 bytes. Not hashlib's: OpenSSL 3 may come without RIPEMD-160."""
    return RIPEMD160.new(hashlib.sha256(data).digest()).digest()


def encode_base58check(payload: bytes) -> str:
    """The payload and four bytes of its double SHA-256, in Base58. A leading zero byte is a leading 1."""
    data = payload + _checksum(payload)
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def decode_base58check(text: str) -> bytes | None:
    """The payload; None where a character is none of Base58's, or the checksum is wrong."""
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    payload, checksum = data[:-4], data[-4:]
    return payload if payload and checksum == _checksum(payload) else None


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]


def encode_segwit_v0(prefix: str, program: bytes) -> str:
    """The Bech32 address of a version 0 witness program, 20 bytes for a key's hash. `prefix` is the network's."""
    values = [0, *_five_bit_groups(program)]
    expanded = [ord(character) >> 5 for character in prefix] + [0] + [ord(character) & 31 for character in prefix]
    remainder = _polymod([*expanded, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    checksum = [(remainder >> 5 * (5 - position)) & 31 for position in range(6)]
    return f"{prefix}1" + "".join(_BECH32[value] for value in values + checksum)


def _five_bit_groups(data: bytes) -> list[int]:
    bits = len(data) * 8
    padding = -bits % 5
    number = int.from_bytes(data, "big") << padding
    return [(number >> shift) & 31 for shift in range(bits + padding - 5, -1, -5)]


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for position, generator in enumerate(_GENERATOR):
            checksum ^= generator if (top >> position) & 1 else 0
    return checksum
