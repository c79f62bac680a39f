"""Strict parsing of a node's answers, and their translation into the domain's values.

A node's mistake is `EndpointFailure` (the next endpoint is asked). What a *contract* emitted is no mistake of the node:
any contract can emit any log, so logs that only resemble a transfer are ignored.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from eth_utils.crypto import keccak
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from chain.addresses import checksum_of_bytes
from chain.rpc import EndpointFailure, Failure, Reply
from domain.chain import BlockHeader, ChainHead, MinedBlock, Receipt, TransferLog
from domain.coin import COIN_PLACES_FROM

TRANSFER_TOPIC: Final[bytes] = keccak(text="Transfer(address,address,uint256)")
"""Topic 0 of ERC-20's event. ERC-721 has the same one and differs by a fourth topic."""

AUTHORIZATION_USED_TOPIC: Final[bytes] = keccak(text="AuthorizationUsed(address,bytes32)")
"""Topic 0 of EIP-3009's event, which a token logs directly before the transfer that was authorized."""

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,16}", re.ASCII)
_WEI = re.compile(r"0x[0-9a-fA-F]{1,64}", re.ASCII)
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)


def _quantity(value: object) -> int:
    if not isinstance(value, str) or _QUANTITY.fullmatch(value) is None or (number := int(value, 16)) >= 2**63:
        raise ValueError("expected a hex quantity below 2^63")
    return number


def _wei(value: object) -> int:
    if not isinstance(value, str) or _WEI.fullmatch(value) is None:
        raise ValueError("expected a hex quantity of at most 256 bits")
    return int(value, 16)


def _data(value: object) -> bytes:
    if not isinstance(value, str) or _DATA.fullmatch(value) is None:
        raise ValueError("expected hex bytes")
    return bytes.fromhex(value[2:])


def _hash(value: object) -> str:
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        raise ValueError("expected 32 hex bytes")
    return value.lower()


Wei = Annotated[int, BeforeValidator(_wei)]
Quantity = Annotated[int, BeforeValidator(_quantity)]
Data = Annotated[bytes, BeforeValidator(_data)]
Hash = Annotated[str, BeforeValidator(_hash)]


class WireModel(BaseModel):
    """A JSON object of the Ethereum JSON-RPC; members that are not needed are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


class WireLog(WireModel):
    """One log of a receipt that was not removed by a reorganisation."""

    address: Annotated[Data, Field(min_length=20, max_length=20)]
    topics: Annotated[list[Annotated[Data, Field(min_length=32, max_length=32)]], Field(max_length=4)]
    data: Data
    log_index: Annotated[Quantity, Field(lt=COIN_PLACES_FROM)]
    block_number: Quantity
    block_hash: Hash
    transaction_hash: Hash


class WireReceipt(WireModel):
    """A receipt; its logs are checked one by one, since removed ones need not be complete."""

    transaction_hash: Hash
    status: Quantity
    block_number: Quantity
    block_hash: Hash
    logs: list[dict[str, Any]]


class WireHeader(WireModel):
    """A block asked for with transaction hashes only."""

    number: Quantity
    hash: Hash
    transactions: list[Hash]
    timestamp: Annotated[Quantity, Field(lt=2**33)] | None = None


class WireHead(WireModel):
    """The newest block; only when it was mined."""

    number: Quantity
    timestamp: Annotated[Quantity, Field(lt=2**33)]


class WireBlock(WireHead):
    """A block's identity and its time."""

    hash: Hash


_WEI_ADAPTER: Final[TypeAdapter[int]] = TypeAdapter(Wei)
_QUANTITY_ADAPTER: Final[TypeAdapter[int]] = TypeAdapter(Quantity)
_DATA_ADAPTER: Final[TypeAdapter[bytes]] = TypeAdapter(Data)
_T = TypeVar("_T")


def read_quantity(reply: Reply) -> int:
    """A hex quantity below 2^63."""
    return checked(reply.method, _QUANTITY_ADAPTER, reply.value())


def read_wei(reply: Reply) -> int:
    """A hex quantity of up to 256 bits."""
    return checked(reply.method, _WEI_ADAPTER, reply.value())


def read_data(reply: Reply) -> bytes:
    """Hex bytes."""
    return checked(reply.method, _DATA_ADAPTER, reply.value())


def read_receipt(reply: Reply, tx_hash: str) -> Receipt | None:
    """The receipt of `tx_hash`, with its ERC-20 transfers only; None where the node has none.

    A receipt without a block (some nodes answer so for a pending transaction) counts as none.
    """
    raw = reply.value()
    if raw is None or (isinstance(raw, dict) and raw.get("blockHash", "") is None):
        return None
    receipt = checked(reply.method, _RECEIPT_ADAPTER, raw)
    if receipt.transaction_hash != tx_hash:
        raise EndpointFailure(
            Failure.CONTRADICTION, f"the receipt is of another transaction {receipt.transaction_hash}"
        )
    if receipt.status not in (0, 1):
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: status is {receipt.status}, expected 0 or 1")
    logs = [checked(reply.method, _LOG_ADAPTER, log) for log in receipt.logs if log.get("removed") is not True]
    _contradictions(receipt, logs)
    return Receipt(
        tx_hash=receipt.transaction_hash,
        succeeded=receipt.status == 1,
        block_number=receipt.block_number,
        block_hash=receipt.block_hash,
        transfers=_transfers(logs),
    )


def read_header(reply: Reply, number: int) -> BlockHeader | None:
    """The block that the node has at height `number`; None where it has none."""
    raw = reply.value()
    if raw is None:
        return None
    header = checked(reply.method, _HEADER_ADAPTER, raw)
    if header.number != number:
        raise EndpointFailure(Failure.CONTRADICTION, f"asked for block {number}, got block {header.number}")
    return _to_block(header)


def read_tagged_number(reply: Reply) -> int | None:
    """Number of the block that the node returns for a tag; None where it has none, or does not know the tag."""
    raw = reply.value()
    return None if raw is None else checked(reply.method, _HEAD_ADAPTER, raw).number


def read_head(reply: Reply) -> ChainHead:
    """The newest block of a node."""
    head = checked(reply.method, _HEAD_ADAPTER, reply.value())
    return ChainHead(number=head.number, mined_at=datetime.fromtimestamp(head.timestamp, UTC))


def read_block(reply: Reply, number: int) -> MinedBlock | None:
    """The block that the node has at height `number`, with its time; None where it has none."""
    raw = reply.value()
    if raw is None:
        return None
    block = checked(reply.method, _BLOCK_ADAPTER, raw)
    if block.number != number:
        raise EndpointFailure(Failure.CONTRADICTION, f"asked for block {number}, got block {block.number}")
    return MinedBlock(number=block.number, block_hash=block.hash, mined_at=datetime.fromtimestamp(block.timestamp, UTC))


def read_logs(reply: Reply) -> list[tuple[WireLog, TransferLog | None]]:
    """Logs that match a filter, without removed ones; each with the ERC-20 transfer that it is, if any."""
    raw = reply.value()
    if not isinstance(raw, list):
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected an array")
    there = [log for log in raw if not (isinstance(log, dict) and log.get("removed") is True)]
    return [(log, _transfer(log)) for log in (checked(reply.method, _LOG_ADAPTER, log) for log in there)]


def _to_block(header: WireHeader) -> BlockHeader:
    return BlockHeader(
        number=header.number,
        block_hash=header.hash,
        tx_hashes=frozenset(header.transactions),
        mined_at=None if header.timestamp is None else datetime.fromtimestamp(header.timestamp, UTC),
    )


_RECEIPT_ADAPTER: Final = TypeAdapter(WireReceipt)
_LOG_ADAPTER: Final = TypeAdapter(WireLog)
_HEADER_ADAPTER: Final = TypeAdapter(WireHeader)
_HEAD_ADAPTER: Final = TypeAdapter(WireHead)
_BLOCK_ADAPTER: Final = TypeAdapter(WireBlock)


def checked(method: str, adapter: TypeAdapter[_T], raw: object) -> _T:
    """The value that a node's answer to `method` is. Raises `EndpointFailure` where it has another shape."""
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise EndpointFailure(
            Failure.MALFORMED, f"{method}: {where}: {first['msg']}" if where else f"{method}: {first['msg']}"
        ) from None


def _contradictions(receipt: WireReceipt, logs: list[WireLog]) -> None:
    """Check that the logs belong to the receipt's block and transaction and have distinct indexes; others are of
    different moments.
    """
    seen: set[int] = set()
    for log in logs:
        if (log.block_hash, log.block_number) != (receipt.block_hash, receipt.block_number):
            raise EndpointFailure(Failure.CONTRADICTION, f"log {log.log_index} is of another block than its receipt")
        if log.transaction_hash != receipt.transaction_hash:
            raise EndpointFailure(
                Failure.CONTRADICTION, f"log {log.log_index} is of another transaction than its receipt"
            )
        if log.log_index in seen:
            raise EndpointFailure(Failure.CONTRADICTION, f"two logs of the receipt have the index {log.log_index}")
        seen.add(log.log_index)


def _transfers(logs: list[WireLog]) -> tuple[TransferLog, ...]:
    """The ERC-20 transfers, each with the authorization that it follows."""
    at = {log.log_index: log for log in logs}
    found = []
    for log in logs:
        transfer = _transfer(log)
        if transfer is None:
            continue
        before = at.get(log.log_index - 1)
        is_authorized = (
            before is not None
            and len(before.topics) == 3
            and before.topics[0] == AUTHORIZATION_USED_TOPIC
            and before.address == log.address
            and before.topics[1] == log.topics[1]
        )
        nonce = "0x" + before.topics[2].hex() if before is not None and is_authorized else None
        found.append(transfer if nonce is None else transfer.model_copy(update={"authorization_nonce": nonce}))
    return tuple(found)


def _transfer(log: WireLog) -> TransferLog | None:
    """The log as an ERC-20 transfer, or None when it is not one."""
    if len(log.topics) != 3 or log.topics[0] != TRANSFER_TOPIC or len(log.data) != 32:
        return None
    _, sender, recipient = log.topics
    if any(sender[:12]) or any(recipient[:12]):
        # Not an ABI-encoded address. Cutting it to 20 bytes would let a contract write another address's name.
        return None
    return TransferLog(
        log_index=log.log_index,
        emitter=checksum_of_bytes(log.address),
        from_address=checksum_of_bytes(sender[12:]),
        to_address=checksum_of_bytes(recipient[12:]),
        value_raw=int.from_bytes(log.data, "big"),
    )
