"""The platform looks after its own account: is it there, what does it hold, and is the system around it alive?"""

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
    """What a heartbeat measures with."""

    low_balance_credits: int = Field(default=DEFAULT_LOW_BALANCE_CREDITS, ge=0)
    """Below this balance it raises its voice, once."""

    head_age_seconds_max: int = Field(default=600, ge=1)
    """A chain whose newest block is older than this stands still."""


@workflow.defn(name=GOVERNANCE_HEARTBEAT)
class GovernanceHeartbeat:
    """One heartbeat: one row, one event, and one more when the balance has fallen below the threshold."""

    @workflow.run
    async def run(self, wanted: HeartbeatInput) -> Heartbeat:
        """The story of a heartbeat."""
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
                summary="look at the system tenant, the schema and the chain",
            )
        except ActivityError as error:
            # The worst of all heartbeats is one that nobody hears of: without a database there is still the event.
            await self._announce(_unread(scheduled_run, str(error.cause or error)))
            raise

    async def _announce(self, event: PlatformEvent) -> bool:
        """Whether it arrived. Where not, the next heartbeat comes all the same."""
        return await publish(event, summary=f"announce {event.type}", what=event.type)

    async def _note_announced(self, low: Heartbeat) -> None:
        await workflow.execute_activity_method(
            GovernanceSignatures.low_balance_announced,
            HeartbeatRef(key=low.key),
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary="note that the low balance was announced",
        )

    def _set_status(self, heartbeat: Heartbeat) -> None:
        """What an operator reads at the top of the workflow's page."""
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
