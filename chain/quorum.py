"""Quorum vote over several nodes' answers about one transaction: a pure decision.

Applied before a verification result becomes final, because final is irreversible and one node may lie. A node has no
vote on what it cannot know. Each claim counts once, and wins when its votes outnumber all other votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domain.chain import BlockHeader, ChainView, TransferLog
from domain.errors import ChainUnavailable


class EndpointsDisagree(ChainUnavailable):
    """No claim about the transaction has a majority; nothing final may follow. `message` is one line."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One endpoint's answer: its view, and its block at the requested height."""

    view: ChainView
    asked: BlockHeader | None = None
    stalled: bool = False
    """Its head has not moved for so long that it says nothing about how far the chain is."""


@dataclass(frozen=True, slots=True)
class NoResponse:
    """An endpoint that gave no usable answer."""

    endpoint: str
    reason: str


@dataclass(frozen=True, slots=True)
class Abstention:
    """An endpoint that cannot know. `head_number` limits the confirmations where it is set."""

    endpoint: str
    reason: str
    head_number: int | None = None


@dataclass(frozen=True, slots=True)
class Included:
    """The claim: the transaction is in this block of the canonical chain, with this result."""

    block_number: int
    block_hash: str
    succeeded: bool
    transfers: tuple[TransferLog, ...]

    def __str__(self) -> str:
        result = f"{len(self.transfers)} transfers" if self.succeeded else "reverted"
        return f"in block {self.block_number} ({self.block_hash[:10]}…), {result}"


@dataclass(frozen=True, slots=True)
class Absent:
    """The claim: the block at that height is this one, and the transaction is not known or not in it."""

    block_number: int
    block_hash: str | None

    def __str__(self) -> str:
        if self.block_hash is None:
            return f"there is no block {self.block_number}"
        return f"not in block {self.block_number} ({self.block_hash[:10]}…)"


@dataclass(frozen=True, slots=True)
class Inconsistent:
    """An answer that contradicts itself. It names its endpoint, so that no two of them ever agree."""

    endpoint: str
    block_number: int

    def __str__(self) -> str:
        return f"a receipt of block {self.block_number} that its own chain does not confirm"


Claim = Included | Absent | Inconsistent


@dataclass(frozen=True, slots=True)
class Vote:
    """One endpoint's claim."""

    endpoint: str
    claim: Claim
    reading: Reading


@dataclass(frozen=True, slots=True)
class Agreed:
    """The view of the majority, with the head that most of the endpoints entitled to vote on it have reached."""

    view: ChainView
    votes: int
    outvoted: tuple[str, ...] = ()
    """Labels of the endpoints that claimed something else."""


@dataclass(frozen=True, slots=True)
class Disagreed:
    """No claim outnumbers the others; `message` says in one line who claims what."""

    message: str


def is_included(view: ChainView) -> bool:
    """Whether the view shows the transaction in a block of the node's own canonical chain."""
    receipt, block = view.receipt, view.canonical
    return (
        receipt is not None
        and block is not None
        and receipt.block_number <= view.head_number
        and (block.number, block.block_hash) == (receipt.block_number, receipt.block_hash)
        and receipt.tx_hash in block.tx_hashes
    )


def opinion(candidate: ChainView, reading: Reading) -> Vote | Abstention:
    """The vote of `reading` on the transaction that `candidate` shows in a block."""
    assert candidate.receipt is not None, "only a view with a receipt is cross-checked"
    view, receipt = reading.view, candidate.receipt
    if is_included(view):
        return Vote(view.endpoint, _included(view), reading)
    if view.head_number < receipt.block_number:
        # It cannot have the block. Its head still limits the confirmations, or one node with an invented head could
        # outvote all honest ones by making them abstain. A stuck node's head says nothing.
        head = None if reading.stalled else view.head_number
        return Abstention(view.endpoint, f"its head {view.head_number} is below block {receipt.block_number}", head)
    if view.receipt is not None:
        return Vote(view.endpoint, Inconsistent(view.endpoint, view.receipt.block_number), reading)
    asked = reading.asked
    if asked is not None and asked.block_hash == receipt.block_hash and receipt.tx_hash in asked.tx_hashes:
        # Same block, same transaction in it: only the index of receipts is late.
        return Abstention(
            view.endpoint,
            "it has the block, but not the receipt yet",
            None if reading.stalled else view.head_number,
        )
    return Vote(view.endpoint, Absent(receipt.block_number, asked.block_hash if asked else None), reading)


def decide(candidate: ChainView, others: Sequence[Reading | NoResponse]) -> Agreed | Disagreed:
    """The view to evaluate, or a list of who claims what. Each vote counts one, the candidate's too.

    A claim wins when its votes strictly outnumber all other votes. The head of the view is the highest that a strict
    majority of the winners and of those that abstain for lack of blocks (stuck ones excepted) has reached: no minority
    adds confirmations by inventing blocks, and none withholds them by lagging. Two nodes have no minority, so with two
    it is the lower head.
    """
    candidate_vote = Vote(candidate.endpoint, _included(candidate), Reading(candidate))
    votes, abstentions = [candidate_vote], list[Abstention]()
    for other in others:
        match other:
            case NoResponse(endpoint, reason):
                abstentions.append(Abstention(endpoint, reason))
            case Reading():
                heard = opinion(candidate, other)
                if isinstance(heard, Vote):
                    votes.append(heard)
                else:
                    abstentions.append(heard)
    by_claim: dict[Claim, list[Vote]] = {}
    for vote in votes:
        by_claim.setdefault(vote.claim, []).append(vote)
    for group in by_claim.values():
        if len(group) > len(votes) - len(group):
            # The first one's head counts even if it is stuck: there has to be one.
            heads = [vote.reading.view.head_number for vote in group[:1]]
            heads += [vote.reading.view.head_number for vote in group[1:] if not vote.reading.stalled]
            heads += [abstention.head_number for abstention in abstentions if abstention.head_number is not None]
            return Agreed(
                group[0].reading.view.model_copy(update={"head_number": reached_by_most(heads)}),
                votes=len(group),
                outvoted=tuple(vote.endpoint for vote in votes if vote not in group),
            )
    return Disagreed(_message(by_claim, abstentions))


def agreed_hash(votes: Sequence[str]) -> str | None:
    """The block hash that strictly outnumbers all other votes; None where none does."""
    return next((one for one in set(votes) if votes.count(one) * 2 > len(votes)), None)


def reached_by_most(heads: Sequence[int]) -> int:
    """The highest of `heads` that more than half of them have reached."""
    return sorted(heads, reverse=True)[len(heads) // 2]


def _included(view: ChainView) -> Included:
    receipt = view.receipt
    assert receipt is not None, "an included transaction has a receipt"
    # Sorted: the order in which a node lists logs carries no meaning, their indexes do.
    transfers = tuple(sorted(receipt.transfers, key=lambda transfer: transfer.log_index))
    return Included(receipt.block_number, receipt.block_hash, receipt.succeeded, transfers)


def _message(by_claim: dict[Claim, list[Vote]], abstentions: Sequence[Abstention]) -> str:
    sides = [f"{', '.join(vote.endpoint for vote in group)}: {claim}" for claim, group in by_claim.items()]
    silent = [f"{abstention.endpoint}: no vote, {abstention.reason}" for abstention in abstentions]
    return "endpoints disagree: " + "; ".join(sides + silent)
