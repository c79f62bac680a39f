"""The governance loop: the platform's own automation asks a model, and pays for it like any client."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.publish import publish

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.messages import Message
    from activities.operations.signatures import CallToMake, CallToPrepare, GovernanceLoopSignatures
    from domain.operations.governance_call import GovernanceCall, governance_call_event
    from workflows.naming import GOVERNANCE_LOOP
    from workflows.policies import (
        GOVERNANCE_CALL_RETRY,
        GOVERNANCE_CALL_SCHEDULE_TO_CLOSE,
        GOVERNANCE_CALL_START_TO_CLOSE,
        JOB_RETRY,
        JOB_SCHEDULE_TO_CLOSE,
        JOB_START_TO_CLOSE,
    )
    from workflows.scheduled_run import this_scheduled_run


class GovernanceLoopInput(Message):
    """How far back the model is shown the account's movements, and how long its answer may be."""

    hours: int = Field(default=24, ge=1, le=24 * 366)
    output_tokens_max: int = Field(default=1_000, ge=1, le=100_000)


@workflow.defn(name=GOVERNANCE_LOOP)
class GovernanceLoop:
    """One call: one row, one event."""

    @workflow.run
    async def run(self, wanted: GovernanceLoopInput) -> GovernanceCall:
        """Lifecycle of a call."""
        scheduled_run = this_scheduled_run()
        body = await workflow.execute_activity_method(
            GovernanceLoopSignatures.prepare_governance_call,
            CallToPrepare(
                since=scheduled_run.scheduled_at - timedelta(hours=wanted.hours),
                until=scheduled_run.scheduled_at,
                output_tokens_max=wanted.output_tokens_max,
            ),
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary=f"read the prompt, and the system tenant's movements of {wanted.hours} h",
        )
        call = await workflow.execute_activity_method(
            GovernanceLoopSignatures.call_governance_model,
            CallToMake(key=scheduled_run.key, scheduled_at=scheduled_run.scheduled_at, body=body),
            start_to_close_timeout=GOVERNANCE_CALL_START_TO_CLOSE,
            schedule_to_close_timeout=GOVERNANCE_CALL_SCHEDULE_TO_CLOSE,
            retry_policy=GOVERNANCE_CALL_RETRY,
            summary="call the model through the gateway, and record answer and charge",
        )
        event = governance_call_event(call)
        await publish(event, summary=f"publish {event.type}", what=event.type)
        workflow.set_current_details(call.words)
        return call
