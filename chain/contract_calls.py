"""Contract calls on every endpoint: a token's properties, and whether a wallet accepts a signature.

Only an answer on which all answering endpoints agree is used: there is no other evidence for it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from typing import Final

from chain.contracts import creation_code
from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID, EndpointPool, PooledEndpoint, only_answer
from chain.preconditions import TokenAnswer
from chain.quorum import EndpointsDisagree, NoResponse
from chain.rpc import Call, EndpointFailure, Failure, Reply
from chain.wire import read_data, read_quantity, read_wei
from domain.coin import NATIVE_COIN
from domain.errors import ChainUnavailable
from domain.identifiers import parse_address, same_address

log = logging.getLogger(__name__)

DEPLOYLESS_CALL_GAS: Final = 10_000_000
"""Gas for code that a caller influences: several times what the most expensive smart wallet needs to be deployed and to
verify a signature, and well below a second's work for a node. It also makes every node stop at the same point.
"""

HOLDERS_MAX: Final = 500
"""Addresses in one question about balances: the answer counts as a contract's code, of which 24 KiB are allowed."""

DEPLOYLESS_CALL_SENDER: Final = "0x55578fc54aacafafa56d1da8ba07cf92dd66e631"
"""The end of Keccak-256 of "settle: nobody": an address without a key, and unknown to every contract. Not the zero
address, which nodes fill in: a contract may take that for a simulation and accept anything.
"""

BALANCES_AT_ONCE: Final = 100
"""Calls in one request."""

_DECIMALS_CALLDATA: Final = "0x313ce567"
_SYMBOL_CALLDATA: Final = "0x95d89b41"
_BALANCE_OF_CALLDATA: Final = "0x70a08231"
_EXECUTION_FAILED: Final = re.compile(r"revert|out ?of ?gas|vm execution error", re.IGNORECASE)
"""How nodes report that the code itself failed. No error code identifies it: geth uses -32000 for an empty revert, for
exhausted gas and for internal errors. An unknown opcode is such an error: the node cannot run our code.
"""


def _calls_about(token: str, treasury: str) -> list[Call]:
    """One batch: chain and head of the node, then code, decimals, symbol and the treasury's balance of the token."""

    def ask(calldata: str) -> Call:
        return Call("eth_call", ({"to": token, "data": calldata}, "latest"))

    return [
        CHAIN_ID,
        BLOCK_NUMBER,
        Call("eth_getCode", (token, "latest")),
        ask(_DECIMALS_CALLDATA),
        ask(_SYMBOL_CALLDATA),
        ask(_BALANCE_OF_CALLDATA + treasury[2:].lower().rjust(64, "0")),
    ]


class ContractCalls:
    """Calls to contracts at the head of the chain."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool

    @property
    def chain_id(self) -> int:
        """The chain whose contracts are asked."""
        return self._pool.chain_id

    async def ask_about_token(self, token: str, treasury: str) -> tuple[list[TokenAnswer], list[NoResponse]]:
        """Read the contract at `token` from each endpoint concurrently; also returns which gave no usable answer.

        An endpoint of another chain answers with that chain's id alone. One that is behind, or that cannot run a call,
        has no vote. Raises `InvalidInput` for a malformed address.
        """
        parse_address(token, field="token")
        parse_address(treasury, field="treasury")

        calls = _calls_about(token, treasury)
        answers: list[TokenAnswer] = []
        silent: list[NoResponse] = []
        for heard in await asyncio.gather(*(self._ask_about_token(node, calls) for node in self._pool.nodes())):
            if isinstance(heard, NoResponse):
                silent.append(heard)
            elif heard.chain_id == self._pool.chain_id and self._pool.mark.is_behind(heard.head_number):
                silent.append(NoResponse(heard.endpoint, f"head {heard.head_number} is behind {self._pool.mark.value}"))
            else:
                answers.append(heard)
        return answers, silent

    async def _ask_about_token(self, node: PooledEndpoint, calls: list[Call]) -> TokenAnswer | NoResponse:
        if pause := self._pool.pause(node):
            return NoResponse(node.label, pause)
        try:
            chain_id_reply, head_reply, code, decimals, symbol, balance = await node.endpoint.batch(calls)
            chain_id = read_quantity(chain_id_reply)
            if chain_id != self._pool.chain_id:
                return TokenAnswer(node.label, chain_id)
            head = self._pool.saw_head(node, read_quantity(head_reply))
            has_code = bool(read_data(code))
            for reply in (decimals, balance) if has_code else ():
                if reply.error is not None and not has_failed_in_execution(reply):
                    raise reply.error
        except EndpointFailure as failure:
            # Not recorded as a failure: a node that answers no calls may serve payments well.
            return NoResponse(node.label, failure.message)
        return TokenAnswer(
            node.label,
            chain_id,
            head,
            has_code=has_code,
            decimals=_uint(decimals, below=256) if has_code else None,
            symbol=_text(symbol) if has_code else None,
            treasury_balance_raw=_uint(balance, below=2**256) if has_code else None,
        )

    async def deployless_call(self, creation_code: bytes, *, at_block: int | None = None) -> bytes | None:
        """What creating a contract returns at the head of the chain, without creating it; None where it reverts.

        With `at_block`, what it returns there.

        Every endpoint is asked concurrently, and all answers must be equal. Which of them has the newest head does not
        matter: one with an invented head must not override the others. Takes at most `timeout_seconds`. Raises
        `EndpointsDisagree`, a `ChainUnavailable`, when two answers differ, `ChainUnavailable` naming each endpoint's
        reason when there is none.
        """
        transaction = {
            "from": DEPLOYLESS_CALL_SENDER,
            "gas": hex(DEPLOYLESS_CALL_GAS),
            "data": "0x" + creation_code.hex(),
        }
        return await self._agreed(
            Call("eth_call", (transaction, "latest" if at_block is None else hex(at_block))),
            lambda reply: None if has_failed_in_execution(reply) else read_data(reply),
        )

    async def balances_raw(self, token: str, addresses: Sequence[str]) -> dict[str, int]:
        """What each address holds of a token, or of the coin, by the newest block of the first endpoint that keeps up.

        One endpoint's word, good for a plan that the chain itself decides about. Raises `ChainUnavailable`.
        """
        balances: dict[str, int] = {}
        for start in range(0, len(addresses), BALANCES_AT_ONCE):
            part = addresses[start : start + BALANCES_AT_ONCE]
            balances |= dict(zip(part, await self._balances(token, part), strict=True))
        return balances

    async def _balances(self, token: str, addresses: Sequence[str]) -> list[int]:
        is_coin = same_address(token, NATIVE_COIN)
        asked = [_balance_call(token, address) for address in addresses]

        async def read(node: PooledEndpoint, deadline: float) -> list[int]:
            chain_id, height, *replies = await node.endpoint.batch([CHAIN_ID, BLOCK_NUMBER, *asked], deadline=deadline)
            self._pool.check_chain(read_quantity(chain_id))
            head = self._pool.saw_head(node, read_quantity(height))
            if self._pool.mark.is_behind(head):
                raise self._pool.behind(node, head)
            return [read_wei(reply) if is_coin else _word_of(reply) for reply in replies]

        return await self._pool.ask_first(read)

    async def token_balances(self, token: str, holders: Sequence[str], *, at_block: int) -> list[int]:
        """Raw units of a token that each of some addresses holds in a block, by the word of every endpoint.

        At most `HOLDERS_MAX` addresses. Raises `ChainUnavailable`, also where the token does not say them.
        """
        from eth_abi.abi import encode as abi_encode  # here: only the nightly check pays for its import

        arguments = abi_encode(["address", "address[]"], [token, list(holders)])
        said = await self.deployless_call(creation_code("TokenBalances") + arguments, at_block=at_block)
        if said is None or len(said) != 32 * len(holders):
            raise ChainUnavailable(f"token {token} does not say what {len(holders)} addresses hold in block {at_block}")
        return [int.from_bytes(said[start : start + 32], "big") for start in range(0, len(said), 32)]

    async def coin_balances(self, holders: Sequence[str], *, at_block: int) -> list[int]:
        """Wei that each of some addresses holds in a block, by the word of every endpoint.

        At most `HOLDERS_MAX` addresses. Raises `ChainUnavailable`.
        """
        from eth_abi.abi import encode as abi_encode  # here: only the nightly check pays for its import

        code = creation_code("CoinBalances") + abi_encode(["address[]"], [list(holders)])
        said = await self.deployless_call(code, at_block=at_block)
        if said is None or len(said) != 32 * len(holders):
            raise ChainUnavailable(f"no node says what {len(holders)} addresses hold in block {at_block}")
        return [int.from_bytes(said[start : start + 32], "big") for start in range(0, len(said), 32)]

    async def has_code(self, address: str) -> bool:
        """Whether there is a contract at `address`, by the word of every endpoint. Raises as `deployless_call` does."""
        call = Call("eth_getCode", (parse_address(address), "latest"))
        return bool(await self._agreed(call, read_data))

    async def call(self, address: str, calldata: str) -> bytes | None:
        """What a function of a contract returns at the head; None where it reverts, empty where there is no contract.

        By the word of every endpoint. Raises as `deployless_call` does.
        """
        return await self._agreed(
            Call("eth_call", ({"to": parse_address(address), "data": calldata}, "latest")),
            lambda reply: None if has_failed_in_execution(reply) else read_data(reply),
        )

    async def _agreed(self, call: Call, read: Callable[[Reply], bytes | None]) -> bytes | None:
        calls = [CHAIN_ID, call]
        answers: dict[bytes | None, list[str]] = {}
        reasons: list[str] = []

        async def hear(node: PooledEndpoint) -> None:
            if pause := self._pool.pause(node):
                reasons.append(f"{node.label}: {pause}")
                return
            try:
                chain_id, result = await node.endpoint.batch(calls)
                self._pool.check_chain(read_quantity(chain_id))
                answer = read(result)
            except EndpointFailure as failure:
                reasons.append(f"{node.label}: {failure.message}")
                # Other failures are not recorded: the code is partly a caller's, who must not be able to have endpoints
                # passed over for payments.
                if failure.failure is Failure.RATE_LIMITED:
                    self._pool.failed(node, failure)
                return
            answers.setdefault(answer, []).append(node.label)

        await asyncio.gather(*(hear(node) for node in self._pool.nodes()))
        try:
            return only_answer(answers, reasons, about="what a call returns", shown=_shown)
        except EndpointsDisagree as error:
            log.warning("%s", error.message)
            raise


def _balance_call(token: str, address: str) -> Call:
    if same_address(token, NATIVE_COIN):
        return Call("eth_getBalance", (address, "latest"))
    return Call(
        "eth_call", ({"to": token, "data": _BALANCE_OF_CALLDATA + address[2:].lower().rjust(64, "0")}, "latest")
    )


def _word_of(reply: Reply) -> int:
    return int.from_bytes(read_data(reply)[:32], "big")


def _uint(reply: Reply, *, below: int) -> int | None:
    """A uint256 returned by a contract; None when it reverted or returned something else."""
    data = _returned(reply)
    if data is None or len(data) != 32:
        return None
    number = int.from_bytes(data, "big")
    return number if number < below else None


def _text(reply: Reply) -> str | None:
    """A string returned by a contract, or the bytes32 that some old tokens return instead; None otherwise."""
    from eth_abi.abi import decode as abi_decode  # here: only `settle doctor` pays for its import
    from eth_abi.exceptions import DecodingError

    data = _returned(reply)
    if data is None:
        return None
    try:
        text = data.rstrip(b"\0").decode() if len(data) == 32 else str(abi_decode(["string"], data)[0])
    except (DecodingError, UnicodeDecodeError, OverflowError):
        return None
    return text if 0 < len(text) <= 32 and text.isprintable() else None


def _returned(reply: Reply) -> bytes | None:
    """What the contract returned; None when it refused (a revert is an answer of the contract, not a broken node)."""
    if reply.error is not None:
        return None
    return read_data(reply)


def has_failed_in_execution(reply: Reply) -> bool:
    """Whether the node ran the code and the code failed, which is an answer; a node that could not run it gives
    none.
    """
    error = reply.error
    return error is not None and error.failure is Failure.RPC_ERROR and bool(_EXECUTION_FAILED.search(error.message))


def _shown(returned: bytes | None) -> str:
    if returned is None:
        return "reverted"
    return f"0x{returned[:32].hex()}" + ("…" if len(returned) > 32 else "")
