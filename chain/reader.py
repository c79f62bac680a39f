"""Reads a payment's transaction from several endpoints, none of which is trusted alone.

`look` takes the first answer that can be used, `cross_check` asks all the others before anything irreversible
follows from it. While no endpoint works, one look at a time finds out whether that is still so. Judging is
`domain.payments.verification`'s work. `deployless_call` asks all of them and takes nothing but one common answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp

from chain.circuit_breaker import HEAD_TOLERANCE_BLOCKS, MARK_EXPIRY_SECONDS, CircuitBreaker, HeadMark
from chain.history import HistoryRefused, RangeRefused, read_blocks, read_range
from chain.preconditions import TokenAnswer
from chain.quorum import Agreed, EndpointsDisagree, NoResponse, Reading, decide, is_included, reached_by_most
from chain.ranges import LogRange
from chain.rpc import (
    RESPONSE_BYTES_MAX,
    Call,
    Endpoint,
    EndpointFailure,
    Failure,
    Reply,
    RequestObserver,
    labels,
    open_session,
)
from chain.wire import read_data, read_head, read_header, read_quantity, read_receipt, read_tagged_header
from domain.chain import BlockHeader, ChainHead, ChainView, MinedBlock, Receipt, TransferRange, TransferScope
from domain.errors import ChainUnavailable, InvalidInput
from domain.identifiers import parse_address, parse_tx_hash
from domain.payments.finality import InclusionReport

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 10.0
"""What one endpoint may take for one question, all its requests together. A healthy one needs well below 1 s."""

ROUNDS_MAX: Final = 3
"""First look, second look at the block that the first one named, and one more in case it was reorganised between."""

HEALTHY_SECONDS: Final = 1.0
"""A question given up by its caller after this long counts as a time-out; given up earlier it says nothing."""

ENDPOINTS_MAX: Final = 16
"""Beyond that a setting is a mistake; also bounds how many are asked at once."""

CONNECTIONS_MAX: Final = 32
"""Connections to one endpoint. Providers allow about 50 calls a second, which a handful of connections can carry."""

PARSE_INLINE_LOGS_MAX: Final = 50
"""Receipts with more logs are read in a thread: each log takes 0.14 ms when its addresses are new (Keccak)."""

TAG_SECONDS: Final = 1.0
"""How long a tag's block is good: half a block of Base, and the tags trail by minutes."""

LOG_RANGE_MAX: Final = 2_000
"""Blocks asked for in one log query, where the settings say nothing and the endpoint does not refuse."""

DEPLOYLESS_CALL_GAS: Final = 10_000_000
"""Gas for code that a caller has a hand in: several times what the dearest smart wallet needs to be deployed and to
verify a signature, and well below a second's work for a node. It also has every node give up at the same point."""

DEPLOYLESS_CALL_SENDER: Final = "0x55578fc54aacafafa56d1da8ba07cf92dd66e631"
"""The end of Keccak-256 of "settle: nobody": an address that nobody has, and that no contract knows. Not the zero
address, which nodes fill in: a contract may take that for a simulation and let anything pass."""

_CHAIN_ID: Final = Call("eth_chainId")
_BLOCK_NUMBER: Final = Call("eth_blockNumber")
_NEWEST_BLOCK: Final = Call("eth_getBlockByNumber", ("latest", False))
_DECIMALS_CALLDATA: Final = "0x313ce567"
_SYMBOL_CALLDATA: Final = "0x95d89b41"
_BALANCE_OF_CALLDATA: Final = "0x70a08231"

NO_ENDPOINT: Final = "no usable chain endpoint: "

_EXECUTION_FAILED: Final = re.compile(r"revert|out ?of ?gas|vm execution error", re.IGNORECASE)
"""What nodes say when the code itself failed. No error code tells it: geth has -32000 for an empty revert, for used-up
gas and for its own troubles. Opcodes that a node does not know are such a trouble: it cannot run our code."""

_T = TypeVar("_T")


class EndpointsFailed(ChainUnavailable):
    """No endpoint gave a usable answer; `failures` has each one's reason, by its label."""

    def __init__(self, failures: Mapping[str, EndpointFailure]) -> None:
        super().__init__(NO_ENDPOINT + "; ".join(f"{label}: {failure.message}" for label, failure in failures.items()))
        self.failures = dict(failures)

    @property
    def history_refusals(self) -> list[HistoryRefused]:
        """Of the endpoints that are well and have the blocks below their head, and do not give what was asked for."""
        return [
            failure
            for failure in self.failures.values()
            if isinstance(failure, HistoryRefused) and failure.failure is not Failure.BEHIND
        ]


@dataclass(frozen=True, slots=True)
class TaggedBlock:
    """What one endpoint calls "safe" or "finalized" now. `error` is one line, None where it is a usable block.

    The chain's first block has both: it is a true answer on a chain of a few blocks, and a fault on any other.
    """

    label: str
    head_number: int | None = None
    number: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """What one endpoint answers now. `error` is one line, None when everything is right."""

    label: str
    reachable: bool
    chain_id: int | None = None
    head_number: int | None = None
    error: str | None = None


@dataclass(slots=True)
class _Node:
    """An endpoint and its record. `reason` is its last failure in words."""

    endpoint: Endpoint
    history: Endpoint
    """The same one for questions about the past: a log query that is refused must not have the endpoint taken for one
    that knows no batches."""
    log_range: LogRange
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    reason: str = ""

    @property
    def label(self) -> str:
        return self.endpoint.label


@dataclass(slots=True)
class _Heard:
    """What the endpoints asked so far have said about one transaction."""

    included: list[ChainView] = field(default_factory=list)
    """In a block, and the endpoint keeps up with the chain."""
    stalled: list[ChainView] = field(default_factory=list)
    """In a block, but the endpoint's head stands still: no confirmation will ever be added."""
    behind: list[ChainView] = field(default_factory=list)
    """In a block, but the endpoint lags."""
    answers: list[ChainView] = field(default_factory=list)
    """Anything else that an endpoint in step said."""
    reasons: list[str] = field(default_factory=list)
    """Why the others' answers cannot be used."""

    def is_answered(self) -> bool:
        return bool(self.included or self.stalled or self.answers)

    def best(self) -> ChainView:
        if not self.is_answered():
            raise ChainUnavailable(NO_ENDPOINT + "; ".join(self.reasons))
        # An endpoint that is in step does not know the transaction and one that lags does. It may be the one in step
        # that is wrong (a forgetful node, or one with an invented head that makes all the others lag): the payment is
        # shown, with the few confirmations that the lagging head gives, and final only after the cross-check.
        views = self.included or [*self.stalled, *self.behind] or self.answers
        return max(views, key=lambda view: (view.receipt is not None, view.head_number))


class ChainReader:
    """Several endpoints of one chain, in order of preference; use it as an async context manager.

    `on_request` is told about every HTTP request; `clock` is a monotonic clock in seconds.
    Raises `InvalidInput` naming `CHAIN_RPC_URLS` when the addresses are not usable.
    """

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
        connections_max: int = CONNECTIONS_MAX,
        log_range_max: int = LOG_RANGE_MAX,
        head_tolerance_blocks: int = HEAD_TOLERANCE_BLOCKS,
        mark_expiry_seconds: float = MARK_EXPIRY_SECONDS,
        on_request: RequestObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= len(urls) <= ENDPOINTS_MAX:
            raise InvalidInput("CHAIN_RPC_URLS", f"wants 1 to {ENDPOINTS_MAX} addresses, got {len(urls)}")
        self.chain_id = chain_id
        self._urls = [url.strip() for url in urls]
        self._labels = labels(self._urls)
        self._timeout_seconds = timeout_seconds
        self._response_bytes_max = response_bytes_max
        self._connections_max = connections_max
        self._log_range_max = log_range_max
        self._on_request = on_request
        self._clock = clock
        self._mark = HeadMark(tolerance_blocks=head_tolerance_blocks, expiry_seconds=mark_expiry_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._nodes: list[_Node] = []
        self._is_probing = False
        self._tags: dict[str, tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"ChainReader(chain {self.chain_id}, {', '.join(self._labels)})"

    async def __aenter__(self) -> Self:
        session = open_session(connections_max=self._connections_max)
        self._session = session

        def open_endpoint(url: str, label: str) -> Endpoint:
            return Endpoint(
                url,
                label=label,
                session=session,
                timeout_seconds=self._timeout_seconds,
                response_bytes_max=self._response_bytes_max,
                on_request=self._on_request,
            )

        self._nodes = [
            _Node(open_endpoint(url, label), open_endpoint(url, label), LogRange(self._log_range_max))
            for url, label in zip(self._urls, self._labels, strict=True)
        ]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """The endpoints' printable names, in order of preference."""
        return tuple(self._labels)

    @property
    def request_count(self) -> int:
        """HTTP requests sent since the reader was opened."""
        return sum(node.endpoint.request_count + node.history.request_count for node in self._nodes)

    async def look(self, tx_hash: str, *, block_hint: int | None = None, ask_all: bool = False) -> ChainView:
        """The transaction as the first endpoint shows it that has it in a block of its canonical chain.

        With `block_hint`, the block of an earlier look, one HTTP request is enough. Endpoints that fail, are
        behind or stuck, do not know the transaction or contradict themselves are passed over; when all are, the best
        of what was said is returned (a block, then a receipt without its block, then no receipt; from the highest
        head). Endpoints that failed lately are asked only when no other has answered.

        With `ask_all`, for the last look before a payment is given up, every endpoint is asked, all at once.

        Takes at most `timeout_seconds` for each endpoint. Raises `ChainUnavailable` naming each endpoint's reason
        when no answer can be used. While every endpoint's last answer was a failure, one look at a time asks them,
        all at once, and the others raise without asking.
        """
        question = partial(self._read, tx_hash=parse_tx_hash(tx_hash), block_hint=block_hint)
        if ask_all:
            heard = await self._hear_all(question)
        elif not self._is_down():
            heard = await self._hear_in_order(question)
        elif self._is_probing:
            # Hundreds of payments may be waiting: if each look waited for nodes that hang, nothing else would run.
            reasons = "; ".join(f"{node.label}: {node.reason}" for node in self._nodes)
            raise ChainUnavailable(f"{NO_ENDPOINT}{reasons} (another look is asking again)")
        else:
            self._is_probing = True
            try:
                heard = await self._hear_all(question)
            finally:
                self._is_probing = False
        return heard.best()

    async def cross_check(self, tx_hash: str, view: ChainView) -> ChainView:
        """The view that may be judged finally, after all other endpoints were asked at once.

        To be called when the verdict on `view` is final, and judged again: the result may have another head (the
        highest that most have reached), or be the majority's view instead. Endpoints that failed lately are asked as
        well, or a burst of failures would leave the decision to one of them; only a pause that an endpoint asked for
        is respected. Takes at most `timeout_seconds`.
        Without other endpoints, or without the transaction in a block, `view` itself, without a request.
        Raises `EndpointsDisagree`, a `ChainUnavailable`, when no claim has a majority.
        """
        tx_hash = parse_tx_hash(tx_hash)
        others = [node for node in self._open_nodes() if node.label != view.endpoint]
        receipt = view.receipt
        if not others or receipt is None or not is_included(view):
            return view

        question = partial(self._read, tx_hash=tx_hash, block_hint=receipt.block_number)

        async def hear(node: _Node) -> Reading | NoResponse:
            if node.breaker.wants_pause(self._clock()):
                return NoResponse(node.label, f"not asked, it wants a pause ({node.reason})")
            heard = await self._try(node, question)
            return NoResponse(node.label, heard.message) if isinstance(heard, EndpointFailure) else heard

        outcome = decide(view, await asyncio.gather(*(hear(node) for node in others)))
        if not isinstance(outcome, Agreed):
            log.warning("%s", outcome.message)
            raise EndpointsDisagree(outcome.message)
        if outcome.votes == 1 and self._mark.is_behind(view.head_number):
            # Nobody confirms what a lagging node says, and it may still be on a branch that the others have left.
            raise ChainUnavailable(f"only {view.endpoint} answers about {tx_hash}, and it is behind {self._mark.value}")
        for node in self._nodes:
            if node.label in outcome.outvoted:
                self._failed(node, EndpointFailure(Failure.CONTRADICTION, "it was outvoted by the other endpoints"))
        return outcome.view

    async def head(self) -> int:
        """The height of the chain; never below a height returned before, unless that one was given up as a lie.

        Raises `ChainUnavailable`.
        """

        async def read(node: _Node, deadline: float) -> int:
            head = await self._read_head(node, deadline)
            if self._mark.is_behind(head):
                raise self._behind(node, head)
            return max(head, self._mark.value)

        return await self._first(read)

    async def newest_block(self) -> ChainHead:
        """The newest block of the first endpoint that is not behind, with its time. Raises `ChainUnavailable`."""

        async def read(node: _Node, deadline: float) -> ChainHead:
            chain_id, block = await node.endpoint.batch([_CHAIN_ID, _NEWEST_BLOCK], deadline=deadline)
            self._check_chain(chain_id)
            newest = read_head(block)
            if self._mark.is_behind(self._saw_head(node, newest.number)):
                raise self._behind(node, newest.number)
            return newest

        return await self._first(read)

    async def tagged_number(self, tag: str) -> int:
        """The highest block that more than half of the answering endpoints call `tag` ("safe" or "finalized").

        All are asked at once. An answer is good for `TAG_SECONDS`: every payment that waits asks the same.
        Raises `ChainUnavailable` naming each endpoint's reason when none knows the tag.
        """
        kept = self._tags.get(tag)
        if kept is not None and self._clock() - kept[0] < TAG_SECONDS:
            return kept[1]
        number = reached_by_tag(tag, await self.tagged_blocks(tag))
        self._tags[tag] = (self._clock(), number)
        return number

    async def tagged_blocks(self, tag: str) -> list[TaggedBlock]:
        """What each endpoint calls `tag` now, in order of preference; never raises for what an endpoint does.

        The first block of a chain says that nothing is final yet, and one above the endpoint's own head says nothing.
        """
        calls = [_CHAIN_ID, Call("eth_getBlockByNumber", (tag, False)), _BLOCK_NUMBER]

        async def hear(node: _Node) -> TaggedBlock:
            if node.breaker.wants_pause(self._clock()):
                return TaggedBlock(node.label, error=f"not asked, it wants a pause ({node.reason})")
            head: int | None = None
            try:
                chain_id, block, height = await node.endpoint.batch(calls)
                self._check_chain(chain_id)
                head = read_quantity(height)
                header = read_tagged_header(block)
            except EndpointFailure as failure:
                # Not entered into its record: many a node does not know the tags, and serves payments well.
                return TaggedBlock(node.label, head, error=failure.message)
            if header is None:
                return TaggedBlock(node.label, head, error=f"knows no {tag} block (answers null)")
            if header.number == 0:
                return TaggedBlock(node.label, head, 0, error=f"knows no {tag} block but the chain's first")
            if header.number > head:
                return TaggedBlock(node.label, head, error=f"calls block {header.number} {tag}, its head is {head}")
            return TaggedBlock(node.label, head, header.number)

        return list(await asyncio.gather(*(hear(node) for node in self._open_nodes())))

    async def inclusion_reports(self, tx_hash: str, block_number: int) -> list[InclusionReport]:
        """What each endpoint that answers says about a transaction that was in block `block_number`; all at once.

        Never raises for what an endpoint does: who is silent, stuck or behind is not in the list.
        """
        question = partial(self._read, tx_hash=parse_tx_hash(tx_hash), block_hint=block_number)

        async def hear(node: _Node) -> InclusionReport | None:
            heard = await self._try(node, question)
            if isinstance(heard, EndpointFailure) or heard.stalled or self._mark.is_behind(heard.view.head_number):
                return None
            view, asked = heard.view, heard.asked
            return InclusionReport(
                endpoint=node.label,
                chain_id=view.chain_id,
                head_number=view.head_number,
                receipt=view.receipt if is_included(view) else None,
                block_at_height=asked.block_hash if asked is not None else None,
            )

        heard = await asyncio.gather(*(hear(node) for node in self._open_nodes()))
        return [inclusion_report for inclusion_report in heard if inclusion_report is not None]

    async def transfers(
        self,
        scope: TransferScope,
        first: int,
        last: int,
        *,
        anchor: int | None = None,
        endpoint: str | None = None,
    ) -> TransferRange:
        """The transfers in blocks `first` to `last`, or to an earlier one where that is as much as is given at once.

        One log query, whatever the number of transfers. With `anchor`, also that block as it is at this moment. A
        range that an endpoint refuses is made smaller for it, which is remembered, and never keeps payments from being
        looked for at that endpoint. With `endpoint`, a label, that one is asked and no other.
        Raises `EndpointsFailed` with each endpoint's reason, also where a head is below `last`; of a single endpoint
        its own failure. Both are `ChainUnavailable`.
        """

        async def read(node: _Node, _: float) -> TransferRange:
            return await self._read_transfers(node, scope, first, last, anchor)

        if endpoint is None:
            return await self._first(read)
        return await self._ask(self._node(endpoint), read)

    async def blocks(self, scope: TransferScope, numbers: Sequence[int]) -> dict[int, MinedBlock | None]:
        """The blocks at these heights as one endpoint has them now; None above its head.

        A block that no endpoint shows, although it is below their heads, is missing from the answer. Raises
        `ChainUnavailable`.
        """

        partial: list[dict[int, MinedBlock | None]] = []

        async def read(node: _Node, _: float) -> dict[int, MinedBlock | None]:
            blocks = await read_blocks(node.history, scope, numbers)
            if missing := sorted(set(numbers) - blocks.keys()):
                partial.append(blocks)
                raise HistoryRefused(
                    Failure.CONTRADICTION, f"does not show block {missing[0]}, which is below its head"
                )
            return blocks

        try:
            return await self._first(read)
        except EndpointsFailed:
            if not partial:
                raise
            return max(partial, key=len)

    async def health(self) -> list[EndpointHealth]:
        """What each endpoint answers now, in order of preference; never raises for what an endpoint does."""

        async def check(node: _Node) -> EndpointHealth:
            try:
                chain_id_reply, head_reply = await node.endpoint.batch([_CHAIN_ID, _BLOCK_NUMBER])
                chain_id, head = read_quantity(chain_id_reply), read_quantity(head_reply)
            except EndpointFailure as failure:
                return EndpointHealth(node.label, reachable=False, error=failure.message)
            error = None
            if chain_id != self.chain_id:
                error = self._wrong_chain(chain_id).message
            elif self._mark.is_behind(head):
                error = f"head {head} is behind {self._mark.value}, which was seen before"
            return EndpointHealth(node.label, reachable=True, chain_id=chain_id, head_number=head, error=error)

        return list(await asyncio.gather(*(check(node) for node in self._open_nodes())))

    async def ask_about_token(self, token: str, treasury: str) -> tuple[list[TokenAnswer], list[NoResponse]]:
        """What each endpoint says of the contract at `token`, all asked at once; and who gave no usable answer.

        An endpoint of another chain answers with that chain's id alone. One that is behind, or that cannot run a call,
        has no say. Raises `InvalidInput` for a malformed address.
        """
        parse_address(token, field="token")
        parse_address(treasury, field="treasury")

        def ask(calldata: str) -> Call:
            return Call("eth_call", ({"to": token, "data": calldata}, "latest"))

        calls = [
            _CHAIN_ID,
            _BLOCK_NUMBER,
            Call("eth_getCode", (token, "latest")),
            ask(_DECIMALS_CALLDATA),
            ask(_SYMBOL_CALLDATA),
            ask(_BALANCE_OF_CALLDATA + treasury[2:].lower().rjust(64, "0")),
        ]

        async def hear(node: _Node) -> TokenAnswer | NoResponse:
            if node.breaker.wants_pause(self._clock()):
                return NoResponse(node.label, f"not asked, it wants a pause ({node.reason})")
            try:
                chain_id_reply, head_reply, code, decimals, symbol, balance = await node.endpoint.batch(calls)
                chain_id = read_quantity(chain_id_reply)
                if chain_id != self.chain_id:
                    return TokenAnswer(node.label, chain_id)
                head = self._saw_head(node, read_quantity(head_reply))
                has_code = bool(read_data(code))
                for reply in (decimals, balance) if has_code else ():
                    if reply.error is not None and not _has_failed_in_execution(reply):
                        raise reply.error
            except EndpointFailure as failure:
                # Not entered into its record: a node that answers no calls may serve payments well.
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

        answers: list[TokenAnswer] = []
        silent: list[NoResponse] = []
        for heard in await asyncio.gather(*(hear(node) for node in self._open_nodes())):
            if isinstance(heard, NoResponse):
                silent.append(heard)
            elif heard.chain_id == self.chain_id and self._mark.is_behind(heard.head_number):
                silent.append(NoResponse(heard.endpoint, f"head {heard.head_number} is behind {self._mark.value}"))
            else:
                answers.append(heard)
        return answers, silent

    async def deployless_call(self, creation_code: bytes) -> bytes | None:
        """What creating a contract returns at the head of the chain, without creating it; None where it reverts.

        Every endpoint is asked at once, and all that answer have to say the same. Which of them has the newest head
        plays no part: one that invents a head must not put the others' answers aside. Takes at most `timeout_seconds`.
        Raises `EndpointsDisagree`, a `ChainUnavailable`, when two answers differ, `ChainUnavailable` naming each
        endpoint's reason when there is none.
        """
        transaction = {
            "from": DEPLOYLESS_CALL_SENDER,
            "gas": hex(DEPLOYLESS_CALL_GAS),
            "data": "0x" + creation_code.hex(),
        }
        calls = [_CHAIN_ID, Call("eth_call", (transaction, "latest"))]
        answers: dict[bytes | None, list[str]] = {}
        reasons: list[str] = []

        async def hear(node: _Node) -> None:
            if node.breaker.wants_pause(self._clock()):
                reasons.append(f"{node.label}: not asked, it wants a pause ({node.reason})")
                return
            try:
                chain_id, result = await node.endpoint.batch(calls)
                self._check_chain(chain_id)
                answer = None if _has_failed_in_execution(result) else read_data(result)
            except EndpointFailure as failure:
                reasons.append(f"{node.label}: {failure.message}")
                # No other failure is entered: the code is partly a stranger's, who must not be able to have the
                # endpoints passed over when payments are looked for.
                if failure.failure is Failure.RATE_LIMITED:
                    self._failed(node, failure)
                return
            answers.setdefault(answer, []).append(node.label)

        await asyncio.gather(*(hear(node) for node in self._open_nodes()))
        match list(answers):
            case []:
                raise ChainUnavailable(NO_ENDPOINT + "; ".join(reasons))
            case [answer]:
                return answer
            case _:
                sides = [f"{', '.join(names)}: {_shown(answer)}" for answer, names in answers.items()]
                message = "endpoints disagree about what a call returns: " + "; ".join(sides)
                log.warning("%s", message)
                raise EndpointsDisagree(message)

    # One endpoint ----------------------------------------------------------------------------------------------------

    async def _read(self, node: _Node, deadline: float, *, tx_hash: str, block_hint: int | None) -> Reading:
        """Receipt, head and the block at the receipt's height, all three of the same batch."""
        height = block_hint
        asked: BlockHeader | None = None
        for round_number in range(ROUNDS_MAX):
            calls = [_CHAIN_ID, _BLOCK_NUMBER, Call("eth_getTransactionReceipt", (tx_hash,))]
            if height is not None:
                calls.append(Call("eth_getBlockByNumber", (hex(height), False)))
            replies = await node.endpoint.batch(calls, deadline=deadline)
            chain_id = self._check_chain(replies[0])
            head = self._saw_head(node, read_quantity(replies[1]))
            receipt = await _receipt(replies[2], tx_hash)
            block = read_header(replies[3], height) if height is not None else None
            if round_number == 0:
                asked = block
            there = receipt is not None and receipt.block_number <= head
            if receipt is None or not there or receipt.block_number == height:
                view = ChainView(
                    chain_id=chain_id,
                    endpoint=node.label,
                    head_number=head,
                    receipt=receipt,
                    canonical=block if there else None,
                )
                return Reading(view, asked, stalled=node.breaker.is_stalled(self._clock()))
            height = receipt.block_number
        raise EndpointFailure(
            Failure.CONTRADICTION, f"the receipt was in another block at each of {ROUNDS_MAX} readings"
        )

    async def _read_transfers(
        self, node: _Node, scope: TransferScope, first: int, last: int, anchor: int | None
    ) -> TransferRange:
        """As many of the blocks as the endpoint gives in one answer."""

        def saw_head(head: int) -> None:
            if self._mark.is_behind(self._saw_head(node, head)):
                raise self._behind(node, head)

        while True:
            until = min(last, first + node.log_range.size - 1)
            try:
                found = await read_range(node.history, scope, first, until, anchor=anchor, saw_head=saw_head)
            except RangeRefused as refusal:
                if not node.log_range.refused(until - first + 1):
                    raise
                log.info(
                    "chain endpoint %s refuses a log query of %d blocks (%s), asking for %d",
                    node.label,
                    until - first + 1,
                    refusal.message,
                    node.log_range.size,
                )
            else:
                node.log_range.answered(until - first + 1)
                return found

    async def _read_head(self, node: _Node, deadline: float) -> int:
        chain_id, head = await node.endpoint.batch([_CHAIN_ID, _BLOCK_NUMBER], deadline=deadline)
        self._check_chain(chain_id)
        return self._saw_head(node, read_quantity(head))

    def _check_chain(self, reply: Reply) -> int:
        """Every batch carries the chain's id, so no answer of another chain is ever used, whatever it was before."""
        chain_id = read_quantity(reply)
        if chain_id != self.chain_id:
            raise self._wrong_chain(chain_id)
        return chain_id

    def _wrong_chain(self, chain_id: int) -> EndpointFailure:
        return EndpointFailure(Failure.WRONG_CHAIN, f"answers for chain {chain_id}, not {self.chain_id}")

    def _saw_head(self, node: _Node, head: int) -> int:
        now = self._clock()
        self._mark.observe(head, now)
        node.breaker.saw_head(head, now)
        return head

    # All endpoints ---------------------------------------------------------------------------------------------------

    def _open_nodes(self) -> list[_Node]:
        if self._session is None or self._session.closed:
            raise RuntimeError("ChainReader is used outside of its `async with`")
        return self._nodes

    def _node(self, label: str) -> _Node:
        return next(node for node in self._open_nodes() if node.label == label)

    def _in_order(self) -> tuple[list[_Node], list[_Node]]:
        """Those to ask in order of preference, and those that failed lately, the longest rested first."""
        nodes, now = self._open_nodes(), self._clock()
        fresh = [node for node in nodes if not node.breaker.is_cooling(now)]
        cooling = [node for node in nodes if node.breaker.is_cooling(now)]
        return fresh, sorted(cooling, key=lambda node: node.breaker.cools_until)

    def _is_down(self) -> bool:
        """Whether no endpoint has given a usable answer since it failed, whatever its cool-down.

        Where all are merely behind it is false: they do answer, and nobody waits for them.
        """
        failures = [node.breaker.failure for node in self._open_nodes()]
        return None not in failures and any(failure is not Failure.BEHIND for failure in failures)

    async def _first(self, read: Callable[[_Node, float], Awaitable[_T]]) -> _T:
        """The first endpoint's answer that can be used, or `EndpointsFailed` with everybody's reason.

        `read` takes note of the endpoint's head: the answer of one that is stuck is used when there is no other.
        """
        failures: dict[str, EndpointFailure] = {}
        stalled: list[_T] = []
        fresh, cooling = self._in_order()
        for node in [*fresh, *cooling]:
            if stalled and node in cooling:
                break
            try:
                answer = await self._ask(node, read)
            except EndpointFailure as failure:
                failures[node.label] = failure
                continue
            self._served(node)
            if not node.breaker.is_stalled(self._clock()):
                return answer
            stalled.append(answer)
        if stalled:
            return stalled[0]
        raise EndpointsFailed(failures)

    async def _hear_in_order(self, question: Callable[[_Node, float], Awaitable[Reading]]) -> _Heard:
        """One endpoint after the other, until one that keeps up shows the transaction in a block."""
        heard = _Heard()
        fresh, cooling = self._in_order()
        for node in [*fresh, *cooling]:
            if heard.is_answered() and node in cooling and node.breaker.failure is not Failure.BEHIND:
                # A lagging node does answer, and it may be the only one that knows the transaction.
                continue
            self._sort_in(heard, node, await self._try(node, question))
            if heard.included:
                break
        return heard

    async def _hear_all(self, question: Callable[[_Node, float], Awaitable[Reading]]) -> _Heard:
        """All endpoints at the same time, however they fared lately."""
        fresh, cooling = self._in_order()
        nodes = [*fresh, *cooling]
        heard = _Heard()
        outcomes = await asyncio.gather(*(self._try(node, question) for node in nodes))
        for node, outcome in zip(nodes, outcomes, strict=True):
            self._sort_in(heard, node, outcome)
        return heard

    def _sort_in(self, heard: _Heard, node: _Node, outcome: Reading | EndpointFailure) -> None:
        if isinstance(outcome, EndpointFailure):
            heard.reasons.append(f"{node.label}: {outcome.message}")
            return
        view = outcome.view
        if self._mark.is_behind(view.head_number):
            heard.reasons.append(f"{node.label}: {self._behind(node, view.head_number).message}")
            if is_included(view):
                heard.behind.append(view)
        elif not is_included(view):
            heard.answers.append(view)
        elif outcome.stalled:
            heard.stalled.append(view)
        else:
            heard.included.append(view)

    async def _try(
        self, node: _Node, question: Callable[[_Node, float], Awaitable[Reading]]
    ) -> Reading | EndpointFailure:
        try:
            reading = await self._ask(node, question)
        except EndpointFailure as failure:
            return failure
        if not self._mark.is_behind(reading.view.head_number):
            self._served(node)  # at once: where others hang, this is what ends the waiting of other looks
        return reading

    async def _ask(self, node: _Node, question: Callable[[_Node, float], Awaitable[_T]]) -> _T:
        """One endpoint's answer before its deadline, which is handed on; a failure is entered into its record."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await question(node, started + self._timeout_seconds)
        except HistoryRefused:
            raise
        except EndpointFailure as failure:
            self._failed(node, failure)
            raise
        except asyncio.CancelledError:
            # The caller's patience was shorter than the endpoint's time. Without an entry, every look would spend it
            # on the same endpoint.
            waited = loop.time() - started
            if waited >= HEALTHY_SECONDS:
                self._failed(node, EndpointFailure(Failure.TIMEOUT, f"no answer within {waited:.1f} s, given up"))
            raise

    def _served(self, node: _Node) -> None:
        if node.breaker.failure is not None:
            log.info("chain endpoint %s is usable again", node.label)
        node.breaker.answered()

    def _behind(self, node: _Node, head: int) -> EndpointFailure:
        """That the endpoint lags, entered into its record: another one is asked first for a few seconds."""
        failure = EndpointFailure(Failure.BEHIND, f"head {head} is behind {self._mark.value}, which was seen before")
        self._failed(node, failure)
        return failure

    def _failed(self, node: _Node, failure: EndpointFailure) -> None:
        if node.breaker.failure is not failure.failure:
            # Once for each change, not for each request: a node that is down for an hour is one fact.
            log.warning("chain endpoint %s: %s", node.label, failure.message)
        node.reason = failure.message
        node.breaker.failed(failure.failure, self._clock(), failure.retry_after_seconds)


def reached_by_tag(tag: str, blocks: Sequence[TaggedBlock]) -> int:
    """The highest block that more than half of the endpoints with a usable one call `tag`.

    0 where nothing but the chain's first block is. Raises `ChainUnavailable` naming each endpoint's reason when there
    is none.
    """
    numbers = [block.number for block in blocks if block.number is not None]
    # A node on which nothing has ever become final has no say in how far others are.
    numbers = [number for number in numbers if number > 0] or numbers
    if not numbers:
        reasons = "; ".join(f"{block.label}: {block.error}" for block in blocks)
        raise ChainUnavailable(f"the nodes know no {tag} block: {reasons}")
    return reached_by_most(numbers)


async def _receipt(reply: Reply, tx_hash: str) -> Receipt | None:
    raw = reply.result
    if isinstance(raw, dict) and isinstance(raw.get("logs"), list) and len(raw["logs"]) > PARSE_INLINE_LOGS_MAX:
        return await asyncio.to_thread(read_receipt, reply, tx_hash)
    return read_receipt(reply, tx_hash)


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


def _has_failed_in_execution(reply: Reply) -> bool:
    """Whether the node ran the code and the code failed, which is an answer; a node that could not run it has none."""
    error = reply.error
    return error is not None and error.failure is Failure.RPC_ERROR and bool(_EXECUTION_FAILED.search(error.message))


def _shown(returned: bytes | None) -> str:
    if returned is None:
        return "reverted"
    return f"0x{returned[:32].hex()}" + ("…" if len(returned) > 32 else "")
