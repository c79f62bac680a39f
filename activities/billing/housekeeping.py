"""What is done about calls by the clock, in bounded batches: role settle_service."""

from __future__ import annotations

from collections import Counter
from typing import Final

from temporalio import activity

from activities.billing.signatures import (
    AlertsToPublish,
    BillingHousekeepingSignatures,
    LapsedToResolve,
    MonthsToOpen,
    PublishedAlerts,
    ReceiptsChecked,
    ReceiptsToCheck,
)
from activities.operations.signatures import Done
from db.billing import alerts as stored
from db.engine import ServiceDatabase
from services.billing import alerts
from services.billing.resolution import start_lapsed
from services.ports import HoldResolutionStarter
from telemetry.metrics.worker import FINDINGS_OPENED

ALERTS_MAX: Final = 20
"""Crossings that one run publishes; the rest follows in the next."""


class BillingHousekeepingActivities(BillingHousekeepingSignatures):
    """Each batch is one transaction; safe to repeat, to run concurrently, and to be stopped half-way."""

    def __init__(self, database: ServiceDatabase, *, starter: HoldResolutionStarter) -> None:
        self._database = database
        self._starter = starter

    @activity.defn
    async def start_hold_resolutions(self, wanted: LapsedToResolve) -> Done:
        """Start a workflow for every hold whose lease is over and that has none."""
        started = await start_lapsed(self._database, self._starter, limit=wanted.limit, on_progress=activity.heartbeat)
        return Done(counts={"started": started} if started else {})

    @activity.defn
    async def open_findings_of_receipts(self, wanted: ReceiptsToCheck) -> ReceiptsChecked:
        """A finding for each receipt that is in doubt, or that the account could not pay in full."""
        total: Counter[str] = Counter()
        while True:
            opened, is_all, checked_to = await alerts.open_findings_of_receipts(
                self._database, batch_size=wanted.batch_size
            )
            for kind, count in opened.items():
                FINDINGS_OPENED.labels(kind).inc(count)
                total[kind] += count
            activity.heartbeat()
            if is_all:
                return ReceiptsChecked(opened=dict(total), checked_to=checked_to)

    @activity.defn
    async def list_billing_alerts(self) -> AlertsToPublish:
        """The events of crossings that are not published yet, the oldest first."""
        async with self._database.autocommit() as connection:
            found = await stored.list_alerts_to_publish(connection, limit=ALERTS_MAX)
        return AlertsToPublish(events={alert.id: alerts.event_of(alert) for alert in found})

    @activity.defn
    async def note_billing_alerts(self, published: PublishedAlerts) -> None:
        """Mark crossings as published."""
        async with self._database.autocommit() as connection:
            await stored.mark_alerts_published(connection, published.ids)

    @activity.defn
    async def open_receipt_months(self, wanted: MonthsToOpen) -> Done:
        """Prepare the partitions of the coming months."""
        async with self._database.transaction() as connection:
            opened = await stored.open_receipt_months(connection, months_ahead=wanted.months_ahead)
        return Done(counts={"opened": opened} if opened else {})
