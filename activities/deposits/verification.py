"""The nightly derivation of all deposit addresses."""

from __future__ import annotations

from temporalio import activity

from activities.deposits.signatures import AddressesVerified, AddressSignatures
from db.engine import ServiceDatabase
from services.deposits.verification import verify_and_record
from telemetry.metrics.worker import FINDINGS_OPENED


class AddressActivities(AddressSignatures):
    """Safe to repeat and to be stopped half-way. `treasury` is that of the settings."""

    def __init__(self, database: ServiceDatabase, *, treasury: str) -> None:
        self._database = database
        self._treasury = treasury

    @activity.defn
    async def verify_addresses(self) -> AddressesVerified:
        """Derive every deposit address again; a finding for each key or treasury of one that is not as stored."""
        recorded = await verify_and_record(self._database, treasuries=[self._treasury], on_progress=activity.heartbeat)
        for finding in recorded.opened:
            FINDINGS_OPENED.labels(finding.kind.value).inc()
        return AddressesVerified(
            checked=recorded.check.checked,
            wrong_count=recorded.check.wrong_count,
            problems=tuple(finding.detail for finding in recorded.findings),
        )
