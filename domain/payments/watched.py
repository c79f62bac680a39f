"""What the chain watcher's rows say about a payment that waits: a hint that saves requests, never a proof.

The rows can make a payment wait, and only for as long as honest rows would: neither a credit nor a refusal follows from
them. Whatever may be final is asked of the nodes, all of them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from domain.payments.verification import (
    CONFIRMATION_DELAY_MIN,
    POLL_DELAY_MAX,
    Value,
    Waiting,
    WaitReason,
    back_off,
    confirmations_message,
)
from domain.transfers.watching import poll_interval

FRESH_SLACK: Final = timedelta(seconds=2)
"""For reading a range and writing it, on a slow node."""

LAG_BLOCKS_MAX: Final = 3
"""A watcher further behind the head is catching up, and its rows say nothing about the newest blocks."""

WATCHED_BLOCKS: Final = 3
"""Blocks that a payment which was just sent takes at most, as a rule, to be mined and recorded."""

WATCHED_TIME: Final = timedelta(seconds=15)
"""How much later than these blocks a wrong payment may be refused, so that a right one takes two polls."""

ASK_INTERVAL_MAX: Final = timedelta(minutes=5)
"""Slowest interval at which a node is asked about a payment that the watcher does not see."""


class WatchedTransaction(Value):
    """What the watcher has written about a transaction. Ages are by the database's clock."""

    block_number: int
    """The last block whose transfers are recorded."""
    head_number: int
    written_ago: timedelta
    is_waiting: bool = False
    """The watcher waits for a node or for the database itself."""
    seen_in_block: int | None = None
    """The block of the transaction's transfers to the treasury; None where none is on the canonical chain."""
    seen_ago: timedelta | None = None
    """Since when it is recorded."""


class WatchedWait(Value):
    """The payment waits, and no node is asked; `delay` is the time until the next poll."""

    waiting: Waiting
    delay: timedelta


def fresh_for(block_time: timedelta) -> timedelta:
    """How old what the watcher has written may be: one block and one of its polls may be missed."""
    return 2 * (block_time + poll_interval(block_time)) + FRESH_SLACK


def is_fresh(watched: WatchedTransaction, *, block_time: timedelta) -> bool:
    """Whether the watcher is alive and at the head."""
    return (
        not watched.is_waiting
        # A time in the future is a false one, but for a clock that was set back a little.
        and -FRESH_SLACK <= watched.written_ago <= fresh_for(block_time)
        and 0 <= watched.head_number - watched.block_number <= LAG_BLOCKS_MAX
    )


def wait_by_watcher(
    watched: WatchedTransaction | None,
    tx_hash: str,
    *,
    min_confirmations: int,
    waited: timedelta,
    asked_ago: timedelta | None,
    is_mined: bool,
    block_time: timedelta,
) -> WatchedWait | None:
    """How a payment waits by the watcher's rows; None where a node is to be asked.

    `waited` counts from the submission, `asked_ago` from the last time that a node was asked in this wait, and
    `is_mined` says whether that node had it in a block.
    """
    if watched is None or not is_fresh(watched, block_time=block_time):
        return None
    if watched.seen_in_block is not None and watched.seen_in_block <= watched.block_number:
        return _until_confirmed(watched, watched.seen_in_block, min_confirmations, block_time)
    if watched.seen_in_block is not None:
        return None  # the rows contradict each other
    if is_mined:
        # The watcher records what pays the treasury; this pays another, or is in a block that it has not read.
        return None
    delay = _delay_until_asked(waited, asked_ago, watched_for(min_confirmations, block_time=block_time), block_time)
    if delay is None:
        return None
    waiting = Waiting(
        reason=WaitReason.NOT_FOUND,
        message=f"transaction {tx_hash} not found yet by the chain watcher, head {watched.head_number}",
        confirmations_needed=min_confirmations,
    )
    return WatchedWait(waiting=waiting, delay=delay)


def _until_confirmed(
    watched: WatchedTransaction, seen_in_block: int, min_confirmations: int, block_time: timedelta
) -> WatchedWait | None:
    """Until the block that completes the confirmations is due, which the watcher may not have read by then."""
    confirmations = watched.head_number - seen_in_block + 1
    missing = max(min_confirmations - confirmations, 0)
    due_in = block_time * missing - watched.written_ago
    patience = 2 * block_time * min_confirmations + fresh_for(block_time)
    is_overdue = watched.seen_ago is not None and watched.seen_ago > patience
    if missing == 0 or due_in <= timedelta(0) or is_overdue:
        return None
    counted = confirmations_message(confirmations, min_confirmations)
    waiting = Waiting(
        reason=WaitReason.CONFIRMATIONS,
        message=f"{counted} by the chain watcher, head {watched.head_number}",
        confirmations=confirmations,
        confirmations_needed=min_confirmations,
        block_number=seen_in_block,
    )
    return WatchedWait(waiting=waiting, delay=min(max(due_in, CONFIRMATION_DELAY_MIN), POLL_DELAY_MAX))


def watched_for(min_confirmations: int, *, block_time: timedelta) -> timedelta:
    """Time after the submission in which a payment that the watcher has not seen waits without a request.

    Mined in the next block it has its confirmations then, so that the poll which follows decides. Each poll is a billed
    action. Where confirmations take long, it is only as long as a wrong payment may wait for its refusal.
    """
    return min((min_confirmations + 1) * block_time, max(WATCHED_BLOCKS * block_time, WATCHED_TIME))


def _delay_until_asked(
    waited: timedelta, asked_ago: timedelta | None, watched_time: timedelta, block_time: timedelta
) -> timedelta | None:
    """First without a request, then with ever fewer: what reverts, or pays another, is never seen."""
    if waited < watched_time:
        return max(watched_time - waited, CONFIRMATION_DELAY_MIN)
    if asked_ago is None or asked_ago >= ask_interval(waited, block_time=block_time):
        return None
    return back_off(waited, block_time=block_time)


def ask_interval(waited: timedelta, *, block_time: timedelta) -> timedelta:
    """How often a node is asked about a payment that the watcher does not see: a quarter of the time waited so far,
    between two blocks and five minutes.
    """
    return min(max(waited / 4, 2 * block_time), ASK_INTERVAL_MAX)
