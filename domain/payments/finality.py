"""After the credit: is the payment final, may it still go, or is it gone?

Gone is decided as carefully as paid: by a chain that is final above the height where the payment was, in which that
height has another block, and after the payment had as long again to come back in a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Final as Constant
from typing import Literal

from pydantic import BaseModel, ConfigDict

from domain.chain import Receipt
from domain.identifiers import same_address
from domain.payments.verification import PaymentTerms, SettledTransfer

LOOK_DELAY_MIN: Constant = timedelta(milliseconds=500)
POLL_DELAY_MAX: Constant = timedelta(seconds=120)
"""Slowest rhythm of looking: on Base ten looks until a block is finalized."""


LATE_AFTER: Constant = timedelta(hours=1)
"""Three times what a block of Base or Ethereum takes until it is finalized: then something stands still."""

CENTS_MAX: Constant = 10**15
"""Above every payment."""


class FinalityLevel(StrEnum):
    """How sure of a block one has to be, in a node's own words; the first is counted by us."""

    CONFIRMATIONS = "confirmations"
    SAFE = "safe"
    FINALIZED = "finalized"

    @property
    def rank(self) -> int:
        """A stronger level has a higher one."""
        return _RANKS[self]

    @property
    def words(self) -> str:
        """What is said of a block that has reached it."""
        return _WORDS[self]


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
    """From when on a credited payment is not looked after any more; a larger one may need a stronger level."""

    level: FinalityLevel = FinalityLevel.FINALIZED
    large_level: FinalityLevel = FinalityLevel.FINALIZED
    large_from_usd_cents: int | None = None
    confirmations: int = 64
    """Blocks that level `confirmations` wants, the one with the payment included."""

    @property
    def by_size(self) -> dict[FinalityLevel, tuple[int, int]]:
        """Which payments need which level: from so many US cents, and below so many."""
        if self.large_from_usd_cents is None or self.large_level is self.level:
            return {self.level: (0, CENTS_MAX)}
        return {self.level: (0, self.large_from_usd_cents), self.large_level: (self.large_from_usd_cents, CENTS_MAX)}

    def level_for(self, amount_usd_cents: int) -> FinalityLevel:
        """The level that a payment of this size needs."""
        is_large = self.large_from_usd_cents is not None and amount_usd_cents >= self.large_from_usd_cents
        return self.large_level if is_large else self.level


class InclusionReport(Value):
    """What one node that answers says about a settled transfer's transaction now."""

    endpoint: str
    chain_id: int
    """The chain that the node answered for, in that very answer."""
    head_number: int
    receipt: Receipt | None = None
    """Where the node has the transaction in a block of its own canonical chain; None where it has not."""
    block_at_height: str | None = None
    """Hash of the block that the node has at the height at which the transfer was settled."""


class NotFinal(Value):
    """Look again. `message` is what operators read."""

    kind: Literal["not_final"] = "not_final"
    message: str
    missing_blocks: int = 0
    """How many blocks the level has to advance before it says more; 0 where nobody knows."""
    missing_since_head: int | None = None
    """The chain's height when the payment was first found to be off the canonical chain."""


class Final(Value):
    """The payment is there for good, in the block that `transfer` names: not always the one it was credited in."""

    kind: Literal["final"] = "final"
    transfer: SettledTransfer
    level: FinalityLevel


class ReorgedOut(Value):
    """A reorganisation took the payment, and it has not come back."""

    kind: Literal["gone"] = "gone"
    transfer: SettledTransfer
    level: FinalityLevel
    message: str


def locate(terms: PaymentTerms, settled: SettledTransfer, receipt: Receipt) -> SettledTransfer | None:
    """The settled transfer in the receipt that its transaction has now; None where that does not pay any more.

    Log indexes count in the whole block, so the index changes when the transaction moves: the transfer is told by
    payer, treasury, token and value.
    """
    if not receipt.succeeded:
        return None
    logs = [
        log
        for log in receipt.transfers
        if same_address(log.emitter, terms.token)
        and same_address(log.from_address, terms.payer)
        and same_address(log.to_address, terms.treasury)
        and log.value_raw == settled.value_raw
    ]
    if not logs:
        return None
    same_place = [log for log in logs if log.log_index == settled.log_index]
    log_index = (same_place or sorted(logs, key=lambda log: log.log_index))[0].log_index
    return settled.model_copy(
        update={
            "log_index": log_index,
            "block_number": receipt.block_number,
            "block_hash": receipt.block_hash,
        }
    )


def evaluate_presence(found: SettledTransfer, level: FinalityLevel, *, final_up_to: int) -> Final | NotFinal:
    """Whether a transfer that is on the canonical chain is there for good."""
    missing_blocks = found.block_number - final_up_to
    if missing_blocks <= 0:
        return Final(transfer=found, level=level)
    first = " (the nodes know none but the chain's first)" if final_up_to == 0 else ""
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
    """Whether a transfer that a look did not find is gone for good.

    Nodes of another chain have nothing to say: what is absent there was never there.

    It takes all of these, because one node may lie or lag: more than half of all `endpoints` answer, and each of them
    has another block at the transfer's height and the transaction in no block; that height is final; and so is the
    height at which the transfer was first missed, which gave it as long again to come back in another block.
    """
    for inclusion_report in inclusion_reports:
        if inclusion_report.chain_id != settled.chain_id:
            return NotFinal(
                message=f"{inclusion_report.endpoint} answers for chain {inclusion_report.chain_id}, "
                f"the payment is on chain {settled.chain_id}",
                missing_since_head=missing_since_head,
            )
    head = max((inclusion_report.head_number for inclusion_report in inclusion_reports), default=settled.block_number)
    since = missing_since_head if missing_since_head is not None else head

    def wait(message: str, missing_blocks: int = 0) -> NotFinal:
        return NotFinal(message=message, missing_blocks=missing_blocks, missing_since_head=since)

    if len(inclusion_reports) * 2 <= endpoints:
        return wait(f"not on the canonical chain, as far as {len(inclusion_reports)} of {endpoints} nodes say")
    for inclusion_report in inclusion_reports:
        there = locate(terms, settled, inclusion_report.receipt) if inclusion_report.receipt is not None else None
        if there is not None:
            return NotFinal(
                message=f"{inclusion_report.endpoint} has it in block {there.block_number}, not every node has"
            )
        if inclusion_report.block_at_height is None:
            return wait(f"{inclusion_report.endpoint} has no block {settled.block_number} yet")
        if inclusion_report.block_at_height == settled.block_hash:
            # A block's hash commits to its transactions: who has the block and not the payment contradicts himself.
            return wait(
                f"{inclusion_report.endpoint} has block {settled.block_number} and not the payment that is in it"
            )
    missing_blocks = max(settled.block_number, since) - final_up_to
    if missing_blocks > 0:
        return wait(
            f"not on the canonical chain since block {since}: given up when that is {level.words}, "
            f"{missing_blocks} blocks to go",
            missing_blocks,
        )
    return ReorgedOut(
        transfer=settled,
        level=level,
        message=(
            f"block {settled.block_number} was reorganised away, and another one is {level.words} in its place; "
            f"the payment has not come back until block {head}"
        ),
    )


def next_poll_delay(waiting: NotFinal, *, block_time: timedelta) -> timedelta:
    """How long to wait before the chain is asked again: as long as the missing blocks take, up to two minutes."""
    return min(max(block_time * max(waiting.missing_blocks, 1), LOOK_DELAY_MIN), POLL_DELAY_MAX)
