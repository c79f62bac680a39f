"""The scheduled reconciliation."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog
from temporalio import activity

from activities.operations.signatures import PeriodToReconcile, ReconciliationSignatures
from domain.operations.reconciliation.report import Report
from services.operations.books_file import books_file_name
from services.operations.reconciliation import Reconciliation

HEARTBEAT_SECONDS: Final = 10
LOGGED_MAX: Final = 100
"""Differences that a scheduled run writes to the log, and hands to its workflow."""

log = structlog.get_logger(__name__)


class ReconciliationActivities(ReconciliationSignatures):
    """Safe to run twice and at once."""

    def __init__(self, reconciliation: Reconciliation, *, chain_id: int, directory: Path | None) -> None:
        self._reconciliation = reconciliation
        self._chain_id = chain_id
        self._directory = directory

    @activity.defn
    async def reconcile(self, wanted: PeriodToReconcile) -> Report:
        """Reconcile what has come since the last time, and write the CSV where a folder is set."""
        from_time, to_time = await self._reconciliation.default_period(timedelta(hours=wanted.hours), whole_hours=True)
        file = self._directory / books_file_name(self._chain_id, from_time, to_time) if self._directory else None

        # One statement may take longer than a heartbeat may be late.
        lives = asyncio.create_task(_say_that_it_lives())
        try:
            report = await self._reconciliation.run(from_time, to_time, csv_file=file, on_progress=log.info)
        finally:
            lives.cancel()
        for difference in report.differences[:LOGGED_MAX]:
            log.warning(difference.detail, kind=difference.kind, severity=difference.severity.value)
        # What travels is small: the counts say all, the findings have the rest.
        return report.model_copy(update={"differences": report.differences[:LOGGED_MAX]})


async def _say_that_it_lives() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(HEARTBEAT_SECONDS)
