"""Progress of a running settlement, read from Temporal: the last failure of its pending activity."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from pydantic import ValidationError
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from db.clock import estimated_now
from domain.errors import ChainUnavailable, SettleError, TemporalUnavailable
from domain.payments.verification import POLL_DELAY_MAX, Waiting, WaitReason, confirmations_message
from starter.temporal import to_temporal_unavailable
from workflows.naming import reversal_workflow_id, workflow_id

log = structlog.get_logger(__name__)

DESCRIBE_TIMEOUT: Final = timedelta(seconds=3)

ASKED_AT_ONCE_MAX: Final = 20
HEAD_SECONDS_MAX: Final = 2.0
SILENCE_SECONDS: Final = 5.0
"""Pause after an unanswered request to Temporal or the chain: progress is optional, and must not delay every caller."""

ASKED_AGAIN_AFTER: Final = timedelta(milliseconds=500)
"""Cache lifetime during a poll or a credit: it takes about as long, and many clients may be watching."""

REMEMBERED_LOOKS_MAX: Final = 5_000
"""Payments whose last poll is cached; the one requested least recently is dropped first."""


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
        """Whether it can still make progress."""
        return self.status == WorkflowExecutionStatus.RUNNING.name

    @property
    def has_completed(self) -> bool:
        """Whether it has completed."""
        return self.status == WorkflowExecutionStatus.COMPLETED.name


async def read_workflow(client: Client, attempt_id: UUID) -> WorkflowState | None:
    """The workflow that settles the attempt, or None where Temporal has none. Raises `TemporalUnavailable`."""
    return await _describe(client, workflow_id(attempt_id))


async def read_reversal(client: Client, attempt_id: UUID) -> WorkflowState | None:
    """The workflow that reverses the attempt's payment, or None where there is none. Raises `TemporalUnavailable`."""
    return await _describe(client, reversal_workflow_id(attempt_id))


async def _describe(client: Client, id_of_workflow: str) -> WorkflowState | None:
    try:
        # The SDK retries a call that is not answered, and `rpc_timeout` bounds each try only.
        async with asyncio.timeout(DESCRIBE_TIMEOUT.total_seconds()):
            description = await client.get_workflow_handle(id_of_workflow).describe()
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        raise to_temporal_unavailable(error) from error
    except (RuntimeError, TimeoutError) as error:
        raise to_temporal_unavailable(error) from error
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


@dataclass(frozen=True, slots=True)
class _Look:
    """The last known progress of a payment, and until when it cannot change."""

    activity: PendingActivity | None
    good_until: float
    """Seconds of the monotonic clock."""


class ProgressReader:
    """How far the chain has confirmed a payment, for many clients that ask often.

    A poll happens when it may change something, so its result is valid until the next one; between two polls only the
    chain's head moves. Both are requested once, however many clients ask.
    """

    def __init__(self, client: Client, read_head: Callable[[], Awaitable[int]] | None = None) -> None:
        """`read_head` returns the chain's height, or raises `ChainUnavailable`; it is called each time."""
        self._client = client
        self._read_head = read_head
        self._seen: OrderedDict[tuple[UUID, str], _Look] = OrderedDict()
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE_MAX)
        self._silent_until = 0.0
        self._no_head_until = 0.0

    async def read(self, attempt_id: UUID, tx_hash: str, *, counts_blocks: bool = True) -> PendingActivity | None:
        """The activity that waits for `tx_hash`, with the confirmations of the last poll; with `counts_blocks`, which
        applies to payments of the chain whose height is read, also the blocks since.

        None where nothing waits, or Temporal does not answer.
        """
        activity = await self._final_poll(attempt_id, tx_hash)
        if activity is None or activity.waiting is None or not counts_blocks:
            return activity
        return replace(activity, waiting=await self._up_to_now(activity.waiting))

    async def _final_poll(self, attempt_id: UUID, tx_hash: str) -> PendingActivity | None:
        key = attempt_id, tx_hash
        seen = self._seen.get(key)
        if seen is not None and time.monotonic() < seen.good_until:
            return seen.activity
        if time.monotonic() < self._silent_until:
            return seen.activity if seen else None
        try:
            async with self._asking:
                state = await read_workflow(self._client, attempt_id)
        except SettleError as error:
            if not isinstance(error, TemporalUnavailable):
                log.warning("cannot read progress", code=error.code, error=error.message)
            self._silent_until = time.monotonic() + SILENCE_SECONDS
            return seen.activity if seen else None
        found = next((activity for activity in state.pending if activity.waiting), None) if state else None
        if found is None and seen is not None:
            # Nothing waits any more: it is being credited. The counted confirmations stay until then.
            found = seen.activity
        until_next_look = timedelta(0)
        if found is not None and found.next_attempt_at is not None:
            # By Temporal's clock, which may differ from ours: no poll is further away than the slowest interval.
            until_next_look = min(found.next_attempt_at - estimated_now(), POLL_DELAY_MAX)
        self._seen[key] = _Look(found, time.monotonic() + max(until_next_look, ASKED_AGAIN_AFTER).total_seconds())
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED_LOOKS_MAX:
            self._seen.popitem(last=False)
        return found

    async def count_blocks(self, waiting: Waiting, *, since: int) -> Waiting:
        """The confirmations of a transaction mined in block `since`, whatever the last poll knew of it."""
        mined = {"reason": WaitReason.CONFIRMATIONS, "block_number": since, "confirmations": 0}
        counted = await self._up_to_now(waiting.model_copy(update=mined))
        return counted if counted.confirmations else waiting

    async def _up_to_now(self, waiting: Waiting) -> Waiting:
        """The same including the blocks since; an unavailable head changes nothing."""
        if waiting.reason is not WaitReason.CONFIRMATIONS or waiting.block_number is None or self._read_head is None:
            return waiting
        if time.monotonic() < self._no_head_until:
            return waiting
        try:
            async with asyncio.timeout(HEAD_SECONDS_MAX):
                head = await self._read_head()
        except (ChainUnavailable, TimeoutError):
            self._no_head_until = time.monotonic() + SILENCE_SECONDS
            return waiting
        counted = min(head - waiting.block_number + 1, waiting.confirmations_needed)
        if counted <= waiting.confirmations:
            return waiting
        message = confirmations_message(counted, waiting.confirmations_needed)
        return waiting.model_copy(update={"confirmations": counted, "message": message})


async def _waiting(client: Client, payloads: list[object]) -> Waiting | None:
    if not payloads:
        return None
    try:
        decoded = await client.data_converter.decode(payloads, [Waiting])  # type: ignore[arg-type]
    except (ValidationError, RuntimeError):
        return None
    return decoded[0] if isinstance(decoded[0], Waiting) else None
