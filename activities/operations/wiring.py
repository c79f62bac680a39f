"""The activities of operators and of the platform's own jobs."""

from __future__ import annotations

from activities.operations.events import AnnouncementActivities
from activities.operations.governance import GovernanceActivities
from activities.operations.governance_loop import GovernanceLoopActivities
from activities.operations.housekeeping import HousekeepingActivities
from activities.operations.reconciliation import ReconciliationActivities
from activities.operations.resolutions import RemedyActivities
from activities.signatures import Activity
from activities.wiring import Dependencies
from services.operations.reconciliation import Reconciliation
from services.payments.recovery import PaymentRecovery


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    settings = deps.settings
    governance = GovernanceActivities(deps.settlement, deps.service, deps.chain, worker_version=deps.worker_version)
    recovery = PaymentRecovery(deps.service, chain_id=settings.chain_id, starter=deps.starter)
    housekeeping = HousekeepingActivities(
        deps.service,
        recovery=recovery,
        finality=deps.finality,
        starter=deps.starter,
    )
    remedies = RemedyActivities(
        deps.service,
        deps.chain,
        deps.preconditions,
        revenue_share=settings.system_tenant_revenue_share,
        min_confirmations=settings.min_confirmations,
    )
    reconciliation = Reconciliation(
        deps.service,
        chain_id=settings.chain_id,
        block_time=settings.block_time,
        starter=deps.starter,
        dust_below_raw=settings.dust_below_raw,
    )
    scheduled = ReconciliationActivities(
        reconciliation, chain_id=settings.chain_id, directory=settings.reconciliation_dir
    )
    return [
        *AnnouncementActivities(deps.publish).activities(),
        *governance.activities(),
        *GovernanceLoopActivities(deps.settlement, deps.service, settings.governance_loop).activities(),
        *housekeeping.activities(),
        *remedies.activities(),
        *scheduled.activities(),
    ]
