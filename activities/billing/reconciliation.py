"""The daily reconciliation with providers."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, timedelta

from temporalio import activity

from activities.billing.signatures import DaysToReconcile, ProviderReconciliationSignatures, ProvidersReconciled
from services.billing.provider_reconciliation import ProviderReconciliation


class ProviderReconciliationActivities(ProviderReconciliationSignatures):
    """Safe to run twice and at once."""

    def __init__(self, reconciliation: ProviderReconciliation) -> None:
        self._reconciliation = reconciliation

    @activity.defn
    async def reconcile_providers(self, wanted: DaysToReconcile) -> ProvidersReconciled:
        """Compare what providers say they billed with receipts, ledger and holds, day by day."""
        until = wanted.until.astimezone(UTC).date()
        done = await self._reconciliation.run(
            until - timedelta(days=wanted.days), until, on_progress=activity.heartbeat
        )
        return ProvidersReconciled(
            compared=dict(Counter(day.upstream for day in done.days)),
            differences=tuple(day.finding().detail for day in done.days if day.problems),
            unread=done.unread,
        )
