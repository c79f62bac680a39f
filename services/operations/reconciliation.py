"""Reconciling a period: reading it as of one moment, writing down what was found, starting what is missing.

The job and `settle reconcile` run the same.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

import structlog

from db.clock import read_clock
from db.engine import ServiceConnection, ServiceDatabase
from db.operations import findings
from db.operations import reconciliation as db
from db.transfers import observed
from db.transfers.gaps import Gap, list_gaps
from domain.errors import InvalidInput, Unavailable, WatcherBehind
from domain.operations.findings import Finding, FindingKind, Remedy
from domain.operations.reconciliation.comparison import Outcome, reconcile
from domain.operations.reconciliation.matching import Observed
from domain.operations.reconciliation.report import (
    OPERATOR_BONUS_MISSING,
    SHOWN_PER_KIND_MAX,
    TOO_MANY,
    TOTALS_DO_NOT_CLOSE,
    TRANSFER_UNDECIDED,
    WATCHER_BEHIND,
    WORKFLOWS_NOT_ASKED,
    Difference,
    Period,
    Report,
    Severity,
    difference_of,
)
from domain.operations.reconciliation.totals import Totals
from domain.operations.resolutions import RemedyRequest
from domain.payments.recovery import Due, UnfinishedPayment
from domain.transfers.matching import Pays, Renews, decide
from services.operations.books_file import BookLines, open_books
from services.payments.recovery import PaymentRecovery, Recovered
from services.ports import RecoveryStarter
from telemetry.metrics.worker import RECONCILIATION_DIFFERENCES, RECONCILIATION_SECONDS

Progress = Callable[[str], None]
"""Receives a message about the progress."""

DAY: Final = timedelta(hours=24)
WATCHER_LAG_MAX: Final = timedelta(minutes=1)
WATCHER_LAG_BLOCKS_MAX: Final = 10
"""How far behind the end of a period the watcher may be before the report says so; whichever is longer."""

UNFINISHED_MAX: Final = 20_000
"""Attempts whose workflows are asked after in one run; the next run finds the others."""

UNDECIDED_MAX: Final = 20_000
WAITING: Final = timedelta(minutes=1)
"""Since when a submitted payment must have a workflow."""

BATCH: Final = 500
UNEXPLAINED_MAX: Final = 1_000
PROGRESS_EVERY: Final = 20_000
_T = TypeVar("_T")

log = structlog.get_logger(__name__)


class Reconciliation:
    """One chain's books against the chain. Safe to run twice and at once: what it finds is found once."""

    def __init__(
        self,
        database: ServiceDatabase,
        *,
        chain_id: int,
        block_time: timedelta,
        starter: RecoveryStarter,
        dust_below_raw: int = 0,
    ) -> None:
        self._dust_below_raw = dust_below_raw
        self._database = database
        self._chain_id = chain_id
        self._block_time = block_time
        self._recovery = PaymentRecovery(database, chain_id=chain_id, starter=starter)
        self._starter = starter

    async def default_period(self, length: timedelta = DAY, *, whole_hours: bool) -> tuple[datetime, datetime]:
        """The last day, or since the last reconciliation where that is longer ago.

        With `whole_hours` it ends at the last full hour up to which the chain has been followed: a period that is
        asserted day after day has no gaps and no overlaps. Raises `WatcherBehind` where that hour has been asserted.
        """
        async with self._database.transaction() as connection:
            watched = await db.find_watched(connection, self._chain_id)
            last_end = await db.find_last_end(connection, self._chain_id)
        if last_end is not None and last_end > watched.now:
            last_end = None  # a period in the future was reconciled: it is not over
        to_time = watched.now
        if whole_hours:
            covered = self._covered_until(watched)
            if covered is None:
                raise WatcherBehind("the chain has not been followed yet: there is nothing to reconcile with")
            to_time = covered.replace(minute=0, second=0, microsecond=0)
            if last_end is not None and to_time <= last_end:
                raise WatcherBehind(
                    f"everything up to {last_end:%Y-%m-%d %H:%M} UTC is reconciled, "
                    f"and the chain has been followed to {covered:%Y-%m-%d %H:%M} UTC"
                )
        from_time = to_time - length
        return (min(from_time, last_end) if last_end is not None else from_time), to_time

    async def run(
        self, from_time: datetime, to_time: datetime, *, csv_file: Path | None = None, on_progress: Progress
    ) -> Report:
        """Reconcile the transfers mined from `from_time` to `to_time`, exclusive; store the assertion.

        Raises `InvalidInput` for a period that is none, `DatabaseUnavailable`, and `OSError` for a file that cannot be
        written.
        """
        if from_time >= to_time:
            raise InvalidInput("--to", f"expected a moment after {from_time.isoformat()}, got {to_time.isoformat()}")
        started = time.monotonic()
        span = db.Span(self._chain_id, from_time, to_time)
        found = _Found()
        async with self._database.transaction() as connection:
            await db.prepare(connection)
            await findings.close_settled_findings(connection, self._chain_id)
        with open_books(csv_file) as lines:
            await self._read(span, found, lines, on_progress)
        await self._write_down(found, on_progress)
        started_workflows = await self._resume_all(found, on_progress)
        if found.left_for_next_time:
            found.differ(_cut(found.left_for_next_time))
        contradictions = found.totals.contradictions()
        for words in contradictions:
            found.differ(_does_not_close(words))
        async with self._database.transaction() as connection:
            assertion_id = await db.insert_assertion(
                connection, span, found.totals, differences=found.counts, closes=not contradictions
            )
        RECONCILIATION_SECONDS.observe(time.monotonic() - started)
        for kind, count in found.counts.items():
            RECONCILIATION_DIFFERENCES.labels(kind).inc(count)
        return Report(
            chain_id=self._chain_id,
            period=Period(from_time=from_time, to_time=to_time),
            totals=found.totals,
            closes=not contradictions,
            counts=dict(sorted(found.counts.items())),
            values_raw=dict(sorted(found.values_raw.items())),
            alarms=found.alarms,
            differences=tuple(found.differences),
            started=tuple(started_workflows),
            assertion_id=assertion_id,
            csv=str(csv_file) if csv_file else None,
            seconds=round(time.monotonic() - started),
        )

    # -- reading

    async def _read(self, span: db.Span, found: _Found, lines: BookLines, on_progress: Progress) -> None:
        """All of the period, as of one moment."""
        async with self._database.snapshot() as connection:
            await db.prepare(connection)
            self._check_coverage(span, await db.find_watched(connection, self._chain_id), found)
            self._check_gaps(await list_gaps(connection, self._chain_id), found)
            on_progress("reading transfers and what was credited for them")
            told = 0
            async for transaction in db.stream_transactions(connection, span):
                outcome = reconcile(transaction, dust_below_raw=self._dust_below_raw)
                found.take(transaction.chain_id, transaction.tx_hash, outcome)
                for line in outcome.lines:
                    lines.write(transaction.chain_id, transaction.tx_hash, line)
                if len(found.findings) >= BATCH:
                    await self._write_findings(found)
                if found.totals.transfers - told >= PROGRESS_EVERY:
                    told = found.totals.transfers
                    on_progress(f"{told} transfers read")
            on_progress(f"{found.totals.transfers} transfers read; reading the journal")
            found.totals.add(await db.read_journal(connection, span))
            unexplained = await db.list_unexplained(connection, span, limit=UNEXPLAINED_MAX + 1)
            for entry in unexplained[:UNEXPLAINED_MAX]:
                found.take_unexplained(self._chain_id, entry)
            found.left_for_next_time += len(unexplained[UNEXPLAINED_MAX:])

    def _check_coverage(self, span: db.Span, watched: db.Watched, found: _Found) -> None:
        covered = self._covered_until(watched)
        if covered is not None and covered >= min(span.to_time, watched.now) - max(
            WATCHER_LAG_MAX, WATCHER_LAG_BLOCKS_MAX * self._block_time
        ):
            return
        where = "not at all" if covered is None else f"up to about {covered:%Y-%m-%d %H:%M:%S} UTC"
        found.differ(
            Difference(
                kind=WATCHER_BEHIND,
                severity=Severity.NOTICE,
                detail=f"the chain has been followed {where}: later transfers are not in these totals",
                remedy="see that the chain's watcher runs (settle doctor), then: settle reconcile",
                chain_id=self._chain_id,
            )
        )

    def _check_gaps(self, gaps: Sequence[Gap], found: _Found) -> None:
        """For every period: when unread blocks were mined is not known."""
        for gap in gaps:
            if gap.is_acknowledged:
                continue
            blocks = f"--from {gap.first_block} --to {gap.last_block}"
            found.differ(
                Difference(
                    kind=WATCHER_BEHIND,
                    severity=Severity.NOTICE,
                    detail=f"blocks {gap.first_block} to {gap.last_block} were not read: transfers to "
                    f"{gap.scope.treasury} in them are not in these totals",
                    remedy=f"settle chain rescan {blocks}, with a node that has them; then: settle reconcile",
                    chain_id=self._chain_id,
                )
            )

    def _covered_until(self, watched: db.Watched) -> datetime | None:
        """When the last block that was read was mined, about."""
        if watched.updated_at is None or watched.block_number is None or watched.head_number is None:
            return None
        behind = max(watched.head_number - watched.block_number, 0)
        return watched.updated_at - behind * self._block_time

    # -- writing down

    async def _write_down(self, found: _Found, on_progress: Progress) -> None:
        """What waits for an operator becomes a finding; what is one already stays as it is."""
        if found.undecided:
            on_progress(f"{len(found.undecided)} transfers without a decision")
        for chunk in _chunks(found.undecided):
            async with self._database.transaction() as connection:
                for tx_hash, transfer in chunk:
                    await self._decide(connection, tx_hash, transfer, found)
        await self._write_findings(found)

    async def _write_findings(self, found: _Found) -> None:
        async with self._database.transaction() as connection:
            for finding in found.findings:
                await _write(connection, finding, found)
        found.findings.clear()

    async def _decide(self, connection: ServiceConnection, tx_hash: str, transfer: Observed, found: _Found) -> None:
        """Decide about a transfer as the watcher would; one that it would submit is marked for it again."""
        known = await db.find_transfer(connection, self._chain_id, tx_hash, transfer.log_index)
        if known is None:
            return  # off the chain since
        scope, one, is_handled = known
        around = await observed.find_match_context(connection, scope, one)
        decision = decide(self._chain_id, one, around)
        if isinstance(decision, Finding):
            await _write(connection, decision, found)
        elif isinstance(decision, Pays | Renews):
            if is_handled:
                await observed.recheck_transfer(connection, scope, one)
            found.differ(
                Difference(
                    kind=TRANSFER_UNDECIDED,
                    severity=Severity.NOTICE,
                    detail=f"{one.from_address} sent {one.value_raw} raw units that attempt "
                    f"{decision.attempt.attempt_id} was to be paid with, and the watcher has not handed them in",
                    remedy="see that the chain's watcher runs (settle doctor), and what the worker's log says of the "
                    "transaction",
                    chain_id=self._chain_id,
                    tx_hash=tx_hash,
                    log_index=one.log_index,
                    attempt_id=decision.attempt.attempt_id,
                    value_raw=one.value_raw,
                )
            )

    # -- workflows

    async def _resume_all(self, found: _Found, on_progress: Progress) -> list[str]:
        """Ask after the workflows of what is not finished, and start those that are missing."""
        done, started = Recovered(), list[str]()
        try:
            async with self._database.autocommit() as connection:
                before = await read_clock(connection.connection) - WAITING
            await self._recovery.recover_waiting(before, done)
            await self._recovery.recover_these(found.unfinished, done)
            for finding_ids in _chunks(found.unfinished_credits):
                await self._resume_all_resolutions(finding_ids, found, started)
        except Unavailable as error:
            found.differ(
                Difference(
                    kind=WORKFLOWS_NOT_ASKED,
                    severity=Severity.NOTICE,
                    detail=f"workflows could not be asked after: {error.message}",
                    remedy="when Temporal answers again: settle reconcile",
                )
            )
        for payment in done.resumed:
            found.differ(_started(self._chain_id, payment))
        started = [str(payment.attempt_id) for payment in done.resumed] + started
        if started:
            on_progress(f"{len(started)} payments or findings had nothing at work on them, and have now")
        return started

    async def _resume_all_resolutions(self, finding_ids: Sequence[UUID], found: _Found, started: list[str]) -> None:
        async with self._database.transaction() as connection:
            unposted = await db.list_unposted_bonuses(connection, finding_ids)
        for bonus in unposted:
            await self._starter.start_resolution(
                RemedyRequest(
                    finding_id=bonus.finding_id,
                    remedy=Remedy.CREDIT,
                    operator=bonus.operator,
                    reason=bonus.reason,
                    billing_account_id=bonus.billing_account_id,
                    chain_id=self._chain_id,
                )
            )
            started.append(str(bonus.finding_id))
            found.differ(
                Difference(
                    kind=OPERATOR_BONUS_MISSING,
                    severity=Severity.STARTED,
                    detail=f"finding {bonus.finding_id} was credited, and its bonus is not posted",
                    remedy="none: its workflow has been started",
                    finding_id=bonus.finding_id,
                )
            )


class _Found:
    """What a run has found so far: sums, counts, and some differences of each kind."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.counts: Counter[str] = Counter()
        self.alarms = 0
        self.values_raw: Counter[str] = Counter()
        self._shown: dict[str, list[tuple[int, int, Difference]]] = {}
        self.findings: list[Finding] = []
        self.undecided: list[tuple[str, Observed]] = []
        self.unfinished: list[UUID] = []
        self.unfinished_credits: list[UUID] = []
        self.left_for_next_time = 0
        """Transfers and attempts that were counted, and not examined: there are too many for one run."""

    def differ(self, difference: Difference) -> None:
        """Count a difference; list it where there are not many like it."""
        self.counts[difference.kind] += 1
        self.alarms += difference.severity is Severity.ALARM
        self.values_raw[difference.kind] += difference.value_raw or 0
        # Of many, those of unknown value are listed first, then those of the highest value.
        worth = _WORTH_UNKNOWN if difference.value_raw is None else difference.value_raw
        shown = self._shown.setdefault(difference.kind, [])
        keep = heapq.heappush if len(shown) < SHOWN_PER_KIND_MAX else heapq.heappushpop
        keep(shown, (worth, -self.counts[difference.kind], difference))

    @property
    def differences(self) -> list[Difference]:
        """Some of each kind, in the order in which they want to be read."""
        kept = [
            (_SEVERITIES.index(one.severity), -worth, -number, one.kind, one)
            for shown in self._shown.values()
            for worth, number, one in shown
        ]
        return [one for *_, one in sorted(kept, key=lambda each: each[:4])]

    def take(self, chain_id: int, tx_hash: str, outcome: Outcome) -> None:
        """Add what one transaction contributes."""
        self.totals.add(outcome.totals)
        for difference in (*outcome.known, *outcome.notices):
            self.differ(difference)
        self.findings += outcome.findings
        room = UNDECIDED_MAX - len(self.undecided)
        self.undecided += [(tx_hash, transfer) for transfer in outcome.undecided[:room]]
        self.left_for_next_time += len(outcome.undecided[room:])
        room = UNFINISHED_MAX - len(self.unfinished)
        self.unfinished += outcome.unfinished[:room]
        self.left_for_next_time += len(outcome.unfinished[room:])
        self.unfinished_credits += outcome.unfinished_credits

    def take_unexplained(self, chain_id: int, entry: db.Unexplained) -> None:
        """Ledger entries without a transfer: an alarm, unless an operator has excused it."""
        known = entry.finding
        if known is not None and known.is_excused:
            self.totals.excused_debit_credits += entry.debit_credits
            self.totals.excused_credit_credits += entry.credit_credits
            return
        found = Finding(
            kind=FindingKind.LEDGER_WITHOUT_TRANSFER,
            detail=entry.words,
            chain_id=chain_id,
            attempt_id=entry.attempt_id,
            ledger_reference=entry.reference,
            billing_account_id=entry.billing_account_id,
        )
        if known is not None and known.is_open:
            self.differ(difference_of(found, known.finding_id, detail=known.detail))
        else:
            self.findings.append(found)


async def _write(connection: ServiceConnection, finding: Finding, found: _Found) -> None:
    written = await findings.write_finding(connection, finding)
    if written.resolution is None:  # else it was decided about since the books were read
        found.differ(difference_of(finding, written.finding_id))


_WORTH_UNKNOWN: Final = 10**78
_SEVERITIES: Final = (Severity.ALARM, Severity.OPERATOR, Severity.STARTED, Severity.NOTICE)


def _does_not_close(contradiction: str) -> Difference:
    return Difference(
        kind=TOTALS_DO_NOT_CLOSE,
        severity=Severity.ALARM,
        detail=contradiction,
        remedy="settle doctor; the alarms of this report; the CSV has every transfer with what it was credited for",
    )


def _cut(number: int) -> Difference:
    return Difference(
        kind=TOO_MANY,
        severity=Severity.NOTICE,
        detail=f"{number} more transfers, attempts or entries were counted and not examined: too many for one run",
        remedy="settle reconcile the same period again, or parts of it (--from, --to)",
    )


def _started(chain_id: int, payment: UnfinishedPayment) -> Difference:
    subject = f"attempt {payment.attempt_id} is {payment.status}, {', '.join(sorted(payment.due))}"
    is_listed = payment.due == (Due.FINALITY,)
    return Difference(
        kind=payment.due[0].value,
        severity=Severity.STARTED,
        detail=subject + (", and was not listed for it" if is_listed else ", and no workflow was at work on it"),
        remedy="none: it has been listed, and is decided with the others"
        if is_listed
        else "none: its workflow has been started",
        chain_id=chain_id,
        tx_hash=payment.tx_hash,
        attempt_id=payment.attempt_id,
    )


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
