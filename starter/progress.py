"""What a running settlement waits for, read from Temporal: the last failure of its pending activity says it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from pydantic import ValidationError
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from domain.errors import TemporalUnavailable
from domain.verdict import Waiting
from starter.temporal import does_not_answer
from workflows.naming import workflow_id

DESCRIBE_TIMEOUT: Final = timedelta(seconds=3)


@dataclass(frozen=True, slots=True)
class PendingActivity:
    """An activity that has not finished. `waiting` is set where it waits for the chain."""

    name: str
    attempt: int
    last_failure: str | None
    next_attempt_at: datetime | None
    waiting: Waiting | None


@dataclass(frozen=True, slots=True)
class WorkflowState:
    """A settlement as Temporal has it."""

    workflow_id: str
    run_id: str
    status: str
    history_length: int
    pending: tuple[PendingActivity, ...]

    @property
    def is_running(self) -> bool:
        """Whether it can still do something."""
        return self.status == WorkflowExecutionStatus.RUNNING.name


async def read_workflow(client: Client, attempt_id: UUID) -> WorkflowState | None:
    """The attempt's workflow, or None where Temporal knows none. Raises `TemporalUnavailable`."""
    try:
        # The SDK repeats a call that nobody answers, and `rpc_timeout` bounds each repetition only.
        async with asyncio.timeout(DESCRIBE_TIMEOUT.total_seconds()):
            description = await client.get_workflow_handle(workflow_id(attempt_id)).describe()
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        raise does_not_answer(error) from error
    except (RuntimeError, TimeoutError) as error:
        raise does_not_answer(error) from error
    pending = []
    for raw in description.raw_description.pending_activities:
        failure = raw.last_failure if raw.HasField("last_failure") else None
        pending.append(
            PendingActivity(
                name=raw.activity_type.name,
                attempt=raw.attempt,
                last_failure=failure.message if failure else None,
                next_attempt_at=(
                    raw.next_attempt_schedule_time.ToDatetime(tzinfo=UTC)
                    if raw.HasField("next_attempt_schedule_time")
                    else None
                ),
                waiting=await _waiting(client, list(failure.application_failure_info.details.payloads))
                if failure
                else None,
            )
        )
    return WorkflowState(
        workflow_id=description.id,
        run_id=description.run_id,
        status=description.status.name if description.status else "UNKNOWN",
        history_length=description.history_length,
        pending=tuple(pending),
    )


async def read_waiting(client: Client, attempt_id: UUID) -> PendingActivity | None:
    """The activity that waits for the chain, with what it last saw. None where there is none, or no answer."""
    try:
        state = await read_workflow(client, attempt_id)
    except TemporalUnavailable:
        return None
    return next((activity for activity in state.pending if activity.waiting), None) if state else None


async def _waiting(client: Client, payloads: list[object]) -> Waiting | None:
    if not payloads:
        return None
    try:
        decoded = await client.data_converter.decode(payloads, [Waiting])  # type: ignore[arg-type]
    except (ValidationError, RuntimeError):
        return None
    return decoded[0] if isinstance(decoded[0], Waiting) else None
