"""Housekeeping of webhooks, in bounded batches: role settle_service."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from temporalio import activity

from activities.operations.signatures import Done
from activities.webhooks.signatures import DeliveriesToStart, WebhookHousekeepingSignatures, WebhooksToPrune
from db.engine import ServiceDatabase
from db.webhooks import deliveries
from services.ports import WebhookDeliveryStarter
from services.webhooks.outbox import start_overdue
from telemetry.metrics.worker import ROWS_PRUNED


class WebhookHousekeepingActivities(WebhookHousekeepingSignatures):
    """Safe to repeat, to run concurrently, and to be stopped half-way."""

    def __init__(self, database: ServiceDatabase, *, starter: WebhookDeliveryStarter) -> None:
        self._database = database
        self._starter = starter

    @activity.defn
    async def start_overdue_webhooks(self, wanted: DeliveriesToStart) -> Done:
        """Start a workflow for every delivery that should have one and has none."""
        started = await start_overdue(
            self._database,
            self._starter,
            by=timedelta(seconds=wanted.overdue_seconds),
            on_progress=activity.heartbeat,
        )
        return Done(counts={"started": started} if started else {})

    @activity.defn
    async def prune_webhooks(self, wanted: WebhooksToPrune) -> Done:
        """Delete deliveries and events that ended long ago, and expired secrets."""
        pruned: Counter[str] = Counter()
        while True:
            async with self._database.transaction() as connection:
                batch = await deliveries.prune(
                    connection, limit=wanted.batch_size, older_than=timedelta(days=wanted.older_than_days)
                )
            for table, count in batch.items():
                ROWS_PRUNED.labels(table).inc(count)
                pruned[table] += count
            activity.heartbeat()
            if max(batch.values(), default=0) < wanted.batch_size:
                return Done(counts=dict(pruned))
