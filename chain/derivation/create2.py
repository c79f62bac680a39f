"""Deposit addresses that are contracts' (EIP-1014): computable by anyone, and controlled by no key.

An address is determined by the deployer, the salt and the creation code of `contracts/Forwarder.sol` with the treasury
as its argument. The salt is of an account or of a charge, and of no chain: with the same treasury the address is the
same on every chain, so that what was sent on the wrong one can be collected there.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from eth_utils.crypto import keccak

from chain.addresses import checksum_address, checksum_of_bytes
from chain.contracts import creation_code
from domain.errors import InvalidInput
from domain.identifiers import parse_tx_hash

CREATE2_DEPLOYER: Final = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
"""The deterministic deployer that is at this address on nearly every chain: what it is sent, salt and creation code,
it deploys."""

SALT_DOMAIN: Final = "settle:deposit:1"
"""With a version: another way to derive must never give an address that this one gives."""


def salt_of_account(billing_account_id: str) -> str:
    """The salt, 0x and 64 hex digits, of an account's own address."""
    return _salt(f"account:{billing_account_id}")


def salt_of_charge(charge_id: UUID) -> str:
    """The salt, 0x and 64 hex digits, of a charge's address."""
    return _salt(f"charge:{charge_id}")


def _salt(owner: str) -> str:
    return "0x" + keccak(text=SALT_DOMAIN + owner).hex()


def init_code(treasury: str) -> bytes:
    """The creation code of every deposit address that pays to `treasury`. Raises `InvalidInput`."""
    address = bytes.fromhex(checksum_address(treasury, field="treasury")[2:])
    return creation_code("Forwarder") + address.rjust(32, b"\0")


def init_code_hash(treasury: str) -> str:
    """Its hash, 0x and 64 hex digits. Raises `InvalidInput`."""
    return "0x" + keccak(init_code(treasury)).hex()


def create2_address(salt: str, code_hash: str) -> str:
    """Where `CREATE2_DEPLOYER` deploys the code with that hash under `salt`, in EIP-55 form. Raises `InvalidInput`."""
    return _create2_address(_word(salt, "salt"), _word(code_hash, "init code hash"))


def _create2_address(salt: bytes, code_hash: bytes) -> str:
    return checksum_of_bytes(keccak(b"\xff" + bytes.fromhex(CREATE2_DEPLOYER[2:]) + salt + code_hash)[12:])


def _word(text: str, field: str) -> bytes:
    """32 bytes from 0x and 64 hex digits."""
    try:
        return bytes.fromhex(parse_tx_hash(text)[2:])
    except InvalidInput:
        raise InvalidInput(field, f"expected 0x and 64 hex digits (32 bytes), got {str(text)!r:.80}") from None
