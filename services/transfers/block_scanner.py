"""Reading the chain into the database: range after range, back where it was reorganised, again where nodes omit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog

from chain.endpoint_pool import EndpointsFailed
from chain.history import HistoryPruned
from chain.reader import ChainReader
from db.engine import ServiceDatabase
from db.operations.findings import close_settled_findings, recheck_claims
from db.transfers import gaps, observed
from db.transfers.observed import Cursor
from domain.chain import MinedBlock, Transfer, TransferRange, TransferScope
from domain.errors import ChainUnavailable, DatabaseBusy
from domain.operations.findings import FindingKind
from domain.transfers.rescan import RescanReport
from domain.transfers.watching import PATIENCE_PRUNED, PATIENCE_REFUSED, PATIENCE_SOME_SILENT, Patience, Refusals
from services.transfers.receipts import find_receipt, transfers_in
from telemetry.metrics.worker import FINDINGS_OPENED, OBSERVED_TRANSFERS, REORGANISATIONS, WATCHER_BLOCK, WATCHER_LAG

log = structlog.get_logger(__name__)

OVERLAP_BLOCKS: Final = 5
"""Blocks below the head that are read again with the next one: where nodes are behind a load balancer, the newest
block's logs may be asked of one that does not have them yet. It costs no request."""

FORK_SEARCH_BLOCKS: Final = 50
"""Watched blocks compared at once when the chain was reorganised."""

BLIND_REWIND_BLOCKS: Final = 1_024
"""How far below the oldest watched block to go back when not even that one is canonical any more."""

DISPUTES_MAX: Final = 50
"""Transactions whose receipts are asked for in one reading again."""

FIRST_LOOK_BACK_BLOCKS_MAX: Final = 50_000
"""Where nothing says from which block to follow a chain: at most this far back, 25 questions of the usual size."""


GAP_EVERY: Final = timedelta(minutes=1)
"""How often a stretch that no node showed is asked for again; at a node that still does not have it, one request."""

GAP_SECONDS_MAX: Final = 10.0
"""For so long such a stretch is read at once; then the newest blocks come first again."""


@dataclass(frozen=True, slots=True)
class Step:
    """How things stand after one range."""

    cursor: Cursor
    added: int = 0
    is_at_head: bool = False
    """There is nothing to read before the next block."""


class BlockScanner:
    """Follows one chain for one treasury. Several at once do not spoil anything: the cursor takes turns."""

    def __init__(
        self,
        chain: ChainReader,
        database: ServiceDatabase,
        scope: TransferScope,
        *,
        from_block: int | None,
        look_back_blocks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`from_block` is where a chain that was never followed begins; without one, `look_back_blocks` back.

        `clock` is a monotonic clock in seconds.
        """
        self.scope = scope
        self._clock = clock
        self._refusals = Refusals()
        self._chain = chain
        self._database = database
        self._from_block = from_block
        self._look_back_blocks = min(look_back_blocks, FIRST_LOOK_BACK_BLOCKS_MAX)
        self._was_at_head = True
        self._has_noted_from_block = False

    async def advance(self) -> Step:
        """Read one range, as long as the endpoints give it, and move the cursor behind it.

        Blocks that endpoints which are well have refused for long enough are written down as a gap, and the cursor
        moves behind them. Raises `ChainUnavailable` and `DatabaseUnavailable`; nothing is written then.
        """
        head = await self._chain.heads.height()
        cursor = await self._cursor(head)
        if head <= cursor.block_number:
            # Lower than before: a node that lags, or a chain that has become shorter.
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

    async def _return_to_fork(self, cursor: Cursor, head: int) -> Step:
        if not await self._go_back(cursor, head):
            raise ChainUnavailable(f"the endpoints show different blocks {cursor.block_number}")
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

    async def note_waiting(self, waits_for: str | None) -> None:
        """Write down what keeps this scope from being followed; None when it goes on. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            await observed.note_waiting(connection, self.scope, waits_for)

    async def read_due_gap(self) -> int:
        """Ask once more for blocks that no endpoint showed, where that is due; how many blocks were read.

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
        """Read blocks that lie behind the cursor, as one endpoint after the other shows them; how many were read.

        What is missing of them is not missing any more. `on_range` is told the last block of each range. Ends early
        after `seconds_max`. Raises `ChainUnavailable` where the next range is shown by nobody.
        """
        until = self._clock() + seconds_max
        begin = first
        while begin <= last and self._clock() < until:
            async with self._database.autocommit() as connection:
                cursor = await observed.find_cursor(connection, self.scope)
            if cursor is None or cursor.block_number < last:
                raise ChainUnavailable(f"block {last} has not been come to yet")
            anchor = cursor.block_number if cursor.block_hash is not None else None
            found = await self._chain.logs.transfers(self.scope, begin, last, anchor=anchor)
            if anchor is not None and (found.anchor is None or found.anchor.block_hash != cursor.block_hash):
                raise ChainUnavailable(f"{found.endpoint} shows another block {anchor} than was read before")
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
        """How many transfers in these blocks are on record. Raises `DatabaseUnavailable`."""
        async with self._database.autocommit() as connection:
            return len(await observed.list_observed(connection, self.scope, first=first, last=last))

    async def rescan(self, blocks: int) -> RescanReport:
        """Read the last blocks behind the cursor again, with every endpoint that is on the same chain.

        What one of them shows and the database has not is added; transfers of blocks that are not canonical are taken
        out. Raises `ChainUnavailable` and `DatabaseUnavailable`.
        """
        async with self._database.autocommit() as connection:
            cursor = await observed.find_cursor(connection, self.scope)
        if cursor is None or cursor.block_hash is None:
            return RescanReport()
        first = max(cursor.block_number - blocks + 1, cursor.first_block, _above_gap(cursor))
        if first > cursor.block_number:
            return RescanReport()
        answers = await asyncio.gather(*(self._read_again(label, first, cursor) for label in self._chain.labels))
        silent = [answer for answer in answers if isinstance(answer, str)]
        shown = [answer for answer in answers if not isinstance(answer, str)]
        union = {(one.tx_hash, one.log_index): one for transfers in shown for one in transfers}
        disputed = await self._find_disputed(shown, first, cursor)
        settled = [await self._settle_dispute(transfers) for transfers in disputed]
        agreed = [one for one in union.values() if one.tx_hash not in {each[0].tx_hash for each in disputed}]
        stale = await self._find_stale(first - 1, cursor, cursor) if shown else []
        async with self._database.transaction() as connection:
            watched = await observed.list_watched(connection, self.scope, up_to=cursor.block_number)
            if (cursor.block_number, cursor.block_hash) not in watched[:1]:
                raise DatabaseBusy("the chain was reorganised while it was read again")
            orphaned = await observed.orphan_transfers(connection, self.scope, stale) if stale else 0
            added = await observed.record_transfers(connection, self.scope, agreed)
            for dispute in settled:
                added += await observed.record_transfers(connection, self.scope, dispute.there, corrects=True)
                orphaned += await observed.invalidate_transfers(
                    connection, self.scope, dispute.tx_hash, dispute.invented_log_indexes
                )
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
                await observed.begin_at(connection, self.scope, begin, head)
                cursor = await observed.find_cursor(connection, self.scope)
            if not self._has_noted_from_block:
                await observed.note_from_block(connection, self.scope, self._from_block)
                self._has_noted_from_block = True
        assert cursor is not None, "it was written just now, and nobody deletes it"
        return cursor

    async def _read(self, cursor: Cursor, head: int) -> TransferRange:
        """The next range, with the block that the cursor stands on as it is now."""
        anchor = cursor.block_number if cursor.block_hash is not None else None
        begin = cursor.block_number + 1
        if self._was_at_head:
            overlapping = min(max(begin - OVERLAP_BLOCKS, cursor.first_block, _above_gap(cursor)), begin)
            found = await self._chain.logs.transfers(self.scope, overlapping, head, anchor=anchor)
            if found.last > cursor.block_number:
                return found
        return await self._chain.logs.transfers(self.scope, begin, head, anchor=anchor)

    def _continues(self, cursor: Cursor, found: TransferRange) -> bool:
        """Whether the range follows on what was read before, or on blocks that have been replaced since."""
        return cursor.block_hash is None or _has_hash(found.anchor, cursor.block_hash)

    async def _write(self, cursor: Cursor, moved: Cursor, found: TransferRange) -> int:
        """The range and the cursor behind it, or nothing where somebody else has moved the cursor."""
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, moved):
                raise DatabaseBusy("somebody else follows the chain as well")
            added = await observed.record_transfers(connection, self.scope, found.transfers)
            await observed.watch_block(connection, self.scope, found.last_block)
            await gaps.take_out_read(connection, self.scope, found.first, found.last)
        OBSERVED_TRANSFERS.inc(added)
        return added

    def _step(self, cursor: Cursor, added: int, *, is_at_head: bool) -> Step:
        chain = str(self.scope.chain_id)
        WATCHER_BLOCK.labels(chain).set(cursor.block_number)
        WATCHER_LAG.labels(chain).set(cursor.lag_blocks)
        return Step(cursor, added, is_at_head)

    # What nobody shows -----------------------------------------------------------------------------------------------

    async def _get_past(self, cursor: Cursor, head: int, error: EndpointsFailed) -> Step:
        """Read as much as can be read behind the cursor; where that is not one block, go on behind what cannot.

        Raises `error` until the blocks have been refused often and long enough, and where nothing up to the head is
        given: then it is not a stretch of the chain that is missing, but the nodes' logs.
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
        """Set the cursor behind the blocks that nobody shows, and write them down: in one transaction."""
        first = cursor.block_number + 1
        last = await self._find_gap_end(first, head, error)
        blocks = await self._chain.logs.blocks(self.scope, sorted({cursor.block_number, last} - {-1}))
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
                raise DatabaseBusy("somebody else follows the chain as well")
            if edge is not None:
                await observed.watch_block(connection, self.scope, edge)
            is_new = await gaps.open_gap(connection, self.scope, first, last, error.message)
        if is_new:
            FINDINGS_OPENED.labels(FindingKind.CHAIN_GAP.value).inc()
        log.error(
            "blocks that no node shows: going on behind them",
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
        """The block before the first one that is shown again: by doubling, then by halving the distance."""
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
        """The range, or None where it is refused as what is tried to get past; raises where nodes are away by now."""
        try:
            return await self._chain.logs.transfers(self.scope, first, last, anchor=anchor)
        except EndpointsFailed as error:
            if not self._is_settled(error):
                raise
            return None

    async def _anchor_anew(self, cursor: Cursor, head: int, endpoint: str) -> Step:
        """The cursor's own block is not shown any more: go on from the newest watched one that is.

        Raises `ChainUnavailable` until it has been missing often and long enough. Where no watched block is shown, all
        of them lie in what the nodes have pruned, which no reorganisation reaches.
        """
        self._refusals.note(cursor.block_number, self._clock())
        if not self._refusals.has_lasted(PATIENCE_PRUNED, self._clock()):
            raise ChainUnavailable(f"{endpoint} has no block {cursor.block_number}, which it is far beyond")
        async with self._database.autocommit() as connection:
            watched = await observed.list_watched(connection, self.scope, up_to=cursor.block_number)
        anchor: Cursor | None = None
        for start in range(0, len(watched), FORK_SEARCH_BLOCKS):
            part = watched[start : start + FORK_SEARCH_BLOCKS]
            blocks = await self._chain.logs.blocks(self.scope, [number for number, _ in part])
            if any(_is_replaced(blocks, number, block_hash) for number, block_hash in part):
                return await self._return_to_fork(cursor, head)
            shown = next(((number, block_hash) for number, block_hash in part if number in blocks), None)
            if shown is not None:
                anchor = replace(cursor, block_number=shown[0], block_hash=shown[1])
                break
        if anchor is not None and anchor.block_number == cursor.block_number:
            raise ChainUnavailable(f"{endpoint} has no block {cursor.block_number}, which others have")
        moved = anchor or replace(cursor, block_hash=None)
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, moved):
                raise DatabaseBusy("somebody else follows the chain as well")
            await observed.forget_watched_above(connection, self.scope, moved.block_number)
        log.warning(
            "a block that was read is not shown any more", block=cursor.block_number, goes_on=moved.block_number
        )
        self._refusals.moved(moved.block_number)
        self._was_at_head = False
        return self._step(moved, 0, is_at_head=False)

    def _is_settled(self, error: EndpointsFailed) -> bool:
        """Whether these refusals are to be taken for the answer, as long as they have lasted."""
        patience = _patience(error)
        return patience is not None and self._refusals.has_lasted(patience, self._clock())

    # Reorganisations -------------------------------------------------------------------------------------------------

    async def _go_back(self, cursor: Cursor, head: int) -> bool:
        """Set the cursor to the newest block that is still canonical; False where that is where it stands.

        Observed transfers whose blocks are gone become orphaned ones. What is read again from there finds those that
        have come back in other blocks.
        """
        fork = await self._find_fork(cursor, head)
        if fork is None:
            return False
        gone = await self._find_stale(fork.block_number, cursor, fork)
        async with self._database.transaction() as connection:
            if not await observed.move_cursor(connection, self.scope, cursor, fork):
                raise DatabaseBusy("somebody else follows the chain as well")
            await observed.forget_watched_above(connection, self.scope, fork.block_number)
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
        """Where the cursor belongs; None where nothing that was watched up to the chain's head has been replaced."""
        if cursor.block_hash is None:
            return None
        async with self._database.autocommit() as connection:
            watched = await observed.list_watched(connection, self.scope, up_to=min(head, cursor.block_number))
        replaced = False
        for start in range(0, len(watched), FORK_SEARCH_BLOCKS):
            part = watched[start : start + FORK_SEARCH_BLOCKS]
            blocks = await self._chain.logs.blocks(self.scope, [number for number, _ in part])
            for number, block_hash in part:
                if number not in blocks:
                    continue  # not shown, which does not say that it was replaced
                if _has_hash(blocks[number], block_hash):
                    return replace(cursor, block_number=number, block_hash=block_hash) if replaced else None
                replaced = True
        if not replaced and watched:
            return None
        oldest = watched[-1][0] if watched else min(head, cursor.block_number)
        number = max(oldest - BLIND_REWIND_BLOCKS, cursor.first_block - 1)
        return replace(cursor, block_number=number, block_hash=None)

    async def _find_stale(self, above: int, cursor: Cursor, known: Cursor) -> list[str]:
        """Hashes of blocks up to the cursor that hold observed transfers and are not canonical.

        Who is asked must have the block that is `known` to be canonical: one on another branch would say so of all.
        """
        async with self._database.autocommit() as connection:
            held = await observed.list_blocks_with_transfers(connection, self.scope, above=above)
        held = [(number, block_hash) for number, block_hash in held if number <= cursor.block_number]
        if not held:
            return []
        numbers = {number for number, _ in held} | ({known.block_number} if known.block_hash is not None else set())
        blocks = await self._chain.logs.blocks(self.scope, sorted(numbers))
        if known.block_hash is not None and not _has_hash(blocks.get(known.block_number), known.block_hash):
            raise ChainUnavailable(f"the endpoints show different blocks {known.block_number}")
        return [block_hash for number, block_hash in held if _is_replaced(blocks, number, block_hash)]

    # Reading again ---------------------------------------------------------------------------------------------------

    async def _read_again(self, label: str, first: int, cursor: Cursor) -> list[Transfer] | str:
        """All that one endpoint shows up to the cursor; or why it does not count, in words."""
        transfers: list[Transfer] = []
        begin = first
        try:
            while True:
                found = await self._chain.logs.transfers(self.scope, begin, cursor.block_number, endpoint=label)
                transfers += found.transfers
                if found.last == cursor.block_number:
                    break
                begin = found.last + 1
        except ChainUnavailable as error:
            return f"{label}: {error.message}"
        if found.last_block.block_hash != cursor.block_hash:
            return f"{label}: has another block {cursor.block_number}"
        return transfers

    async def _find_disputed(self, shown: list[list[Transfer]], first: int, cursor: Cursor) -> list[list[Transfer]]:
        """Transactions of which not everybody shows the same, the database included; each with all that is said of it.

        At most `DISPUTES_MAX`: whoever lies about more is asked about the rest the next time.
        """
        async with self._database.autocommit() as connection:
            recorded = await observed.list_observed(connection, self.scope, first=first, last=cursor.block_number)
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

    async def _settle_dispute(self, transfers: list[Transfer]) -> _Dispute:
        """What the transaction's receipt says, as all endpoints together have it; as it was where they do not agree."""
        one = transfers[0]
        try:
            receipt, _ = await find_receipt(self._chain, one.tx_hash, one.block_number)
        except ChainUnavailable as error:
            log.warning("transfers in dispute", tx_hash=one.tx_hash, error=error.message)
            return _Dispute(one.tx_hash)
        there = {log.log_index: log for log in transfers_in(receipt, self.scope)}
        times = {each.block_hash: each.block_time for each in transfers}
        if receipt is not None and receipt.block_hash not in times:
            # It has moved meanwhile: following the chain finds it where it is.
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
                )
                for index, found in there.items()
                if receipt is not None
            ],
            invented_log_indexes=sorted({each.log_index for each in transfers} - set(there)),
        )


@dataclass(frozen=True, slots=True)
class _Dispute:
    """A transaction of which endpoints show different transfers, and what they agree on when asked for its receipt."""

    tx_hash: str
    there: list[Transfer] = field(default_factory=list)
    invented_log_indexes: list[int] = field(default_factory=list)


def _has_hash(block: MinedBlock | None, block_hash: str) -> bool:
    return block is not None and block.block_hash == block_hash


def _is_replaced(blocks: Mapping[int, MinedBlock | None], number: int, block_hash: str) -> bool:
    """Whether another block, or none, is at that height now; a block that nobody shows says neither."""
    return number in blocks and not _has_hash(blocks[number], block_hash)


def _above_gap(cursor: Cursor) -> int:
    """The first block above what lies behind the cursor and no node has shown."""
    return cursor.gap_end + 1 if cursor.gap_end is not None else 0


def _patience(error: EndpointsFailed) -> Patience | None:
    """How long these refusals have to last until they count; None where nobody is there to refuse anything."""
    refusals = error.history_refusals
    if not refusals:
        return None
    if len(refusals) < len(error.failures):
        return PATIENCE_SOME_SILENT
    if all(isinstance(refusal, HistoryPruned) for refusal in refusals):
        return PATIENCE_PRUNED
    return PATIENCE_REFUSED
