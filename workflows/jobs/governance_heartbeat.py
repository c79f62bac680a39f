"""Governance heartbeat: existence and balance of the system tenant's account, and health of the system around it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.publish import publish

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.messages import Message
    from activities.operations.signatures import (
        GovernanceSignatures,
        HeartbeatRef,
        HeartbeatToTake,
        TakenHeartbeat,
    )
    from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
    from domain.operations.events import HEARTBEAT, PlatformEvent
    from domain.operations.governance import DEFAULT_LOW_BALANCE_CREDITS, Heartbeat, heartbeat_event, low_balance_event
    from workflows.naming import GOVERNANCE_HEARTBEAT
    from workflows.policies import (
        JOB_RETRY,
        JOB_SCHEDULE_TO_CLOSE,
        JOB_START_TO_CLOSE,
    )
    from workflows.scheduled_run import ScheduledRun, this_scheduled_run


class HeartbeatInput(Message):
    """Thresholds of a heartbeat."""

    low_balance_credits: int = Field(default=DEFAULT_LOW_BALANCE_CREDITS, ge=0)
    """A balance below this is published, once."""

    head_age_seconds_max: int = Field(default=600, ge=1)
    """A chain whose newest block is older than this has stopped."""


@workflow.defn(name=GOVERNANCE_HEARTBEAT)
class GovernanceHeartbeat:
    """One heartbeat: one row, one event, and another event when the balance has fallen below the threshold."""

    @workflow.run
    async def run(self, wanted: HeartbeatInput) -> Heartbeat:
        """Lifecycle of a heartbeat."""
        scheduled_run = this_scheduled_run()
        taken = await self._take(wanted, scheduled_run)
        await self._announce(heartbeat_event(taken.heartbeat))
        for low in taken.low_balances:
            if await self._announce(low_balance_event(low)):
                await self._note_announced(low)
        self._set_status(taken.heartbeat)
        return taken.heartbeat

    async def _take(self, wanted: HeartbeatInput, scheduled_run: ScheduledRun) -> TakenHeartbeat:
        try:
            return await workflow.execute_activity_method(
                GovernanceSignatures.take_heartbeat,
                HeartbeatToTake(
                    key=scheduled_run.key,
                    scheduled_at=scheduled_run.scheduled_at,
                    low_balance_credits=wanted.low_balance_credits,
                    head_age_seconds_max=wanted.head_age_seconds_max,
                ),
                start_to_close_timeout=JOB_START_TO_CLOSE,
                schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
                retry_policy=JOB_RETRY,
                summary="check the system tenant, the schema and the chain",
            )
        except ActivityError as error:
            # A heartbeat must never be silent: without a database there is still the event.
            await self._announce(_unread(scheduled_run, str(error.cause or error)))
            raise

    async def _announce(self, event: PlatformEvent) -> bool:
        """Publish an event. If that fails, the next heartbeat follows anyway."""
        return await publish(event, summary=f"publish {event.type}", what=event.type)

    async def _note_announced(self, low: Heartbeat) -> None:
        await workflow.execute_activity_method(
            GovernanceSignatures.low_balance_announced,
            HeartbeatRef(key=low.key),
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary="mark the low balance as published",
        )

    def _set_status(self, heartbeat: Heartbeat) -> None:
        """Status text at the top of the workflow's page."""
        words = (
            f"{heartbeat.status.value}: balance {heartbeat.balance_credits}, threshold {heartbeat.threshold_credits}"
        )
        workflow.set_current_details("; ".join([words, *heartbeat.problems]))


def _unread(scheduled_run: ScheduledRun, reason: str) -> PlatformEvent:
    return PlatformEvent(
        id=f"{HEARTBEAT}:{scheduled_run.key}",
        type=HEARTBEAT,
        subject=SYSTEM_TENANT_ACCOUNT_ID,
        time=scheduled_run.scheduled_at,
        data={"status": "failed", "problems": [reason]},
    )
