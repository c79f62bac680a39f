"""Authorizations of EIP-3009 on the chain: hashes, calls of the token, and what has become of one.

Nothing here decides what pays (`domain.payments.authorizations`). A nonce is marked as used by the transfer that it
authorizes or by its cancellation, once, and each logs an event with payer and nonce as topics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from chain.contract_calls import DEPLOYLESS_CALL_SENDER, has_failed_in_execution
from chain.contracts import creation_code
from chain.endpoint_pool import BLOCK_NUMBER, CHAIN_ID, EndpointPool, PooledEndpoint, only_answer
from chain.rpc import Call, EndpointFailure, Failure, Reply
from chain.wire import AUTHORIZATION_USED_TOPIC, read_block, read_data, read_head, read_logs, read_quantity
from domain.errors import PreconditionNotMet
from domain.payments.authorizations import (
    Authorization,
    SignedAuthorization,
    TokenDomain,
    check_factory,
    is_of_undeployed_wallet,
    nonce_preimage,
    read_deployment,
)

AUTHORIZATION_CANCELED_TOPIC: Final[bytes] = keccak(text="AuthorizationCanceled(address,bytes32)")

_DOMAIN_TYPE: Final[bytes] = keccak(
    text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_MESSAGE_TYPE: Final[bytes] = keccak(
    text="TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)
_MESSAGE_TYPES: Final = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]


def _selector(signature: str) -> bytes:
    return keccak(text=signature)[:4]


_TRANSFER_BY_KEY: Final = _selector(
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)
_TRANSFER_BY_BYTES: Final = _selector(
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
)
_AUTHORIZATION_STATE: Final = _selector("authorizationState(address,bytes32)")
_BALANCE_OF: Final = _selector("balanceOf(address)")
_NAME: Final = _selector("name()")
_VERSION: Final = _selector("version()")
_DOMAIN_SEPARATOR: Final = _selector("DOMAIN_SEPARATOR()")

TRANSFER_GAS_MAX: Final = 400_000
"""Several times what a transfer takes: the rest is what a payer's wallet does with its signature."""

DEPLOYING_GAS_MAX: Final = 1_000_000
"""With the deployment of the payer's wallet: a proxy, its owners, and a passkey's signature checked without the chain's
help take some two thirds of it."""

SIMULATED_GAS_PERCENT: Final = 80
"""Of the most that a transaction may have. A limit is a fifth above its estimate, and nodes estimate some percent more
than is used."""

REASON_CHARS_MAX: Final = 160

_T = TypeVar("_T")


def attempt_nonce(chain_id: int, attempt_id: UUID) -> str:
    """An attempt's own nonce: what is paid for is in it, so that what was signed for one pays no other."""
    return "0x" + keccak(nonce_preimage(chain_id, attempt_id)).hex()


def domain_separator(domain: TokenDomain, *, chain_id: int, token: str) -> bytes:
    """The token's EIP-712 domain, hashed."""
    parts = [_DOMAIN_TYPE, keccak(text=domain.name), keccak(text=domain.version), chain_id, token]
    return keccak(abi_encode(["bytes32", "bytes32", "bytes32", "uint256", "address"], parts))


def authorization_digest(authorization: Authorization, separator: bytes) -> bytes:
    """The hash that the payer signs (EIP-712)."""
    message = keccak(_MESSAGE_TYPE + abi_encode(_MESSAGE_TYPES, _values(authorization)))
    return keccak(b"\x19\x01" + separator + message)


def transfer_calldata(signed: SignedAuthorization, *, is_contract: bool) -> bytes:
    """The call that executes it. The token asks a contract for its signature, in the form with bytes only."""
    values, signature = _values(signed.authorization), signed.signature
    if is_contract:
        return _TRANSFER_BY_BYTES + abi_encode([*_MESSAGE_TYPES, "bytes"], [*values, signature])
    vrs = [signature[64], signature[:32], signature[32:64]]
    return _TRANSFER_BY_KEY + abi_encode([*_MESSAGE_TYPES, "uint8", "bytes32", "bytes32"], [*values, *vrs])


def _values(authorization: Authorization) -> list[object]:
    one = authorization
    nonce = bytes.fromhex(one.nonce[2:])
    return [one.payer, one.to, one.value_raw, one.valid_after, one.valid_before, nonce]


@dataclass(frozen=True, slots=True)
class Execution:
    """A transaction that executes an authorization; any account may send it."""

    to: str | None
    """The token; None for a creation, whose code deploys the payer's wallet first (`contracts/FirstPayment.sol`)."""
    data: bytes
    gas_limit_max: int
    """The most that a limit may be."""

    @property
    def simulated_gas(self) -> int:
        """What a simulation may take: as much less as a limit is above its estimate."""
        return self.gas_limit_max * SIMULATED_GAS_PERCENT // 100


def execution_of(
    token: str, signed: SignedAuthorization, *, is_contract: bool, factories: Collection[str]
) -> Execution:
    """How it is executed: by the token, or, of a wallet that is yet to be deployed, with the call of its factory.

    One that is deployed by then is left as it is. Raises `AuthorizationRefused` for a factory that is none of
    `factories`, and where the signature does not say how to deploy, though it ends so.
    """
    if not is_of_undeployed_wallet(signed.signature):
        return Execution(token, transfer_calldata(signed, is_contract=is_contract), TRANSFER_GAS_MAX)
    deployment = read_deployment(signed.signature)
    check_factory(deployment, factories)
    transfer = transfer_calldata(signed.model_copy(update={"signature": deployment.signature}), is_contract=True)
    arguments = abi_encode(
        ["address", "address", "bytes", "address", "bytes"],
        [signed.authorization.payer, deployment.factory, deployment.calldata, token, transfer],
    )
    return Execution(None, creation_code("FirstPayment") + arguments, DEPLOYING_GAS_MAX)


@dataclass(frozen=True, slots=True)
class AuthorizationKey:
    """By what the chain knows an authorization. There is one transfer or cancellation of it, ever."""

    token: str
    payer: str
    nonce: str
    """0x and 64 hex digits."""

    @property
    def state_call(self) -> Call:
        """Whether it was used or cancelled, by the newest block."""
        arguments = abi_encode(["address", "bytes32"], [self.payer, bytes.fromhex(self.nonce[2:])])
        return _call(self.token, _AUTHORIZATION_STATE + arguments)

    def events_call(self, first: int, last: int) -> Call:
        """Its events in these blocks, of either kind: payer and nonce are topics."""
        events = ["0x" + topic.hex() for topic in (AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC)]
        topics = [events, "0x" + self.payer[2:].lower().rjust(64, "0"), self.nonce]
        query = {"fromBlock": hex(first), "toBlock": hex(last), "address": self.token, "topics": topics}
        return Call("eth_getLogs", (query,))


@dataclass(frozen=True, slots=True)
class PayerView:
    """What one node says of a payer and a nonce, all of the newest block."""

    head_number: int
    block_time: datetime
    is_used: bool
    """Used or cancelled."""
    balance_raw: int
    is_contract: bool
    """Whether there is code at the address, also the delegated code of EIP-7702: the token asks it."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What has become of an authorization, on which all answering nodes agree."""

    is_used: bool
    """Used or cancelled, by the newest block."""
    finalized_number: int
    finalized_time: datetime
    used_by: str | None = None
    """The transaction that executed it, where its event was found."""
    is_cancelled: bool = False
    """Cancelled in a finalized block."""
    is_executed_for_good: bool = False
    """Executed in a finalized block."""

    def is_unpayable(self, valid_before: int) -> bool:
        """Whether it is proved that it can never pay: it is unused, and no block that could use it can come any more.

        Blocks' times only grow: no block up to the newest has used it, and whatever a reorganization puts in place of
        those after the finalized one is later than `valid_before`, Unix seconds.
        """
        ended = self.finalized_time.timestamp() > valid_before and not self.is_used
        return ended or (self.is_cancelled and self.used_by is None)


class AuthorizationReader:
    """Questions to the nodes about authorizations of a token."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self._domains: dict[str, TokenDomain] = {}

    async def token_domain(self, token: str) -> TokenDomain:
        """Name and version of the token's EIP-712 domain, compared with the separator that it states; cached.

        Raises `ChainUnavailable`, and `PreconditionNotMet` where name and version do not give the separator.
        """
        if token not in self._domains:
            calls = [CHAIN_ID, *(_call(token, data) for data in (_NAME, _VERSION, _DOMAIN_SEPARATOR))]

            async def read(node: PooledEndpoint, deadline: float) -> tuple[str, str, bytes]:
                chain_id, name, version, separator = await node.endpoint.batch(calls, deadline=deadline)
                self._pool.check_chain(read_quantity(chain_id))
                return _text(name), _text(version), read_data(separator)

            name, version, separator = await self._agreed(read)
            domain = TokenDomain(name=name, version=version)
            if domain_separator(domain, chain_id=self._pool.chain_id, token=token) != separator:
                raise PreconditionNotMet(
                    f"the EIP-712 domain of token {token} is not that of its name {name!r} and version {version!r}",
                    is_broken=True,
                )
            self._domains[token] = domain
        return self._domains[token]

    async def payer_view(self, key: AuthorizationKey) -> PayerView:
        """Payer and nonce by the newest block of the first endpoint that keeps up. Raises `ChainUnavailable`."""
        calls = [
            CHAIN_ID,
            Call("eth_getBlockByNumber", ("latest", False)),
            key.state_call,
            _call(key.token, _BALANCE_OF + abi_encode(["address"], [key.payer])),
            Call("eth_getCode", (key.payer, "latest")),
        ]

        async def read(node: PooledEndpoint, deadline: float) -> PayerView:
            chain_id, block, state, balance, code = await node.endpoint.batch(calls, deadline=deadline)
            self._pool.check_chain(read_quantity(chain_id))
            head = read_head(block)
            if self._pool.mark.is_behind(self._pool.saw_head(node, head.number)):
                raise self._pool.behind(node, head.number)
            return PayerView(
                head_number=head.number,
                block_time=head.mined_at,
                is_used=_uint(state) != 0,
                balance_raw=_uint(balance),
                is_contract=bool(read_data(code)),
            )

        return await self._pool.ask_first(read)

    async def refusal(self, execution: Execution) -> str | None:
        """Why it would revert now, as a node reports it; None where it would be executed, with gas to spare.

        With a deployment every endpoint is asked, and all must agree: what its factory does is a stranger's choice.
        Raises `ChainUnavailable`.
        """
        call = {
            "from": DEPLOYLESS_CALL_SENDER,
            "data": "0x" + execution.data.hex(),
            "gas": hex(execution.simulated_gas),
        }
        if execution.to is not None:
            call["to"] = execution.to

        async def read(node: PooledEndpoint, deadline: float) -> str | None:
            chain_id, height, outcome = await node.endpoint.batch(
                [CHAIN_ID, BLOCK_NUMBER, Call("eth_call", (call, "latest"))], deadline=deadline
            )
            self._pool.check_chain(read_quantity(chain_id))
            self._pool.saw_head(node, read_quantity(height))
            if has_failed_in_execution(outcome):
                assert outcome.error is not None
                return outcome.error.message[:REASON_CHARS_MAX]
            read_data(outcome)
            return None

        if execution.to is not None:
            return await self._pool.ask_first(read)
        reasons: list[str] = []

        async def is_refused(node: PooledEndpoint, deadline: float) -> bool:
            if (reason := await read(node, deadline)) is not None:
                reasons.append(reason)  # nodes word it differently
            return reason is not None

        return reasons[0] if await self._agreed(is_refused) else None

    async def fate(self, key: AuthorizationKey, *, from_block: int, finalized: int) -> Fate:
        """What has become of an authorization that was first shown at block `from_block`; `finalized` is a finalized
        block's number.

        Every endpoint is asked, and all that answer must agree. Raises `ChainUnavailable`.
        """

        async def read(node: PooledEndpoint, deadline: float) -> Fate:
            return await self._fate(node, deadline, key, from_block, finalized)

        return await self._agreed(read)

    async def _fate(
        self, node: PooledEndpoint, deadline: float, key: AuthorizationKey, from_block: int, finalized: int
    ) -> Fate:
        replies = await node.endpoint.batch(
            [
                CHAIN_ID,
                BLOCK_NUMBER,
                Call("eth_getBlockByNumber", (hex(finalized), False)),
                key.state_call,
            ],
            deadline=deadline,
        )
        self._pool.check_chain(read_quantity(replies[0]))
        head = self._pool.saw_head(node, read_quantity(replies[1]))
        block = read_block(replies[2], finalized)
        if block is None or head < finalized or self._pool.mark.is_behind(head):
            raise EndpointFailure(Failure.BEHIND, f"head {head}, the finalized block is {finalized}")
        is_used = _uint(replies[3]) != 0
        unused = Fate(is_used=is_used, finalized_number=finalized, finalized_time=block.mined_at)
        if not is_used:
            return unused
        # An authorization lives for an hour at most: the query is short.
        [logs] = await node.history.batch([key.events_call(from_block, max(head, from_block))], deadline=deadline)
        found = [log for log, _ in read_logs(logs)]
        used = [log for log in found if log.topics[0] == AUTHORIZATION_USED_TOPIC]
        cancelled = [log for log in found if log.topics[0] == AUTHORIZATION_CANCELED_TOPIC]
        return Fate(
            is_used=True,
            finalized_number=finalized,
            finalized_time=block.mined_at,
            used_by=used[0].transaction_hash if used else None,
            is_cancelled=any(log.block_number <= finalized for log in cancelled),
            is_executed_for_good=any(log.block_number <= finalized for log in used),
        )

    async def _agreed(self, read: Callable[[PooledEndpoint, float], Awaitable[_T]]) -> _T:
        """The answer of all endpoints that give one, which must be the same."""
        loop = asyncio.get_running_loop()
        answers: dict[_T, list[str]] = {}
        reasons: list[str] = []

        async def hear(node: PooledEndpoint) -> None:
            if pause := self._pool.pause(node):
                reasons.append(f"{node.label}: {pause}")
                return
            try:
                answer = await read(node, loop.time() + self._pool.timeout_seconds)
            except EndpointFailure as failure:
                # Not recorded as a failure: a node that answers no calls may serve payments well.
                reasons.append(f"{node.label}: {failure.message}")
                return
            answers.setdefault(answer, []).append(node.label)

        await asyncio.gather(*(hear(node) for node in self._pool.nodes()))
        return only_answer(answers, reasons, about="an authorization")


def _call(to: str, calldata: bytes) -> Call:
    return Call("eth_call", ({"to": to, "data": "0x" + calldata.hex()}, "latest"))


def _uint(reply: Reply) -> int:
    data = read_data(reply)
    if len(data) != 32:
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected 32 bytes, got {len(data)}")
    return int.from_bytes(data, "big")


def _text(reply: Reply) -> str:
    data = read_data(reply)
    try:
        [text] = abi_decode(["string"], data)
    except (DecodingError, UnicodeDecodeError, OverflowError):
        raise EndpointFailure(Failure.MALFORMED, f"{reply.method}: expected a string") from None
    return str(text)
