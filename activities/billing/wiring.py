"""The activities about calls."""

from __future__ import annotations

from activities.billing.holds import HoldActivities
from activities.billing.housekeeping import BillingHousekeepingActivities
from activities.billing.reconciliation import ProviderReconciliationActivities
from activities.signatures import Activity
from activities.wiring import Dependencies
from services.billing.provider_reconciliation import ProviderReconciliation


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    holds = HoldActivities(deps.service, deps.providers, grace_credits=deps.settings.grace_credits)
    housekeeping = BillingHousekeepingActivities(deps.service, starter=deps.starter)
    reconciliation = ProviderReconciliationActivities(ProviderReconciliation(deps.service, deps.providers))
    return [*holds.activities(), *housekeeping.activities(), *reconciliation.activities()]
