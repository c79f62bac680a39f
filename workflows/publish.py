"""Publishing of an event from a workflow; a silent event sink never blocks the workflow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.operations.signatures import EventSignatures
    from domain.operations.events import PlatformEvent
    from workflows.policies import ANNOUNCE_START_TO_CLOSE, BEAT_ANNOUNCE_SCHEDULE_TO_CLOSE, JOB_RETRY


async def publish(
    event: PlatformEvent,
    *,
    summary: str,
    what: str,
    schedule_to_close: timedelta = BEAT_ANNOUNCE_SCHEDULE_TO_CLOSE,
    retry_policy: RetryPolicy = JOB_RETRY,
    log_fields: Mapping[str, str] | None = None,
) -> bool:
    """Whether the event was accepted. If it was not within `schedule_to_close`, the log names `what`."""
    try:
        await workflow.execute_activity_method(
            EventSignatures.announce,
            event,
            start_to_close_timeout=ANNOUNCE_START_TO_CLOSE,
            schedule_to_close_timeout=schedule_to_close,
            retry_policy=retry_policy,
            summary=summary,
        )
    except ActivityError as error:
        workflow.logger.error("could not publish %s: %s", what, error.cause, extra=log_fields)
        return False
    return True
