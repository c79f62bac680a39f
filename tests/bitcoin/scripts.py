"""The output scripts of addresses, by another library than the product's."""

from __future__ import annotations

from bip_utils import Base58Decoder, SegwitBech32Decoder


def script_of(address: str) -> str:
    """What a payment to this address is locked by, in hex."""
    if address[2:3] == "1" and address[:2] in {"bc", "tb"}:
        version, program = SegwitBech32Decoder.Decode(address[:2], address)
        assert (version, len(program)) == (0, 20)
        return "0014" + bytes(program).hex()
    payload = Base58Decoder.CheckDecode(address)
    if payload[0] in {0x00, 0x6F}:
        return f"76a914{payload[1:].hex()}88ac"
    assert payload[0] in {0x05, 0xC4}
    return f"a914{payload[1:].hex()}87"
