"""The one way from what is stored to an address, for all that give one out, credit one or check one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, assert_never
from uuid import UUID

from coincurve import PublicKey
from eth_utils.crypto import keccak

from chain.addresses import checksum_of_bytes
from chain.derivation.bip32 import ExtendedKey, parse_account_key
from chain.derivation.create2 import create2_address, init_code_hash, salt_of_account, salt_of_charge
from chain.derivation.encodings import encode_base58check, encode_segwit_v0, hash160
from chain.derivation.networks import AccountPath, AddressForm, parse_account_path
from domain.deposits.methods import EXTERNAL_CHAIN, AddressRing, DepositAddress, Scheme
from domain.errors import InvalidInput
from domain.identifiers import same_address

RINGS_CACHED: Final = 64


def derive_address(
    scheme: Scheme,
    *,
    treasury: str | None = None,
    salt: str | None = None,
    ring: AddressRing | None = None,
    index: int | None = None,
) -> str:
    """The address of `salt` under `treasury` (create2), or the one with number `index` of `ring` (xpub).

    In the form in which it is stored and compared: EIP-55 on EVM chains, else as its network writes it. Raises
    `InvalidInput` where the ring's key is not one of an account at the ring's path, and where a value is missing.
    """
    match scheme:
        case Scheme.CREATE2:
            if treasury is None or salt is None:
                raise InvalidInput("salt", "a create2 address needs the treasury and a salt")
            return create2_address(salt, _init_code_hash(treasury))
        case Scheme.XPUB:
            if ring is None or index is None:
                raise InvalidInput("ring", "an xpub address needs its ring and an index")
            path, external = _external_chain(ring.xpub, ring.path)
            return address_of_key(external.child(index).public_key, path)
        case _:
            assert_never(scheme)


def address_of_charge(charge_id: UUID, treasury: str) -> str:
    """The create2 address of a charge, which follows from its id and the treasury alone. Raises `InvalidInput`."""
    return derive_address(Scheme.CREATE2, treasury=treasury, salt=salt_of_charge(charge_id))


def salt_of(address: DepositAddress) -> str:
    """The salt that follows from whom the address belongs to, whatever the row says."""
    if address.charge_id is not None:
        return salt_of_charge(address.charge_id)
    return salt_of_account(address.billing_account_id)


def derive_again(address: DepositAddress, *, ring: AddressRing | None, treasuries: Iterable[str]) -> str:
    """What the row's address has to be, of its owner, and of one of `treasuries` where it is a contract's.

    `ring` is the one that the row names. Raises `InvalidInput` where nothing can be derived from the row, and where its
    treasury is none of the installation's: everything that it receives would be somewhere else.
    """
    match address.scheme:
        case Scheme.CREATE2:
            stored = address.treasury
            if stored is None or not any(same_address(stored, treasury) for treasury in treasuries):
                raise InvalidInput("treasury", f"{stored} is not a treasury of this installation")
            return derive_address(Scheme.CREATE2, treasury=stored, salt=salt_of(address))
        case Scheme.XPUB:
            return derive_address(Scheme.XPUB, ring=_own_ring(address, ring), index=address.index)
        case _:
            assert_never(address.scheme)


def derives_as_stored(address: DepositAddress, *, ring: AddressRing | None, treasuries: Iterable[str]) -> bool:
    """Whether the row's address is the one that its owner, ring and index give: if not, it belongs to another.

    `ring` is the one that the row names, `treasuries` are those that the installation has or had. False as well where
    nothing can be derived from the row.
    """
    try:
        return derive_again(address, ring=ring, treasuries=treasuries) == address.address
    except InvalidInput:
        return False


def _own_ring(address: DepositAddress, ring: AddressRing | None) -> AddressRing | None:
    if ring is not None and ring.id != address.ring_id:
        raise InvalidInput("ring", f"expected ring {address.ring_id}, got {ring.id}")
    return ring


def address_of_key(public_key: bytes, path: AccountPath) -> str:
    """The address of a compressed public key at an account of that network and purpose."""
    network = path.network
    match path.form:
        case AddressForm.EVM:
            return evm_address(public_key)
        case AddressForm.P2PKH:
            return encode_base58check(bytes([network.key_hash_version]) + hash160(public_key))
        case AddressForm.P2SH_P2WPKH:
            script = b"\x00\x14" + hash160(public_key)
            return encode_base58check(bytes([network.script_hash_version]) + hash160(script))
        case AddressForm.P2WPKH:
            return encode_segwit_v0(network.bech32_prefix, hash160(public_key))


def evm_address(public_key: bytes) -> str:
    """The address of a compressed or uncompressed public key, in EIP-55 form.

    It is the hash of both coordinates, 64 bytes: that of the compressed form is an address that no key controls.
    """
    return checksum_of_bytes(keccak(PublicKey(public_key).format(compressed=False)[1:])[12:])


@lru_cache(maxsize=RINGS_CACHED)
def _external_chain(xpub: str, path: str) -> tuple[AccountPath, ExtendedKey]:
    return parse_account_path(path), parse_account_key(xpub, path).child(EXTERNAL_CHAIN)


@lru_cache(maxsize=RINGS_CACHED)
def _init_code_hash(treasury: str) -> str:
    return init_code_hash(treasury)
