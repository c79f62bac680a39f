"""Addresses in their EIP-55 form: the upper and lower case of the hex digits is a checksum."""

from __future__ import annotations

from functools import lru_cache

from eth_utils.address import to_checksum_address

from domain.errors import InvalidInput
from domain.identifiers import parse_address


def checksum_address(text: str, *, field: str = "address") -> str:
    """`text` in its EIP-55 checksum form, or `InvalidInput` naming `field`.

    All-lower and all-upper digits carry no checksum and are accepted; mixed case is a checksum and has to be
    right, because a wrong one is how a mistyped digit shows (EIP-55).
    """
    parse_address(text, field=field)
    digits = text[2:]
    right = _checksummed("0x" + digits.lower())
    if digits not in (digits.lower(), digits.upper()) and text != right:
        raise InvalidInput(
            field,
            f"the EIP-55 checksum of {text} is wrong, so a digit may be mistyped; "
            f"check it, or write it in lower case when you are sure",
        )
    return right


@lru_cache(maxsize=4096)
def _checksummed(address_lower: str) -> str:
    # 20 microseconds of Keccak each, and the same token and treasury appear in nearly every receipt.
    return str(to_checksum_address(address_lower))


def checksum_of_bytes(address: bytes) -> str:
    """The EIP-55 form of 20 raw bytes."""
    return _checksummed("0x" + address.hex())
