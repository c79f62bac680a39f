"""Joins questions that are asked of one endpoint at nearly the same moment into one JSON-RPC batch.

Payments of one block become due together. What their questions have in common (the chain's id, the head, the block's
header) is asked once in the batch, so that each answer is still one the node gave in one piece: every batch proves its
own chain, because an address may be served by another node with each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chain.rpc import Call, Endpoint, EndpointFailure, Failure, Reply

JOIN_SECONDS: Final = 0.25
"""How long a question waits for others where another was asked just before: little beside the confirmations that a
payment has waited for, and enough for two or three in a batch at five payments a second.
"""

JOIN_SECONDS_MIN: Final = 0.005
"""The same for one that comes alone."""

LULL_SECONDS: Final = 0.5
"""After this time without a question the next one is taken to come alone."""

CALLS_MAX: Final = 50
"""Calls in a joined batch: providers count each, and allow about 50 in a second."""

REDUCED_SECONDS: Final = 600.0
"""How long fewer are joined after a joined batch failed as a whole. A node's limit may change with its plan."""

_MAY_BE_ANOTHERS: Final = frozenset({Failure.TOO_LARGE, Failure.RPC_ERROR, Failure.MALFORMED})
"""Failures of a joined batch for which one of its questions, or their number, may be the cause."""

_Outcome = list[Reply] | EndpointFailure


@dataclass(slots=True, eq=False)
class _Question:
    calls: tuple[Call, ...]
    deadline: float
    answer: asyncio.Future[list[Reply]]


@dataclass(slots=True, eq=False)
class _Group:
    questions: list[_Question]
    task: asyncio.Task[None] | None = field(default=None)


class JoinedBatches:
    """The joined questions to one endpoint."""

    def __init__(self, endpoint: Endpoint, *, join_seconds: float = JOIN_SECONDS) -> None:
        self._endpoint = endpoint
        self._join_seconds = join_seconds
        self._gathering: list[_Question] = []
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: set[_Group] = set()
        self._asked_at = float("-inf")
        self._calls_max = CALLS_MAX
        self._reduced_until = 0.0

    async def ask(self, calls: Sequence[Call], *, deadline: float) -> list[Reply]:
        """The replies to `calls`, in their order, all from the same batch.

        A refusal of a single call is in its `Reply`. Raises `EndpointFailure` where the batch fails as a whole, which
        is one and the same for all questions that were in it, or at `deadline` (the event loop's time).
        """
        loop = asyncio.get_running_loop()
        question = _Question(tuple(calls), deadline, loop.create_future())
        self._gather(question)
        try:
            async with asyncio.timeout_at(deadline):
                return await question.answer
        except TimeoutError:
            raise self._endpoint.timed_out() from None
        finally:
            question.answer.cancel()
            self._stop_unheard()

    async def close(self) -> None:
        """Stop what is under way; who still waits for it receives a failure."""
        if self._timer is not None:
            self._timer.cancel()
        groups = list(self._under_way)
        closed = EndpointFailure(Failure.UNREACHABLE, "the reader was closed")
        for question in [*self._gathering, *(one for group in groups for one in group.questions)]:
            _settle(question, closed)
        for group in groups:
            if group.task is not None:
                group.task.cancel()
        await asyncio.gather(*(group.task for group in groups if group.task is not None), return_exceptions=True)

    def _gather(self, question: _Question) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._reduced_until or self._endpoint.asks_one_by_one:
            # Single calls have no size, and those that questions have in common are still sent once.
            self._calls_max = CALLS_MAX
        if self._gathering and len(_distinct([*self._gathering, question])) > self._calls_max:
            self._send()
        self._gathering.append(question)
        if self._timer is None:
            is_alone = now - self._asked_at >= LULL_SECONDS
            self._timer = loop.call_later(
                min(JOIN_SECONDS_MIN, self._join_seconds) if is_alone else self._join_seconds, self._send
            )
        self._asked_at = now

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathering = [one for one in self._gathering if not one.answer.done()], []
        if not gathered:
            return
        group = _Group(gathered)
        group.task = asyncio.ensure_future(self._answer(group.questions))
        self._under_way.add(group)
        group.task.add_done_callback(lambda _: self._under_way.discard(group))

    def _stop_unheard(self) -> None:
        """A batch to which no one waits any more is given up, so that a node that hangs holds no connection."""
        for group in list(self._under_way):
            if group.task is not None and all(question.answer.done() for question in group.questions):
                group.task.cancel()

    async def _answer(self, questions: Sequence[_Question]) -> None:
        outcomes = await self._outcomes(questions)
        doubtful = []
        for question, outcome in zip(questions, outcomes, strict=True):
            if len(questions) > 1 and _may_be_anothers(outcome):
                doubtful.append((question, outcome))
            else:
                _settle(question, outcome)
        await self._ask_apart(doubtful)

    async def _ask_apart(self, doubtful: Sequence[tuple[_Question, _Outcome]]) -> None:
        """Ask each on its own, so that one payment's error is its own.

        Where the first two fail on their own as well, it is the endpoint that fails, and it is spared the others.
        """
        failed = 0
        for position, (question, outcome) in enumerate(doubtful):
            if failed == 2:
                _settle(question, outcome)
                continue
            if position > failed:
                rest = [other for other, _ in doubtful[position:]]
                await asyncio.gather(*(self._answer([other]) for other in rest))
                return
            (alone,) = await self._outcomes([question])
            failed += _is_failed(alone)
            _settle(question, alone)

    async def _outcomes(self, questions: Sequence[_Question]) -> list[_Outcome]:
        """For each question its replies, or the failure of the whole batch."""
        calls = _distinct(questions)
        is_joined = len(questions) > 1
        try:
            replies = await self._endpoint.batch(
                calls, deadline=max(question.deadline for question in questions), tries_one_by_one=not is_joined
            )
        except EndpointFailure as failure:
            if is_joined:
                self._calls_max = max(len(calls) // 2, 1)
                self._reduced_until = asyncio.get_running_loop().time() + REDUCED_SECONDS
            return [failure] * len(questions)
        by_call = dict(zip(calls, replies, strict=True))
        return [[by_call[call] for call in question.calls] for question in questions]


def _distinct(questions: Sequence[_Question]) -> list[Call]:
    return list(dict.fromkeys(call for question in questions for call in question.calls))


def _is_failed(outcome: _Outcome) -> bool:
    return isinstance(outcome, EndpointFailure) or any(reply.error is not None for reply in outcome)


def _may_be_anothers(outcome: _Outcome) -> bool:
    if isinstance(outcome, EndpointFailure):
        return outcome.may_refuse_batches or outcome.failure in _MAY_BE_ANOTHERS
    return any(reply.error is not None and reply.error.failure is Failure.RPC_ERROR for reply in outcome)


def _settle(question: _Question, outcome: _Outcome) -> None:
    if question.answer.done():
        return
    if isinstance(outcome, EndpointFailure):
        question.answer.set_exception(outcome)
    else:
        question.answer.set_result(outcome)
