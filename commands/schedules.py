"""`settle schedules`: lists the schedules, and applies the schedules file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from temporalio.client import Client

from commands.output import print_json, progress, stdout, table
from composition import singleton_workflows
from settings import Settings
from starter.schedule_file import WantedSchedule, load_schedules
from starter.schedules import Change, Planned, ScheduleView, apply_schedules, plan_schedules, read_schedules
from starter.singletons import SingletonWorkflow, list_missing, start_missing
from starter.temporal import connect
from workflows.naming import GOVERNANCE_LOOP
from workflows.registry import JOBS

NO_SCHEDULES: Final = "No schedules. `settle schedules apply` creates them."


@dataclass(frozen=True, slots=True)
class Plan:
    """All differences between Temporal and the file."""

    schedules: Sequence[Planned]
    standing: Sequence[SingletonWorkflow]
    missing: Sequence[SingletonWorkflow]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.missing and all(plan.change is Change.UNCHANGED for plan in self.schedules)


async def apply(settings: Settings, variables: Mapping[str, str], *, dry_run: bool, as_json: bool) -> None:
    """Show how Temporal differs from the file, then apply it.

    Raises `ConfigurationError`, `TemporalUnavailable` and `StartupCheckFailed`.
    """
    check_file(settings)  # before waiting for Temporal
    client = await connect(variables)
    plan = await _plan(client, settings)
    if not as_json:
        _show(plan)
    if not dry_run:
        await _act(client, plan)
    if as_json:
        print_json(_document(plan, dry_run=dry_run))
    elif plan.is_empty:
        stdout.print("Nothing to do.")
    else:
        stdout.print("Nothing was done: this was a dry run." if dry_run else "Done.")


async def apply_quietly(
    settings: Settings, variables: Mapping[str, str], *, on_progress: Callable[[str], None] = progress
) -> None:
    """The same for `settle up`: one line of progress per change."""
    client = await connect(variables)
    plan = await _plan(client, settings)
    for planned in plan.schedules:
        if planned.change is not Change.UNCHANGED:
            on_progress(f"schedule {planned.name}: {planned.change.value}")
    for workflow in plan.missing:
        on_progress(f"workflow {workflow.workflow_id}: start")
    await _act(client, plan)


async def list_all(variables: Mapping[str, str], *, as_json: bool) -> None:
    """The schedules in Temporal, with next and last run. Raises `TemporalUnavailable` and `StartupCheckFailed`."""
    views = await read_schedules(await connect(variables))
    if as_json:
        print_json({"schedules": [_view(view) for view in views]})
        return
    if not views:
        stdout.print(NO_SCHEDULES)
        return
    columns = ("schedule", "chain", "job", "every", "state", "next run", "last run", "ended")
    rows = [
        (
            view.name,
            view.chain_id,
            view.job,
            view.every,
            _state(paused=view.paused, note=view.note),
            _time(view.next_at),
            _time(view.last_at),
            view.last_status,
        )
        for view in views
    ]
    stdout.print(table("schedules", columns, rows))


def check_file(settings: Settings) -> None:
    """Raise `ConfigurationError` where the schedules file cannot be applied."""
    wanted_schedules(settings)


def wanted_schedules(settings: Settings) -> list[WantedSchedule]:
    """What the file asks for; the governance loop only where it is configured."""
    found = load_schedules(settings.schedules_file, JOBS, chain_id=settings.chain_id)
    return [schedule for schedule in found if schedule.job != GOVERNANCE_LOOP or settings.governance_model is not None]


async def _plan(client: Client, settings: Settings) -> Plan:
    wanted = wanted_schedules(settings)
    standing = singleton_workflows(settings)
    schedules = await plan_schedules(client, wanted, chain_id=settings.chain_id)
    return Plan(schedules, standing, await list_missing(client, standing))


async def _act(client: Client, plan: Plan) -> None:
    await apply_schedules(client, plan.schedules)
    await start_missing(client, plan.missing)


def _show(plan: Plan) -> None:
    rows = [
        (
            planned.name,
            planned.change.value,
            "\n".join(_words(planned)) or None,
            _state(paused=planned.paused, note=planned.note),
        )
        for planned in plan.schedules
    ]
    missing = {workflow.workflow_id for workflow in plan.missing}
    rows += [
        (workflow.workflow_id, "start" if workflow.workflow_id in missing else "unchanged", workflow.summary, "runs on")
        for workflow in plan.standing
    ]
    stdout.print(table("", ("schedule", "change", "current → file", "state"), rows))


def _words(planned: Planned) -> list[str]:
    if planned.change is Change.CREATE:
        return [f"{difference.field}: {difference.wants}" for difference in planned.differences]
    return [f"{one.field}: {one.has or 'nothing'} → {one.wants or 'nothing'}" for one in planned.differences]


def _state(*, paused: bool, note: str | None) -> str:
    state = "paused" if paused else "active"
    return f"{state}: {note}" if note else state


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if moment else None


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None


def _document(plan: Plan, *, dry_run: bool) -> dict[str, Any]:
    missing = {workflow.workflow_id for workflow in plan.missing}
    return {
        "dryRun": dry_run,
        "schedules": [
            {
                "name": planned.name,
                "scheduleId": planned.schedule_id,
                "chainId": planned.chain_id,
                "change": planned.change.value,
                "differences": {one.field: {"has": one.has, "wants": one.wants} for one in planned.differences},
                "paused": planned.paused,
                "note": planned.note,
            }
            for planned in plan.schedules
        ],
        "workflows": [
            {
                "workflowId": workflow.workflow_id,
                "change": "start" if workflow.workflow_id in missing else "unchanged",
            }
            for workflow in plan.standing
        ],
    }


def _view(view: ScheduleView) -> dict[str, Any]:
    return {
        "name": view.name,
        "scheduleId": view.schedule_id,
        "chainId": view.chain_id,
        "job": view.job,
        "every": view.every,
        "paused": view.paused,
        "note": view.note,
        "nextRunAt": _iso(view.next_at),
        "lastRunAt": _iso(view.last_at),
        "lastWorkflowId": view.last_workflow_id,
        "lastStatus": view.last_status,
    }
