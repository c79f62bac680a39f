"""Block scanner: reads the chain into the database range by range, follows reorganisations, and re-reads for
omissions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from chain.endpoint_pool import EndpointsFailed
from chain.head_reader import ChainProgress
from chain.history import HistoryPruned
from chain.reader import ChainReader
from db.engine import ServiceConnection, ServiceDatabase
from db.operations.findings import close_settled_findings, recheck_claims
from db.transfers import gaps, observed
from db.transfers.observed import Cursor
from domain.chain import DepositScope, MinedBlock, Transfer, TransferRange, TransferScope
from domain.errors import ChainUnavailable, DatabaseBusy
from domain.operations.findings import FindingKind
from domain.transfers.rescan import RescanReport
from domain.transfers.watching import PATIENCE_PRUNED, PATIENCE_REFUSED, PATIENCE_SOME_SILENT, Patience, Refusals
from services.transfers.receipts import find_receipt, transfers_in
from telemetry.metrics.worker import FINDINGS_OPENED, OBSERVED_TRANSFERS, REORGANISATIONS, WATCHER_BLOCK, WATCHER_LAG

log = structlog.get_logger(__name__)

OVERLAP_BLOCKS: Final = 5
"""Blocks below the head that are read again with the next range. Behind a load balancer, the newest block's logs may be
requested from a node that does not have them yet. The overlap costs no request.
"""

FORK_SEARCH_BLOCKS: Final = 50
"""Tracked blocks compared per request after a reorganisation."""

BLIND_REWIND_BLOCKS: Final = 1_024
"""How far below the oldest tracked block to go back when not even that one is canonical any more."""

DISPUTES_MAX: Final = 50
"""Transactions whose receipts are requested in one re-scan."""

FIRST_LOOK_BACK_BLOCKS_MAX: Final = 50_000
"""Without a configured first block: start at most this far back, 25 requests of the usual size."""


GAP_EVERY: Final = timedelta(minutes=1)
"""How often a gap is requested again; a node that still does not have it costs one request."""

GAP_SECONDS_MAX: Final = 10.0
"""How long a gap is read at a time before the newest blocks take precedence again."""


@dataclass(frozen=True, slots=True)
class Step:
    """State after one range."""

    cursor: Cursor
    added: int = 0
    is_at_head: bool = False
    """Nothing to read before the next block."""


class BlockScanner:
    """Follows one chain for one treasury. Several may run concurrently: updates of the cursor are serialized."""

    def __init__(
        self,
        chain: ChainReader,
        database: ServiceDatabase,
        scope: TransferScope,
        *,
        from_block: int | None,
        look_back_blocks: int,
        tags: Sequence[str] = (),
        overlap_blocks: int = OVERLAP_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`from_block` is where following begins on a chain never followed before; without it, `look_back_blocks` below
        the head. The nodes' blocks called `tags` are read in the request for the head, and are in `progress`.

        `clock` is a monotonic clock in seconds.
        """
        self.scope = scope
        self.progress: ChainProgress | None = None
        """The head and the tagged blocks as last read."""
        self._tags = tuple(tags)
        self._overlap_blocks = overlap_blocks
        self._clock = clock
        self._refusals = Refusals()
        self._chain = chain
        self._database = database
        self._from_block = from_block
        self._look_back_blocks = min(look_back_blocks, FIRST_LOOK_BACK_BLOCKS_MAX)
        self._was_at_head = True
        self._has_set_from_block = False

    async def advance(self) -> Step:
        """Read one range, as long as the endpoints return it, and move the cursor behind it.

        Blocks that healthy endpoints have refused for long enough are recorded as a gap, and the cursor moves past
        them. Raises `ChainUnavailable` and `DatabaseUnavailable`; nothing is written then.
        """
        self.progress = await self._chain.heads.progress(self._tags)
        head = self.progress.head_number
        await self._choose_scope()
        cursor = await self._cursor(head)
        if head <= cursor.block_number:
            # Lower than before: a lagging node, or a shorter chain.
            went_back = head < cursor.block_number and await self._go_back(cursor, head)
            self._was_at_head = not went_back
            return self._step(replace(cursor, head_number=head), 0, is_at_head=not went_back)
        try:
            found = await self._read(cursor, head)
        except EndpointsFailed as error:
            return await self._get_past(cursor, head, error)
        if cursor.block_hash is not None and found.anchor is None:
            return await self._anchor_anew(cursor, head, found.endpoint)
        if not self._continues(cursor, found):
            return await self._return_to_fork(cursor, head)
        return await self._take(cursor, head, found)

    async def _choose_scope(self) -> None:
        """Set what is read, where that changes: once the head is known, so that nothing up to it was paid before."""

    async def _return_to_fork(self, cursor: Cursor, head: int) -> Step:
        if not await self._go_back(cursor, head):
            raise ChainUnavailable(f"the endpoints disagree on block {cursor.block_number}")
        self._was_at_head = False
        return self._step(cursor, 0, is_at_head=False)

    async def _take(self, cursor: Cursor, head: int, found: TransferRange) -> Step:
        moved = replace(
            cursor,
            block_number=found.last,
            block_hash=found.last_block.block_hash,
            head_number=max(head, found.head_number),
        )
        added = await self._write(cursor, moved, found)
        self._refusals.forget()
        self._was_at_head = found.last >= head
        return self._step(moved, added, is_at_head=self._was_at_head)

    async def record_waiting(self, waits_for: str | None) -> None:
        """Record the error that stops this scope; None when it continues. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            await observed.record_waiting(connection, self.scope, waits_for)

    async def read_due_gap(self) -> int:
        """Request the blocks of a gap again where that is due; returns how many were read.

        Raises `DatabaseUnavailable`.
        """
        async with self._database.autocommit() as connection:
            gap = await gaps.find_due_gap(connection, self.scope, every=GAP_EVERY)
        if gap is None:
            return 0
        try:
            return await self.read_again(gap.first_block, gap.last_block)
        except ChainUnavailable as error:
            async with self._database.transaction() as connection:
                await gaps.note_tried(connection, gap, error.message)
            return 0

    async def read_again(
        self,
        first: int,
        last: int,
        *,
        seconds_max: float = GAP_SECONDS_MAX,
        on_range: Callable[[int], None] | None = None,
    ) -> int:
        """Read blocks below the cursor, as one endpoint after the other returns them; returns how many were read.

        Blocks read this way leave their gap. `on_range` receives the last block of each range. Ends early after
        `seconds_max`. Raises `ChainUnavailable` where no endpoint returns the next range.
        """
        until = self._clock() + seconds_max
        begin = first
        while begin <= last and self._clock() < until:
            async with self._database.autocommit() as connection:
                cursor = await observed.find_cursor(connection, self.scope)
            if cursor is None or cursor.block_number < last:
                raise ChainUnavailable(f"block {last} has not been reached yet")
            anchor = cursor.block_number if cursor.block_hash is not None else None
            found = await self._chain.logs.transfers(self.scope, begin, last, anchor=anchor)
            if anchor is not None and (found.anchor is None or found.anchor.block_hash != cursor.block_hash):
                raise ChainUnavailable(f"{found.endpoint} has another block {anchor} than was read before")
            async with self._database.transaction() as connection:
                added = await observed.record_transfers(connection, self.scope, found.transfers)
                ended = await gaps.take_out_read(connection, self.scope, found.first, found.last)
            OBSERVED_TRANSFERS.inc(added)
            log.info("blocks read that were missing", first=begin, last=found.last, transfers=added, gaps_closed=ended)
            if on_range is not None:
                on_range(found.last)
            begin = found.last + 1
        return begin - first

    async def count_recorded(self, first: int, last: int) -> int:
        """Number of recorded transfers in these blocks. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            return len(await observed.list_observed(connection, self.scope, first=first, last=last))

    async def rescan(self, blocks: int) -> RescanReport:
        """Read the last blocks below the cursor again, with every endpoint of the same chain.

        Transfers that an endpoint returns and the database lacks are added; transfers of blocks that are not canonical
        are removed. Raises `ChainUnavailable` and `DatabaseUnavailable`.
        """
        # One for nodes, database and receipts: what follows the chain may choose another one before this is done.
        scope = self.scope
        async with self._database.autocommit() as connection:
            cursor = await observed.find_cursor(connection, scope)
        if cursor is None or cursor.block_hash is None:
            return RescanReport()
        first = max(cursor.block_number - blocks + 1, cursor.first_block, _above_gap(cursor))
        if first > cursor.block_number:
            return RescanReport()
        answers = await asyncio.gather(*(self._read_again(scope, label, first, cursor) for label in self._chain.labels))
        silent = [answer for answer in answers if isinstance(answer, str)]
        shown = [answer for answer in answers if not isinstance(answer, str)]
        union = {(one.tx_hash, one.log_index): one for transfers in shown for one in transfers}
        disputed = await self._find_disputed(scope, shown, first, cursor)
        settled = [await self._settle_dispute(scope, transfers) for transfers in disputed]
        agreed = [one for one in union.values() if one.tx_hash not in {each[0].tx_hash for each in disputed}]
        stale = await self._find_stale(first - 1, cursor, cursor) if shown else []
        async with self._database.transaction() as connection:
            added, orphaned = await self._correct(connection, cursor, stale, agreed, settled)
            closed = await close_settled_findings(connection, self.scope.chain_id)
            await recheck_claims(connection, self.scope.chain_id)
        OBSERVED_TRANSFERS.inc(added)
        return RescanReport(
            first=first,
            last=cursor.block_number,
            endpoints=tuple(
                label for label, answer in zip(self._chain.labels, answers, strict=True) if not isinstance(answer, str)
            ),
            silent=tuple(silent),
            added=added,
            orphaned=orphaned,
            closed_findings=closed,
        )

    # Following -------------------------------------------------------------------------------------------------------

    async def _cursor(self, head: int) -> Cursor:
        async with self._database.autocommit() as connection:
            cursor = await observed.find_cursor(connection, self.scope)
            if cursor is None:
                begin = self._from_block if self._from_block is not None else max(head - self._look_back_blocks, 0)
                await observed.create_cursor(connection, self.scope, begin, head)
                cursor = await observed.find_cursor(connection, self.scope)
            if not self._has_set_from_block:
                await observed.set_from_block(connection, self.scope, self._from_block)
                self._has_set_from_block = True
        assert cursor is not None, "it was written just now, and is never deleted"
        return cursor

    async def _read(self, cursor: Cursor, head: int) -> TransferRange:
        """The next range, with the cursor's block as it is now."""
        anchor = cursor.block_number if cursor.block_hash is not None else None
        begin = cursor.block_number + 1
        if self._was_at_head:
            overlapping = min(max(begin - self._overlap_blocks, cursor.first_block, _above_gap(cursor)), begin)
            found = await self._chain.logs.transfers(self.scope, overlapping, head, anchor=anchor)
            if found.last > cursor.block_number:
                return found
        return await self._chain.logs.transfers(self.scope, begin, head, anchor=anchor)

    def _continues(self, cursor: Cursor, found: TransferRange) -> bool:
        """Whether the range continues what was read before, or follows blocks that were replaced."""
        return cursor.block_hash is None or _has_hash(found.anchor, cursor.block_hash)

    async def _write(self, cursor: Cursor, moved: Cursor, found: TransferRange) -> int:
        """Write the range and move the cursor; nothing where the cursor was moved concurrently."""
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, moved):
                raise DatabaseBusy("the cursor was moved concurrently")
            added = await observed.record_transfers(connection, self.scope, found.transfers)
            await observed.track_block(connection, self.scope, found.last_block)
            await gaps.take_out_read(connection, self.scope, found.first, found.last)
        OBSERVED_TRANSFERS.inc(added)
        return added

    def _step(self, cursor: Cursor, added: int, *, is_at_head: bool) -> Step:
        chain = str(self.scope.chain_id)
        WATCHER_BLOCK.labels(chain).set(cursor.block_number)
        WATCHER_LAG.labels(chain).set(cursor.lag_blocks)
        return Step(cursor, added, is_at_head)

    # Gaps -------------------------------------------------------------------------------------------------------------

    async def _get_past(self, cursor: Cursor, head: int, error: EndpointsFailed) -> Step:
        """Read the next range in smaller parts; where not even one block is returned, skip it.

        Raises `error` until the blocks have been refused often and long enough, and where nothing up to the head is
        returned: then the nodes' logs are missing, not part of the chain.
        """
        self._refusals.note(cursor.block_number, self._clock())
        if not self._is_settled(error):
            raise error
        begin = cursor.block_number + 1
        anchor = cursor.block_number if cursor.block_hash is not None else None
        found = await self._try(begin, begin, anchor)
        if found is None:
            return await self._skip(cursor, head, error)
        blocks = 2
        while begin + blocks - 1 <= head:
            longer = await self._try(begin, begin + blocks - 1, anchor)
            if longer is None or longer.last == found.last:
                break
            found, blocks = longer, 2 * blocks
        if anchor is not None and found.anchor is None:
            return await self._anchor_anew(cursor, head, found.endpoint)
        if not self._continues(cursor, found):
            return await self._return_to_fork(cursor, head)
        step = await self._take(cursor, head, found)
        return replace(step, is_at_head=False)

    async def _skip(self, cursor: Cursor, head: int, error: EndpointsFailed) -> Step:
        """Move the cursor past blocks that no endpoint returns, and record the gap, in one transaction."""
        first = cursor.block_number + 1
        last = await self._find_gap_end(first, head, error)
        blocks = await self._chain.logs.blocks(sorted({cursor.block_number, last} - {-1}))
        if cursor.block_hash is not None and _is_replaced(blocks, cursor.block_number, cursor.block_hash):
            return await self._return_to_fork(cursor, head)
        edge = blocks.get(last)
        moved = replace(
            cursor,
            block_number=last,
            block_hash=edge.block_hash if edge is not None else None,
            head_number=head,
            gap_end=last,
        )
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, moved):
                raise DatabaseBusy("the cursor was moved concurrently")
            if edge is not None:
                await observed.track_block(connection, self.scope, edge)
            is_new = await gaps.open_gap(connection, self.scope, first, last, error.message)
        if is_new:
            FINDINGS_OPENED.labels(FindingKind.CHAIN_GAP.value).inc()
        log.error(
            "no node returns these blocks: skipping them",
            chain_id=self.scope.chain_id,
            treasury=self.scope.treasury,
            first=first,
            last=last,
            error=error.message,
        )
        self._refusals.forget()
        self._was_at_head = False
        return self._step(moved, 0, is_at_head=False)

    async def _find_gap_end(self, first: int, head: int, error: EndpointsFailed) -> int:
        """The last block of the gap, found by doubling and then halving the distance."""
        refused, distance = first, 1
        while True:
            probed = min(first + distance, head)
            if probed <= refused:
                raise error
            if await self._try(probed, probed, None) is not None:
                break
            refused, distance = probed, 2 * distance
        shown = probed
        while shown - refused > 1:
            middle = (refused + shown) // 2
            if await self._try(middle, middle, None) is not None:
                shown = middle
            else:
                refused = middle
        return refused

    async def _try(self, first: int, last: int, anchor: int | None) -> TransferRange | None:
        """The range, or None where it is refused like the blocks being skipped; raises where endpoints are
        unavailable.
        """
        try:
            return await self._chain.logs.transfers(self.scope, first, last, anchor=anchor)
        except EndpointsFailed as error:
            if not self._is_settled(error):
                raise
            return None

    async def _anchor_anew(self, cursor: Cursor, head: int, endpoint: str) -> Step:
        """Continue from the newest tracked block that is still returned, because the cursor's own block is not.

        Raises `ChainUnavailable` until it has been missing often and long enough. Where no tracked block is returned,
        all of them have been pruned by the nodes, which no reorganisation reaches.
        """
        self._refusals.note(cursor.block_number, self._clock())
        if not self._refusals.has_lasted(PATIENCE_PRUNED, self._clock()):
            raise ChainUnavailable(f"{endpoint} has no block {cursor.block_number}, although its head is far above")
        async with self._database.autocommit() as connection:
            tracked = await observed.list_tracked_blocks(connection, self.scope, up_to=cursor.block_number)
        anchor: Cursor | None = None
        for start in range(0, len(tracked), FORK_SEARCH_BLOCKS):
            part = tracked[start : start + FORK_SEARCH_BLOCKS]
            blocks = await self._chain.logs.blocks([number for number, _ in part])
            if any(_is_replaced(blocks, number, block_hash) for number, block_hash in part):
                return await self._return_to_fork(cursor, head)
            shown = next(((number, block_hash) for number, block_hash in part if number in blocks), None)
            if shown is not None:
                anchor = replace(cursor, block_number=shown[0], block_hash=shown[1])
                break
        if anchor is not None and anchor.block_number == cursor.block_number:
            raise ChainUnavailable(f"{endpoint} has no block {cursor.block_number}, which other nodes have")
        moved = anchor or replace(cursor, block_hash=None)
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, moved):
                raise DatabaseBusy("the cursor was moved concurrently")
            await observed.delete_tracked_above(connection, self.scope, moved.block_number)
        log.warning(
            "a block that was read is no longer returned", block=cursor.block_number, goes_on=moved.block_number
        )
        self._refusals.moved(moved.block_number)
        self._was_at_head = False
        return self._step(moved, 0, is_at_head=False)

    def _is_settled(self, error: EndpointsFailed) -> bool:
        """Whether these refusals count as the answer, given how long they have lasted."""
        patience = _patience(error)
        return patience is not None and self._refusals.has_lasted(patience, self._clock())

    # Reorganisations -------------------------------------------------------------------------------------------------

    async def _go_back(self, cursor: Cursor, head: int) -> bool:
        """Move the cursor to the newest block that is still canonical; False where it is there already.

        Observed transfers in replaced blocks are marked orphaned. Reading on from there finds those that are in other
        blocks now.
        """
        fork = await self._find_fork(cursor, head)
        if fork is None:
            return False
        gone = await self._find_stale(fork.block_number, cursor, fork)
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, fork):
                raise DatabaseBusy("the cursor was moved concurrently")
            await observed.delete_tracked_above(connection, self.scope, fork.block_number)
            orphaned = await observed.orphan_transfers(connection, self.scope, gone)
        REORGANISATIONS.inc()
        log.warning(
            "the chain was reorganised: reading again",
            chain_id=self.scope.chain_id,
            from_block=fork.block_number + 1,
            was_at_block=cursor.block_number,
            orphaned_transfers=orphaned,
        )
        return True

    async def _find_fork(self, cursor: Cursor, head: int) -> Cursor | None:
        """The cursor's new position; None where no tracked block up to the chain's head was replaced."""
        if cursor.block_hash is None:
            return None
        async with self._database.autocommit() as connection:
            tracked = await observed.list_tracked_blocks(connection, self.scope, up_to=min(head, cursor.block_number))
        replaced = False
        for start in range(0, len(tracked), FORK_SEARCH_BLOCKS):
            part = tracked[start : start + FORK_SEARCH_BLOCKS]
            blocks = await self._chain.logs.blocks([number for number, _ in part])
            for number, block_hash in part:
                if number not in blocks:
                    continue  # not returned, which does not mean that it was replaced
                if _has_hash(blocks[number], block_hash):
                    return replace(cursor, block_number=number, block_hash=block_hash) if replaced else None
                replaced = True
        if not replaced and tracked:
            return None
        oldest = tracked[-1][0] if tracked else min(head, cursor.block_number)
        number = max(oldest - BLIND_REWIND_BLOCKS, cursor.first_block - 1)
        return replace(cursor, block_number=number, block_hash=None)

    async def _find_stale(self, above: int, cursor: Cursor, known: Cursor) -> list[str]:
        """Hashes of blocks up to the cursor that hold observed transfers and are not canonical.

        The endpoint must have the block that is `known` to be canonical: one on another branch would call all others
        replaced.
        """
        async with self._database.autocommit() as connection:
            held = await observed.list_blocks_with_transfers(connection, self.scope, above=above)
        held = [(number, block_hash) for number, block_hash in held if number <= cursor.block_number]
        if not held:
            return []
        numbers = {number for number, _ in held} | ({known.block_number} if known.block_hash is not None else set())
        blocks = await self._chain.logs.blocks(sorted(numbers))
        if known.block_hash is not None and not _has_hash(blocks.get(known.block_number), known.block_hash):
            raise ChainUnavailable(f"the endpoints disagree on block {known.block_number}")
        return [block_hash for number, block_hash in held if _is_replaced(blocks, number, block_hash)]

    # Re-scan ----------------------------------------------------------------------------------------------------------

    async def _read_again(self, scope: TransferScope, label: str, first: int, cursor: Cursor) -> list[Transfer] | str:
        """All transfers that one endpoint returns up to the cursor, or the reason why it does not count."""
        transfers: list[Transfer] = []
        begin = first
        try:
            while True:
                found = await self._chain.logs.transfers(scope, begin, cursor.block_number, endpoint=label)
                transfers += found.transfers
                if found.last == cursor.block_number:
                    break
                begin = found.last + 1
        except ChainUnavailable as error:
            return f"{label}: {error.message}"
        if found.last_block.block_hash != cursor.block_hash:
            return f"{label}: has another block {cursor.block_number}"
        return transfers

    async def _find_disputed(
        self, scope: TransferScope, shown: list[list[Transfer]], first: int, cursor: Cursor
    ) -> list[list[Transfer]]:
        """Transactions on which endpoints or the database disagree, each with all reported transfers.

        At most `DISPUTES_MAX`; an endpoint that disputes more is asked about the rest in the next re-scan.
        """
        async with self._database.autocommit() as connection:
            recorded = await observed.list_observed(connection, scope, first=first, last=cursor.block_number)
        said: dict[str, list[frozenset[Transfer]]] = {}
        for transfers in [*shown, recorded]:
            by_transaction: dict[str, set[Transfer]] = {}
            for one in transfers:
                by_transaction.setdefault(one.tx_hash, set()).add(one)
            for tx_hash, of_it in by_transaction.items():
                said.setdefault(tx_hash, []).append(frozenset(of_it))
        disputed = [
            sorted(frozenset().union(*versions), key=lambda one: (one.log_index, one.value_raw))
            for versions in said.values()
            if len(versions) < len(shown) + 1 or len(set(versions)) > 1
        ]
        return disputed[:DISPUTES_MAX]

    async def _correct(
        self,
        connection: ServiceConnection,
        cursor: Cursor,
        stale: list[str],
        agreed: list[Transfer],
        settled: list[_Dispute],
    ) -> tuple[int, int]:
        """Write down what a re-scan found; how many transfers were added and removed. Raises `DatabaseBusy`."""
        tracked = await observed.list_tracked_blocks(connection, self.scope, up_to=cursor.block_number)
        if (cursor.block_number, cursor.block_hash) not in tracked[:1]:
            raise DatabaseBusy("the chain was reorganised during the re-scan")
        orphaned = await observed.orphan_transfers(connection, self.scope, stale) if stale else 0
        added = await observed.record_transfers(connection, self.scope, agreed)
        for dispute in settled:
            added += await observed.record_transfers(connection, self.scope, dispute.there, corrects=True)
            orphaned += await observed.invalidate_transfers(
                connection, self.scope, dispute.tx_hash, dispute.invented_log_indexes
            )
        return added, orphaned

    async def _settle_dispute(self, scope: TransferScope, transfers: list[Transfer]) -> _Dispute:
        """The transaction's transfers by its receipt, on which all endpoints agree; unchanged where they do not."""
        one = transfers[0]
        try:
            receipt, _ = await find_receipt(self._chain, one.tx_hash, one.block_number, coin=scope.is_of_coin)
        except ChainUnavailable as error:
            log.warning("transfers in dispute", tx_hash=one.tx_hash, error=error.message)
            return _Dispute(one.tx_hash)
        there = {log.log_index: log for log in transfers_in(receipt, scope)}
        times = {each.block_hash: each.block_time for each in transfers}
        if receipt is not None and receipt.block_hash not in times:
            # It has moved in the meantime: following the chain finds it at its new position.
            return _Dispute(one.tx_hash)
        return _Dispute(
            one.tx_hash,
            there=[
                Transfer(
                    tx_hash=one.tx_hash,
                    log_index=index,
                    block_number=receipt.block_number,
                    block_hash=receipt.block_hash,
                    block_time=times[receipt.block_hash],
                    from_address=found.from_address,
                    value_raw=found.value_raw,
                    **(
                        {"token": found.emitter, "to_address": found.to_address}
                        if isinstance(scope, DepositScope)
                        else {}
                    ),
                )
                for index, found in there.items()
                if receipt is not None
            ],
            invented_log_indexes=sorted({each.log_index for each in transfers} - set(there)),
        )


@dataclass(frozen=True, slots=True)
class _Dispute:
    """A transaction on which endpoints disagree, and the transfers confirmed by its receipt."""

    tx_hash: str
    there: list[Transfer] = field(default_factory=list)
    invented_log_indexes: list[int] = field(default_factory=list)


def _has_hash(block: MinedBlock | None, block_hash: str) -> bool:
    return block is not None and block.block_hash == block_hash


def _is_replaced(blocks: Mapping[int, MinedBlock | None], number: int, block_hash: str) -> bool:
    """Whether another block, or none, is at that height now; a block that no endpoint returns proves neither."""
    return number in blocks and not _has_hash(blocks[number], block_hash)


def _above_gap(cursor: Cursor) -> int:
    """The first block above the cursor's gap."""
    return cursor.gap_end + 1 if cursor.gap_end is not None else 0


def _patience(error: EndpointsFailed) -> Patience | None:
    """How long these refusals have to last until they count; None where no endpoint is available to refuse anything."""
    refusals = error.history_refusals
    if not refusals:
        return None
    if len(refusals) < len(error.failures):
        return PATIENCE_SOME_SILENT
    if all(isinstance(refusal, HistoryPruned) for refusal in refusals):
        return PATIENCE_PRUNED
    return PATIENCE_REFUSED
