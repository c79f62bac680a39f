"""A chain's own coin: what stands for its contract, and which coin a transaction moves on an EVM chain.

A transfer of the coin leaves no log. What moves it is a call, and only the trace of a transaction has all of its calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from domain.identifiers import Address

NATIVE_COIN: Final[Address] = "0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE"
"""In place of a token's contract: the chain's own coin (EIP-7528)."""

COIN_PLACES_FROM: Final = 10**12
"""Log indexes count the logs of a block, of which there are some millions at most. From here on the number is a place
in a transaction's trace, so that no log and no movement of the coin ever have the same place."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call of a transaction, as a trace has it. Addresses are in lower case."""

    path: tuple[int, ...]
    """Which call of which call: () is the transaction's own one."""
    sender: str
    recipient: str
    value_raw: int
    moves: bool = True
    """Whether it gives its value away. Borrowed code (callcode, delegatecall) runs where it is called from."""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class CoinMovement:
    """Coin that went from one address to another, in wei; `place` is in place of a log index."""

    place: int
    sender: str
    recipient: str
    value_raw: int


def coin_movements(frames: Iterable[Frame]) -> list[CoinMovement]:
    """The movements of one transaction, in the order in which they happened.

    A call that failed has moved nothing, and neither has any call that it made, although that one may have succeeded.
    Places count what has moved, and nothing else: clients differ in which of the other calls they list.
    """
    failed: set[tuple[int, ...]] = set()
    movements: list[CoinMovement] = []
    for frame in sorted(frames, key=lambda one: one.path):
        if frame.failed or frame.path[:-1] in failed:
            failed.add(frame.path)
        elif frame.moves and frame.value_raw > 0 and frame.sender != frame.recipient:
            place = COIN_PLACES_FROM + len(movements)
            movements.append(CoinMovement(place, frame.sender, frame.recipient, frame.value_raw))
    return movements
