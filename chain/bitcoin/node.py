"""The questions to a node of Bitcoin, by the JSON-RPC of Bitcoin Core (`chain.family.ChainFamily`).

Five calls, which every version of Core has: `getblockhash`, `getblockcount`, `getblock` and `getblockheader` as bytes,
and `getrawtransaction`, for which the node keeps an index of all transactions (`txindex=1`). Block 0 is read in every
request: it says which chain the node is of.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from chain.bitcoin.blocks import Block, BlockMalformed, Header, Transaction, read_block, read_header
from chain.bitcoin.scripts import address_of_script
from chain.derivation.networks import NETWORKS
from chain.endpoint_pool import EndpointPool, PooledEndpoint
from chain.family import NodeBlocks, NodeProgress, TaggedBlock
from chain.history import HistoryPruned, HistoryRefused, RangeRefused, says_pruned
from chain.quorum import Reading
from chain.rpc import Call, EndpointFailure, Failure, Reply
from domain.chain import (
    BlockHeader,
    ChainHead,
    ChainView,
    MinedBlock,
    Receipt,
    Transfer,
    TransferLog,
    TransferRange,
    TransferScope,
)
from domain.coin import NATIVE_COIN
from domain.errors import InvalidInput
from domain.utxo import (
    COINBASE_MATURITY,
    COINBASE_SENDER,
    UNNAMED_SENDER,
    UTXO_CHAINS,
    UtxoChain,
    chain_id_of_genesis,
)

BLOCKS_MAX: Final = 10
"""Blocks of one range. Each is one request, of some two megabytes."""

HASHES_MAX: Final = 50
"""Calls in one batch, as for other nodes."""

ROUNDS_MAX: Final = 3
"""Reads of a transaction's block; more than one where a reorganisation comes between."""

HEX_INLINE_MAX: Final = 200_000
"""Hex digits beyond which a block is read in a thread."""

OUT_OF_RANGE: Final = -8
"""Code of an answer about a height above the node's head."""

_GENESIS: Final = Call("getblockhash", (0,))
_COUNT: Final = Call("getblockcount")
_BEST: Final = Call("getbestblockhash")

_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)

_ABSENT: Final = re.compile(
    r"no such mempool or blockchain transaction|^getrawtransaction: transaction not found\b", re.IGNORECASE
)
"""How a node says that no block has a transaction: Core with its index complete, and bcoin. Core without the index says
"no such mempool transaction", which proves nothing."""

_TOO_MUCH: Final = frozenset({Failure.TIMEOUT, Failure.TOO_LARGE})

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node's index has a transaction."""

    block_hash: str
    height: int


class BitcoinFamily:
    """Reads one chain of `domain.utxo.UTXO_CHAINS`. Proof of work has no blocks `safe` or `finalized`."""

    def __init__(self, chain: UtxoChain) -> None:
        self._network = NETWORKS[chain.coin]

    @classmethod
    def of(cls, chain_id: int) -> BitcoinFamily:
        """The family of a chain by its number. Raises `InvalidInput` where it cannot be read."""
        chain = UTXO_CHAINS.get(chain_id)
        if chain is None:
            known = ", ".join(f"{one.chain_id} ({one.name})" for one in UTXO_CHAINS.values())
            raise InvalidInput("CHAIN_ID", f"{chain_id} is no chain that can be read: expected one of {known}")
        return cls(chain)

    async def read_identity(self, node: PooledEndpoint) -> tuple[int, int]:
        """See `ChainFamily`."""
        genesis, count = await node.endpoint.batch([_GENESIS, _COUNT])
        return _chain_id(genesis), _number(count)

    async def read_progress(
        self, pool: EndpointPool, node: PooledEndpoint, tags: Sequence[str], *, deadline: float
    ) -> NodeProgress:
        """See `ChainFamily`."""
        return (await self.read_hashes(pool, node, (), tags, deadline=deadline)).progress

    async def read_newest(self, pool: EndpointPool, node: PooledEndpoint, *, deadline: float) -> ChainHead:
        """See `ChainFamily`."""
        genesis, count, best = await node.endpoint.batch([_GENESIS, _COUNT, _BEST], deadline=deadline)
        pool.check_chain(_chain_id(genesis))
        height = pool.saw_head(node, _number(count))
        block_hash = _hash(best)
        (reply,) = await node.endpoint.batch([_header_call(block_hash)], deadline=deadline)
        return ChainHead(number=height, mined_at=_read(reply, partial(read_header, block_hash=block_hash)).mined_at)

    async def read_tag(self, pool: EndpointPool, node: PooledEndpoint, tag: str) -> TaggedBlock:
        """See `ChainFamily`."""
        return _no_tag(node.label, tag)

    async def read_hashes(
        self, pool: EndpointPool, node: PooledEndpoint, numbers: Sequence[int], tags: Sequence[str], *, deadline: float
    ) -> NodeBlocks:
        """See `ChainFamily`."""
        calls = [_GENESIS, _COUNT, *(_hash_call(number) for number in numbers)]
        genesis, count, *replies = await node.endpoint.batch(calls, deadline=deadline)
        pool.check_chain(_chain_id(genesis))
        head = pool.saw_head(node, _number(count))
        found = {number: _hash_or_none(reply) for number, reply in zip(numbers, replies, strict=True)}
        hashes = {number: _stored(one) for number, one in found.items() if one is not None and number <= head}
        return NodeBlocks(NodeProgress(head, [_no_tag(node.label, tag) for tag in tags]), hashes)

    async def read_payment(
        self,
        pool: EndpointPool,
        node: PooledEndpoint,
        tx_hash: str,
        *,
        block_hint: int | None,
        coin: bool,
        deadline: float,
    ) -> Reading:
        """Two requests: which block has it by the node's index, then that block, and the hash at its height.

        The block at `block_hint` is known by its hash alone, without its transactions. Whether or not the `coin` is
        asked for, there is nothing else.
        """
        asked: BlockHeader | None = None
        for round_number in range(ROUNDS_MAX):
            calls = [_GENESIS, _COUNT, _transaction_call(tx_hash)]
            if block_hint is not None:
                calls.append(_hash_call(block_hint))
            genesis, count, found, *hinted = await node.endpoint.batch(calls, deadline=deadline)
            chain_id = pool.check_chain(_chain_id(genesis))
            head = pool.saw_head(node, _number(count))
            if round_number == 0 and block_hint is not None:
                asked = _header_at(block_hint, _hash_or_none(hinted[0]), head)
            place = _place(found, head)
            if place is None:
                view = ChainView(chain_id=chain_id, endpoint=node.label, head_number=head)
                return Reading(view, asked, stalled=node.breaker.is_stalled(pool.clock()))
            found_view = await self._look(pool, node, tx_hash, place, deadline=deadline)
            if found_view is not None:
                asked = found_view.canonical if place.height == block_hint else asked
                return Reading(found_view, asked, stalled=node.breaker.is_stalled(pool.clock()))
        raise EndpointFailure(Failure.CONTRADICTION, f"it was in another block at each of {ROUNDS_MAX} reads")

    async def _look(
        self, pool: EndpointPool, node: PooledEndpoint, tx_hash: str, place: _Place, *, deadline: float
    ) -> ChainView | None:
        """The transaction in this block; None where the block is not at that height any more."""
        block_hash, height = place.block_hash, place.height
        calls = [_GENESIS, _COUNT, _hash_call(height), _block_call(block_hash)]
        genesis, count, at_height, content = await node.endpoint.batch(calls, deadline=deadline)
        chain_id = pool.check_chain(_chain_id(genesis))
        head = pool.saw_head(node, _number(count))
        if _hash_or_none(at_height) != block_hash or height > head:
            return None
        block = await _read_block(content, block_hash)
        transaction = next((one for one in block.transactions if _stored(one.txid) == tx_hash), None)
        if transaction is None:
            raise EndpointFailure(Failure.CONTRADICTION, f"block {height} lacks what the node's index has there")
        return ChainView(
            chain_id=chain_id,
            endpoint=node.label,
            head_number=head,
            receipt=Receipt(
                tx_hash=tx_hash,
                succeeded=True,
                block_number=height,
                block_hash=_stored(block_hash),
                transfers=tuple(self._transfers(transaction)),
                matures_after=COINBASE_MATURITY if transaction.is_coinbase else 0,
            ),
            canonical=BlockHeader(
                number=height,
                block_hash=_stored(block_hash),
                tx_hashes=frozenset(_stored(one.txid) for one in block.transactions),
                mined_at=block.header.mined_at,
            ),
        )

    async def read_transfers(
        self,
        pool: EndpointPool,
        node: PooledEndpoint,
        scope: TransferScope,
        first: int,
        last: int,
        *,
        anchor: int | None,
    ) -> TransferRange:
        """Whole blocks, one request each: of how many addresses costs nothing.

        All hashes are of one moment, and each block names the one before it.
        """
        last = min(last, first + BLOCKS_MAX - 1)
        calls = [_GENESIS, _COUNT, *(_hash_call(number) for number in range(first, last + 1))]
        if anchor is not None:
            calls.append(_hash_call(anchor))
        genesis, count, *replies = await node.history.batch(calls)
        pool.check_chain(_chain_id(genesis))
        head = pool.saw_head(node, _number(count))
        if pool.mark.is_behind(head):
            raise pool.behind(node, head)
        if head < last:
            raise HistoryRefused(Failure.BEHIND, f"has no block {last} yet, its head is {head}")
        hashes = [_hash(reply) for reply in replies[: last - first + 1]]
        anchor_hash = _hash_or_none(replies[-1]) if anchor is not None else None
        blocks = [await _fetch(node, block_hash, is_single=first == last) for block_hash in hashes]
        before = anchor_hash if anchor == first - 1 else None
        for number, block in enumerate(blocks, start=first):
            if before is not None and block.header.previous_hash != before:
                raise HistoryRefused(Failure.CONTRADICTION, f"block {number} does not follow the one before it")
            before = block.header.block_hash
        recipients = frozenset(scope.recipients)
        found = [
            transfer
            for number, block in enumerate(blocks, start=first)
            for transfer in self._to(recipients, number, block)
        ]
        return TransferRange(
            endpoint=node.label,
            head_number=head,
            first=first,
            last=last,
            last_block=_mined(last, blocks[-1].header),
            anchor=await self._anchor(node, anchor, anchor_hash),
            transfers=tuple(found),
        )

    async def _anchor(self, node: PooledEndpoint, number: int | None, block_hash: str | None) -> MinedBlock | None:
        if number is None or block_hash is None:
            return None
        (reply,) = await node.history.batch([_header_call(block_hash)])
        return _mined(number, _read(reply, partial(read_header, block_hash=block_hash)))

    async def read_blocks(
        self, pool: EndpointPool, node: PooledEndpoint, numbers: Sequence[int]
    ) -> dict[int, MinedBlock | None]:
        """See `ChainFamily`."""
        blocks: dict[int, MinedBlock | None] = {}
        for start in range(0, len(numbers), HASHES_MAX):
            wanted = numbers[start : start + HASHES_MAX]
            genesis, count, *replies = await node.history.batch(
                [_GENESIS, _COUNT, *(_hash_call(number) for number in wanted)]
            )
            pool.check_chain(_chain_id(genesis))
            head = _number(count)
            hashes = {number: _hash_or_none(reply) for number, reply in zip(wanted, replies, strict=True)}
            there = {number: one for number, one in hashes.items() if one is not None and number <= head}
            headers = await node.history.batch([_header_call(one) for one in there.values()]) if there else []
            blocks |= {number: None for number in wanted if number > head}
            for (number, block_hash), reply in zip(there.items(), headers, strict=True):
                blocks[number] = _mined(number, _read(reply, partial(read_header, block_hash=block_hash)))
        return blocks

    def _transfers(self, transaction: Transaction) -> list[TransferLog]:
        """Its outputs to addresses that a key of ours could have, of more than nothing."""
        sender = COINBASE_SENDER if transaction.is_coinbase else UNNAMED_SENDER
        paid = [
            (number, address_of_script(output.script, self._network), output.value_raw)
            for number, output in enumerate(transaction.outputs)
            if output.value_raw > 0
        ]
        return [
            TransferLog(
                log_index=number, emitter=NATIVE_COIN, from_address=sender, to_address=address, value_raw=value_raw
            )
            for number, address, value_raw in paid
            if address is not None
        ]

    def _to(self, recipients: frozenset[str], number: int, block: Block) -> list[Transfer]:
        return [
            Transfer(
                tx_hash=_stored(transaction.txid),
                log_index=transfer.log_index,
                block_number=number,
                block_hash=_stored(block.header.block_hash),
                block_time=block.header.mined_at,
                from_address=transfer.from_address,
                value_raw=transfer.value_raw,
                token=transfer.emitter,
                to_address=transfer.to_address,
            )
            for transaction in block.transactions
            for transfer in self._transfers(transaction)
            if transfer.to_address in recipients
        ]


async def _fetch(node: PooledEndpoint, block_hash: str, *, is_single: bool) -> Block:
    try:
        (reply,) = await node.history.batch([_block_call(block_hash)])
    except EndpointFailure as failure:
        if failure.failure in _TOO_MUCH and not is_single:
            raise RangeRefused(failure.failure, failure.message) from None
        raise
    if reply.error is not None:
        kind = HistoryPruned if says_pruned(reply.error) else HistoryRefused
        raise kind(reply.error.failure, reply.error.message)
    return await _read_block(reply, block_hash)


async def _read_block(reply: Reply, block_hash: str) -> Block:
    text = reply.value()
    is_long = isinstance(text, str) and len(text) > HEX_INLINE_MAX
    read = partial(read_block, block_hash=block_hash)
    return await asyncio.to_thread(_read, reply, read) if is_long else _read(reply, read)


def _read(reply: Reply, read: Callable[[bytes], _T]) -> _T:
    text = reply.value()
    if not isinstance(text, str) or _HEX.fullmatch(text) is None:
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected bytes in hex")
    try:
        return read(bytes.fromhex(text))
    except BlockMalformed as error:
        raise EndpointFailure(Failure.CONTRADICTION, f"{reply.method}: {error}") from None


def _place(reply: Reply, head: int) -> _Place | None:
    """Block and height of a transaction by the node's index; None where it is in no block of the node's chain.

    The height follows from its confirmations, and is proved by the next request. Raises `EndpointFailure` where the
    node does not say that it has searched all blocks.
    """
    if reply.error is not None:
        if reply.error.failure is Failure.RPC_ERROR and _ABSENT.search(reply.error.message):
            return None
        raise reply.error
    found: Any = reply.result
    if not isinstance(found, dict):
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected an object")
    block_hash, confirmations = found.get("blockhash"), found.get("confirmations", 0)
    if block_hash is None:
        return None  # in the memory pool
    if not isinstance(block_hash, str) or _HASH.fullmatch(block_hash) is None or type(confirmations) is not int:
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected a block's hash and confirmations")
    return _Place(block_hash, head - confirmations + 1) if 0 < confirmations <= head + 1 else None


def _header_at(number: int, block_hash: str | None, head: int) -> BlockHeader | None:
    return None if block_hash is None or number > head else BlockHeader(number=number, block_hash=_stored(block_hash))


def _mined(number: int, header: Header) -> MinedBlock:
    return MinedBlock(number=number, block_hash=_stored(header.block_hash), mined_at=header.mined_at)


def _no_tag(label: str, tag: str) -> TaggedBlock:
    return TaggedBlock(label, error=f"has no {tag} block: proof of work ends with none, FINALITY counts confirmations")


def _chain_id(reply: Reply) -> int:
    return chain_id_of_genesis(_hash(reply))


def _number(reply: Reply) -> int:
    value = reply.value()
    if type(value) is not int or not 0 <= value < 2**31:
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected a height")
    return value


def _hash(reply: Reply) -> str:
    value = reply.value()
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected 64 hex digits")
    return value


def _hash_or_none(reply: Reply) -> str | None:
    """None above the node's head."""
    if reply.error is not None and reply.error.rpc_code == OUT_OF_RANGE:
        return None
    return _hash(reply)


def _stored(written: str) -> str:
    """As hashes are written here."""
    return "0x" + written


def _hash_call(number: int) -> Call:
    return Call("getblockhash", (number,))


def _block_call(block_hash: str) -> Call:
    return Call("getblock", (block_hash, False))


def _header_call(block_hash: str) -> Call:
    return Call("getblockheader", (block_hash, False))


def _transaction_call(tx_hash: str) -> Call:
    return Call("getrawtransaction", (tx_hash.removeprefix("0x"), True))
