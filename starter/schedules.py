"""Making Temporal's schedules what the file says, and telling the difference first.

What is compared is what Temporal has, not what was applied last: an edit by hand in its UI shows up as a difference.
Pause and note belong to whoever operates the schedule and are never changed once it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from starter.schedule_file import Overlap, WantedSchedule, show_duration
from starter.temporal import RPC_TIMEOUT, answered
from workflows.naming import SCHEDULE_MEMO, TASK_QUEUE, schedule_id, schedule_name_of

CATCH_UP: Final = timedelta(seconds=10)
"""The least that Temporal knows: what was missed while it was down stays missed, and the next tick does the work."""

_OVERLAPS: Final = {
    Overlap.SKIP: ScheduleOverlapPolicy.SKIP,
    Overlap.BUFFER_ONE: ScheduleOverlapPolicy.BUFFER_ONE,
    Overlap.ALLOW_ALL: ScheduleOverlapPolicy.ALLOW_ALL,
}


class Change(StrEnum):
    """What has to be done to a schedule."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field as it is and as it shall be, each in words; None where there is none."""

    field: str
    has: str | None
    wants: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """What has to be done to one schedule. `paused` and `note` are an operator's, as they are now."""

    name: str
    change: Change
    differences: tuple[Difference, ...] = ()
    paused: bool = False
    note: str | None = None
    wanted: WantedSchedule | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as Temporal has it, with its last run."""

    name: str
    job: str
    every: str
    paused: bool
    note: str | None
    next_at: datetime | None
    last_at: datetime | None
    last_workflow_id: str | None
    last_status: str | None


async def plan_schedules(client: Client, wanted: Iterable[WantedSchedule]) -> list[Planned]:
    """How Temporal differs from `wanted`, in that order, and at the end what of ours is not wanted any more.

    Raises `TemporalUnavailable` and `StartupCheckFailed`.
    """
    planned = [await _plan(client, schedule) for schedule in wanted]
    names = {plan.name for plan in planned}
    for name in await list_names(client):
        if name not in names and (found := await _describe(client, name)) is not None:
            state = found.schedule.state
            planned.append(Planned(name, Change.DELETE, paused=state.paused, note=state.note))
    return planned


async def apply_schedules(client: Client, planned: Sequence[Planned]) -> None:
    """Do what was planned. Safe to repeat, and at the same time as another one: both end with what they wanted.

    Raises `TemporalUnavailable` and `StartupCheckFailed`.
    """
    with answered(client):
        for plan in planned:
            if plan.change is Change.DELETE:
                await _delete(client, plan.name)
            elif plan.wanted is not None and plan.change is not Change.UNCHANGED:
                await _put(client, plan.wanted)


async def list_names(client: Client) -> list[str]:
    """Names of the schedules that were applied from a file. One that somebody made by hand is not among them."""
    names = []
    with answered(client):
        async for entry in await client.list_schedules():
            try:
                name = schedule_name_of(entry.id)
            except ValueError:
                continue
            if SCHEDULE_MEMO in await entry.memo():
                names.append(name)
    return sorted(names)


async def read_schedules(client: Client) -> list[ScheduleView]:
    """Every schedule of ours with its next and its last run."""
    views = []
    for name in await list_names(client):
        found = await _describe(client, name)
        if found is not None:
            views.append(await _view(client, name, found))
    return views


async def _plan(client: Client, wanted: WantedSchedule) -> Planned:
    wants = _fields(wanted)
    found = await _describe(client, wanted.name)
    if found is None:
        differences = tuple(Difference(name, None, words) for name, words in wants.items())
        return Planned(
            wanted.name,
            Change.CREATE,
            differences,
            paused=wanted.starts_paused,
            note=wanted.note or None,
            wanted=wanted,
        )
    has = await _fields_of(client, found)
    differences = tuple(
        Difference(name, has.get(name), wants.get(name))
        for name in {**wants, **has}
        if has.get(name) != wants.get(name)
    )
    return Planned(
        wanted.name,
        Change.UPDATE if differences else Change.UNCHANGED,
        differences,
        paused=found.schedule.state.paused,
        note=found.schedule.state.note,
        wanted=wanted,
    )


async def _put(client: Client, wanted: WantedSchedule) -> None:
    """Create the schedule; update it where it is there."""
    state = ScheduleState(note=wanted.note or None, paused=wanted.starts_paused)
    try:
        await client.create_schedule(
            schedule_id(wanted.name),
            _schedule(wanted, state),
            memo={SCHEDULE_MEMO: "schedule"},
            rpc_timeout=RPC_TIMEOUT,
        )
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(schedule_id(wanted.name))
        await handle.update(_keeping_state(wanted), rpc_timeout=RPC_TIMEOUT)


def _keeping_state(wanted: WantedSchedule) -> Any:
    def update(found: ScheduleUpdateInput) -> ScheduleUpdate:
        # Read a moment ago by the update itself: what an operator has paused stays paused.
        return ScheduleUpdate(_schedule(wanted, found.description.schedule.state))

    return update


async def _delete(client: Client, name: str) -> None:
    try:
        await client.get_schedule_handle(schedule_id(name)).delete(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise


async def _describe(client: Client, name: str) -> ScheduleDescription | None:
    with answered(client):
        try:
            return await client.get_schedule_handle(schedule_id(name)).describe(rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
                return None
            raise


def _schedule(wanted: WantedSchedule, state: ScheduleState) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            wanted.job,
            wanted.input,
            id=schedule_id(wanted.name),
            task_queue=TASK_QUEUE,
            execution_timeout=wanted.time_limit,
            static_summary=f"{wanted.name}, every {show_duration(wanted.every)}",
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=wanted.every, offset=wanted.offset or None)],
            jitter=wanted.jitter or None,
        ),
        policy=SchedulePolicy(overlap=_OVERLAPS[wanted.overlap], catchup_window=CATCH_UP),
        state=state,
    )


def _fields(wanted: WantedSchedule) -> dict[str, str]:
    """A wanted schedule in words, field by field."""
    return {
        "job": wanted.job,
        "every": _interval(wanted.every, wanted.offset),
        "jitter": show_duration(wanted.jitter),
        "overlap": wanted.overlap.value,
        "catch-up": show_duration(CATCH_UP),
        "time limit": show_duration(wanted.time_limit),
        "task queue": TASK_QUEUE,
        "workflow id": schedule_id(wanted.name),
        **_input_fields(wanted.input),
    }


async def _fields_of(client: Client, found: ScheduleDescription) -> dict[str, str]:
    """The same of a schedule that Temporal has."""
    schedule = found.schedule
    spec, policy, action = schedule.spec, schedule.policy, schedule.action
    times = [_interval(interval.every, interval.offset) for interval in spec.intervals]
    others = {"calendars": spec.calendars, "cron": spec.cron_expressions, "exceptions": spec.skip}
    times += [kind for kind, given in others.items() if given]
    fields = {
        "every": " and ".join(times) or "never",
        "jitter": show_duration(spec.jitter or timedelta(0)),
        "overlap": policy.overlap.name.lower(),
        "catch-up": show_duration(policy.catchup_window) if policy.catchup_window is not None else "Temporal's own",
    }
    if not isinstance(action, ScheduleActionStartWorkflow):
        return fields
    arguments = await client.data_converter.decode(action.args) if action.args else []
    given = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], dict) else {}
    return fields | {
        "job": action.workflow,
        "time limit": show_duration(action.execution_timeout) if action.execution_timeout else "none",
        "task queue": action.task_queue,
        "workflow id": action.id,
        **_input_fields(given),
    }


def _interval(every: timedelta, offset: timedelta | None) -> str:
    return show_duration(every) + (f" + {show_duration(offset)}" if offset else "")


def _input_fields(given: Mapping[str, Any]) -> dict[str, str]:
    return {f"input.{name}": json.dumps(value, sort_keys=True) for name, value in given.items()}


async def _view(client: Client, name: str, found: ScheduleDescription) -> ScheduleView:
    fields = await _fields_of(client, found)
    info, state = found.info, found.schedule.state
    last = info.recent_actions[-1] if info.recent_actions else None
    run = last.action if last and isinstance(last.action, ScheduleActionExecutionStartWorkflow) else None
    return ScheduleView(
        name=name,
        job=fields.get("job", ""),
        every=fields["every"],
        paused=state.paused,
        note=state.note,
        next_at=info.next_action_times[0] if info.next_action_times and not state.paused else None,
        last_at=last.started_at if last else None,
        last_workflow_id=run.workflow_id if run else None,
        last_status=await _status(client, run) if run else None,
    )


async def _status(client: Client, run: ScheduleActionExecutionStartWorkflow) -> str | None:
    """How a run stands; None where Temporal has forgotten it."""
    with answered(client):
        try:
            handle = client.get_workflow_handle(run.workflow_id, run_id=run.first_execution_run_id)
            status = (await handle.describe(rpc_timeout=RPC_TIMEOUT)).status
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise
    return status.name.lower() if status else None
