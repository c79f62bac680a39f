"""What of a node's answer is accepted: a node's mistake is a failure, a contract's strange log is not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from chain.rpc import EndpointFailure, Failure, Reply
from chain.wire import TRANSFER_TOPIC, read_data, read_head, read_header, read_quantity, read_receipt

TX = "0x" + "11" * 32
BLOCK = "0x" + "bb" * 32
TOKEN = "0x" + "cc" * 20
ALICE = "0x" + "a1" * 20
TREASURY = "0x" + "7e" * 20


def topic(address: str) -> str:
    return "0x" + "00" * 12 + address[2:]


def log(**changes: Any) -> dict[str, Any]:
    return {
        "address": TOKEN,
        "topics": ["0x" + TRANSFER_TOPIC.hex(), topic(ALICE), topic(TREASURY)],
        "data": "0x" + (100).to_bytes(32, "big").hex(),
        "logIndex": "0x0",
        "blockNumber": "0xa",
        "blockHash": BLOCK,
        "transactionHash": TX,
        "removed": False,
    } | changes


def receipt(*logs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = {"transactionHash": TX, "status": "0x1", "blockNumber": "0xa", "blockHash": BLOCK, "logs": list(logs)}
    return whole | changes


def read(raw: object) -> Any:
    return read_receipt(Reply("eth_getTransactionReceipt", raw), TX)


def test_the_transfer_topic_is_the_known_one() -> None:
    assert TRANSFER_TOPIC.hex() == "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


def test_a_transfer_is_read_with_checksummed_addresses_and_lower_case_hashes() -> None:
    spelled = receipt(
        log(blockHash="0x" + "BB" * 32, address="0x" + "CC" * 20), blockHash="0x" + "BB" * 32, extra="ignored"
    )
    found = read(spelled)
    assert (found.tx_hash, found.block_hash, found.block_number, found.succeeded) == (TX, BLOCK, 10, True)
    (transfer,) = found.transfers
    assert transfer.emitter == "0xCcCCccCCCcCccCccCCCCccccccccccCCCccccccC" or transfer.emitter.lower() == TOKEN
    assert transfer.from_address == "0xA1A1a1a1A1A1A1A1A1a1a1a1a1a1A1A1a1A1a1a1"
    assert transfer.to_address.lower() == TREASURY
    assert (transfer.value_raw, transfer.log_index) == (100, 0)


def test_the_largest_value_of_a_token_is_read_exactly() -> None:
    assert read(receipt(log(data="0x" + "ff" * 32))).transfers[0].value_raw == 2**256 - 1


def test_a_reverted_transaction_is_read_as_one() -> None:
    assert read(receipt(status="0x0")).succeeded is False


@pytest.mark.parametrize("nothing", [None, {**receipt(), "blockHash": None}])
def test_no_receipt_or_one_without_a_block_is_none(nothing: object) -> None:
    assert read(nothing) is None


@pytest.mark.parametrize(
    "strange",
    [
        pytest.param(log(topics=[*log()["topics"], topic(ALICE)]), id="ERC-721, with four topics"),
        pytest.param(log(topics=log()["topics"][:2]), id="two topics"),
        pytest.param(log(topics=[]), id="no topics"),
        pytest.param(log(topics=["0x" + "12" * 32, topic(ALICE), topic(TREASURY)]), id="another event"),
        pytest.param(log(data="0x"), id="no data"),
        pytest.param(log(data="0x" + "00" * 64), id="64 bytes of data"),
        pytest.param(log(topics=[log()["topics"][0], "0x01" + topic(ALICE)[4:], topic(TREASURY)]), id="dirty sender"),
        pytest.param(log(topics=[log()["topics"][0], topic(ALICE), "0x01" + topic(TREASURY)[4:]]), id="dirty receiver"),
        pytest.param(log(removed=True), id="removed by a reorganisation"),
        pytest.param({"removed": True}, id="removed and incomplete"),
    ],
)
def test_a_log_that_is_no_transfer_is_passed_over_and_spoils_nothing(strange: dict[str, Any]) -> None:
    found = read(receipt(strange, log(logIndex="0x5")))
    assert [transfer.log_index for transfer in found.transfers] == [5]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (receipt(transactionHash="0x" + "22" * 32), "another transaction"),
        (receipt(log(blockHash="0x" + "ee" * 32)), "another block"),
        (receipt(log(blockNumber="0xb")), "another block"),
        (receipt(log(transactionHash="0x" + "22" * 32)), "log 0 is of another transaction"),
        (receipt(log(), log()), "two logs of the receipt have the index 0"),
        (receipt(log(topics=[]), log()), "two logs of the receipt have the index 0"),
    ],
)
def test_a_receipt_whose_parts_do_not_belong_together_is_a_contradiction(raw: object, says: str) -> None:
    with pytest.raises(EndpointFailure, match=says) as failed:
        read(raw)
    assert failed.value.failure is Failure.CONTRADICTION


@pytest.mark.parametrize(
    "raw",
    [
        "0x",
        [],
        7,
        True,
        {},
        receipt(status="0x2"),
        receipt(status=None),
        receipt(status=1),
        receipt(blockNumber=10),
        receipt(blockNumber="10"),
        receipt(blockNumber="0x"),
        receipt(blockNumber="0x-1"),
        receipt(blockNumber="0x1\n"),
        receipt(blockNumber="0x8000000000000000"),
        receipt(blockNumber="0x" + "1" * 100_000),
        receipt(blockHash="0x12"),
        receipt(blockHash=["0x"]),
        receipt(logs=None),
        receipt(logs={}),
        receipt(logs=[None]),
        receipt(log(address="0x12")),
        receipt(log(address=TOKEN + "00")),
        receipt(log(topics=["0x12"])),
        receipt(log(topics=[topic(ALICE)] * 5)),
        receipt(log(data="0x1")),
        receipt(log(data="zz")),
        receipt(log(data=None)),
        receipt(log(logIndex=None)),
        receipt(log(blockHash=None)),
        receipt(log(removed="yes", address=None)),
    ],
)
def test_a_malformed_receipt_is_a_failure_of_the_node_in_one_short_line(raw: object) -> None:
    with pytest.raises(EndpointFailure, match="eth_getTransactionReceipt") as failed:
        read(raw)
    assert failed.value.failure is Failure.MALFORMED
    assert "\n" not in failed.value.message
    assert len(failed.value.message) < 200


def header(**changes: Any) -> dict[str, Any]:
    return {"number": "0xa", "hash": "0x" + "BB" * 32, "transactions": ["0x" + "AA" * 32]} | changes


def test_a_header_is_read_in_lower_case() -> None:
    found = read_header(Reply("eth_getBlockByNumber", header()), 10)
    assert found is not None
    assert (found.number, found.block_hash, found.tx_hashes) == (10, BLOCK, frozenset({"0x" + "aa" * 32}))
    assert read_header(Reply("eth_getBlockByNumber", None), 10) is None


def test_another_block_than_the_one_asked_for_is_a_contradiction() -> None:
    with pytest.raises(EndpointFailure, match="block 11, got block 10"):
        read_header(Reply("eth_getBlockByNumber", header()), 11)


@pytest.mark.parametrize(
    "raw", [header(number=None), header(hash=None), header(transactions=None), header(transactions=[{}]), "0x", False]
)
def test_a_malformed_header_is_a_failure_of_the_node(raw: object) -> None:
    with pytest.raises(EndpointFailure) as failed:
        read_header(Reply("eth_getBlockByNumber", raw), 10)
    assert failed.value.failure is Failure.MALFORMED


def test_a_quantity_is_read_up_to_its_bound() -> None:
    assert read_quantity(Reply("eth_blockNumber", "0x7fffffffffffffff")) == 2**63 - 1
    with pytest.raises(EndpointFailure):
        read_quantity(Reply("eth_blockNumber", hex(2**63)))
    assert read_data(Reply("eth_getCode", "0x")) == b""


def test_the_newest_block_has_a_time() -> None:
    found = read_head(Reply("eth_getBlockByNumber", {"number": "0xa", "timestamp": "0x6956a2b0", "extra": 1}))
    assert (found.number, found.mined_at) == (10, datetime(2026, 1, 1, 16, 37, 4, tzinfo=UTC))


@pytest.mark.parametrize(
    "raw", [None, {}, {"number": "0xa"}, {"number": "0xa", "timestamp": 7}, {"number": "0xa", "timestamp": hex(2**33)}]
)
def test_a_newest_block_without_a_good_time_is_a_failure_of_the_node(raw: object) -> None:
    with pytest.raises(EndpointFailure):
        read_head(Reply("eth_getBlockByNumber", raw))
