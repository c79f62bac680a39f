"""Identity of a scheduled run, from which ids of rows and events are derived."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows.naming import SCHEDULED_START_TIME


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """One run. `scheduled_at` is when it was meant to start; without a schedule, when it started."""

    key: str
    scheduled_at: datetime


def this_scheduled_run() -> ScheduledRun:
    """The run of the calling workflow."""
    info = workflow.info()
    scheduled_at = info.typed_search_attributes.get(SCHEDULED_START_TIME) or info.start_time
    return ScheduledRun(key=f"{info.workflow_id}/{info.run_id}", scheduled_at=scheduled_at)
