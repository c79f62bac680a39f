"""Which address an output pays: the three forms that an extended key's addresses have here."""

from __future__ import annotations

from chain.derivation.encodings import encode_base58check, encode_segwit_v0
from chain.derivation.networks import Network


def address_of_script(script: bytes, network: Network) -> str | None:
    """The address of an output script as this network writes it; None of any other form of script.

    A script has one address on a network, so that two addresses are equal exactly where their scripts are. What others
    call the same script (regtest's `bcrt1…`) does not matter.
    """
    if len(script) == 25 and script[:3] == b"\x76\xa9\x14" and script[23:] == b"\x88\xac":
        return encode_base58check(bytes([network.key_hash_version]) + script[3:23])
    if len(script) == 23 and script[:2] == b"\xa9\x14" and script[22:] == b"\x87":
        return encode_base58check(bytes([network.script_hash_version]) + script[2:22])
    if len(script) == 22 and script[:2] == b"\x00\x14" and network.bech32_prefix:
        return encode_segwit_v0(network.bech32_prefix, script[2:])
    return None
