"""Housekeeping of calls: holds whose gateway has died, crossings of thresholds, doubtful receipts, coming months."""

from __future__ import annotations

from temporalio import workflow

from workflows.publish import publish
from workflows.steps import run_steps

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.billing.signatures import (
        AlertsToPublish,
        BillingHousekeepingSignatures,
        LapsedToResolve,
        MonthsToOpen,
        PublishedAlerts,
        ReceiptsToCheck,
    )
    from activities.messages import Message
    from workflows.naming import BILLING_HOUSEKEEPING
    from workflows.policies import (
        BATCHES_HEARTBEAT,
        BATCHES_RETRY,
        BATCHES_START_TO_CLOSE,
        JOB_RETRY,
        JOB_SCHEDULE_TO_CLOSE,
        JOB_START_TO_CLOSE,
    )


class BillingHousekeepingInput(Message):
    """Parameters of a run."""

    resolutions_max: int = Field(default=500, ge=1, le=10_000)
    """Most resolutions of lapsed holds that one run starts."""

    batch_size: int = Field(default=500, ge=1, le=10_000)
    """Most findings that one transaction opens."""

    months_ahead: int = Field(default=2, ge=1, le=12)
    """How many months of receipts are prepared besides this one."""


class BillingHousekeepingResult(Message):
    """Number of changes, by kind."""

    holds: dict[str, int] = Field(default_factory=dict)
    findings_opened: dict[str, int] = Field(default_factory=dict)
    alerts_published: int = 0
    months: dict[str, int] = Field(default_factory=dict)


@workflow.defn(name=BILLING_HOUSEKEEPING)
class BillingHousekeeping:
    """Four independent steps: a failing one does not stop the others."""

    @workflow.run
    async def run(self, wanted: BillingHousekeepingInput) -> BillingHousekeepingResult:
        """Lifecycle of one run."""
        steps = (self._start_resolutions, self._open_findings, self._publish_alerts, self._open_months)
        fields = await run_steps(steps, wanted, incomplete="BILLING_HOUSEKEEPING_INCOMPLETE")
        return BillingHousekeepingResult.model_validate(fields)

    async def _start_resolutions(self, wanted: BillingHousekeepingInput) -> dict[str, object]:
        done = await workflow.execute_activity_method(
            BillingHousekeepingSignatures.start_hold_resolutions,
            LapsedToResolve(limit=wanted.resolutions_max),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="resolve holds whose gateway has died",
        )
        return {"holds": done.counts}

    async def _open_findings(self, wanted: BillingHousekeepingInput) -> dict[str, object]:
        checked = await workflow.execute_activity_method(
            BillingHousekeepingSignatures.open_findings_of_receipts,
            ReceiptsToCheck(batch_size=wanted.batch_size),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="open findings of doubtful receipts",
        )
        return {"findings_opened": checked.opened}

    async def _publish_alerts(self, _: BillingHousekeepingInput) -> dict[str, object]:
        found: AlertsToPublish = await workflow.execute_activity_method(
            BillingHousekeepingSignatures.list_billing_alerts,
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary="read crossings of thresholds",
        )
        published: list[int] = []
        for number, event in found.events.items():
            if not await publish(event, summary=f"publish {event.type} of {event.subject}"[:200], what=event.type):
                # A receiver that is away is not asked again for each of the others: the next run does.
                break
            published.append(number)
        if published:
            await workflow.execute_activity_method(
                BillingHousekeepingSignatures.note_billing_alerts,
                PublishedAlerts(ids=tuple(published)),
                start_to_close_timeout=JOB_START_TO_CLOSE,
                schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
                retry_policy=JOB_RETRY,
                summary="mark crossings as published",
            )
        return {"alerts_published": len(published)}

    async def _open_months(self, wanted: BillingHousekeepingInput) -> dict[str, object]:
        done = await workflow.execute_activity_method(
            BillingHousekeepingSignatures.open_receipt_months,
            MonthsToOpen(months_ahead=wanted.months_ahead),
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary="prepare the coming months of receipts",
        )
        return {"months": done.counts}
