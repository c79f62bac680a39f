"""Daily report of the system tenant: income by reason, spending, and how long the balance lasts.

The shortest scheduled job: a read, and an event.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.messages import Message
    from activities.operations.signatures import EventSignatures, GovernanceSignatures, SpanToReport
    from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
    from domain.operations.events import GOVERNANCE_REPORT as REPORT_EVENT
    from domain.operations.events import PlatformEvent
    from domain.operations.governance import Income
    from workflows.naming import GOVERNANCE_REPORT
    from workflows.policies import (
        ANNOUNCE_SCHEDULE_TO_CLOSE,
        ANNOUNCE_START_TO_CLOSE,
        JOB_RETRY,
        JOB_SCHEDULE_TO_CLOSE,
        JOB_START_TO_CLOSE,
    )
    from workflows.scheduled_run import this_scheduled_run


class ReportInput(Message):
    """Length of the period, which ends at the scheduled time."""

    hours: int = Field(default=24, ge=1, le=24 * 366)


@workflow.defn(name=GOVERNANCE_REPORT)
class GovernanceReport:
    """One report, as one event."""

    @workflow.run
    async def run(self, wanted: ReportInput) -> Income:
        """Lifecycle of a report."""
        scheduled_run = this_scheduled_run()
        income: Income = await workflow.execute_activity_method(
            GovernanceSignatures.read_income,
            SpanToReport(
                since=scheduled_run.scheduled_at - timedelta(hours=wanted.hours), until=scheduled_run.scheduled_at
            ),
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary=f"read the system tenant's movements of {wanted.hours} h",
        )
        await workflow.execute_activity_method(
            EventSignatures.announce,
            PlatformEvent(
                id=f"{REPORT_EVENT}:{scheduled_run.key}",
                type=REPORT_EVENT,
                subject=SYSTEM_TENANT_ACCOUNT_ID,
                time=scheduled_run.scheduled_at,
                data={
                    "since": income.since.isoformat(),
                    "until": income.until.isoformat(),
                    "creditsByReason": income.by_reason,
                    "balanceCredits": income.balance_credits,
                    "spentCredits": income.spent_credits,
                    "runwayDays": income.runway_days,
                },
            ),
            start_to_close_timeout=ANNOUNCE_START_TO_CLOSE,
            schedule_to_close_timeout=ANNOUNCE_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary=f"publish {REPORT_EVENT}",
        )
        return income
