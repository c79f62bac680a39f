"""The activities about deposit addresses."""

from __future__ import annotations

from activities.deposits.verification import AddressActivities
from activities.signatures import Activity
from activities.wiring import Dependencies


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    treasury = deps.settings.require_treasury_address()
    return [*AddressActivities(deps.service, treasury=treasury).activities()]
