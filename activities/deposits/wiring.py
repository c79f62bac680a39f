"""The activities about deposit addresses."""

from __future__ import annotations

from activities.deposits.sweeps import SweepActivities
from activities.deposits.verification import AddressActivities
from activities.signatures import Activity
from activities.wiring import Dependencies
from services.deposits.sweeps import Sweeps


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    settings, treasury = deps.settings, deps.settings.require_treasury_address()
    sweeps = Sweeps(deps.service, deps.chain, treasury=treasury, min_confirmations=settings.min_confirmations)
    return [
        *AddressActivities(deps.service, treasury=treasury).activities(),
        *SweepActivities(sweeps, block_time=settings.block_time).activities(),
    ]
