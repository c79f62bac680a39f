"""What is an address, a transaction hash, an attempt's id, and what only looks like one."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidInput
from domain.identifiers import (
    ADDRESS_EXPECTED,
    HASH_EXPECTED,
    UUID_EXPECTED,
    parse_address,
    parse_attempt_id,
    parse_tx_hash,
    same_address,
)

HEX = st.sampled_from("0123456789abcdefABCDEF")


@given(st.text(HEX, min_size=64, max_size=64))
def test_a_transaction_hash_is_32_bytes_and_is_kept_in_lower_case(digits: str) -> None:
    assert parse_tx_hash("0x" + digits) == "0x" + digits.lower()


@given(st.text(HEX, min_size=40, max_size=40))
def test_an_address_is_20_bytes_and_is_kept_as_written(digits: str) -> None:
    assert parse_address("0x" + digits) == "0x" + digits
    assert same_address("0x" + digits.lower(), "0x" + digits.upper())


NO_HEX = ["", "0x", "abc", None, 7, b"0x", True]


@pytest.mark.parametrize(
    "text",
    [
        *NO_HEX, "0x" + "1" * 63, "0x" + "1" * 65, "1" * 64, "0X" + "1" * 64, "0x" + "g" * 64, " 0x" + "1" * 64,
        "0x" + "1" * 64 + "\n", "0x" + "١" * 64, "0x" + "1" * 9_999,
    ],
)  # fmt: skip
def test_what_is_no_transaction_hash_is_refused_in_one_short_line(text: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_tx_hash(text)  # type: ignore[arg-type]
    assert caught.value.field == "txHash"
    assert HASH_EXPECTED in caught.value.message
    assert len(caught.value.message) < 160
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        *NO_HEX, "0x" + "1" * 39, "0x" + "1" * 41, "1" * 40, "0X" + "1" * 40, "0x" + "g" * 40, "0x" + "1" * 40 + " ",
        "0x" + "1" * 40 + "\n", "0x" + "１" * 40,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_the_field_is_named(text: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_address(text, field="wallet")  # type: ignore[arg-type]
    assert caught.value.field == "wallet"
    assert ADDRESS_EXPECTED in caught.value.message
    assert "\n" not in caught.value.message


def test_an_attempts_id_is_a_uuid() -> None:
    attempt_id = uuid4()
    assert parse_attempt_id(str(attempt_id)) == attempt_id
    assert parse_attempt_id(str(attempt_id).upper()) == attempt_id
    assert isinstance(parse_attempt_id(attempt_id.hex), UUID)


@pytest.mark.parametrize("text", ["", "1", "x" * 36, None, 7, [], "0" * 33, "0" * 31])
def test_what_is_no_uuid_is_refused(text: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_attempt_id(text)  # type: ignore[arg-type]
    assert caught.value.field == "attemptId"
    assert UUID_EXPECTED in caught.value.message


def test_addresses_that_differ_in_more_than_case_are_two() -> None:
    assert not same_address("0x" + "a" * 40, "0x" + "a" * 39 + "b")
