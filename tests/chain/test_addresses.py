"""EIP-55: which spellings of an address are accepted, and as what."""

import pytest

from chain.addresses import checksum_address
from domain.errors import InvalidInput

# The examples of EIP-55 itself.
EIP_55_EXAMPLES = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


@pytest.mark.parametrize("address", EIP_55_EXAMPLES)
def test_any_case_without_a_wrong_checksum_becomes_the_checksum_form(address: str) -> None:
    assert checksum_address(address) == address
    assert checksum_address(address.lower()) == address
    assert checksum_address("0x" + address[2:].upper()) == address


def test_a_single_letter_in_the_wrong_case_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"TREASURY_ADDRESS: .*EIP-55.* 0x5A") as refused:
        checksum_address("0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", field="TREASURY_ADDRESS")
    assert refused.value.field == "TREASURY_ADDRESS"


@pytest.mark.parametrize("text", ["", "0x", "0x12", "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0x" + "g" * 40])
def test_what_is_not_20_bytes_of_hex_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected 0x and 40 hex digits"):
        checksum_address(text)


def test_a_newline_at_the_end_is_refused() -> None:
    with pytest.raises(InvalidInput):
        checksum_address(EIP_55_EXAMPLES[0] + "\n")
