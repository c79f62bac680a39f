"""The activities that settle a payment."""

from __future__ import annotations

from activities.payments.finality import FinalityActivities
from activities.payments.payer import PayerActivities
from activities.payments.system_tenant import SystemTenantActivities
from activities.payments.verification import VerificationActivities
from activities.signatures import Activity
from activities.wiring import Dependencies
from domain.utxo import is_utxo_chain


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    settings = deps.settings
    payer = PayerActivities(
        deps.settlement,
        verification_timeout=settings.verification_timeout,
        revenue_share=settings.system_tenant_revenue_share,
    )
    verification = VerificationActivities(
        deps.chain,
        deps.service,
        deps.preconditions,
        min_confirmations=settings.min_confirmations,
        block_time=settings.block_time,
        verification_timeout=settings.verification_timeout,
        own_destination=None if is_utxo_chain(settings.chain_id) else settings.require_transfer_scope(),
        from_block=settings.chain_watch_from_block,
    )
    finality = FinalityActivities(
        deps.chain, deps.service, policy=settings.finality_policy, block_time=settings.block_time
    )
    return [
        *payer.activities(),
        *SystemTenantActivities(deps.service).activities(),
        *verification.activities(),
        *finality.activities(),
    ]
