"""Finality of many payments at once: of those that are credited, without an outcome, and in a block that is final.

One pass asks every node for the canonical blocks at the heights of all such payments. A payment is final where its
block is the canonical one, because a block's hash commits to its transactions and logs. Where another block is in its
place, a workflow of the payment's own decides (`ReversePayment`); where the nodes do not agree, nothing follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from chain.block_reader import BLOCKS_MAX, CanonicalBlocks
from chain.head_reader import ChainProgress
from chain.reader import ChainReader
from db.engine import ServiceDatabase
from db.payments import finality
from db.payments.finality import AwaitingFinality
from domain.errors import ChainUnavailable, Refusal
from domain.payments.finality import FinalityLevel, FinalityPolicy
from services.ports import ReversalStarter
from telemetry.metrics.worker import FINALITY_POLLS

PAGE: Final = 500
"""Payments that are read, and at most recorded, in one statement."""

PAUSE_SECONDS: Final = 1.0
"""Between two requests of one pass to the same nodes, so that a backlog stays within the calls that they allow."""

UNDECIDED_SECONDS: Final = 10.0
HANDED_OVER_SECONDS: Final = 60.0
"""How long a pass leaves out payments that an earlier one could not decide, or handed over to their own workflows."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Decided:
    """Numbers of payments, by what a pass found."""

    final: int = 0
    """Recorded as final by this pass."""
    handed_over: int = 0
    """Not in the canonical block: their own workflows decide."""
    undecided: int = 0
    """The nodes do not agree, or do not answer."""

    @property
    def counts(self) -> dict[str, int]:
        """Those that are not zero, by name."""
        named = {"final": self.final, "handed_over": self.handed_over, "undecided": self.undecided}
        return {name: count for name, count in named.items() if count}


class FinalityDecider:
    """Decides one chain's credited payments. Safe to run twice and concurrently: an outcome is recorded once."""

    def __init__(
        self,
        chain: ChainReader,
        database: ServiceDatabase,
        starter: ReversalStarter,
        *,
        policy: FinalityPolicy,
        pause_seconds: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is a monotonic clock in seconds."""
        self._chain = chain
        self._database = database
        self._starter = starter
        self._policy = policy
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._left_out: dict[UUID, float] = {}
        self._one_pass_at_a_time = asyncio.Lock()

    @property
    def tags(self) -> tuple[str, ...]:
        """The nodes' block tags that the policy uses."""
        return tuple(level.value for level in self._policy.by_size if level is not FinalityLevel.CONFIRMATIONS)

    def reached(self, progress: ChainProgress) -> dict[FinalityLevel, int]:
        """The last block of each level by what one node says; a level that it does not know is missing."""
        numbers = {**progress.tagged, FinalityLevel.CONFIRMATIONS.value: self._confirmed_up_to(progress.head_number)}
        return {level: numbers[level.value] for level in self._policy.by_size if level.value in numbers}

    async def decide_all(self, on_progress: Callable[[], object] = lambda: None) -> Decided:
        """Decide whatever can be decided now, by how far most of the nodes say that the levels are.

        Without a payment that waits: one indexed query and no request. A pass that is under way is left to its work.
        Raises `ChainUnavailable`, `DatabaseUnavailable` and `TemporalUnavailable`; what was decided before counts.
        """
        if self._one_pass_at_a_time.locked():
            return Decided()
        async with self._database.autocommit() as connection:
            if not await finality.is_awaited(connection, self._chain.chain_id):
                return Decided()
        return await self.decide(await self._reached_by_most(), on_progress)

    async def decide(
        self, reached: Mapping[FinalityLevel, int], on_progress: Callable[[], object] = lambda: None
    ) -> Decided:
        """Decide the payments in blocks up to those that the levels are said to have reached, be it by one node.

        How far they really are all nodes are asked, in the request for the blocks. Raises like `decide_all`.
        """
        decided = Decided()
        async with self._one_pass_at_a_time:
            async with self._database.autocommit() as connection:
                if not await finality.note_progress(connection, self._chain.chain_id, reached):
                    return decided
            now = self._clock()
            self._left_out = {attempt_id: until for attempt_id, until in self._left_out.items() if until > now}
            for level, up_to_block in reached.items():
                await self._decide_level(level, up_to_block, decided, on_progress)
        return decided

    async def _reached_by_most(self) -> dict[FinalityLevel, int]:
        """The last block of each level; one that no node knows is missing, unless that is so of all."""
        reached: dict[FinalityLevel, int] = {}
        for level in self._policy.by_size:
            try:
                reached[level] = await self._read_level(level)
            except ChainUnavailable as error:
                if level is list(self._policy.by_size)[-1] and not reached:
                    raise
                log.warning("a level of finality cannot be read", level=level.value, error=error.message)
        return reached

    async def _read_level(self, level: FinalityLevel) -> int:
        if level is FinalityLevel.CONFIRMATIONS:
            return self._confirmed_up_to(await self._chain.heads.height())
        return await self._chain.heads.tagged_number(level.value)

    async def _decide_level(
        self, level: FinalityLevel, up_to_block: int, decided: Decided, on_progress: Callable[[], object]
    ) -> None:
        from_cents, below_cents = self._policy.by_size[level]
        after = finality.FIRST
        is_first = True
        while True:
            async with self._database.autocommit() as connection:
                page = await finality.page_awaiting(
                    connection,
                    self._chain.chain_id,
                    up_to_block=up_to_block,
                    from_cents=from_cents,
                    below_cents=below_cents,
                    after=after,
                    limit=PAGE,
                )
            for payments in _by_blocks(payment for payment in page if payment.attempt_id not in self._left_out):
                if not is_first:
                    await asyncio.sleep(self._pause_seconds)
                is_first = False
                await self._decide_some(level, payments, decided)
                on_progress()
            if len(page) < PAGE:
                return
            after = page[-1].place

    async def _decide_some(self, level: FinalityLevel, payments: Sequence[AwaitingFinality], decided: Decided) -> None:
        """Decide payments of one level with one request to each node."""
        tags = () if level is FinalityLevel.CONFIRMATIONS else (level.value,)
        blocks = await self._chain.blocks.canonical(sorted({payment.block_number for payment in payments}), tags=tags)
        final_up_to = self._final_up_to(level, blocks)
        final, replaced, undecided = list[AwaitingFinality](), list[AwaitingFinality](), list[AwaitingFinality]()
        for payment in payments:
            canonical = blocks.hash_at(payment.block_number)
            if payment.block_number > final_up_to:
                continue
            if canonical is None:
                undecided.append(payment)
            else:
                (final if canonical == payment.block_hash else replaced).append(payment)
        if final:
            await self._record(level, final, decided)
        if undecided:
            self._leave_out(undecided, UNDECIDED_SECONDS, decided, blocks)
        for payment in replaced:
            await self._hand_over(payment, decided)

    async def _record(self, level: FinalityLevel, payments: Sequence[AwaitingFinality], decided: Decided) -> None:
        async with self._database.transaction() as connection:
            recorded = await finality.insert_final(connection, payments, level)
        decided.final += len(recorded)
        FINALITY_POLLS.labels(outcome="final").inc(len(recorded))

    def _leave_out(
        self, payments: Sequence[AwaitingFinality], seconds: float, decided: Decided, blocks: CanonicalBlocks
    ) -> None:
        decided.undecided += len(payments)
        FINALITY_POLLS.labels(outcome="not_final").inc(len(payments))
        self._left_out |= {payment.attempt_id: self._clock() + seconds for payment in payments}
        log.warning(
            "the nodes do not agree on the blocks of credited payments",
            attempt_ids=[str(payment.attempt_id) for payment in payments[:10]],
            payments=len(payments),
            blocks=sorted({payment.block_number for payment in payments})[:10],
            endpoints=[report.endpoint for report in blocks.reports],
            silent=dict(blocks.silent),
        )

    async def _hand_over(self, payment: AwaitingFinality, decided: Decided) -> None:
        """Start the payment's own workflow, which decides whether it is in another block, or reversed."""
        try:
            if not await self._starter.start_reversal(payment.owner_user_id, payment.attempt_id, again=False):
                # Its run has completed. Whether that is how it stands is in the database: it may have been restored.
                async with self._database.autocommit() as connection:
                    awaiting = await finality.is_awaiting(connection, payment.attempt_id)
                if not awaiting:
                    return
                await self._starter.start_reversal(payment.owner_user_id, payment.attempt_id, again=True)
        except Refusal as refusal:
            log.error("payment not handed over", attempt_id=str(payment.attempt_id), error=refusal.message)
            return
        self._left_out[payment.attempt_id] = self._clock() + HANDED_OVER_SECONDS
        decided.handed_over += 1
        log.warning(
            "another block is where the payment was credited: its own workflow decides",
            attempt_id=str(payment.attempt_id),
            block=payment.block_number,
        )

    def _final_up_to(self, level: FinalityLevel, blocks: CanonicalBlocks) -> int:
        if level is FinalityLevel.CONFIRMATIONS:
            return self._confirmed_up_to(blocks.head_number)
        return blocks.tagged_number(level.value)

    def _confirmed_up_to(self, head_number: int) -> int:
        return head_number - self._policy.confirmations + 1


def _by_blocks(payments: Iterable[AwaitingFinality]) -> list[list[AwaitingFinality]]:
    """Payments in the order of their blocks, as many together as one request can ask for."""
    parts: list[list[AwaitingFinality]] = []
    numbers: set[int] = set()
    for payment in payments:
        if not parts or len(numbers | {payment.block_number}) > BLOCKS_MAX:
            parts.append([])
            numbers = set()
        numbers.add(payment.block_number)
        parts[-1].append(payment)
    return parts
