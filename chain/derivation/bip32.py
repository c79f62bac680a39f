"""Extended public keys and their children (BIP-32), public derivation only.

An extended public key with the private key of any one of its children is as good as the account's private key: the
private key of the account is a subtraction away. So an extended key is kept as a secret, and who signs for one address
of an account is trusted with all of it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from coincurve import PublicKey

from chain.derivation.encodings import decode_base58check, encode_base58check, hash160
from chain.derivation.networks import PRIVATE_VERSIONS, VERSIONS, parse_account_path
from domain.deposits.methods import INDEX_MAX
from domain.errors import InvalidInput

_HARDENED: Final = 2**31
_BYTES: Final = 78
ACCOUNT_DEPTH: Final = 3
"""Of m/purpose'/coin'/account'."""


@dataclass(frozen=True, slots=True)
class ExtendedKey:
    """An extended public key. `public_key` is a compressed point, 33 bytes."""

    version: int
    depth: int
    parent_fingerprint: bytes
    child_number: int
    chain_code: bytes
    public_key: bytes

    @property
    def prefix(self) -> str:
        """The characters with which its text begins."""
        return VERSIONS[self.version]

    @property
    def fingerprint(self) -> str:
        """The first four bytes of the key's identifier, in hex; independent of the prefix."""
        return hash160(self.public_key)[:4].hex()

    @property
    def material(self) -> bytes:
        """What the children are derived from, 65 bytes: the same key under another prefix or path has the same."""
        return self.public_key + self.chain_code

    def __str__(self) -> str:
        return encode_base58check(
            self.version.to_bytes(4, "big")
            + self.depth.to_bytes(1, "big")
            + self.parent_fingerprint
            + self.child_number.to_bytes(4, "big")
            + self.material[33:]
            + self.public_key
        )

    def child(self, index: int) -> ExtendedKey:
        """The child of that number, below 2^31 (CKDpub).

        Raises `InvalidInput` for a hardened one, and for the one number in 2^127 that has no key.
        """
        if not 0 <= index <= INDEX_MAX:
            raise InvalidInput(
                "index", f"expected 0 to {INDEX_MAX}, got {index}: a hardened child has no public parent"
            )
        digest = hmac.digest(self.chain_code, self.public_key + index.to_bytes(4, "big"), hashlib.sha512)
        try:
            point = PublicKey(self.public_key).add(digest[:32]).format()
        except ValueError:
            raise InvalidInput("index", f"{index} has no key under this parent: use the next one") from None
        parent = hash160(self.public_key)[:4]
        return ExtendedKey(self.version, self.depth + 1, parent, index, digest[32:], point)


def parse_extended_key(text: str) -> ExtendedKey:
    """Parse an extended public key of any depth. Raises `InvalidInput` naming `xpub`, without the text in it."""
    data = decode_base58check(text) if isinstance(text, str) else None
    if data is None:
        raise InvalidInput("xpub", "expected an extended public key; the checksum is wrong, so a character is mistyped")
    version = int.from_bytes(data[:4], "big")
    if version in PRIVATE_VERSIONS:
        raise InvalidInput(
            "xpub",
            f"this is a private key ({PRIVATE_VERSIONS[version]}), which settle must never have: "
            f"expected the account's public one, and treat the private one as disclosed",
        )
    if len(data) != _BYTES or version not in VERSIONS:
        raise InvalidInput("xpub", f"expected an extended public key, one of {', '.join(VERSIONS.values())}")
    key = ExtendedKey(version, data[4], data[5:9], int.from_bytes(data[9:13], "big"), data[13:45], data[45:])
    if key.depth == 0 and (key.child_number or any(key.parent_fingerprint)):
        raise InvalidInput("xpub", "a key of depth 0 has neither a parent nor a number: this one is malformed")
    if key.public_key[0] not in (2, 3) or not _is_point(key.public_key):
        raise InvalidInput("xpub", "its public key is not a point of the curve secp256k1")
    return key


def _is_point(compressed: bytes) -> bool:
    try:
        PublicKey(compressed)
    except ValueError:
        return False
    return True


def parse_account_key(text: str, path: str) -> ExtendedKey:
    """Parse the extended public key of the account at `path`.

    Raises `InvalidInput` naming `path`, or `xpub`: for a private key, a prefix of another network or purpose than the
    path's, another depth than an account's, another account's number, and what is no key.
    """
    account = parse_account_path(path)
    key = parse_extended_key(text)
    if key.prefix not in account.prefixes:
        expected = " or ".join(account.prefixes)
        raise InvalidInput(
            "xpub",
            f"expected {expected} for {account.network.name} at {account}, got {key.prefix}: "
            f"an account that was exported for another purpose has other addresses",
        )
    if key.depth != ACCOUNT_DEPTH:
        raise InvalidInput("xpub", f"expected an account's key, of depth {ACCOUNT_DEPTH}, got depth {key.depth}")
    if key.child_number != _HARDENED + account.account:
        number = f"{key.child_number - _HARDENED}'" if key.child_number >= _HARDENED else str(key.child_number)
        raise InvalidInput("xpub", f"it is the key of account {number}: expected {account.account}', as in {account}")
    return key
