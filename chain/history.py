"""All transfers of a scope in a range of blocks, from one endpoint, with one log query for each 500 recipients.

Providers limit log queries most: a refused one says nothing about how an endpoint serves payments.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Final

from chain.rpc import Call, Endpoint, EndpointFailure, Failure, Reply
from chain.wire import TRANSFER_TOPIC, WireLog, read_block, read_logs, read_quantity
from domain.chain import DepositScope, MinedBlock, Transfer, TransferLog, TransferRange, TransferScope

HEADERS_MAX: Final = 50
"""Blocks per batch: providers count each, and allow about 50 in a second."""

PARSE_INLINE_LOGS_MAX: Final = 50
"""More are decoded in a thread: each takes 0.14 ms when its addresses are new (Keccak)."""

RECIPIENTS_MAX: Final = 500
"""Recipients of one log query: nodes limit how many topics they match (go-ethereum to 1,000)."""

_CHAIN_ID: Final = Call("eth_chainId")
_BLOCK_NUMBER: Final = Call("eth_blockNumber")

_MAY_BE_THE_RANGE: Final = frozenset(
    {Failure.TIMEOUT, Failure.TOO_LARGE, Failure.HTTP_STATUS, Failure.UNREACHABLE, Failure.RPC_ERROR}
)
"""How a whole batch fails when its log query is too much: too slow, too large, or the connection is closed."""

_ABOUT_THE_RANGE: Final = re.compile(r"\b(range|results?|blocks?|response size)\b", re.IGNORECASE)
"""Providers use the code of rate limits also for "query returned more than 10000 results"."""


PRUNED_CODES: Final = frozenset({4444, -32001})
"""JSON-RPC error codes for pruned history: go-ethereum's and Reth's (EIP-4444), and EIP-1474's "resource not found"."""

POOL_LAG_BLOCKS_MAX: Final = 16
"""A node of a pool without a block so far below the pool's head does not lag: it has pruned the block."""

_PRUNED: Final = re.compile(
    r"\bprun|missing trie node|\barchiv"
    r"|histor\w* (?:\w+ ){0,4}(?:not available|unavailable|not found)"
    r"|\b(?:blocks?|range|data|state|logs?|receipts?|bod(?:y|ies)|headers?)\b[^.;]{0,60}"
    r"\b(?:(?:not|no longer) (?:available|stored|kept|found)|unavailable|discarded|deleted|expired)\b",
    re.IGNORECASE,
)
"""The same as text, as clients and providers phrase it."""

_FOR_NOW: Final = re.compile(r"temporar|try again|\bretry|overload|internal", re.IGNORECASE)
"""Phrases meaning that the same request may succeed later."""


class HistoryRefused(EndpointFailure):
    """A healthy endpoint does not answer a historical query: not recorded as a failure."""


class RangeRefused(HistoryRefused):
    """The range is too large for the endpoint; a smaller one may be answered."""


class HistoryPruned(HistoryRefused):
    """The endpoint says that it does not keep the blocks; no smaller range from that block is answered."""


def says_pruned(refusal: EndpointFailure) -> bool:
    """Whether an endpoint's error says that it does not keep the requested blocks."""
    if refusal.failure is not Failure.RPC_ERROR:
        return False
    if refusal.rpc_code in PRUNED_CODES:
        return True
    return bool(_PRUNED.search(refusal.message)) and not _FOR_NOW.search(refusal.message)


async def ask_range(
    endpoint: Endpoint, calls: Sequence[Call], *, chain_id: int, last: int, saw_head: Callable[[int], None]
) -> tuple[Sequence[Reply], int]:
    """The replies to a range's calls, of which the first two ask for chain id and height; and that height.

    Raises `RangeRefused` where fewer blocks may be answered, `HistoryRefused` where the node has no block `last` yet,
    and `EndpointFailure` for everything else.
    """
    try:
        replies = await endpoint.batch(calls)
    except EndpointFailure as failure:
        if await may_be_the_range(endpoint, failure):
            raise RangeRefused(failure.failure, failure.message) from None
        raise
    check_chain(replies[0], chain_id)
    head = read_quantity(replies[1])
    saw_head(head)
    if head < last:
        # Beyond its head a node silently returns part of what there is.
        raise HistoryRefused(Failure.BEHIND, f"has no block {last} yet, its head is {head}")
    return replies, head


async def read_range(
    endpoint: Endpoint,
    scope: TransferScope,
    first: int,
    last: int,
    *,
    anchor: int | None,
    saw_head: Callable[[int], None],
) -> TransferRange:
    """The transfers in blocks `first` to `last`; `saw_head` receives the node's height and may raise.

    Head, logs, the last block and the anchor come from one batch. Blocks with transfers are read in a second one for
    their timestamps; both must be of the same chain. An anchor that the node does not return is None in the answer.
    Raises `RangeRefused`, `HistoryPruned`, `HistoryRefused`, and `EndpointFailure` for everything else.
    """
    calls = [_CHAIN_ID, _BLOCK_NUMBER, block_call(last)]
    if anchor is not None:
        calls.append(block_call(anchor))
    queries = _logs_calls(scope, first, last)
    calls.extend(queries)
    replies, head = await ask_range(endpoint, calls, chain_id=scope.chain_id, last=last, saw_head=saw_head)
    logs = _unpruned(replies[-len(queries) :])
    last_block = past_block(replies[2], last, head)
    found = await _found(logs, scope, first, last)
    numbers = sorted({log.block_number for log, _ in found} | {last})
    blocks = await read_blocks(endpoint, scope.chain_id, numbers) if found else {}
    _check_same_chain(blocks, last_block, found)
    return TransferRange(
        endpoint=endpoint.label,
        head_number=head,
        first=first,
        last=last,
        last_block=last_block,
        anchor=anchor_block(replies[3], anchor) if anchor is not None else None,
        transfers=tuple(_placed(log, transfer, blocks, scope) for log, transfer in found),
    )


def past_block(reply: Reply, number: int, head: int) -> MinedBlock:
    """The block at a height below the node's head. Raises `HistoryRefused` where the node does not return it."""
    block = _block_if_there(reply, number, head)
    if block is None:
        kind = HistoryPruned if head - number > POOL_LAG_BLOCKS_MAX else HistoryRefused
        raise kind(Failure.CONTRADICTION, f"has no block {number}, its head is {head}")
    return block


def _unpruned(logs: Sequence[Reply]) -> Sequence[Reply]:
    for reply in logs:
        if reply.error is not None and says_pruned(reply.error):
            raise HistoryPruned(reply.error.failure, reply.error.message)
    return logs


async def read_blocks(endpoint: Endpoint, own_chain_id: int, numbers: Sequence[int]) -> dict[int, MinedBlock | None]:
    """The node's current blocks at these heights; None above its head.

    A block at or below the head that it does not return is missing from the answer: pruned, or the node is faulty,
    which says nothing about the chain. Raises `EndpointFailure`.
    """
    blocks: dict[int, MinedBlock | None] = {}
    for start in range(0, len(numbers), HEADERS_MAX):
        wanted = numbers[start : start + HEADERS_MAX]
        calls = [_CHAIN_ID, _BLOCK_NUMBER, *(block_call(number) for number in wanted)]
        chain_id, height, *replies = await endpoint.batch(calls)
        check_chain(chain_id, own_chain_id)
        head = read_quantity(height)
        for number, reply in zip(wanted, replies, strict=True):
            try:
                block = _block_if_there(reply, number, head)
            except HistoryRefused:
                continue
            if block is not None or number > head:
                blocks[number] = block
    return blocks


def _block_if_there(reply: Reply, number: int, head: int) -> MinedBlock | None:
    """The block. A node's error is about historical data, unless it says that the rate limit was reached."""
    try:
        return read_block(reply, number)
    except EndpointFailure as failure:
        if failure.failure is Failure.RATE_LIMITED:
            raise
        kind = HistoryPruned if says_pruned(failure) else HistoryRefused
        raise kind(failure.failure, f"block {number} of {head}: {failure.message}") from None


def anchor_block(reply: Reply, number: int) -> MinedBlock | None:
    """The block that was read before; None where the node does not return it."""
    try:
        return _block_if_there(reply, number, number)
    except HistoryRefused:
        return None


async def may_be_the_range(endpoint: Endpoint, failure: EndpointFailure) -> bool:
    """Whether a batch may have failed because it asked for too much: the node is reachable after all."""
    if failure.failure not in _MAY_BE_THE_RANGE:
        return False
    try:
        await endpoint.batch([_CHAIN_ID, _BLOCK_NUMBER])
    except EndpointFailure:
        return False
    return True


async def _found(
    replies: Sequence[Reply], scope: TransferScope, first: int, last: int
) -> list[tuple[WireLog, TransferLog]]:
    """The transfers among the logs, in the chain's order; without those of zero, which any address can cause."""
    emitters = {token.lower() for token in scope.emitters}
    recipients = {address.lower() for address in scope.recipients}
    seen: set[tuple[int, int]] = set()
    found: list[tuple[WireLog, TransferLog]] = []
    for log, transfer in [pair for reply in replies for pair in await _logs(reply)]:
        if not first <= log.block_number <= last:
            raise HistoryRefused(
                Failure.CONTRADICTION, f"asked for blocks {first} to {last}, got a log of block {log.block_number}"
            )
        if transfer is None or transfer.value_raw == 0:
            continue
        if transfer.emitter.lower() not in emitters or transfer.to_address.lower() not in recipients:
            raise HistoryRefused(Failure.CONTRADICTION, "got a log that does not match the filter")
        if (log.block_number, log.log_index) in seen:
            raise HistoryRefused(
                Failure.CONTRADICTION, f"two logs of block {log.block_number} have the index {log.log_index}"
            )
        seen.add((log.block_number, log.log_index))
        found.append((log, transfer))
    return sorted(found, key=lambda pair: (pair[0].block_number, pair[0].log_index))


async def _logs(reply: Reply) -> list[tuple[WireLog, TransferLog | None]]:
    refusal = reply.error
    if refusal is not None:
        limited = refusal.failure is Failure.RATE_LIMITED
        if limited and not _ABOUT_THE_RANGE.search(refusal.message):
            raise refusal
        raise RangeRefused(refusal.failure, refusal.message)
    many = isinstance(reply.result, list) and len(reply.result) > PARSE_INLINE_LOGS_MAX
    try:
        return await asyncio.to_thread(read_logs, reply) if many else read_logs(reply)
    except EndpointFailure as failure:
        raise HistoryRefused(failure.failure, failure.message) from None


def _check_same_chain(
    blocks: dict[int, MinedBlock | None], last_block: MinedBlock, found: list[tuple[WireLog, TransferLog]]
) -> None:
    """Check that no reorganisation happened between the two reads, and that no log is of a replaced block."""
    if not found:
        return
    hashes = {number: block.block_hash for number, block in blocks.items() if block is not None}
    if hashes.get(last_block.number, last_block.block_hash) != last_block.block_hash:
        raise HistoryRefused(Failure.CONTRADICTION, f"block {last_block.number} changed between two reads")
    for log, _ in found:
        if log.block_number not in hashes:
            raise HistoryRefused(Failure.CONTRADICTION, f"does not return block {log.block_number}, which holds a log")
        if hashes[log.block_number] != log.block_hash:
            raise HistoryRefused(
                Failure.CONTRADICTION, f"a log is of another block {log.block_number} than the canonical one"
            )


def _placed(
    log: WireLog, transfer: TransferLog, blocks: dict[int, MinedBlock | None], scope: TransferScope
) -> Transfer:
    block = blocks[log.block_number]
    assert block is not None, "its hash has been compared"
    return Transfer(
        tx_hash=log.transaction_hash,
        log_index=log.log_index,
        block_number=log.block_number,
        block_hash=log.block_hash,
        block_time=block.mined_at,
        from_address=transfer.from_address,
        value_raw=transfer.value_raw,
        **({"token": transfer.emitter, "to_address": transfer.to_address} if isinstance(scope, DepositScope) else {}),
    )


def check_chain(reply: Reply, own_chain_id: int) -> None:
    """Refuse an answer of another chain. Raises `EndpointFailure`."""
    chain_id = read_quantity(reply)
    if chain_id != own_chain_id:
        raise EndpointFailure(Failure.WRONG_CHAIN, f"answers for chain {chain_id}, not {own_chain_id}")


def block_call(number: int) -> Call:
    """A block with the hashes of its transactions."""
    return Call("eth_getBlockByNumber", (hex(number), False))


def _logs_calls(scope: TransferScope, first: int, last: int) -> list[Call]:
    """One query for each 500 recipients, of all tokens."""
    emitters = scope.emitters
    padded = ["0x" + address[2:].lower().rjust(64, "0") for address in scope.recipients]
    return [
        Call(
            "eth_getLogs",
            (
                {
                    "fromBlock": hex(first),
                    "toBlock": hex(last),
                    "address": emitters[0] if len(emitters) == 1 else list(emitters),
                    "topics": [
                        "0x" + TRANSFER_TOPIC.hex(),
                        None,
                        padded[0] if len(padded) == 1 else padded[start : start + RECIPIENTS_MAX],
                    ],
                },
            ),
        )
        for start in range(0, len(padded), RECIPIENTS_MAX)
    ]
