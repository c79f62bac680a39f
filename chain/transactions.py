"""An account's transactions: what the chain says of the account, and sending what it has signed.

The only writing that `chain/` does. A transaction is sent to every endpoint, and what a node says about it is a hint:
whether it was executed is read from receipts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from chain.contract_calls import has_failed_in_execution
from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID, NO_ENDPOINT, EndpointPool, PooledEndpoint
from chain.rpc import Call, EndpointFailure, Failure
from chain.wire import Hash, Quantity, WireModel, read_head, read_quantity
from domain.errors import ChainUnavailable, Refusal

_TAKEN: Final = re.compile(r"already known|already imported|known transaction", re.IGNORECASE)
_NONCE_USED: Final = re.compile(r"nonce too low|nonce is too low|transaction nonce .* lower", re.IGNORECASE)
_WEI: Final = re.compile(r"0x[0-9a-fA-F]{1,64}", re.ASCII)

REASON_CHARS_MAX: Final = 160

_T = TypeVar("_T")


class ExecutionRefused(Refusal):
    """The call would revert now. A refinement: the reason is the contract's, shown to operators."""


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account by the newest block of one node that keeps up; amounts in wei."""

    head_number: int
    block_time: datetime
    nonce: int
    """Of its next transaction, by what is mined."""
    balance_wei: int
    base_fee_wei: int


@dataclass(frozen=True, slots=True)
class MinedTransaction:
    """A transaction in a block of one node."""

    tx_hash: str
    block_number: int
    succeeded: bool
    gas_used: int
    gas_price_wei: int
    l1_fee_wei: int | None
    """What a rollup took for publication, where its receipts say so."""

    @property
    def spent_wei(self) -> int:
        """What it has cost its sender."""
        return self.gas_used * self.gas_price_wei + (self.l1_fee_wei or 0)


class _WireHeader(WireModel):
    base_fee_per_gas: Quantity = Field(alias="baseFeePerGas")


class _WireReceipt(WireModel):
    transaction_hash: Hash
    block_number: Quantity
    status: Annotated[Quantity, Field(le=1)]
    gas_used: Quantity
    effective_gas_price: Quantity
    l1_fee: Quantity | None = None


_HEADER: Final = TypeAdapter(_WireHeader)
_RECEIPT: Final = TypeAdapter(_WireReceipt)


class TransactionCalls:
    """What a relay asks and sends."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool

    async def account(self, address: str) -> AccountView:
        """The account by the first endpoint that keeps up. Raises `ChainUnavailable`."""
        calls = [
            CHAIN_ID,
            Call("eth_getBlockByNumber", ("latest", False)),
            Call("eth_getTransactionCount", (address, "latest")),
            Call("eth_getBalance", (address, "latest")),
        ]

        async def read(node: PooledEndpoint, deadline: float) -> AccountView:
            chain_id, block, nonce, balance = await node.endpoint.batch(calls, deadline=deadline)
            self._pool.check_chain(read_quantity(chain_id))
            head = read_head(block)
            if self._pool.mark.is_behind(self._pool.saw_head(node, head.number)):
                raise self._pool.behind(node, head.number)
            return AccountView(
                head_number=head.number,
                block_time=head.mined_at,
                nonce=read_quantity(nonce),
                balance_wei=_wei(balance.value()),
                base_fee_wei=_parsed(_HEADER, block.value()).base_fee_per_gas,
            )

        return await self._pool.ask_first(read)

    async def nonce_at(self, address: str, block_number: int) -> int:
        """The nonce of the account's next transaction as of a block. Raises `ChainUnavailable`."""

        async def read(node: PooledEndpoint, deadline: float) -> int:
            calls = [CHAIN_ID, BLOCK_NUMBER, Call("eth_getTransactionCount", (address, hex(block_number)))]
            chain_id, height, nonce = await node.endpoint.batch(calls, deadline=deadline)
            self._pool.check_chain(read_quantity(chain_id))
            self._pool.saw_head(node, read_quantity(height))
            return read_quantity(nonce)

        return await self._pool.ask_first(read)

    async def estimate_gas(self, sender: str, to: str | None, calldata: bytes) -> int:
        """Gas that the call takes now, or, without `to`, the creation.

        Raises `ExecutionRefused` where it would revert, and `ChainUnavailable`.
        """
        transaction = {"from": sender, "data": "0x" + calldata.hex(), **({} if to is None else {"to": to})}

        async def read(node: PooledEndpoint, deadline: float) -> int | str:
            calls = [CHAIN_ID, BLOCK_NUMBER, Call("eth_estimateGas", (transaction,))]
            chain_id, height, gas = await node.endpoint.batch(calls, deadline=deadline)
            self._pool.check_chain(read_quantity(chain_id))
            self._pool.saw_head(node, read_quantity(height))
            if has_failed_in_execution(gas):
                assert gas.error is not None
                return gas.error.message[:REASON_CHARS_MAX]
            return read_quantity(gas)

        answer = await self._pool.ask_first(read)
        if isinstance(answer, str):
            raise ExecutionRefused(answer)
        return answer

    async def mined(self, tx_hashes: Sequence[str]) -> dict[str, MinedTransaction]:
        """Those that are in a block of the first endpoint that keeps up, by hash. Raises `ChainUnavailable`."""
        calls = [CHAIN_ID, BLOCK_NUMBER, *(Call("eth_getTransactionReceipt", (tx_hash,)) for tx_hash in tx_hashes)]

        async def read(node: PooledEndpoint, deadline: float) -> dict[str, MinedTransaction]:
            chain_id, height, *replies = await node.endpoint.batch(calls, deadline=deadline)
            self._pool.check_chain(read_quantity(chain_id))
            head = self._pool.saw_head(node, read_quantity(height))
            if self._pool.mark.is_behind(head):
                raise self._pool.behind(node, head)
            found = {}
            for tx_hash, reply in zip(tx_hashes, replies, strict=True):
                raw = reply.value()
                if raw is None or (isinstance(raw, dict) and raw.get("blockNumber", "") is None):
                    continue
                receipt = _parsed(_RECEIPT, raw)
                if receipt.transaction_hash != tx_hash or receipt.block_number > head:
                    raise EndpointFailure(Failure.CONTRADICTION, f"the receipt of {tx_hash} contradicts the request")
                found[tx_hash] = MinedTransaction(
                    tx_hash,
                    receipt.block_number,
                    succeeded=receipt.status == 1,
                    gas_used=receipt.gas_used,
                    gas_price_wei=receipt.effective_gas_price,
                    l1_fee_wei=receipt.l1_fee,
                )
            return found

        return await self._pool.ask_first(read)

    async def send(self, raw: bytes) -> str | None:
        """Send a signed transaction to every endpoint; None where one has taken it, or has it, else why none does.

        Sending the same bytes again changes nothing. Raises `ChainUnavailable` where no endpoint answers.
        """
        calls = [CHAIN_ID, Call("eth_sendRawTransaction", ("0x" + raw.hex(),))]

        async def offer(node: PooledEndpoint) -> tuple[bool, str]:
            try:
                chain_id, outcome = await node.endpoint.batch(calls)
                self._pool.check_chain(read_quantity(chain_id))
            except EndpointFailure as failure:
                return False, f"{node.label}: {failure.message}"
            error = outcome.error
            if error is None or _TAKEN.search(error.message) or _NONCE_USED.search(error.message):
                return True, ""
            return True, f"{node.label}: {error.message}"[:REASON_CHARS_MAX]

        answers = await asyncio.gather(*(offer(node) for node in self._pool.nodes()))
        if any(answered and not reason for answered, reason in answers):
            return None
        reasons = "; ".join(reason for _, reason in answers)
        if not any(answered for answered, _ in answers):
            raise ChainUnavailable(NO_ENDPOINT + reasons)
        return reasons


def _parsed(adapter: TypeAdapter[_T], raw: object) -> _T:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise EndpointFailure(Failure.MALFORMED, f"{where}: {first['msg']}") from None


def _wei(raw: object) -> int:
    if not isinstance(raw, str) or _WEI.fullmatch(raw) is None:
        raise EndpointFailure(Failure.MALFORMED, "eth_getBalance: expected a hex quantity")
    return int(raw, 16)
