"""Which transfer is which, after its transaction has moved to another block.

Within one block a log's index names it. Log indexes count in the whole block, so the logs of a transaction have other
ones when a reorganisation puts it into another block; there, a transfer is known by what it is: one of the same sender
and value in the same transaction (of the same token and treasury, where those are known) is *alike*.

Several alike in one transaction are twins. In another block they cannot be distinguished, and need not be:
they are counted. Each is there once, and pays once.

PostgreSQL checks every credit and has the same rule: `is_alike` and `is_place_paid` (`db/functions/transfers.sql`).
`tests/database/test_transfer_identity.py` asks both the same questions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.identifiers import Address, TxHash
from domain.payments.attempt import AttemptStatus


class Alike(Protocol):
    """What a transfer of a known transaction, token and treasury is known by, wherever it is."""

    @property
    def from_address(self) -> str:
        """Who sent it."""

    @property
    def value_raw(self) -> int:
        """How much."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log is, or was. A `block_hash` of None is an unknown block."""

    block_hash: str | None
    log_index: int


class Placed(Alike, Protocol):
    """A transfer, and where it is or was."""

    @property
    def block_hash(self) -> str | None:
        """Its block."""

    @property
    def log_index(self) -> int:
        """Its place in that block."""


class PaidTransfer(BaseModel):
    """A transfer that has paid an attempt, where it was last known to be.

    Without an attempt an operator has credited it, or sent it back.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    attempt_id: UUID | None = None
    status: AttemptStatus | None = None
    log_index: int
    block_hash: TxHash | None = None
    from_address: Address
    value_raw: int
    in_scope: bool = True
    """Whether it is of the token and the treasury that are asked about, as far as that is known."""


def alike_key(transfer: Alike) -> tuple[str, int]:
    """What all transfers of one transaction that are alike have in common: sender and value."""
    return transfer.from_address.lower(), transfer.value_raw


def is_alike(one: Alike, other: Alike) -> bool:
    """Whether two transfers of one transaction are of one sender and value."""
    return alike_key(one) == alike_key(other)


def place_of(transfer: Placed) -> Place:
    """Where a transfer is, or was."""
    return Place(transfer.block_hash, transfer.log_index)


def assign_places(block_hash: str | None, log_indexes: Collection[int], paid: Sequence[Place]) -> dict[int, int]:
    """Which of some twins in a block have paid: the twin's log index, and which of `paid` it is.

    `paid` are places at which twins of this transaction were when they paid, each one once. One that paid in this very
    block is the one at its place. Of the others each takes a twin that no other one has: first the one with its own
    index, so that what did not move keeps its name, then the one that comes first.
    """
    places = set(log_indexes)
    taken: dict[int, int] = {}
    left = []
    # Those of this very block first.
    for number in sorted(range(len(paid)), key=lambda one: (not _is_in(block_hash, paid[one]), paid[one].log_index)):
        log_index = paid[number].log_index
        if log_index in places and log_index not in taken:
            taken[log_index] = number
        else:
            left.append(number)
    return taken | dict(zip(sorted(places - taken.keys()), left, strict=False))


def is_paid(place: Place, observed: Collection[int], paid: Sequence[Place]) -> bool:
    """Whether the transfer at `place` has paid, where its twins paid at the places `paid`.

    `observed` are the log indexes of the twins that the watcher has seen in its block; that it is there itself is
    known. As long as no other one has been seen, nothing says that it is not the one that has paid.
    """
    return place.log_index in assign_places(place.block_hash, {place.log_index, *observed}, paid)


def _is_in(block_hash: str | None, place: Place) -> bool:
    return place.block_hash is not None and place.block_hash == block_hash
