"""Applies the schedules file to Temporal, and shows the difference first.

The file is compared with Temporal's current schedules, not with what was applied last: a manual edit in its UI shows up
as a difference. A job that works on one chain has a schedule for each chain, whose id and memo name it; those of other
chains are neither changed nor deleted. Up to schema revision 0003 all chains shared one: it is taken over, with pause
and note. Pause and note belong to operators and are never changed once the schedule exists.
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
from workflows.naming import SCHEDULE_CHAIN_MEMO, SCHEDULE_MEMO, schedule_id, schedule_name_of, task_queue

CATCH_UP: Final = timedelta(seconds=10)
"""Temporal's minimum: runs missed while it was down are not caught up, and the next tick does the work."""

_OVERLAPS: Final = {
    Overlap.SKIP: ScheduleOverlapPolicy.SKIP,
    Overlap.BUFFER_ONE: ScheduleOverlapPolicy.BUFFER_ONE,
    Overlap.ALLOW_ALL: ScheduleOverlapPolicy.ALLOW_ALL,
}


class Change(StrEnum):
    """Change of a schedule."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field, current and configured, each as text; None where there is none."""

    field: str
    has: str | None
    wants: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """Planned change of one schedule. `paused` and `note` are the current ones, set by operators."""

    name: str
    change: Change
    differences: tuple[Difference, ...] = ()
    paused: bool = False
    note: str | None = None
    wanted: WantedSchedule | None = field(default=None, repr=False)
    chain_id: int | None = None
    replaces: str | None = None
    """Id of the schedule of all chains that this one replaces."""

    @property
    def schedule_id(self) -> str:
        """Its id in Temporal."""
        return schedule_id(self.name, self.chain_id)


@dataclass(frozen=True, slots=True)
class Known:
    """A schedule that was applied from a file. `chain_id` is None for one that belongs to no chain."""

    name: str
    chain_id: int | None

    @property
    def schedule_id(self) -> str:
        """Its id in Temporal."""
        return schedule_id(self.name, self.chain_id)


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as Temporal has it, with its last run."""

    schedule_id: str
    name: str
    chain_id: int | None
    job: str
    every: str
    paused: bool
    note: str | None
    next_at: datetime | None
    last_at: datetime | None
    last_workflow_id: str | None
    last_status: str | None


async def plan_schedules(client: Client, wanted: Iterable[WantedSchedule], *, chain_id: int) -> list[Planned]:
    """The differences between Temporal and `wanted`, in that order, and at the end schedules of ours to delete.

    Ours are those that belong to chain `chain_id` or to no chain. Raises `TemporalUnavailable` and
    `StartupCheckFailed`.
    """
    planned = [await _plan(client, schedule) for schedule in wanted]
    kept = {plan.schedule_id for plan in planned} | {plan.replaces for plan in planned}
    for known in await list_known(client):
        if known.chain_id not in {None, chain_id} or known.schedule_id in kept:
            continue
        if (found := await _describe(client, known.schedule_id)) is not None:
            state = found.schedule.state
            planned.append(
                Planned(known.name, Change.DELETE, paused=state.paused, note=state.note, chain_id=known.chain_id)
            )
    return planned


async def apply_schedules(client: Client, planned: Sequence[Planned]) -> None:
    """Apply a plan. Safe to repeat, and to run concurrently with another one.

    Raises `TemporalUnavailable` and `StartupCheckFailed`.
    """
    with answered(client):
        for plan in planned:
            if plan.change is Change.DELETE:
                await _delete(client, plan.schedule_id)
            elif plan.wanted is not None and plan.replaces is not None:
                await _take_over(client, plan.wanted, plan.replaces)
            elif plan.wanted is not None and plan.change is not Change.UNCHANGED:
                await _put(client, plan.wanted, _first_state(plan.wanted))


async def list_known(client: Client) -> list[Known]:
    """The schedules applied from a file, of all chains. Manually created ones are not included."""
    known = []
    with answered(client):
        async for entry in await client.list_schedules():
            memo = await entry.memo()
            chain_id = memo.get(SCHEDULE_CHAIN_MEMO)
            try:
                name = schedule_name_of(entry.id, chain_id)
            except ValueError:
                continue
            if SCHEDULE_MEMO in memo:
                known.append(Known(name, chain_id))
    return sorted(known, key=lambda one: (one.name, one.chain_id or 0))


async def list_names(client: Client) -> list[str]:
    """Their names in the schedules file."""
    return [known.name for known in await list_known(client)]


async def read_schedules(client: Client) -> list[ScheduleView]:
    """Every schedule of ours with its next and its last run."""
    views = []
    for known in await list_known(client):
        found = await _describe(client, known.schedule_id)
        if found is not None:
            views.append(await _view(client, known, found))
    return views


async def _plan(client: Client, wanted: WantedSchedule) -> Planned:
    wants = _fields(wanted)
    found = await _describe(client, _id(wanted))
    replaces = None
    if found is None and (found := await _of_all_chains(client, wanted)) is not None:
        replaces = found.id
    if found is None:
        differences = tuple(Difference(name, None, words) for name, words in wants.items())
        return Planned(
            wanted.name,
            Change.CREATE,
            differences,
            paused=wanted.starts_paused,
            note=wanted.note or None,
            wanted=wanted,
            chain_id=wanted.chain_id,
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
        chain_id=wanted.chain_id,
        replaces=replaces,
    )


async def _of_all_chains(client: Client, wanted: WantedSchedule) -> ScheduleDescription | None:
    """The schedule that all chains shared up to schema revision 0003, where it still exists."""
    if wanted.chain_id is None:
        return None
    found = await _describe(client, schedule_id(wanted.name))
    return found if found is not None and SCHEDULE_MEMO in await found.memo() else None


def _id(wanted: WantedSchedule) -> str:
    return schedule_id(wanted.name, wanted.chain_id)


def _first_state(wanted: WantedSchedule) -> ScheduleState:
    return ScheduleState(note=wanted.note or None, paused=wanted.starts_paused)


async def _take_over(client: Client, wanted: WantedSchedule, replaced_id: str) -> None:
    """Create the new one first, in the state of the old one; if stopped in between, the next apply deletes the old
    one.
    """
    replaced = await _describe(client, replaced_id)
    await _put(client, wanted, replaced.schedule.state if replaced is not None else _first_state(wanted))
    await _delete(client, replaced_id)


async def _put(client: Client, wanted: WantedSchedule, state: ScheduleState) -> None:
    """Create the schedule in that state; update it where it exists."""
    chain = {} if wanted.chain_id is None else {SCHEDULE_CHAIN_MEMO: wanted.chain_id}
    try:
        await client.create_schedule(
            _id(wanted),
            _schedule(wanted, state),
            memo={SCHEDULE_MEMO: "schedule", **chain},
            rpc_timeout=RPC_TIMEOUT,
        )
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(_id(wanted))
        await handle.update(_keeping_state(wanted), rpc_timeout=RPC_TIMEOUT)


def _keeping_state(wanted: WantedSchedule) -> Any:
    def update(found: ScheduleUpdateInput) -> ScheduleUpdate:
        # Just read by the update itself: what an operator has paused stays paused.
        return ScheduleUpdate(_schedule(wanted, found.description.schedule.state))

    return update


async def _delete(client: Client, id_of_schedule: str) -> None:
    try:
        await client.get_schedule_handle(id_of_schedule).delete(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise


async def _describe(client: Client, id_of_schedule: str) -> ScheduleDescription | None:
    with answered(client):
        try:
            return await client.get_schedule_handle(id_of_schedule).describe(rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
                return None
            raise


def _schedule(wanted: WantedSchedule, state: ScheduleState) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            wanted.job,
            wanted.input,
            id=_id(wanted),
            task_queue=task_queue(wanted.chain_id),
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
    """A configured schedule as text, field by field."""
    return {
        "job": wanted.job,
        "every": _interval(wanted.every, wanted.offset),
        "jitter": show_duration(wanted.jitter),
        "overlap": wanted.overlap.value,
        "catch-up": show_duration(CATCH_UP),
        "time limit": show_duration(wanted.time_limit),
        "task queue": task_queue(wanted.chain_id),
        "workflow id": _id(wanted),
        **_input_fields(wanted.input),
    }


async def _fields_of(client: Client, found: ScheduleDescription) -> dict[str, str]:
    """The same for a schedule in Temporal."""
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


async def _view(client: Client, known: Known, found: ScheduleDescription) -> ScheduleView:
    fields = await _fields_of(client, found)
    info, state = found.info, found.schedule.state
    last = info.recent_actions[-1] if info.recent_actions else None
    run = last.action if last and isinstance(last.action, ScheduleActionExecutionStartWorkflow) else None
    return ScheduleView(
        schedule_id=known.schedule_id,
        name=known.name,
        chain_id=known.chain_id,
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
    """Status of a run; None where Temporal has deleted it."""
    with answered(client):
        try:
            handle = client.get_workflow_handle(run.workflow_id, run_id=run.first_execution_run_id)
            status = (await handle.describe(rpc_timeout=RPC_TIMEOUT)).status
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise
    return status.name.lower() if status else None
