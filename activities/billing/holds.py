"""Resolution of holds whose gateway has died: role settle_service."""

from __future__ import annotations

from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.billing.signatures import CallRecord, HoldSignatures, HoldToResolve, ResolvedHold
from activities.messages import HoldRef
from db.billing.lapsed import find_hold
from db.engine import ServiceDatabase
from domain.billing.usage import ImplausibleUsage, Usage
from services.billing import resolution
from services.billing.provider_api import Providers
from telemetry.metrics.worker import HOLDS_RESOLVED

NOT_DUE: Final = "the hold is not due"
NO_RECORD_YET: Final = "NO_RECORD_YET"
"""Type of the failure that asks for another try: records come a while after their calls."""


class HoldActivities(HoldSignatures):
    """Safe to run twice, at once, and beside the hold's own gateway."""

    def __init__(self, database: ServiceDatabase, providers: Providers, *, grace_credits: int) -> None:
        self._database = database
        self._providers = providers
        self._grace_credits = grace_credits

    @activity.defn
    async def look_up_call(self, hold: HoldRef) -> CallRecord:
        """What the provider has on record of a call whose gateway has died."""
        async with self._database.autocommit() as connection:
            stored = await find_hold(connection, hold.hold_id)
        if stored is None or not stored.is_due:
            return CallRecord(words=NOT_DUE)
        if not self._providers.keeps_records(stored.upstream):
            return CallRecord(words=f"upstream {stored.upstream} keeps no records that can be asked for")
        if stored.upstream_id is None:
            return CallRecord(words=f"upstream {stored.upstream} had not named the call yet")
        found = await self._providers.look_up(stored.upstream, stored.upstream_id)
        if found is None:
            raise ApplicationError(
                f"upstream {stored.upstream} has no record of call {stored.upstream_id} yet",
                type=NO_RECORD_YET,
                category=ApplicationErrorCategory.BENIGN,
            )
        return _to_message(found)

    @activity.defn
    async def resolve_hold(self, wanted: HoldToResolve) -> ResolvedHold:
        """Charge the call where its lease is over; otherwise say what became of the hold."""
        async with self._database.transaction() as connection:
            resolved = await resolution.resolve(
                connection, wanted.hold_id, _from_message(wanted.record), grace_credits=self._grace_credits
            )
        basis = "record" if wanted.record.is_there else "estimate"
        HOLDS_RESOLVED.labels(resolved.outcome, basis).inc()
        return ResolvedHold(
            outcome=resolved.outcome,
            charged_credits=resolved.charged_credits,
            basis="by the provider's record" if wanted.record.is_there else wanted.record.words,
        )


def _to_message(found: Usage | ImplausibleUsage) -> CallRecord:
    if isinstance(found, ImplausibleUsage):
        return CallRecord(is_there=True, implausible=str(found))
    return CallRecord(is_there=True, units=dict(found.units), stated_cost_usd=found.stated_cost_usd)


def _from_message(record: CallRecord) -> Usage | ImplausibleUsage | None:
    if not record.is_there:
        return None
    if record.implausible is not None:
        return ImplausibleUsage(record.implausible)
    return Usage(record.units, record.stated_cost_usd)
