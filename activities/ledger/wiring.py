"""The activities that check the ledger."""

from __future__ import annotations

from activities.ledger.integrity_scan import BookkeepingActivities
from activities.signatures import Activity
from activities.wiring import Dependencies


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    return BookkeepingActivities(deps.service, pending_max=deps.settings.payment_wait_max).activities()
