"""Finality of a credited payment: final, not yet decided, or reorged out.

Reorged out is decided as carefully as paid: the chain must be final above the payment's height and have another block
at that height, and the payment must have had the same time again to come back in a later block.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Final as Constant
from typing import Literal, assert_never

from pydantic import BaseModel, ConfigDict

from domain.chain import Receipt
from domain.payments.attempt import AttemptStatus
from domain.payments.verification import PaymentTerms, SettledTransfer, pays
from domain.transfers.identity import assign_places, is_alike, place_of

LOOK_DELAY_MIN: Constant = timedelta(milliseconds=500)
POLL_DELAY_MAX: Constant = timedelta(seconds=120)
"""Slowest poll interval: on Base ten polls until a block is finalized."""


LATE_AFTER: Constant = timedelta(hours=1)
"""Three times what a block of Base or Ethereum takes until it is finalized; beyond it, something is stuck."""

CENTS_MAX: Constant = 10**15
"""Above every payment."""


class FinalityLevel(StrEnum):
    """Required certainty about a block, by the nodes' block tags; the first is counted by us."""

    CONFIRMATIONS = "confirmations"
    SAFE = "safe"
    FINALIZED = "finalized"

    @property
    def rank(self) -> int:
        """A stronger level has a higher number."""
        return _RANKS[self]

    @property
    def words(self) -> str:
        """How messages describe a block that has reached the level."""
        return _WORDS[self]


class FinalityState(StrEnum):
    """Whether the chain can still drop a credited payment."""

    PENDING = "pending"
    """Credited, and not final yet: a reorganization of its block reverses the credit."""
    FINAL = "final"
    REVERSED = "reversed"


def finality_of(status: AttemptStatus, *, is_awaited: bool) -> FinalityState | None:
    """The state of a payment of this status; None of what was never credited. `is_awaited`: it has no outcome yet."""
    match status:
        case AttemptStatus.CREDITED:
            return FinalityState.PENDING if is_awaited else FinalityState.FINAL
        case AttemptStatus.REVERSED:
            return FinalityState.REVERSED
        case (
            AttemptStatus.CREATED_INTENT
            | AttemptStatus.PENDING_UNVERIFIED
            | AttemptStatus.REJECTED
            | AttemptStatus.FAILED
        ):
            return None
    assert_never(status)


_WORDS: Constant = {
    FinalityLevel.CONFIRMATIONS: "confirmed for good",
    FinalityLevel.SAFE: "safe",
    FinalityLevel.FINALIZED: "finalized",
}
_RANKS: Constant = {FinalityLevel.CONFIRMATIONS: 0, FinalityLevel.SAFE: 1, FinalityLevel.FINALIZED: 2}


class Value(BaseModel):
    """Immutable value that also travels through Temporal."""

    model_config = ConfigDict(frozen=True)


class FinalityPolicy(Value):
    """When tracking of a credited payment ends; a large payment may need a stronger level."""

    level: FinalityLevel = FinalityLevel.FINALIZED
    large_level: FinalityLevel = FinalityLevel.FINALIZED
    large_from_usd_cents: int | None = None
    confirmations: int = 64
    """Blocks that level `confirmations` requires, including the payment's own."""

    @property
    def by_size(self) -> dict[FinalityLevel, tuple[int, int]]:
        """The payment size in US cents from which the stronger level applies."""
        if self.large_from_usd_cents is None or self.large_level is self.level:
            return {self.level: (0, CENTS_MAX)}
        return {self.level: (0, self.large_from_usd_cents), self.large_level: (self.large_from_usd_cents, CENTS_MAX)}

    def level_for(self, amount_usd_cents: int) -> FinalityLevel:
        """The level that a payment of this size needs."""
        is_large = self.large_from_usd_cents is not None and amount_usd_cents >= self.large_from_usd_cents
        return self.large_level if is_large else self.level


class InclusionReport(Value):
    """One endpoint's current answer about a settled transfer's transaction."""

    endpoint: str
    chain_id: int
    """The chain id that the node reported in the same batch."""
    head_number: int
    receipt: Receipt | None = None
    """The transaction's place in the node's canonical chain; None where it has none."""
    block_at_height: str | None = None
    """Hash of the node's block at the height at which the transfer was settled."""


class NotFinal(Value):
    """Not decided yet: poll again. `message` is shown to operators."""

    kind: Literal["not_final"] = "not_final"
    message: str
    missing_blocks: int = 0
    """Blocks by which the level has to advance before the next poll can say more; 0 where unknown."""
    missing_since_head: int | None = None
    """The chain's height when the payment was first missing from the canonical chain."""


class Final(Value):
    """The payment is final in the block that `transfer` names, which may differ from the one in which it was
    credited.
    """

    kind: Literal["final"] = "final"
    transfer: SettledTransfer
    level: FinalityLevel


class ReorgedOut(Value):
    """A reorganisation removed the payment, and it has not come back."""

    kind: Literal["gone"] = "gone"
    transfer: SettledTransfer
    level: FinalityLevel
    message: str


def locate(terms: PaymentTerms, settled: SettledTransfer, receipt: Receipt) -> SettledTransfer | None:
    """Find the settled transfer in the transaction's current receipt; None where the receipt does not pay any more."""
    if not receipt.succeeded:
        return None
    twins = [log.log_index for log in receipt.transfers if pays(log, terms) and is_alike(log, settled)]
    places = assign_places(receipt.block_hash, twins, [place_of(settled)])
    log_index = next(iter(places), None)
    if log_index is None or (receipt.block_hash == settled.block_hash and log_index != settled.log_index):
        # A block's hash commits to its logs: the same block without the log that paid is a contradiction.
        return None
    return settled.model_copy(
        update={
            "log_index": log_index,
            "block_number": receipt.block_number,
            "block_hash": receipt.block_hash,
        }
    )


def evaluate_presence(found: SettledTransfer, level: FinalityLevel, *, final_up_to: int) -> Final | NotFinal:
    """Evaluate a transfer that is on the canonical chain: final, or wait."""
    missing_blocks = found.block_number - final_up_to
    if missing_blocks <= 0:
        return Final(transfer=found, level=level)
    first = " (the nodes report none but the first block)" if final_up_to == 0 else ""
    return NotFinal(
        message=f"in block {found.block_number}; {level.words} is block {final_up_to}{first}, {missing_blocks} to go",
        missing_blocks=missing_blocks,
    )


def evaluate_absence(
    terms: PaymentTerms,
    settled: SettledTransfer,
    inclusion_reports: Sequence[InclusionReport],
    level: FinalityLevel,
    *,
    endpoints: int,
    final_up_to: int,
    missing_since_head: int | None,
) -> ReorgedOut | NotFinal:
    """Evaluate a transfer that a poll did not find: reorged out, or wait.

    Nodes of another chain are not evidence: what is absent there was never there.

    Because a single node may lie or lag, all of these are required: more than half of all `endpoints` answer, and each
    of them has another block at the transfer's height and the transaction in no block; that height is final; and so is
    the height at which the transfer was first missing, which gave it the same time again to come back in another block.
    """
    stranger = next((report for report in inclusion_reports if report.chain_id != settled.chain_id), None)
    if stranger is not None:
        message = f"{stranger.endpoint} answers for chain {stranger.chain_id}, the payment is on {settled.chain_id}"
        return NotFinal(message=message, missing_since_head=missing_since_head)
    head = max((report.head_number for report in inclusion_reports), default=settled.block_number)
    since = missing_since_head if missing_since_head is not None else head

    def wait(message: str, missing_blocks: int = 0) -> NotFinal:
        return NotFinal(message=message, missing_blocks=missing_blocks, missing_since_head=since)

    if len(inclusion_reports) * 2 <= endpoints:
        return wait(f"not on the canonical chain, by {len(inclusion_reports)} of {endpoints} nodes")
    if not_absent := _why_not_absent(terms, settled, inclusion_reports, since):
        return not_absent
    missing_blocks = max(settled.block_number, since) - final_up_to
    if missing_blocks > 0:
        return wait(
            f"not on the canonical chain since block {since}: reversed when that is {level.words}, "
            f"{missing_blocks} blocks to go",
            missing_blocks,
        )
    return ReorgedOut(
        transfer=settled,
        level=level,
        message=(
            f"block {settled.block_number} was reorganised away, and another one is {level.words} in its place; "
            f"the payment has not come back by block {head}"
        ),
    )


def _why_not_absent(
    terms: PaymentTerms, settled: SettledTransfer, inclusion_reports: Sequence[InclusionReport], since: int
) -> NotFinal | None:
    """The first node that does not show the transfer to be absent; None where all do."""
    for report in inclusion_reports:
        there = locate(terms, settled, report.receipt) if report.receipt is not None else None
        if there is not None:
            # It is back: should it be missing again, the time counts from then.
            return NotFinal(message=f"{report.endpoint} has it in block {there.block_number}, not every node has")
        message = None
        if report.block_at_height is None:
            message = f"{report.endpoint} has no block {settled.block_number} yet"
        elif report.block_at_height == settled.block_hash:
            # A block's hash commits to its transactions: a node with the block and without the payment contradicts
            # itself.
            message = f"{report.endpoint} has block {settled.block_number} without the payment in it"
        if message is not None:
            return NotFinal(message=message, missing_since_head=since)
    return None


def next_poll_delay(waiting: NotFinal, *, block_time: timedelta) -> timedelta:
    """Delay until the next poll: the time that the missing blocks take, at most two minutes."""
    return min(max(block_time * max(waiting.missing_blocks, 1), LOOK_DELAY_MIN), POLL_DELAY_MAX)
