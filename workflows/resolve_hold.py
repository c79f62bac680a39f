"""Charges a call whose gateway has died; once, also where that gateway was only paused."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.billing.signatures import CallRecord, HoldSignatures, HoldToResolve, ResolvedHold
    from activities.messages import HoldRef
    from workflows.naming import RESOLVE_HOLD
    from workflows.policies import (
        LEDGER_RETRY,
        LEDGER_START_TO_CLOSE,
        LOOKUP_RETRY,
        LOOKUP_SCHEDULE_TO_CLOSE,
        LOOKUP_START_TO_CLOSE,
    )


@workflow.defn(name=RESOLVE_HOLD)
class ResolveHold:
    """Asks the provider what the call used, and charges it; without a record, by what was produced."""

    @workflow.run
    async def run(self, hold: HoldRef) -> ResolvedHold:
        """Lifecycle of a resolution."""
        record = await self._look_up(hold)
        resolved = await self._charge(hold, record)
        workflow.set_current_details(_words(resolved))
        return resolved

    async def _look_up(self, hold: HoldRef) -> CallRecord:
        try:
            return await workflow.execute_activity_method(
                HoldSignatures.look_up_call,
                hold,
                start_to_close_timeout=LOOKUP_START_TO_CLOSE,
                schedule_to_close_timeout=LOOKUP_SCHEDULE_TO_CLOSE,
                retry_policy=LOOKUP_RETRY,
                summary=f"ask upstream {hold.upstream} what the call used",
            )
        except ActivityError as error:
            words = f"no record within {LOOKUP_SCHEDULE_TO_CLOSE.total_seconds():.0f} s: {error.cause}"
            workflow.logger.warning("%s", words)
            return CallRecord(words=words)

    async def _charge(self, hold: HoldRef, record: CallRecord) -> ResolvedHold:
        basis = "the provider's record" if record.is_there else "what was produced until the last heartbeat"
        return await workflow.execute_activity_method(
            HoldSignatures.resolve_hold,
            HoldToResolve(hold_id=hold.hold_id, billing_account_id=hold.billing_account_id, record=record),
            start_to_close_timeout=LEDGER_START_TO_CLOSE,
            retry_policy=LEDGER_RETRY,
            summary=f"charge the call by {basis}",
        )


def _words(resolved: ResolvedHold) -> str:
    charged = f"{resolved.charged_credits} credits"
    match resolved.outcome:
        case "captured":
            return f"charged {charged}: {resolved.basis}"
        case "repeated":
            return f"was charged before: {charged}"
        case "not_lapsed":
            return "its gateway is alive: nothing was done"
        case "voided":
            return "was released before: the call cost nothing"
        case outcome:
            return outcome
