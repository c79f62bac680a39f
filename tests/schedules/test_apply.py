"""Schedules on a real Temporal: created, updated and deleted as the file says, with an operator's pause kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleCalendarSpec,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from devstack.processes import wait_until
from domain.errors import TemporalUnavailable
from starter.schedule_file import Overlap, WantedSchedule, load_schedules
from starter.schedules import (
    CATCH_UP,
    Change,
    Difference,
    Planned,
    apply_schedules,
    list_names,
    plan_schedules,
    read_schedules,
)
from starter.temporal import connect
from tests.support.servers import Namespace
from workflows.naming import PLATFORM_TASK_QUEUE, SCHEDULE_MEMO, schedule_id, schedule_name_of
from workflows.registry import JOBS

NOTE: Final = "the node is being moved"

PATIENCE_SECONDS = 30.0
CHAIN = 8453

BEAT = WantedSchedule(
    name="beat",
    job="GovernanceHeartbeat",
    every=timedelta(minutes=5),
    offset=timedelta(0),
    jitter=timedelta(0),
    overlap=Overlap.SKIP,
    time_limit=timedelta(hours=1),
    starts_paused=False,
    note="",
    input={"low_balance_credits": 7, "head_age_seconds_max": 60},
)
SWEEP = replace(BEAT, name="sweep", job="Housekeeping", every=timedelta(minutes=1), input={})


async def changes(client: Client, *wanted: WantedSchedule) -> dict[str, Change]:
    return {plan.name: plan.change for plan in await plan_schedules(client, wanted, chain_id=CHAIN)}


async def apply(client: Client, *wanted: WantedSchedule) -> list[Planned]:
    planned = await plan_schedules(client, wanted, chain_id=CHAIN)
    await apply_schedules(client, planned)
    return planned


async def listed(client: Client, *names: str) -> None:
    """Temporal's list is a moment behind."""

    async def are_there() -> bool:
        return await list_names(client) == sorted(names)

    await wait_until(are_there, timeout_seconds=PATIENCE_SECONDS, what=f"schedules {names}")


async def test_the_first_time_everything_is_created_and_the_second_time_nothing_is_done(namespace: Namespace) -> None:
    wanted = load_schedules(None, JOBS, chain_id=CHAIN)
    assert set((await changes(namespace.client, *wanted)).values()) == {Change.CREATE}
    await apply(namespace.client, *wanted)
    assert set((await changes(namespace.client, *wanted)).values()) == {Change.UNCHANGED}
    await listed(namespace.client, *(one.name for one in wanted))


async def test_what_is_created_skips_overlaps_and_catches_nothing_up(namespace: Namespace) -> None:
    await apply(namespace.client, BEAT)
    schedule = (await namespace.client.get_schedule_handle(schedule_id("beat")).describe()).schedule
    assert schedule.policy.overlap == ScheduleOverlapPolicy.SKIP
    assert schedule.policy.catchup_window == CATCH_UP
    assert schedule.spec.intervals == [ScheduleIntervalSpec(every=timedelta(minutes=5))]
    assert isinstance(schedule.action, ScheduleActionStartWorkflow)
    assert (schedule.action.workflow, schedule.action.task_queue) == ("GovernanceHeartbeat", PLATFORM_TASK_QUEUE)
    assert not schedule.state.paused


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"every": timedelta(minutes=6)}, Difference("every", "5m", "6m")),
        ({"offset": timedelta(seconds=7)}, Difference("every", "5m", "5m + 7s")),
        ({"jitter": timedelta(seconds=7)}, Difference("jitter", "0s", "7s")),
        ({"overlap": Overlap.ALLOW_ALL}, Difference("overlap", "skip", "allow_all")),
        ({"time_limit": timedelta(minutes=7)}, Difference("time limit", "1h", "7m")),
        ({"job": "Housekeeping"}, Difference("job", "GovernanceHeartbeat", "Housekeeping")),
    ],
    ids=lambda value: value.field if isinstance(value, Difference) else "",
)
async def test_the_difference_names_what_changed_and_nothing_else(
    shared: Client, changed: dict[str, object], difference: Difference
) -> None:
    before = replace(BEAT, name=f"beat-{difference.field.replace(' ', '-')}-{len(difference.wants or '')}")
    await apply(shared, before)
    after = replace(before, **changed)  # type: ignore[arg-type]
    [planned] = [plan for plan in await plan_schedules(shared, [after], chain_id=CHAIN) if plan.name == before.name]
    assert (planned.change, planned.differences) == (Change.UPDATE, (difference,))
    await apply_schedules(shared, [planned])
    assert (await changes(shared, after))[before.name] is Change.UNCHANGED


async def test_the_difference_names_each_input_that_changed(shared: Client) -> None:
    before = replace(BEAT, name="inputs")
    await apply(shared, before)
    after = replace(before, input={"low_balance_credits": 8, "new_one": [1]})
    [planned] = [plan for plan in await plan_schedules(shared, [after], chain_id=CHAIN) if plan.name == before.name]
    assert set(planned.differences) == {
        Difference("input.low_balance_credits", "7", "8"),
        Difference("input.new_one", None, "[1]"),
        Difference("input.head_age_seconds_max", "60", None),
    }


async def test_an_operators_pause_and_note_outlive_an_update(namespace: Namespace) -> None:
    await apply(namespace.client, BEAT)
    handle = namespace.client.get_schedule_handle(schedule_id("beat"))
    await handle.pause(note=NOTE)
    [planned] = await apply(namespace.client, replace(BEAT, every=timedelta(minutes=6), note="another", input={}))
    assert (planned.paused, planned.note) == (True, NOTE)
    schedule = (await handle.describe()).schedule
    assert (schedule.state.paused, schedule.state.note) == (True, NOTE)
    assert schedule.spec.intervals[0].every == timedelta(minutes=6)
    await handle.unpause(note="moved")
    await apply(namespace.client, replace(BEAT, starts_paused=True))
    assert not (await handle.describe()).schedule.state.paused


async def test_a_schedule_can_begin_paused_with_a_note(shared: Client) -> None:
    await apply(shared, replace(BEAT, name="later", starts_paused=True, note="not before the launch"))
    state = (await shared.get_schedule_handle(schedule_id("later")).describe()).schedule.state
    assert (state.paused, state.note) == (True, "not before the launch")


async def test_what_the_file_names_no_more_is_deleted_and_no_foreign_schedule(namespace: Namespace) -> None:
    client = namespace.client
    await apply(client, BEAT, SWEEP)
    action = ScheduleActionStartWorkflow("Theirs", id="theirs", task_queue="theirs")
    theirs = Schedule(action=action, spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(days=1))]))
    await client.create_schedule("theirs", theirs, memo={SCHEDULE_MEMO: "schedule"})
    await client.create_schedule(schedule_id("by-hand"), theirs)
    await listed(client, "beat", "sweep")
    assert await changes(client, BEAT) == {"beat": Change.UNCHANGED, "sweep": Change.DELETE}
    await apply(client, BEAT)
    await listed(client, "beat")
    for kept in ("theirs", schedule_id("by-hand"), schedule_id("beat")):
        await client.get_schedule_handle(kept).describe()
    assert await changes(client, BEAT) == {"beat": Change.UNCHANGED}


async def test_many_applies_at_once_end_with_what_they_all_want(namespace: Namespace) -> None:
    planned = [await plan_schedules(namespace.client, [BEAT, SWEEP], chain_id=CHAIN) for _ in range(4)]
    await asyncio.gather(*(apply_schedules(namespace.client, plan) for plan in planned))
    assert await changes(namespace.client, BEAT, SWEEP) == {"beat": Change.UNCHANGED, "sweep": Change.UNCHANGED}


async def test_what_vanished_since_the_plan_is_created_again_or_stays_deleted(namespace: Namespace) -> None:
    client = namespace.client
    await apply(client, BEAT, SWEEP)
    await listed(client, "beat", "sweep")
    planned = await plan_schedules(client, [replace(BEAT, every=timedelta(minutes=6))], chain_id=CHAIN)
    for name in ("beat", "sweep"):
        await client.get_schedule_handle(schedule_id(name)).delete()
    await apply_schedules(client, planned)
    assert (await changes(client, replace(BEAT, every=timedelta(minutes=6))))["beat"] is Change.UNCHANGED


async def test_an_edit_by_hand_is_a_difference(shared: Client) -> None:
    wanted = replace(BEAT, name="edited")
    await apply(shared, wanted)

    def edit(found: ScheduleUpdateInput) -> ScheduleUpdate:
        found.description.schedule.spec.calendars = [ScheduleCalendarSpec()]
        found.description.schedule.policy.catchup_window = timedelta(days=1)
        return ScheduleUpdate(found.description.schedule)

    await shared.get_schedule_handle(schedule_id("edited")).update(edit)
    [planned] = [plan for plan in await plan_schedules(shared, [wanted], chain_id=CHAIN) if plan.name == "edited"]
    assert set(planned.differences) == {
        Difference("every", "5m and calendars", "5m"),
        Difference("catch-up", "1d", "10s"),
    }


async def test_the_list_says_what_is_next_and_what_is_paused(namespace: Namespace) -> None:
    await apply(namespace.client, BEAT, replace(SWEEP, starts_paused=True, note="later"))
    await listed(namespace.client, "beat", "sweep")
    beat, sweep = await read_schedules(namespace.client)
    assert (beat.name, beat.job, beat.every, beat.paused, beat.last_status) == (
        "beat",
        "GovernanceHeartbeat",
        "5m",
        False,
        None,
    )
    assert beat.next_at is not None
    assert (sweep.paused, sweep.note, sweep.next_at) == (True, "later", None)


async def test_a_temporal_that_does_not_answer_is_one_error() -> None:
    client = await connect({"TEMPORAL_ADDRESS": "127.0.0.1:1"}, lazy=True)
    with pytest.raises(TemporalUnavailable):
        await plan_schedules(client, [BEAT], chain_id=CHAIN)


def test_ids_of_schedules_go_both_ways() -> None:
    assert schedule_name_of(schedule_id("beat")) == "beat"
    with pytest.raises(ValueError, match="schedule of ours"):
        schedule_name_of("beat")


# -- two chains in one namespace

WATCH = replace(BEAT, name="rescan", job="RescanChain", input={"blocks": 7, "chain_id": CHAIN}, chain_id=CHAIN)
OTHER = 31_337


def of_chain(wanted: WantedSchedule, chain_id: int) -> WantedSchedule:
    return replace(wanted, chain_id=chain_id, input={**wanted.input, "chain_id": chain_id})


async def apply_of(client: Client, chain_id: int, *wanted: WantedSchedule) -> dict[str, Change]:
    planned = await plan_schedules(client, wanted, chain_id=chain_id)
    await apply_schedules(client, planned)
    return {plan.schedule_id: plan.change for plan in planned}


async def test_each_chain_has_its_own_schedules_on_its_own_queue_and_the_platform_has_one_of_each(
    namespace: Namespace,
) -> None:
    client = namespace.client
    await apply_of(client, CHAIN, BEAT, WATCH)
    await apply_of(client, OTHER, BEAT, of_chain(WATCH, OTHER))
    await listed(client, "beat", "rescan", "rescan")
    queues = {}
    for name in ("settle-beat", f"settle-rescan-{CHAIN}", f"settle-rescan-{OTHER}"):
        action = (await client.get_schedule_handle(name).describe()).schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        queues[name] = (action.id, action.task_queue)
    assert queues == {
        "settle-beat": ("settle-beat", PLATFORM_TASK_QUEUE),
        f"settle-rescan-{CHAIN}": (f"settle-rescan-{CHAIN}", f"settlement-{CHAIN}"),
        f"settle-rescan-{OTHER}": (f"settle-rescan-{OTHER}", f"settlement-{OTHER}"),
    }
    assert set((await apply_of(client, CHAIN, BEAT, WATCH)).values()) == {Change.UNCHANGED}
    views = [(view.name, view.chain_id) for view in await read_schedules(client)]
    assert views == [("beat", None), ("rescan", CHAIN), ("rescan", OTHER)]


async def test_what_one_chains_file_names_no_more_is_deleted_of_that_chain_only(namespace: Namespace) -> None:
    client = namespace.client
    await apply_of(client, CHAIN, BEAT, WATCH)
    await apply_of(client, OTHER, BEAT, of_chain(WATCH, OTHER))
    await listed(client, "beat", "rescan", "rescan")
    assert await apply_of(client, OTHER, BEAT) == {
        "settle-beat": Change.UNCHANGED,
        f"settle-rescan-{OTHER}": Change.DELETE,
    }
    await listed(client, "beat", "rescan")
    assert set((await apply_of(client, CHAIN, BEAT, WATCH)).values()) == {Change.UNCHANGED}


@pytest.mark.parametrize("paused", [True, False])
async def test_a_schedule_that_all_chains_shared_is_taken_over_with_an_operators_pause(
    namespace: Namespace, paused: bool
) -> None:
    client = namespace.client
    before = replace(WATCH, chain_id=None, input={"blocks": 7})
    await apply(client, BEAT, before)
    shared = client.get_schedule_handle(schedule_id("rescan"))
    if paused:
        await shared.pause(note=NOTE)
    await listed(client, "beat", "rescan")
    planned = await plan_schedules(client, [BEAT, WATCH], chain_id=CHAIN)
    assert [(plan.name, plan.change) for plan in planned] == [("beat", Change.UNCHANGED), ("rescan", Change.UPDATE)]
    assert planned[1].paused is paused
    assert Difference("task queue", PLATFORM_TASK_QUEUE, f"settlement-{CHAIN}") in planned[1].differences
    await apply_schedules(client, planned)
    state = (await client.get_schedule_handle(f"settle-rescan-{CHAIN}").describe()).schedule.state
    assert (state.paused, state.note) == (paused, NOTE if paused else None)
    with pytest.raises(RPCError) as gone:
        await shared.describe()
    assert gone.value.status == RPCStatusCode.NOT_FOUND
    await listed(client, "beat", "rescan")
    assert set((await apply_of(client, CHAIN, BEAT, WATCH)).values()) == {Change.UNCHANGED}
    # The other chain makes its own, and leaves this one alone.
    assert (await apply_of(client, OTHER, BEAT, of_chain(WATCH, OTHER)))[f"settle-rescan-{OTHER}"] is Change.CREATE


async def test_a_takeover_that_was_stopped_half_way_is_finished_by_the_next_apply(namespace: Namespace) -> None:
    client = namespace.client
    await apply(client, replace(WATCH, chain_id=None, input={"blocks": 7}))
    planned = await plan_schedules(client, [WATCH], chain_id=CHAIN)
    await apply_schedules(client, [replace(planned[0], replaces=None)])  # the new one is there, and so is the old one
    await listed(client, "rescan", "rescan")
    assert await apply_of(client, CHAIN, WATCH) == {
        f"settle-rescan-{CHAIN}": Change.UNCHANGED,
        "settle-rescan": Change.DELETE,
    }


async def test_a_schedule_made_by_hand_under_the_old_name_is_not_taken_over(namespace: Namespace) -> None:
    client = namespace.client
    action = ScheduleActionStartWorkflow("Theirs", id="theirs", task_queue="theirs")
    theirs = Schedule(action=action, spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(days=1))]))
    await client.create_schedule(schedule_id("rescan"), theirs)
    assert await apply_of(client, CHAIN, WATCH) == {f"settle-rescan-{CHAIN}": Change.CREATE}
    await client.get_schedule_handle(schedule_id("rescan")).describe()
