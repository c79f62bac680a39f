"""Record the history of every path of `ResolveHold`: `python -m tests.billing.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.billing.signatures import CallRecord, HoldToResolve, ResolvedHold
from activities.messages import HoldRef
from db.billing.lapsed import LapsedHold
from starter.hold_resolutions import start_hold_resolution
from tests.support.histories import RECORDER, Recorded
from workflows.naming import PLATFORM_TASK_QUEUE, resolve_hold_workflow_id
from workflows.resolve_hold import ResolveHold

HOLD: Final = LapsedHold(UUID(int=1), "account", "gpt-4o-mini", "local", datetime(2026, 1, 1, 12, tzinfo=UTC))

RECORD: Final = CallRecord(is_there=True, units={"input_tokens": 3}, stated_cost_usd=Decimal("0.1"))

PATHS: Final[dict[str, tuple[CallRecord | None, ResolvedHold]]] = {
    "by_record": (RECORD, ResolvedHold(outcome="captured", charged_credits=7, basis="by the provider's record")),
    "by_estimate": (CallRecord(words="no records"), ResolvedHold(outcome="captured", charged_credits=7)),
    "without_answer": (None, ResolvedHold(outcome="captured", charged_credits=7)),
    "alive": (CallRecord(words="the hold is not due"), ResolvedHold(outcome="not_lapsed")),
}
"""Path, what the provider answers (None: it does not), and what becomes of the hold."""


def _activities(path: str) -> list[Callable[..., Any]]:
    record, resolved = PATHS[path]

    @activity.defn(name="look_up_call")
    async def look_up_call(hold: HoldRef) -> CallRecord:
        if record is None:
            raise ApplicationError("it is away", type="PROVIDER_UNAVAILABLE", non_retryable=True)
        return record

    @activity.defn(name="resolve_hold")
    async def resolve_hold(wanted: HoldToResolve) -> ResolvedHold:
        return resolved

    return [look_up_call, resolve_hold]


async def walk(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end."""
    async with Worker(
        client,
        task_queue=PLATFORM_TASK_QUEUE,
        workflows=[ResolveHold],
        activities=_activities(path),
        identity=RECORDER,
    ):
        await start_hold_resolution(client, HOLD)
        handle = client.get_workflow_handle(resolve_hold_workflow_id(HOLD.id))
        await handle.result()
    return handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk, lambda _: ResolveHold)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
