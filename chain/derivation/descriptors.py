"""Output script descriptors (BIP-380): how a wallet is given all addresses of a key at once, with a checksum."""

from __future__ import annotations

from typing import Final

from chain.derivation.bip32 import ExtendedKey, parse_account_key
from chain.derivation.networks import AddressForm, parse_account_path
from domain.deposits.methods import EXTERNAL_CHAIN

_CHARACTERS: Final = "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ "
_CHECKSUM: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0xF5DEE51989, 0xA9FDCA3312, 0x1BAB10E32D, 0x3706B1677A, 0x644D626FFD)
_FORMS: Final = {
    AddressForm.P2PKH: "pkh({})",
    AddressForm.P2SH_P2WPKH: "sh(wpkh({}))",
    AddressForm.P2WPKH: "wpkh({})",
}
_STANDARD_VERSIONS: Final = {False: 0x0488B21E, True: 0x043587CF}
"""xpub and tpub: in a descriptor the function says what an address is, and no other prefix is known."""


def descriptor(xpub: str, path: str) -> str | None:
    """All deposit addresses of a key, for import into a wallet; None on EVM, where there is no such form.

    Raises `InvalidInput` where the key is not one of an account at `path`.
    """
    account = parse_account_path(path)
    key = parse_account_key(xpub, path)
    form = _FORMS.get(account.form)
    if form is None:
        return None
    standard = ExtendedKey(
        version=_STANDARD_VERSIONS[account.coin == 1],
        depth=key.depth,
        parent_fingerprint=key.parent_fingerprint,
        child_number=key.child_number,
        chain_code=key.chain_code,
        public_key=key.public_key,
    )
    text = form.format(f"{standard}/{EXTERNAL_CHAIN}/*")
    return f"{text}#{checksum(text)}"


def checksum(text: str) -> str:
    """The eight characters after #, by which a mistyped descriptor is found."""
    values = [_CHARACTERS.index(character) for character in text]
    symbols = [value & 31 for value in values]
    groups = [value >> 5 for value in values]
    expanded: list[int] = []
    for start in range(0, len(symbols), 3):
        expanded += symbols[start : start + 3]
        high = 0
        for group in groups[start : start + 3]:
            high = high * 3 + group
        expanded.append(high)
    remainder = 1
    for value in [*expanded, 0, 0, 0, 0, 0, 0, 0, 0]:
        top = remainder >> 35
        remainder = (remainder & 0x7FFFFFFFF) << 5 ^ value
        for position, generator in enumerate(_GENERATOR):
            remainder ^= generator if (top >> position) & 1 else 0
    remainder ^= 1
    return "".join(_CHECKSUM[(remainder >> 5 * (7 - position)) & 31] for position in range(8))
