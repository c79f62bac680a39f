"""Reads a payment's transaction from several endpoints, none of which is trusted alone.

`look` takes the first usable answer, `cross_check` asks all the others before anything irreversible follows from it.
While no endpoint works, one poll at a time finds out whether that has changed. Evaluation is
`domain.payments.verification`'s work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from chain.endpoint_pool import NO_ENDPOINT, EndpointPool, PooledEndpoint
from chain.family import ChainFamily
from chain.quorum import Agreed, EndpointsDisagree, NoResponse, Reading, decide, is_included
from chain.rpc import EndpointFailure, Failure
from chain.traces import TracesRefused
from domain.chain import ChainView
from domain.errors import ChainUnavailable
from domain.identifiers import parse_tx_hash
from domain.payments.finality import InclusionReport

log = logging.getLogger(__name__)

ANOTHER_POLL_ASKS: Final = "another poll is asking again"
"""Why a poll does not ask nodes that were all down a moment ago."""


@dataclass(slots=True)
class _Heard:
    """Answers about one transaction, collected from the endpoints asked so far."""

    included: list[ChainView] = field(default_factory=list)
    """In a block, and the endpoint keeps up with the chain."""
    stalled: list[ChainView] = field(default_factory=list)
    """In a block, but the endpoint's head does not move: no confirmation will ever be added."""
    behind: list[ChainView] = field(default_factory=list)
    """In a block, but the endpoint lags."""
    answers: list[ChainView] = field(default_factory=list)
    """Any other answer of an endpoint that keeps up."""
    reasons: list[str] = field(default_factory=list)
    """Why the other endpoints' answers cannot be used."""

    def is_answered(self) -> bool:
        return bool(self.included or self.stalled or self.answers)

    def best(self) -> ChainView:
        if not self.is_answered():
            raise ChainUnavailable(NO_ENDPOINT + "; ".join(self.reasons))
        # An endpoint that keeps up does not know the transaction, and one that lags does. The former may be wrong (a
        # forgetful node, or one with an invented head that makes all the others lag). The payment is returned with the
        # few confirmations that the lagging head gives, and is final only after the cross-check.
        views = self.included or [*self.stalled, *self.behind] or self.answers
        return max(views, key=lambda view: (view.receipt is not None, view.head_number))


class PaymentReader:
    """The endpoints' answers about one transaction."""

    def __init__(self, pool: EndpointPool, family: ChainFamily) -> None:
        self._pool = pool
        self._family = family
        self._is_probing = False

    async def look(
        self, tx_hash: str, *, block_hint: int | None = None, ask_all: bool = False, coin: bool = False
    ) -> ChainView:
        """The transaction as returned by the first endpoint that has it in a block of its canonical chain.

        With `block_hint`, the block of an earlier poll, one HTTP request is enough. Endpoints that fail, are behind or
        stuck, do not know the transaction or contradict themselves are passed over; when all are, the best of their
        answers is returned (a block, then a receipt without its block, then no receipt; from the highest head).
        Endpoints that failed recently are asked only when no other has answered.

        With `ask_all`, for the final poll before a payment is given up, every endpoint is asked concurrently. With
        `coin` the transaction's movements of the chain's own coin are among its transfers, and an endpoint that does
        not trace it is passed over.

        Takes at most `timeout_seconds` for each endpoint. Raises `ChainUnavailable` naming each endpoint's reason when
        no answer can be used. While every endpoint's last answer was a failure, one poll at a time asks them all
        concurrently, and the others raise without asking.
        """
        question = partial(self._read, tx_hash=parse_tx_hash(tx_hash), block_hint=block_hint, coin=coin)
        if ask_all:
            heard = await self._hear_all(question)
        elif not self._pool.is_down():
            heard = await self._hear_in_order(question)
        elif self._is_probing:
            # Hundreds of payments may be waiting: if each poll waited for nodes that hang, nothing else would run.
            reasons = "; ".join(f"{node.label}: {node.reason}" for node in self._pool.nodes())
            raise ChainUnavailable(f"{NO_ENDPOINT}{reasons} ({ANOTHER_POLL_ASKS})")
        else:
            self._is_probing = True
            try:
                heard = await self._hear_all(question)
            finally:
                self._is_probing = False
        return heard.best()

    async def cross_check(self, tx_hash: str, view: ChainView, *, coin: bool = False) -> ChainView:
        """The view that may decide finally, after all other endpoints were asked concurrently.

        Called when the result for `view` is final; evaluate the returned view again, because it may have another head
        (the highest that most have reached), or be the majority's view instead. Endpoints that failed recently are
        asked as well, or a burst of failures would leave the decision to one of them; only a pause that an endpoint
        requested is respected. Takes at most `timeout_seconds`. Without other endpoints, or without the transaction in
        a block, `view` itself, without a request. Raises `EndpointsDisagree`, a `ChainUnavailable`, when no claim has a
        majority.

        With `coin`, as the view was read, an endpoint that does not trace has no vote. Where that is not a minority of
        them, nothing is decided: unlike one that is down, it never has a vote, and the few others would be believed
        alone for good. Raises `ChainUnavailable`.
        """
        tx_hash = parse_tx_hash(tx_hash)
        others = [node for node in self._pool.nodes() if node.label != view.endpoint]
        receipt = view.receipt
        if not others or receipt is None or not is_included(view):
            return view

        question = partial(self._read, tx_hash=tx_hash, block_hint=receipt.block_number, coin=coin)
        untraced: list[str] = []

        async def hear(node: PooledEndpoint) -> Reading | NoResponse:
            if pause := self._pool.pause(node):
                return NoResponse(node.label, pause)
            heard = await self._try(node, question)
            if isinstance(heard, TracesRefused):
                untraced.append(f"{node.label}: {heard.message}")
            return NoResponse(node.label, heard.message) if isinstance(heard, EndpointFailure) else heard

        outcome = decide(view, await asyncio.gather(*(hear(node) for node in others)))
        if not isinstance(outcome, Agreed):
            log.warning("%s", outcome.message)
            raise EndpointsDisagree(outcome.message)
        if 2 * len(untraced) >= len(self._pool.nodes()):
            raise ChainUnavailable(f"too few endpoints trace {tx_hash}: {'; '.join(untraced)}")
        if outcome.votes == 1 and self._pool.mark.is_behind(view.head_number):
            # No other node confirms what a lagging node says, and it may still be on an abandoned branch.
            raise ChainUnavailable(
                f"only {view.endpoint} answers about {tx_hash}, and it is behind {self._pool.mark.value}"
            )
        for node in self._pool.nodes():
            if node.label in outcome.outvoted:
                self._pool.failed(
                    node, EndpointFailure(Failure.CONTRADICTION, "it was outvoted by the other endpoints")
                )
        return outcome.view

    async def inclusion_reports(self, tx_hash: str, block_number: int, *, coin: bool = False) -> list[InclusionReport]:
        """What each answering endpoint reports about a transaction that was in block `block_number`, asked
        concurrently.

        Never raises for a faulty endpoint: one that is silent, stuck or behind is not in the list.
        """
        question = partial(self._read, tx_hash=parse_tx_hash(tx_hash), block_hint=block_number, coin=coin)

        async def hear(node: PooledEndpoint) -> InclusionReport | None:
            heard = await self._try(node, question)
            if isinstance(heard, EndpointFailure) or heard.stalled or self._pool.mark.is_behind(heard.view.head_number):
                return None
            view, asked = heard.view, heard.asked
            return InclusionReport(
                endpoint=node.label,
                chain_id=view.chain_id,
                head_number=view.head_number,
                receipt=view.receipt if is_included(view) else None,
                block_at_height=asked.block_hash if asked is not None else None,
            )

        heard = await asyncio.gather(*(hear(node) for node in self._pool.nodes()))
        return [inclusion_report for inclusion_report in heard if inclusion_report is not None]

    async def _read(
        self, node: PooledEndpoint, deadline: float, *, tx_hash: str, block_hint: int | None, coin: bool
    ) -> Reading:
        return await self._family.read_payment(
            self._pool, node, tx_hash, block_hint=block_hint, coin=coin, deadline=deadline
        )

    async def _hear_in_order(self, question: Callable[[PooledEndpoint, float], Awaitable[Reading]]) -> _Heard:
        """One endpoint after the other, until one that keeps up returns the transaction in a block."""
        heard = _Heard()
        fresh, cooling = self._pool.in_order()
        for node in [*fresh, *cooling]:
            if heard.is_answered() and node in cooling and node.breaker.failure is not Failure.BEHIND:
                # A lagging node does answer, and it may be the only one that knows the transaction.
                continue
            self._sort_in(heard, node, await self._try(node, question))
            if heard.included:
                break
        return heard

    async def _hear_all(self, question: Callable[[PooledEndpoint, float], Awaitable[Reading]]) -> _Heard:
        """All endpoints concurrently, whatever their health."""
        fresh, cooling = self._pool.in_order()
        nodes = [*fresh, *cooling]
        heard = _Heard()
        outcomes = await asyncio.gather(*(self._try(node, question) for node in nodes))
        for node, outcome in zip(nodes, outcomes, strict=True):
            self._sort_in(heard, node, outcome)
        return heard

    def _sort_in(self, heard: _Heard, node: PooledEndpoint, outcome: Reading | EndpointFailure) -> None:
        if isinstance(outcome, EndpointFailure):
            heard.reasons.append(f"{node.label}: {outcome.message}")
            return
        view = outcome.view
        if self._pool.mark.is_behind(view.head_number):
            heard.reasons.append(f"{node.label}: {self._pool.behind(node, view.head_number).message}")
            if is_included(view):
                heard.behind.append(view)
        elif not is_included(view):
            heard.answers.append(view)
        elif outcome.stalled:
            heard.stalled.append(view)
        else:
            heard.included.append(view)

    async def _try(
        self, node: PooledEndpoint, question: Callable[[PooledEndpoint, float], Awaitable[Reading]]
    ) -> Reading | EndpointFailure:
        try:
            reading = await self._pool.ask(node, question)
        except EndpointFailure as failure:
            return failure
        if not self._pool.mark.is_behind(reading.view.head_number):
            self._pool.served(node)  # immediately: where others hang, this is what ends the waiting of other polls
        return reading
