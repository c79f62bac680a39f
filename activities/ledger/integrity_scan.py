"""Runs of the integrity scan, and the record of which violations were published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from temporalio import activity

from activities.ledger.signatures import AnnouncedChanges, BookkeepingSignatures, BooksChange, BooksReport, BooksToCheck
from db.engine import ServiceDatabase
from db.ledger import integrity_scan as books_check
from db.ledger.integrity_scan import ROWS_MAX, Round
from db.ledger.invariants import CHECK_NAMES
from telemetry.metrics.worker import BOOKS_CHECK_SECONDS, BOOKS_ENTRIES_CHECKED, observe_books

OLD_STEPS: Final = 1
"""Steps over old rows in each scheduled run: about half a million entries per day at a run every quarter of an hour."""

HELD_TRIES: Final = 25
HELD_SECONDS: Final = 0.2
"""Tries for a held-up checkpoint. A payment's transaction takes milliseconds: a transaction that is open for longer is
not waited for, and the next run checks the rows after it again.
"""


async def check_books(
    database: ServiceDatabase,
    *,
    pending_max: timedelta,
    rows_max: int = ROWS_MAX,
    on_step: Callable[[int], None] = lambda _: None,
) -> int:
    """Check new rows, in steps of one transaction each; returns the number of entries.

    It can be stopped anywhere and continues there. `on_step` receives the number of entries so far. Raises
    `SettleError`.
    """
    async with database.transaction() as connection:
        await books_check.record_watermarks(connection)
    positions: dict[str, int] = {}
    checked = 0
    tries = HELD_TRIES
    while True:
        async with database.transaction() as connection:
            step = await books_check.check_new(connection, positions, pending_max=pending_max, rows_max=rows_max)
        if step.is_held and tries > 0:
            tries -= 1
            await asyncio.sleep(HELD_SECONDS)
            continue
        positions = dict(step.positions)
        checked += step.entries_checked
        on_step(checked)
        if step.is_last:
            break
    async with database.transaction() as connection:
        await books_check.check_known(connection, pending_max=pending_max)
    return checked


async def check_all_books(
    database: ServiceDatabase,
    *,
    pending_max: timedelta,
    rows_max: int = ROWS_MAX,
    begin_at: Round | None = None,
    on_step: Callable[[Round], None] = lambda _: None,
) -> None:
    """Check every row, in steps of one transaction each. `on_step` receives the position.

    New rows are left to `check_books`, which goes first. Raises `SettleError`.
    """
    round_ = begin_at or Round()
    while not round_.is_complete:
        async with database.transaction() as connection:
            round_ = await books_check.check_old(connection, round_, pending_max=pending_max, rows_max=rows_max)
        on_step(round_)
    async with database.transaction() as connection:
        await books_check.check_known(connection, pending_max=pending_max)


class BookkeepingActivities(BookkeepingSignatures):
    """Each step of a check is one transaction; concurrent, repeated or late runs find the same."""

    def __init__(self, database: ServiceDatabase, *, pending_max: timedelta) -> None:
        self._database = database
        self._pending_max = pending_max

    @activity.defn
    async def check_books(self, wanted: BooksToCheck) -> BooksReport:
        """One run. Violations are recorded, and stay recorded until they are resolved."""
        started = time.monotonic()
        # An interrupted full check continues where it was; the check of new rows stores its position itself.
        details = activity.info().heartbeat_details
        begin_at = Round.model_validate(details[0]) if wanted.full and details and details[0] else None
        checked = await check_books(
            self._database,
            pending_max=self._pending_max,
            on_step=lambda _: activity.heartbeat(begin_at.model_dump() if begin_at else None),
        )
        if wanted.full:
            await check_all_books(
                self._database,
                pending_max=self._pending_max,
                begin_at=begin_at,
                on_step=lambda round_: activity.heartbeat(round_.model_dump()),
            )
        else:
            for _ in range(OLD_STEPS):
                async with self._database.transaction() as connection:
                    await books_check.check_old(connection, pending_max=self._pending_max)
        async with self._database.transaction() as connection:
            checked_at = await books_check.note_end(connection, in_full=wanted.full)
            changes = await books_check.list_unannounced(connection)
            open_by_check = await books_check.count_open_violations(connection)
        BOOKS_ENTRIES_CHECKED.inc(checked)
        BOOKS_CHECK_SECONDS.observe(time.monotonic() - started)
        observe_books(dict.fromkeys(CHECK_NAMES, 0) | open_by_check, checked_at)
        return BooksReport(
            entries_checked=checked,
            violations_open=sum(open_by_check.values()),
            changes=tuple(BooksChange.model_validate(change, from_attributes=True) for change in changes),
        )

    @activity.defn
    async def note_books_announced(self, announced: AnnouncedChanges) -> None:
        """Mark changes as published, so that the next run does not publish them again."""
        async with self._database.transaction() as connection:
            await books_check.note_announced(connection, announced.opened, announced.resolved)
