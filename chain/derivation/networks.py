"""Which extended keys and addresses belong to which path: SLIP-44's coin types and SLIP-132's prefixes.

The path decides, never the prefix: a key that was exported with another prefix than its wallet uses gives other
addresses than that wallet shows, and what is paid to them is not found there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from domain.errors import InvalidInput

PATH_EXPECTED: Final = "expected the path of an account, m/PURPOSE'/COIN'/ACCOUNT', such as m/84'/0'/0'"
_PATH: Final = re.compile(r"m/(\d{1,10})['hH]/(\d{1,10})['hH]/(\d{1,10})['hH]", re.ASCII)


class AddressForm(StrEnum):
    """What is made of a public key."""

    EVM = "evm"
    """The last 20 bytes of the Keccak hash of the uncompressed point."""

    P2PKH = "p2pkh"
    P2SH_P2WPKH = "p2sh-p2wpkh"
    P2WPKH = "p2wpkh"


@dataclass(frozen=True, slots=True)
class Network:
    """A family of chains with one kind of address. Versions are the bytes before a hash in Base58."""

    name: str
    token: str | None
    """The symbol of its coin; None on EVM, where each chain has its own."""

    forms: MappingProxyType[int, tuple[AddressForm, tuple[str, ...]]]
    """By purpose (BIP-43): what an address is, and the prefixes with which wallets export such an account."""

    key_hash_version: int = 0
    script_hash_version: int = 0
    bech32_prefix: str = ""


VERSIONS: Final = MappingProxyType(
    {
        0x0488B21E: "xpub",
        0x049D7CB2: "ypub",
        0x04B24746: "zpub",
        0x043587CF: "tpub",
        0x044A5262: "upub",
        0x045F1CF6: "vpub",
        0x019DA462: "Ltub",
        0x01B26EF6: "Mtub",
        0x02FACAFD: "dgub",
    }
)
"""The first four bytes of an extended public key, to the characters with which its text begins."""

PRIVATE_VERSIONS: Final = MappingProxyType(
    {
        0x0488ADE4: "xprv",
        0x049D7878: "yprv",
        0x04B2430C: "zprv",
        0x04358394: "tprv",
        0x044A4E28: "uprv",
        0x045F18BC: "vprv",
        0x019D9CFE: "Ltpv",
        0x01B26792: "Mtpv",
        0x02FAC398: "dgpv",
    }
)


def _forms(**by_purpose: tuple[str, ...]) -> MappingProxyType[int, tuple[AddressForm, tuple[str, ...]]]:
    forms = {44: AddressForm.P2PKH, 49: AddressForm.P2SH_P2WPKH, 84: AddressForm.P2WPKH}
    return MappingProxyType({int(name[1:]): (forms[int(name[1:])], prefixes) for name, prefixes in by_purpose.items()})


NETWORKS: Final = MappingProxyType(
    {
        0: Network("Bitcoin", "BTC", _forms(p44=("xpub",), p49=("ypub",), p84=("zpub",)), 0x00, 0x05, "bc"),
        1: Network("Bitcoin testnet", "BTC", _forms(p44=("tpub",), p49=("upub",), p84=("vpub",)), 0x6F, 0xC4, "tb"),
        2: Network(
            "Litecoin", "LTC", _forms(p44=("Ltub", "xpub"), p49=("Mtub", "ypub"), p84=("zpub",)), 0x30, 0x32, "ltc"
        ),
        3: Network("Dogecoin", "DOGE", _forms(p44=("dgub",)), 0x1E, 0x16),
        60: Network("EVM", None, MappingProxyType({44: (AddressForm.EVM, ("xpub",))})),
    }
)
"""By coin type (SLIP-44). Every EVM chain has 60: an account's addresses are the same on all of them."""


@dataclass(frozen=True, slots=True)
class AccountPath:
    """The path of an account, checked: `network` and `form` are what it means."""

    purpose: int
    coin: int
    account: int
    network: Network
    form: AddressForm
    prefixes: tuple[str, ...]

    def __str__(self) -> str:
        return f"m/{self.purpose}'/{self.coin}'/{self.account}'"


def parse_account_path(text: str) -> AccountPath:
    """Parse the path of an account, such as m/84'/0'/0'. Raises `InvalidInput` naming `path`."""
    found = _PATH.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidInput("path", f"{PATH_EXPECTED}, got {str(text)!r:.80}")
    purpose, coin, account = map(int, found.groups())
    if account >= 2**31:
        raise InvalidInput("path", f"expected an account below 2^31, got {account}")
    network = NETWORKS.get(coin)
    if network is None:
        known = ", ".join(f"{coin}' ({network.name})" for coin, network in NETWORKS.items())
        raise InvalidInput("path", f"coin {coin}' is not supported: expected one of {known}")
    if purpose not in network.forms:
        known = ", ".join(f"{purpose}'" for purpose in network.forms)
        raise InvalidInput("path", f"purpose {purpose}' is not one of {network.name}'s: expected {known}")
    form, prefixes = network.forms[purpose]
    return AccountPath(purpose, coin, account, network, form, prefixes)
