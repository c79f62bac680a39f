"""Checks of `settle doctor` on the chain watcher, on finality, and on reading a chain's own coin."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from chain.family import TaggedBlock
from chain.head_reader import reached_by_tag
from chain.reader import ChainReader
from composition import chain_reader, service_database
from db.clock import estimated_now
from db.deposits.methods import list_methods
from db.engine import ServiceDatabase
from db.payments.finality import find_oldest_waiting
from db.transfers.gaps import Gap, list_gaps
from db.transfers.scopes import WatchedScope, list_promises, list_watched_scopes
from domain.chain import ChainHead, DepositLane, DepositScope, TransferScope
from domain.deposits.methods import MethodKind
from domain.errors import ChainUnavailable
from domain.payments.finality import LATE_AFTER, FinalityLevel
from domain.transfers.watching import Promise, is_same_scope, old_promises
from settings import Settings

BEHIND_BLOCKS_MAX: Final = 150
"""The threshold of the alert SettleWatcherBehind."""

STANDS_AFTER: Final = timedelta(minutes=5)
"""A watcher that is more than a few blocks behind and has not moved for this long is stuck; as in
SettleWatcherStuck.
"""

CATCHES_UP_BLOCKS: Final = 5
"""Lag that is normal for a watcher at the head."""

WAITS_MAX: Final = timedelta(minutes=1)

YOUNG_CHAIN_BLOCKS: Final = 48
"""A shorter chain cannot have a final block yet: that of `settle up` needs 32."""


async def check_watcher(settings: Settings) -> str:
    """The watcher's position, what it waits for, and its gaps.

    Raises `ChainUnavailable` with the same text where something is wrong, and what `service_database` raises.
    """
    current = settings.require_transfer_scope()
    head = await _head(settings)
    async with service_database(settings) as database, database.transaction() as connection:
        watched = await list_watched_scopes(connection, settings.chain_id)
        every = await list_promises(connection, settings.chain_id)
        promises = old_promises(current, every)
        gaps = [gap for gap in await list_gaps(connection, settings.chain_id) if not gap.is_acknowledged]
    troubles: list[str] = []
    words: list[str] = []
    for one in watched:
        if isinstance(one.scope, DepositScope):
            # The quiet lane is as far behind as it is read rarely.
            if one.scope.treasury in {DepositLane.BUSY, DepositLane.COIN}:
                said, is_well = _describe(one, head)
                words.append(f"{one.scope.words}: {said}")
                troubles += [] if is_well else [words[-1]]
            continue
        is_current = is_same_scope(one.scope, current)
        promise = next((promise for promise in promises if is_same_scope(promise.scope, one.scope)), None)
        if is_current or promise is not None:
            said, is_well = _describe(one, head)
            words.append(said if is_current else f"{_old(one.scope, current, promise)}: {said}")
            if not is_well:
                troubles.append(words[-1])
    followed = [one.scope for one in watched]
    for promise in promises:
        if not any(is_same_scope(promise.scope, scope) for scope in followed):
            words.append(f"{_old(promise.scope, current, promise)}: not followed yet")
            if estimated_now() - promise.since > STANDS_AFTER:
                troubles.append(words[-1])
    if not any(is_same_scope(scope, current) for scope in followed):
        words.insert(0, f"{current.words} are not followed yet: settle worker, settle schedules apply")
        if watched or any(estimated_now() - promise.since > STANDS_AFTER for promise in every):
            troubles.append(words[0])
    words += [_gap(gap) for gap in gaps]
    if troubles or gaps:
        raise ChainUnavailable("; ".join(words))
    return "; ".join(words)


async def _head(settings: Settings) -> int | None:
    """The nodes' current height; None where none answers, which another line reports."""
    async with chain_reader(settings) as chain:
        try:
            return await chain.heads.height()
        except ChainUnavailable:
            return None


def _describe(one: WatchedScope, head: int | None) -> tuple[str, bool]:
    """A scope's position, and whether it is healthy."""
    behind = max((head if head is not None else one.head_number) - one.block_number, 0)
    moved = f"moved {_ago(one.moved_ago)} ago"
    stands = behind > CATCHES_UP_BLOCKS and one.moved_ago > STANDS_AFTER
    is_well = behind <= BEHIND_BLOCKS_MAX and not stands
    words = f"block {one.block_number}, {behind} behind, {moved}"
    if one.waits_for is not None and one.waits is not None:
        words += f", waiting for {_ago(one.waits)}: {one.waits_for}"
        is_well = is_well and one.waits <= WAITS_MAX
    return words, is_well


def _old(scope: TransferScope, current: TransferScope, promise: Promise | None) -> str:
    until = promise.until if promise is not None else None
    end = f"until {until:%Y-%m-%d %H:%M} UTC" if until is not None else "as long as an attempt that names it is open"
    token = "" if scope.token == current.token else f" (token {scope.token})"
    return f"old treasury {scope.treasury}{token}, followed {end}"


def _gap(gap: Gap) -> str:
    return (
        f"blocks {gap.first_block} to {gap.last_block} were not read since {gap.created_at:%Y-%m-%d %H:%M} UTC "
        f"({gap.reason}): settle chain rescan --from {gap.first_block} --to {gap.last_block} with a node that has "
        "them, or settle findings list --kind chain_gap"
    )


def _ago(length: timedelta) -> str:
    seconds = max(int(length.total_seconds()), 0)
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3_600} h"


async def check_native_coin(settings: Settings) -> str:
    """Whether a chain's own coin that is paid with is read, for `settle doctor`. Raises `ChainUnavailable`."""
    async with service_database(settings) as database, database.transaction() as connection:
        methods = [
            one
            for one in await list_methods(connection)
            if one.kind is MethodKind.NATIVE and one.chain_id == settings.chain_id
        ]
    names = ", ".join(one.id for one in methods)
    if not methods:
        return "it is no payment method"
    if not settings.native_coin_deposits:
        words = f"what is paid by {names} is not read: NATIVE_COIN_DEPOSITS is not true"
        if any(one.enabled for one in methods):
            raise ChainUnavailable(f"{words}; set it, or run: settle methods disable")
        return words
    async with chain_reader(settings) as chain:
        untraced = await chain.logs.untraced()
    if untraced:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in untraced.items())
        raise ChainUnavailable(f"{names} needs nodes that serve trace_block and trace_transaction: {reasons}")
    return f"every node traces the blocks for {names}"


async def check_finality(settings: Settings) -> str:
    """The nodes' final block, for each level that the policy needs, and the oldest waiting payment.

    Raises `ChainUnavailable` with the same text where payments do not become final, and what `service_database` raises.
    """
    policy = settings.finality_policy
    blocks_max = max(round(LATE_AFTER / settings.block_time), 1)
    words: list[str] = []
    is_well = True
    async with chain_reader(settings) as chain:
        for level in policy.by_size:
            said, is_level_well = await _describe_level(settings, chain, level, blocks_max)
            words.append(said)
            is_well = is_well and is_level_well
    async with service_database(settings) as database:
        for level, (from_cents, below_cents) in policy.by_size.items():
            late = await _describe_waiting(settings, database, level, from_cents, below_cents)
            if late is not None:
                words.append(late)
                is_well = False
    if not is_well:
        raise ChainUnavailable("; ".join(words))
    return "; ".join(words)


async def _describe_level(
    settings: Settings, chain: ChainReader, level: FinalityLevel, blocks_max: int
) -> tuple[str, bool]:
    if level is FinalityLevel.CONFIRMATIONS:
        return _describe_head(settings, await chain.heads.newest_block())
    blocks = await chain.heads.tagged_blocks(level.value)
    try:
        number = reached_by_tag(level.value, blocks)
    except ChainUnavailable as error:
        return (
            f"{error.message}; credited payments wait until the nodes report one, or FINALITY is changed",
            False,
        )
    head = max((block.head_number for block in blocks if block.head_number is not None), default=number)
    if number == 0 and head < YOUNG_CHAIN_BLOCKS:
        return f"no block is {level.value} yet: the chain has {head} blocks", True
    if number == 0:
        reasons = "; ".join(f"{block.label}: {block.error}" for block in blocks)
        return f"the nodes have no {level.value} block but block 0: {reasons}", False
    words = f"{level.value} is block {number}, {max(head - number, 0)} below the head{_dissent(blocks)}"
    if head - number > blocks_max:
        return f"{words}: more than {blocks_max}, it has stopped", False
    return words, True


def _describe_head(settings: Settings, head: ChainHead) -> tuple[str, bool]:
    """Confirmations are counted by blocks, so the chain has to grow."""
    words = f"final after {settings.finality_policy.confirmations} confirmations, head {head.number}"
    age = estimated_now() - head.mined_at
    if age > LATE_AFTER:
        return f"{words}, which is {_ago(age)} old: the chain does not grow", False
    return words, True


def _dissent(blocks: Sequence[TaggedBlock]) -> str:
    reasons = [f"{block.label}: {block.error}" for block in blocks if block.error is not None]
    return f" (not counted: {'; '.join(reasons)})" if reasons else ""


async def _describe_waiting(
    settings: Settings, database: ServiceDatabase, level: FinalityLevel, from_cents: int, below_cents: int
) -> str | None:
    """Text where the oldest payment has waited too long."""
    async with database.transaction() as connection:
        waiting = await find_oldest_waiting(
            connection, settings.chain_id, from_cents=from_cents, below_cents=below_cents
        )
    allowed = LATE_AFTER
    if level is FinalityLevel.CONFIRMATIONS:
        allowed = max(allowed, 4 * settings.finality_policy.confirmations * settings.block_time)
    if waiting is None or waiting.seconds <= allowed.total_seconds():
        return None
    return (
        f"attempt {waiting.attempt_id} has been credited for {_ago(timedelta(seconds=waiting.seconds))} and is not "
        f"{level.value} (block {waiting.block_number}): settle attempt show {waiting.attempt_id} shows why"
    )
