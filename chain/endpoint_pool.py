"""The endpoints of one chain in order of preference, with the health of each, and the request to one of them.

A failure is recorded for its endpoint; one that failed recently is asked only when no other has answered. Every batch
carries the chain's id, and heads are compared with the highest one seen, so that no answer of another chain or of a
lagging node is taken for the current state. The readers decide what is asked (`chain.reader`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp

from chain.circuit_breaker import HEAD_TOLERANCE_BLOCKS, MARK_EXPIRY_SECONDS, STALL_SECONDS, CircuitBreaker, HeadMark
from chain.history import HistoryRefused
from chain.joined_batches import JOIN_SECONDS, JoinedBatches
from chain.quorum import EndpointsDisagree
from chain.ranges import LogRange
from chain.rpc import (
    RESPONSE_BYTES_MAX,
    Call,
    Endpoint,
    EndpointFailure,
    Failure,
    RequestObserver,
    labels,
    open_session,
)
from domain.errors import ChainUnavailable, InvalidInput

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 10.0
"""Time limit of one endpoint per question, for all its requests together. A healthy one needs well below 1 s."""

HEALTHY_SECONDS: Final = 1.0
"""A question cancelled by its caller after this long counts as a time-out; an earlier one says nothing."""

ENDPOINTS_MAX: Final = 16
"""More indicates a mistake in the setting; also bounds the number of concurrent requests."""

CONNECTIONS_MAX: Final = 32
"""Connections to one endpoint. Providers allow about 50 calls a second, which a few connections can carry."""

LOG_RANGE_MAX: Final = 2_000
"""Blocks per log query, where the settings say nothing and the endpoint does not refuse."""

WHOLE_BLOCKS_MAX: Final = 10
"""Blocks in one answer where each is read whole: of some megabytes each."""

CHAIN_ID: Final = Call("eth_chainId")
BLOCK_NUMBER: Final = Call("eth_blockNumber")

NO_ENDPOINT: Final = "no usable chain endpoint: "

_T = TypeVar("_T")


def only_answer(
    answers: Mapping[_T, Sequence[str]], reasons: Sequence[str], *, about: str, shown: Callable[[_T], object] = str
) -> _T:
    """The answer that all endpoints gave, which are named with theirs. `reasons` are those of the others.

    Raises `ChainUnavailable` where there is none, and `EndpointsDisagree` where there are several.
    """
    match list(answers):
        case []:
            raise ChainUnavailable(NO_ENDPOINT + "; ".join(reasons))
        case [answer]:
            return answer
        case _:
            sides = "; ".join(f"{', '.join(names)}: {shown(answer)}" for answer, names in answers.items())
            raise EndpointsDisagree(f"endpoints disagree about {about}: {sides}")


class EndpointsFailed(ChainUnavailable):
    """No endpoint gave a usable answer; `failures` has each one's reason, by its label."""

    def __init__(self, failures: Mapping[str, EndpointFailure]) -> None:
        super().__init__(NO_ENDPOINT + "; ".join(f"{label}: {failure.message}" for label, failure in failures.items()))
        self.failures = dict(failures)

    @property
    def history_refusals(self) -> list[HistoryRefused]:
        """Endpoints that are healthy and have the blocks below their head, but do not return what was asked for."""
        return [
            failure
            for failure in self.failures.values()
            if isinstance(failure, HistoryRefused) and failure.failure is not Failure.BEHIND
        ]


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """What one endpoint answers now. `error` is one line, None when everything is right."""

    label: str
    reachable: bool
    chain_id: int | None = None
    head_number: int | None = None
    error: str | None = None


@dataclass(slots=True)
class PooledEndpoint:
    """An endpoint and its health. `reason` is its last failure."""

    endpoint: Endpoint
    history: Endpoint
    """The same endpoint for historical queries, so that a refused log query does not mark it as one without batches."""
    joined: JoinedBatches
    """The same endpoint for questions about payments, many of which are asked at once."""
    log_range: LogRange
    block_range: LogRange = field(default_factory=lambda: LogRange(WHOLE_BLOCKS_MAX))
    """The same for questions about whole blocks, which are larger: neither says anything about the other."""
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    reason: str = ""
    last_failure: EndpointFailure | None = None

    @property
    def label(self) -> str:
        """Its printable name."""
        return self.endpoint.label


class EndpointPool:
    """Several endpoints of one chain, in order of preference; use it as an async context manager.

    `on_request` is called for every HTTP request; `clock` is a monotonic clock in seconds.
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
        stall_seconds: float = STALL_SECONDS,
        join_seconds: float = JOIN_SECONDS,
        on_request: RequestObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= len(urls) <= ENDPOINTS_MAX:
            raise InvalidInput("CHAIN_RPC_URLS", f"expected 1 to {ENDPOINTS_MAX} addresses, got {len(urls)}")
        self.chain_id = chain_id
        self._urls = [url.strip() for url in urls]
        self._labels = labels(self._urls)
        self.timeout_seconds = timeout_seconds
        self._response_bytes_max = response_bytes_max
        self._connections_max = connections_max
        self._log_range_max = log_range_max
        self._join_seconds = join_seconds
        self._on_request = on_request
        self.clock = clock
        self.mark = HeadMark(tolerance_blocks=head_tolerance_blocks, expiry_seconds=mark_expiry_seconds)
        self._stall_seconds = stall_seconds
        self._session: aiohttp.ClientSession | None = None
        self._nodes: list[PooledEndpoint] = []

    async def __aenter__(self) -> Self:
        session = open_session(connections_max=self._connections_max)
        self._session = session

        def open_endpoint(url: str, label: str) -> Endpoint:
            return Endpoint(
                url,
                label=label,
                session=session,
                timeout_seconds=self.timeout_seconds,
                response_bytes_max=self._response_bytes_max,
                on_request=self._on_request,
            )

        def pooled(url: str, label: str) -> PooledEndpoint:
            endpoint = open_endpoint(url, label)
            joined = JoinedBatches(endpoint, join_seconds=self._join_seconds)
            return PooledEndpoint(
                endpoint,
                open_endpoint(url, label),
                joined,
                LogRange(self._log_range_max),
                breaker=CircuitBreaker(stall_seconds=self._stall_seconds),
            )

        self._nodes = [pooled(url, label) for url, label in zip(self._urls, self._labels, strict=True)]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in self._nodes:
            await node.joined.close()
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

    def check_chain(self, chain_id: int) -> int:
        """Check the chain's id in an answer: one of another chain is never used. Raises `EndpointFailure`."""
        if chain_id != self.chain_id:
            raise self.wrong_chain(chain_id)
        return chain_id

    def wrong_chain(self, chain_id: int) -> EndpointFailure:
        """The failure of an endpoint of another chain."""
        return EndpointFailure(Failure.WRONG_CHAIN, f"answers for chain {chain_id}, not {self.chain_id}")

    def saw_head(self, node: PooledEndpoint, head: int) -> int:
        """Record an endpoint's head, and return it."""
        now = self.clock()
        self.mark.observe(head, now)
        node.breaker.saw_head(head, now)
        return head

    def nodes(self) -> list[PooledEndpoint]:
        """All of them, in order of preference. Raises `RuntimeError` outside of the `async with`."""
        if self._session is None or self._session.closed:
            raise RuntimeError("ChainReader is used outside of its `async with`")
        return self._nodes

    def node(self, label: str) -> PooledEndpoint:
        """The one of that label."""
        return next(node for node in self.nodes() if node.label == label)

    def in_order(self) -> tuple[list[PooledEndpoint], list[PooledEndpoint]]:
        """Those to ask in order of preference, and those that failed recently, the longest rested first."""
        nodes, now = self.nodes(), self.clock()
        fresh = [node for node in nodes if not node.breaker.is_cooling(now)]
        cooling = [node for node in nodes if node.breaker.is_cooling(now)]
        return fresh, sorted(cooling, key=lambda node: node.breaker.cools_until)

    def is_down(self) -> bool:
        """Whether every endpoint's last answer was a failure, whatever its cool-down.

        False where all are merely behind: they do answer.
        """
        failures = [node.breaker.failure for node in self.nodes()]
        return None not in failures and any(failure is not Failure.BEHIND for failure in failures)

    async def ask_first(self, read: Callable[[PooledEndpoint, float], Awaitable[_T]]) -> _T:
        """The first usable answer, or `EndpointsFailed` with every endpoint's reason.

        `read` records the endpoint's head: the answer of a stuck endpoint is used when there is no other.
        """
        failures: dict[str, EndpointFailure] = {}
        stalled: list[_T] = []
        fresh, cooling = self.in_order()
        for node in [*fresh, *cooling]:
            if stalled and node in cooling:
                break
            try:
                answer = await self.ask(node, read)
            except EndpointFailure as failure:
                failures[node.label] = failure
                continue
            self.served(node)
            if not node.breaker.is_stalled(self.clock()):
                return answer
            stalled.append(answer)
        if stalled:
            return stalled[0]
        raise EndpointsFailed(failures)

    async def ask(self, node: PooledEndpoint, question: Callable[[PooledEndpoint, float], Awaitable[_T]]) -> _T:
        """Ask one endpoint, within the deadline that `read` receives; a failure is recorded."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await question(node, started + self.timeout_seconds)
        except HistoryRefused:
            raise
        except EndpointFailure as failure:
            self.failed(node, failure)
            raise
        except asyncio.CancelledError:
            # The caller's time limit was shorter than the endpoint's. Without a record, every poll would spend it on
            # the same endpoint.
            waited = loop.time() - started
            if waited >= HEALTHY_SECONDS:
                self.failed(node, EndpointFailure(Failure.TIMEOUT, f"no answer within {waited:.1f} s, cancelled"))
            raise

    def pause(self, node: PooledEndpoint) -> str | None:
        """Why the endpoint is not asked now, or None: only a pause that it requested is respected."""
        if node.breaker.wants_pause(self.clock()):
            return f"not asked, it requested a pause ({node.reason})"
        return None

    def served(self, node: PooledEndpoint) -> None:
        """Record a usable answer."""
        if node.breaker.failure is not None:
            log.info("chain endpoint %s is usable again", node.label)
        node.breaker.answered()

    def behind(self, node: PooledEndpoint, head: int) -> EndpointFailure:
        """Record that the endpoint lags: another one is asked first for a few seconds."""
        failure = EndpointFailure(Failure.BEHIND, f"head {head} is behind {self.mark.value}, the highest seen")
        self.failed(node, failure)
        return failure

    def failed(self, node: PooledEndpoint, failure: EndpointFailure) -> None:
        """Record a failure; that of a batch once, however many questions were in it."""
        if failure is node.last_failure:
            return
        node.last_failure = failure
        if node.breaker.failure is not failure.failure:
            # Logged once per change, not per request: a node that is down for an hour is one event.
            log.warning("chain endpoint %s: %s", node.label, failure.message)
        node.reason = failure.message
        node.breaker.failed(failure.failure, self.clock(), failure.retry_after_seconds)
