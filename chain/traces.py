"""Traces of blocks and transactions, and the movements of the chain's own coin in them (`domain.coin`).

`trace_block` and `trace_transaction`, as Reth, Erigon, Nethermind and Besu serve them. Every frame of their answers
names its block by hash, and a block's transactions are known from its header: what is of another block, or lacks a
transaction, is a contradiction and counts for nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from chain.addresses import checksum_address
from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID
from chain.history import (
    HistoryPruned,
    HistoryRefused,
    RangeRefused,
    anchor_block,
    ask_range,
    block_call,
    check_chain,
    past_block,
    says_pruned,
)
from chain.rpc import Call, Endpoint, EndpointFailure, Failure, Reply
from chain.wire import Hash, Wei, WireModel, checked, read_header, read_quantity
from domain.chain import BlockHeader, MinedBlock, Receipt, Transfer, TransferLog, TransferRange, TransferScope
from domain.coin import NATIVE_COIN, CoinMovement, Frame, coin_movements

METHOD_NOT_FOUND: Final = -32601
"""JSON-RPC's code for a method that the node does not serve."""

PARSE_INLINE_FRAMES: Final = 500
"""More are decoded in a thread: a frame takes some ten microseconds."""

DEPTH_MAX: Final = 1024
"""Calls within calls that the EVM allows."""


class TracesRefused(HistoryRefused):
    """A healthy endpoint does not trace: not recorded as a failure, and no vote about the chain's own coin."""


def _address(value: object) -> str:
    if not isinstance(value, str) or len(value) != 42 or not value.startswith("0x"):
        raise ValueError("expected an address")
    bytes.fromhex(value[2:])
    return value.lower()


LowerAddress = Annotated[str, BeforeValidator(_address)]
Path = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(max_length=DEPTH_MAX)]


class _CallAction(WireModel):
    sender: LowerAddress = Field(alias="from")
    to: LowerAddress
    value: Wei
    call_type: str


class _CreateAction(WireModel):
    sender: LowerAddress = Field(alias="from")
    value: Wei


class _Created(WireModel):
    address: LowerAddress


class _SelfdestructAction(WireModel):
    address: LowerAddress
    refund_address: LowerAddress
    balance: Wei


class _Traced(WireModel):
    block_hash: Hash
    transaction_hash: Hash
    trace_address: Path
    error: str | None = None


class _CallTrace(_Traced):
    type: Literal["call"]
    action: _CallAction

    def frame(self) -> Frame:
        action = self.action
        moves = action.call_type == "call"
        return _frame(self, action.sender, action.to, action.value, moves=moves)


class _CreateTrace(_Traced):
    type: Literal["create"]
    action: _CreateAction
    result: _Created | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_was_not_made(cls, raw: Any) -> Any:
        """Clients differ in what they answer in place of a contract that was not made."""
        return {**raw, "result": None} if isinstance(raw, dict) and raw.get("error") is not None else raw

    @model_validator(mode="after")
    def _has_made_one(self) -> Self:
        if self.error is None and self.result is None:
            raise ValueError("a contract was made, and its address is not there")
        return self

    def frame(self) -> Frame:
        made = "" if self.result is None else self.result.address
        return _frame(self, self.action.sender, made, self.action.value)


class _SelfdestructTrace(_Traced):
    type: Literal["suicide"]
    action: _SelfdestructAction

    def frame(self) -> Frame:
        action = self.action
        return _frame(self, action.address, action.refund_address, action.balance)


class _RewardTrace(WireModel):
    """What a block's producer is paid. It is of no transaction, and no transfer."""

    type: Literal["reward"]
    block_hash: Hash


def _frame(trace: _Traced, sender: str, recipient: str, value_raw: int, *, moves: bool = True) -> Frame:
    failed = trace.error is not None
    return Frame(tuple(trace.trace_address), sender, recipient, value_raw, moves=moves, failed=failed)


_Trace = Annotated[_CallTrace | _CreateTrace | _SelfdestructTrace | _RewardTrace, Field(discriminator="type")]
_COIN: Final = NATIVE_COIN.lower()
_TRACES: Final[TypeAdapter[list[Any]]] = TypeAdapter(list[_Trace])


def block_traces_call(number: int) -> Call:
    """The traces of all transactions of a block."""
    return Call("trace_block", (hex(number),))


def transaction_traces_call(tx_hash: str) -> Call:
    """The traces of one transaction."""
    return Call("trace_transaction", (tx_hash,))


async def with_coin(receipt: Receipt, reply: Reply) -> Receipt:
    """The receipt with the transaction's movements of coin among its transfers; of one that reverted there are none.

    Raises `TracesRefused` where the endpoint does not trace it, `EndpointFailure` for what contradicts the receipt.
    """
    if not receipt.succeeded:
        return receipt
    refusal = reply.error
    if refusal is not None:
        if refusal.failure is Failure.RATE_LIMITED:
            raise refusal
        raise TracesRefused(refusal.failure, refusal.message)
    frames = await _frames(reply, receipt.block_hash)
    if frames.keys() != {receipt.tx_hash}:
        raise TracesRefused(
            Failure.CONTRADICTION,
            f"{reply.method}: no calls, or another one's, of a transaction in block {receipt.block_number}",
        )
    moved = coin_movements(frames[receipt.tx_hash])
    return receipt.model_copy(update={"transfers": (*receipt.transfers, *(_log(one) for one in moved))})


async def read_coin_range(
    endpoint: Endpoint,
    scope: TransferScope,
    first: int,
    last: int,
    *,
    anchor: int | None,
    saw_head: Callable[[int], None],
) -> TransferRange:
    """The scope's movements of coin in blocks `first` to `last`, of one batch with these blocks.

    As `chain.history.read_range` does with logs; a block that was answered lacks none of its transactions.

    Raises `RangeRefused` where fewer blocks may be answered, `HistoryPruned`, `TracesRefused`, `HistoryRefused`, and
    `EndpointFailure` for everything else.
    """
    numbers = range(first, last + 1)
    calls = [CHAIN_ID, BLOCK_NUMBER, *map(block_call, numbers), *map(block_traces_call, numbers)]
    if anchor is not None:
        calls.append(block_call(anchor))
    replies, head = await ask_range(endpoint, calls, chain_id=scope.chain_id, last=last, saw_head=saw_head)
    traced = zip(numbers, replies[2:], replies[2 + len(numbers) :], strict=False)
    read = [await _in_block(number, block, traces, head, scope) for number, block, traces in traced]
    return TransferRange(
        endpoint=endpoint.label,
        head_number=head,
        first=first,
        last=last,
        last_block=read[-1][0],
        anchor=anchor_block(replies[-1], anchor) if anchor is not None else None,
        transfers=tuple(transfer for _, transfers in read for transfer in transfers),
    )


async def _in_block(
    number: int, block: Reply, traces: Reply, head: int, scope: TransferScope
) -> tuple[MinedBlock, list[Transfer]]:
    mined = past_block(block, number, head)
    header = read_header(block, number)
    assert header is not None, "it has just been read"
    return mined, [
        _placed(tx_hash, moved, mined)
        for tx_hash, frames in (await _of_block(traces, header)).items()
        for moved in coin_movements(frames)
        if scope.selects(_COIN, moved.sender, moved.recipient)
    ]


async def trace_problem(endpoint: Endpoint, own_chain_id: int) -> str | None:
    """Why an endpoint cannot be asked about the chain's own coin, by its newest block; None where it can. One line."""
    try:
        chain_id, height = await endpoint.batch([CHAIN_ID, BLOCK_NUMBER])
        check_chain(chain_id, own_chain_id)
        head = read_quantity(height)
        block, traces = await endpoint.batch([block_call(head), block_traces_call(head)])
        header = read_header(block, head)
        if header is None:
            return f"has no block {head}, which is its head"
        await _of_block(traces, header)
        # Of an empty block there is none to ask for: one that is not there shows whether the method is served.
        tx_hash = min(header.tx_hashes, default="0x" + "00" * 32)
        (traces,) = await endpoint.batch([transaction_traces_call(tx_hash)])
        if traces.error is not None and (header.tx_hashes or traces.error.rpc_code == METHOD_NOT_FOUND):
            return traces.error.message
        if header.tx_hashes and (await _frames(traces, header.block_hash)).keys() != {tx_hash}:
            return f"{traces.method}: no calls of a transaction in block {head}"
    except EndpointFailure as failure:
        return failure.message
    return None


async def _of_block(reply: Reply, block: BlockHeader) -> dict[str, list[Frame]]:
    """The frames of a block's transactions, of which none is missing."""
    refusal = reply.error
    if refusal is not None:
        if refusal.failure is Failure.RATE_LIMITED:
            raise refusal
        if refusal.rpc_code == METHOD_NOT_FOUND:
            raise TracesRefused(refusal.failure, refusal.message)
        raise (HistoryPruned if says_pruned(refusal) else RangeRefused)(refusal.failure, refusal.message)
    try:
        frames = await _frames(reply, block.block_hash)
    except EndpointFailure as failure:
        raise HistoryRefused(failure.failure, failure.message) from None
    if frames.keys() != block.tx_hashes:
        different = len(frames.keys() ^ block.tx_hashes)
        raise HistoryRefused(
            Failure.CONTRADICTION,
            f"{reply.method}: block {block.number} has {len(block.tx_hashes)} transactions, {different} of them lack "
            "their calls, or are others",
        )
    return frames


async def _frames(reply: Reply, block_hash: str) -> dict[str, list[Frame]]:
    """By transaction. Raises `EndpointFailure` for frames that are of another block, or of no call that is there."""
    raw = reply.value()
    many = isinstance(raw, list) and len(raw) > PARSE_INLINE_FRAMES
    return await asyncio.to_thread(_read_frames, reply, block_hash) if many else _read_frames(reply, block_hash)


def _read_frames(reply: Reply, block_hash: str) -> dict[str, list[Frame]]:
    found: dict[str, dict[tuple[int, ...], Frame]] = defaultdict(dict)
    for trace in checked(reply.method, _TRACES, reply.value()):
        if trace.block_hash != block_hash:
            raise EndpointFailure(Failure.CONTRADICTION, f"{reply.method}: a call is of another block")
        if isinstance(trace, _RewardTrace):
            continue
        frame = trace.frame()
        if frame.path in found[trace.transaction_hash]:
            raise EndpointFailure(Failure.CONTRADICTION, f"{reply.method}: two calls are at the same place")
        found[trace.transaction_hash][frame.path] = frame
    for by_path in found.values():
        # Whether a call has failed with the one that made it is known only where that one is there.
        if any(path and path[:-1] not in by_path for path in by_path):
            raise EndpointFailure(Failure.CONTRADICTION, f"{reply.method}: a call is of one that is not there")
    return {tx_hash: list(by_path.values()) for tx_hash, by_path in found.items()}


def _log(moved: CoinMovement) -> TransferLog:
    return TransferLog(
        log_index=moved.place,
        emitter=NATIVE_COIN,
        from_address=checksum_address(moved.sender),
        to_address=checksum_address(moved.recipient),
        value_raw=moved.value_raw,
    )


def _placed(tx_hash: str, moved: CoinMovement, block: MinedBlock) -> Transfer:
    return Transfer(
        tx_hash=tx_hash,
        log_index=moved.place,
        block_number=block.number,
        block_hash=block.block_hash,
        block_time=block.mined_at,
        from_address=checksum_address(moved.sender),
        value_raw=moved.value_raw,
        token=NATIVE_COIN,
        to_address=checksum_address(moved.recipient),
    )
