"""Housekeeping of calls as a workflow: crossings are published and doubtful receipts are findings, each once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from activities.billing.holds import HoldActivities
from activities.billing.housekeeping import BillingHousekeepingActivities
from activities.billing.signatures import LapsedToResolve
from activities.interceptors import DomainErrors
from activities.operations.events import AnnouncementActivities
from db.billing.alerts import list_doubtful_receipts
from db.billing.lapsed import LapsedHold
from db.engine import ServiceDatabase
from db.operations.findings import list_unpublished, open_finding
from domain.errors import EventNotDelivered
from domain.operations.events import BALANCE_EXHAUSTED, LIMIT_REACHED, Publish
from services.billing.alerts import finding_of, open_findings_of_receipts
from services.billing.provider_api import Providers
from tests.billing.starting import Starter
from tests.governance.conftest import Heard
from tests.support.engine import PATIENCE_SECONDS
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.spending import GRACE, Spender
from tests.support.sql import connect, query, scalar
from workflows.jobs.billing_housekeeping import (
    BillingHousekeeping,
    BillingHousekeepingInput,
    BillingHousekeepingResult,
)
from workflows.naming import PLATFORM_TASK_QUEUE
from workflows.resolve_hold import ResolveHold

CREDITS: Final = 1_000


@pytest.fixture
def service(roles: RolePair) -> ServiceDatabase:
    """Role settle_service, as the worker has it."""
    return roles.service


@pytest.fixture
def heard() -> Heard:
    """Nothing yet."""
    return Heard()


@asynccontextmanager
async def working(namespace: Namespace, service: ServiceDatabase, publish: Publish) -> AsyncIterator[None]:
    """A worker of the platform's queue, for the length of the block."""
    async with Worker(
        namespace.client,
        task_queue=PLATFORM_TASK_QUEUE,
        workflows=[BillingHousekeeping, ResolveHold],
        activities=[
            *BillingHousekeepingActivities(service, starter=Starter(namespace.client)).activities(),
            *HoldActivities(service, Providers(), grace_credits=GRACE).activities(),
            *AnnouncementActivities(publish).activities(),
        ],
        interceptors=[DomainErrors()],
    ):
        yield


async def keep_house(namespace: Namespace, **wanted: int) -> BillingHousekeepingResult:
    """One run from start to end."""
    return await namespace.client.execute_workflow(
        BillingHousekeeping.run,
        BillingHousekeepingInput(**wanted),
        id=f"house-{uuid4()}",
        task_queue=PLATFORM_TASK_QUEUE,
    )


async def test_an_account_that_runs_empty_is_published_once_for_each_crossing_whenever_the_receiver_is_there(
    namespace: Namespace,
    service: ServiceDatabase,
    heard: Heard,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workflows.policies.JOB_RETRY.maximum_attempts", 1)
    spender = Spender.open(database, credits=CREDITS)
    spender.capture(spender.hold(CREDITS), CREDITS + 7, grace=50)

    async def refuse(_: object) -> None:
        raise EventNotDelivered("of the test", "is away")

    async with working(namespace, service, refuse):
        assert (await keep_house(namespace)).alerts_published == 0
    async with working(namespace, service, heard.publish):
        assert (await keep_house(namespace)).alerts_published == 1
        assert (await keep_house(namespace)).alerts_published == 0
        [event] = heard.of_type(BALANCE_EXHAUSTED)
        assert (event.subject, event.data["balanceCredits"]) == (spender.account, -7)
        spender.add_credits(2 * CREDITS)
        spender.capture(spender.hold(10), 10)
        spender.capture(spender.hold(1_983), 1_983)
        assert (await keep_house(namespace)).alerts_published == 1
    assert len({event.id for event in heard.of_type(BALANCE_EXHAUSTED)}) == 2


async def test_a_limit_is_published_at_80_and_at_100_percent_once_in_its_period(
    namespace: Namespace, service: ServiceDatabase, heard: Heard, database: Database
) -> None:
    account = Spender.open(database, credits=CREDITS).account
    limited = Spender(database, account)
    limited.create_key(limit_day=100)
    async with working(namespace, service, heard.publish):
        for charged, percent in ((79, None), (1, 80), (15, None), (5, 100)):
            limited.capture(limited.hold(charged), charged)
            await keep_house(namespace)
            told = [event.data["thresholdPercent"] for event in heard.of_type(LIMIT_REACHED)]
            assert (told[-1:] == [percent]) if percent else percent not in told
    first, second = heard.of_type(LIMIT_REACHED)
    assert first.data | {"thresholdPercent": 100, "spentCredits": 100, "balanceCredits": 900, "reference": ""} == (
        second.data | {"reference": ""}
    )
    assert (first.data["limit"], first.data["keyId"], first.data["period"]) == (
        "key_limit", str(limited.key_id), "day",
    )  # fmt: skip


def findings(database: Database) -> list[tuple[Any, ...]]:
    """All of them, in the order in which they were opened."""
    return query(database.service_url, "SELECT kind, billing_account_id, value_raw, detail FROM findings ORDER BY key")


async def test_a_doubtful_receipt_is_one_finding_and_a_lapsed_hold_is_resolved_by_the_clock_alone(
    namespace: Namespace, service: ServiceDatabase, heard: Heard, database: Database
) -> None:
    other = Spender.open(database, credits=100_000)
    hold_id = other.hold(10_000)
    other.lapse(hold_id)
    spender = Spender.open(database, credits=CREDITS)
    doubt = {"doubt": "implausible_usage", "doubt_detail": "output_tokens is -5"}
    spender.capture(spender.hold(10), 10)
    spender.capture(spender.hold(10), 10, **doubt)
    spender.capture(spender.hold(10), 10, doubt="unheard_of")
    spender.capture(spender.hold(10), 2_000, grace=0)
    spender.capture(spender.hold(0), 500, grace=0, **doubt)
    async with working(namespace, service, heard.publish):
        result = await keep_house(namespace, batch_size=1)
        assert result.findings_opened == {"charge_doubtful": 3, "charge_uncollected": 1}
        assert result.holds == {"started": 1}
        resolution = namespace.client.get_workflow_handle(f"resolve-hold-{hold_id}")
        assert (await resolution.result())["outcome"] == "captured"
        again = await keep_house(namespace)
        assert (again.findings_opened, again.holds) == ({}, {})
        with connect(database.service_url) as operator:
            operator.execute("UPDATE findings SET resolved_at = now(), resolution = 'write_off'")
        assert (await keep_house(namespace)).findings_opened == {}, "an operator has decided"
    found = findings(database)
    assert {account for _, account, _, _ in found} == {spender.account}
    details = " ".join(detail for *_, detail in found)
    assert "output_tokens is -5" in details
    assert "let the gateway clamp max_tokens" in details
    assert "500 credits" in details
    assert sorted(value for _, _, value, _ in found if value) == [50, 103]
    async with service.autocommit() as connection:
        assert len(await list_unpublished(connection, limit=10)) == 4, "the watcher publishes them as all others"


async def test_two_runs_at_once_open_a_finding_once(service: ServiceDatabase, database: Database) -> None:
    spender = Spender.open(database, credits=CREDITS)
    spender.capture(spender.hold(10), 10, doubt="zero_usage")
    async with service.transaction() as first:
        [receipt] = await list_doubtful_receipts(first, limit=10)
        assert await open_finding(first, finding_of(receipt))
        second = asyncio.create_task(open_findings_of_receipts(service, batch_size=10))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not scalar(database.superuser_url, WAITING):
                await asyncio.sleep(0.01)
    opened, is_all, _ = await second
    assert (opened, is_all) == ({}, True)


WAITING: Final = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def test_a_run_starts_as_many_resolutions_as_it_may(service: ServiceDatabase, database: Database) -> None:
    spender = Spender.open(database, credits=CREDITS)
    for _ in range(3):
        spender.lapse(spender.hold(10))
    starter = Started()
    activities = BillingHousekeepingActivities(service, starter=starter)
    done = await ActivityEnvironment().run(activities.start_hold_resolutions, LapsedToResolve(limit=2))
    assert done.counts == {"started": 2}
    assert len(starter.started) == 2


@dataclass
class Started:
    """A Temporal that notes what is started."""

    started: list[UUID] = field(default_factory=list)

    async def start_hold_resolution(self, hold: LapsedHold) -> bool:
        self.started.append(hold.id)
        return True


async def test_the_cursor_goes_on_and_old_receipts_are_not_read_again(
    namespace: Namespace, service: ServiceDatabase, heard: Heard, database: Database
) -> None:
    spender = Spender.open(database, credits=CREDITS)
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE billing_cursors SET seen_to = now() - interval '1 day'")
    async with working(namespace, service, heard.publish):
        await keep_house(namespace)
        behind = scalar(database.service_url, "SELECT extract(epoch FROM now() - seen_to)::int FROM billing_cursors")
        assert 600 <= behind < 700, "a transaction that is still open may have begun before"
        spender.capture(spender.hold(10), 10, doubt="zero_usage")
        with connect(database.superuser_url, triggers=False) as superuser:
            superuser.execute("UPDATE charge_receipts SET created_at = created_at - interval '9 minutes'")
        assert (await keep_house(namespace)).findings_opened == {"charge_doubtful": 1}, "it had appeared late"


async def test_a_step_that_cannot_be_done_is_named_and_the_others_are_done(
    namespace: Namespace,
    service: ServiceDatabase,
    heard: Heard,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workflows.policies.BATCHES_RETRY.maximum_attempts", 1)
    spender = Spender.open(database, credits=CREDITS)
    spender.capture(spender.hold(CREDITS), CREDITS)
    with connect(database.superuser_url) as superuser:
        superuser.execute("REVOKE SELECT ON charge_receipts FROM settle_service")
    async with working(namespace, service, heard.publish):
        with pytest.raises(WorkflowFailureError) as caught:
            await keep_house(namespace)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.message.startswith("open_findings_of_receipts: ")
    assert len(heard.of_type(BALANCE_EXHAUSTED)) == 1
    assert scalar(
        database.service_url, "SELECT to_char(now() + interval '2 months', '\"charge_receipts_\"YYYY_MM')"
    ) in {
        name for (name,) in query(database.service_url, "SELECT relname FROM pg_class WHERE relname LIKE 'charge_%%'")
    }


async def test_claims_of_calls_are_deleted_a_day_later_unless_the_call_is_in_flight(
    service: ServiceDatabase, database: Database
) -> None:
    spender = Spender.open(database, credits=CREDITS)
    in_flight = spender.hold(10)
    with connect(database.superuser_url) as superuser:
        for name, age, hold_id in (
            ("old", "25 hours", None),
            ("young", "23 hours", None),
            ("held", "25 hours", in_flight),
        ):
            superuser.execute(
                "INSERT INTO call_claims (virtual_key_id, key, request_hash, request_id, hold_id, lease_until,"
                " created_at)"
                " VALUES (%s, %s, '', 'r', %s, now() - interval '1 hour', now() - %s::interval)",
                (spender.key_id, name, hold_id, age),
            )
    with connect(database.service_url) as worker:
        pruned = dict(worker.execute("SELECT * FROM prune_expired(100, '24 hours')").fetchall())
    assert pruned["call_claims"] == 1
    assert query(database.superuser_url, "SELECT key FROM call_claims ORDER BY key") == [("held",), ("young",)]
    assert scalar(database.service_url, "SELECT held_credits FROM billing_accounts WHERE held_credits > 0") == 10
