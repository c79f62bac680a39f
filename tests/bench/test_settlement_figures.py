"""What a settlement costs is counted from its history and from its requests; baselines do a settlement's work."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from bench.baseline_process import opened_steps, settling_inline
from bench.baselines import settlement_of
from bench.cost import HistoryCost, RpcKind
from bench.settlement_report import RealWait, Waiting
from bench.settlements import Paid
from bench.usage_of_machine import cpu_seconds_of
from bench.waiting import finality_polls, real_wait
from domain.ledger.entries import Reason
from domain.money import credits_for_usd_cents
from domain.payments.attempt import AttemptStatus
from tests.support.engine import Engine


def event(number: int, kind: str, **attributes: object) -> HistoryEvent:
    made = HistoryEvent(event_id=number, event_type=EventType.Value(f"EVENT_TYPE_{kind}"))
    field = f"{kind.lower()}_event_attributes"
    for name, value in attributes.items():
        setattr(getattr(made, field), name, value)
    return made


def upsert(number: int, *names: str) -> HistoryEvent:
    made = event(number, "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES")
    fields = made.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
    for name in names:
        fields[name].CopyFrom(Payload())
    return made


def scheduled(number: int, name: str) -> HistoryEvent:
    made = event(number, "ACTIVITY_TASK_SCHEDULED")
    made.activity_task_scheduled_event_attributes.activity_type.name = name
    return made


def local_activity(number: int, task: int) -> HistoryEvent:
    return event(number, "MARKER_RECORDED", marker_name="core_local_activity", workflow_task_completed_event_id=task)


STARTED = event(1, "WORKFLOW_EXECUTION_STARTED")


def test_retries_are_actions_and_attempts() -> None:
    cost = HistoryCost.of(
        [
            STARTED,
            scheduled(2, "await_confirmation"),
            event(3, "ACTIVITY_TASK_STARTED", scheduled_event_id=2, attempt=4),
        ]
    )
    assert (cost.events, cost.activities, cost.billed_actions) == (3, 1, 1 + 1 + 3)
    assert cost.polls == {"await_confirmation": 4}


def test_local_activities_of_one_workflow_task_are_one_action() -> None:
    together = HistoryCost.of([STARTED, local_activity(5, 4), local_activity(6, 4)])
    apart = HistoryCost.of([STARTED, local_activity(5, 4), local_activity(8, 7)])
    assert (together.local_activities, together.billed_actions) == (2, 2)
    assert (apart.local_activities, apart.billed_actions) == (2, 3)


def test_a_marker_of_a_patch_and_its_search_attribute_are_free() -> None:
    patch = event(2, "MARKER_RECORDED", marker_name="core_patch", workflow_task_completed_event_id=1)
    assert HistoryCost.of([STARTED, patch, upsert(3, "TemporalChangeVersion")]).billed_actions == 1
    assert HistoryCost.of([STARTED, upsert(3, "PaymentStatus")]).billed_actions == 2
    assert HistoryCost.of([STARTED, upsert(3, "PaymentStatus", "TemporalChangeVersion")]).billed_actions == 2


def test_a_request_is_for_whom_its_methods_say() -> None:
    def kind(*methods: str) -> RpcKind:
        return RpcKind.of([{"method": method} for method in ("eth_chainId", *methods)])

    assert kind("eth_getTransactionReceipt", "eth_getBlockByNumber", "eth_blockNumber") is RpcKind.PAYMENTS
    assert kind("eth_getBlockByNumber", "eth_getLogs") is RpcKind.WATCHER
    assert kind("eth_blockNumber") is RpcKind.WATCHER
    assert kind("eth_getBlockByNumber") is RpcKind.FINALITY
    assert kind("eth_call") is RpcKind.TOKEN


def history(*, polls: dict[str, int], actions: int) -> HistoryCost:
    return HistoryCost(
        events=20, bytes=1, workflow_tasks=3, activities=2, local_activities=2, billed_actions=actions, polls=polls
    )


def test_on_base_a_run_that_tracks_its_own_finality_polls_for_twenty_minutes() -> None:
    assert finality_polls(600) == 11
    assert finality_polls(1) == 2
    found = real_wait([history(polls={"await_finality": 4}, actions=12)], others_actions=0)
    assert (found.billed_actions_estimated, found.billed_actions_on_base) == (12, 12 - 4 + 11)


def test_a_run_that_does_not_costs_the_same_on_base() -> None:
    found = real_wait(
        [history(polls={"await_confirmation": 2}, actions=4), history(polls={}, actions=5)], others_actions=0.25
    )
    assert found.billed_actions_on_base == found.billed_actions_estimated == 4.5
    assert found.polls == {"await_confirmation": 1.0}
    assert found.billed_actions_of_others == 0.25


def test_payments_that_were_not_final_in_time_make_the_run_invalid() -> None:
    wait = real_wait([history(polls={}, actions=4)], others_actions=0)
    assert waiting(wait, credited=3, final=3).violations == []
    [violation] = waiting(wait, credited=3, final=2).violations
    assert "2 final" in violation


def waiting(wait: RealWait, *, credited: int, final: int) -> Waiting:
    return Waiting(
        payments=3,
        credited=credited,
        final=final,
        credited_seconds=1,
        seconds=2,
        blocks=1,
        requests_per_payment=1,
        calls_per_payment=2,
        requests_by_kind={},
        watcher_requests_per_block=2,
        cpu_ms_by_process={},
        history=wait,
    )


def test_processor_time_of_a_process_that_is_named_itself_counts_once() -> None:
    busy = "import time; end = time.process_time() + 0.15\nwhile time.process_time() < end: pass\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE) as child:
        while cpu_seconds_of({"child": child.pid})["child"] < 0.1:
            time.sleep(0.005)
        both = cpu_seconds_of({"child": child.pid, "parent": os.getpid()})
        parent_alone = cpu_seconds_of({"parent": os.getpid()})["parent"]
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    assert both["child"] >= 0.1
    assert parent_alone - both["parent"] >= 0.05


async def test_plain_code_gives_the_credits_that_the_product_gives(engine: Engine) -> None:
    payer, intent, sent = await engine.buy()
    async with opened_steps(engine.settings, engine.variables) as steps, settling_inline(steps) as settle:
        await settle(settlement_of(Paid(payer, intent, sent), engine.settings))
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.CREDITED
    bought = credits_for_usd_cents(10_000)
    assert await engine.credits(intent.attempt_id) == {
        Reason.CREDITS_PURCHASE: bought,
        Reason.PLATFORM_REVENUE_SHARE: bought * 3 // 4,
    }
