"""Holds whose gateway has died: found, and charged once, by the provider's record or by what was produced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import aiohttp
import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from activities.billing.holds import HoldActivities
from activities.billing.housekeeping import BillingHousekeepingActivities
from activities.billing.signatures import LapsedToResolve, ResolvedHold
from activities.interceptors import DomainErrors
from db.engine import ServiceDatabase
from devstack.upstream import Upstream as LocalUpstream
from domain.billing.upstreams import Upstream, UsageLookup
from services.billing.provider_api import Providers
from tests.billing.starting import Starter
from tests.support.oracle import check_books
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.servers import Namespace
from tests.support.spending import GRACE, Spender
from tests.support.sql import connect, query
from workflows.naming import BILLING_ACCOUNT_ID, PLATFORM_TASK_QUEUE, resolve_hold_workflow_id
from workflows.resolve_hold import ResolveHold

HELD: Final = 10_000


@pytest.fixture
def service(roles: RolePair) -> ServiceDatabase:
    """Role settle_service, as the worker has it."""
    return roles.service


@pytest.fixture
def spender(database: Database) -> Spender:
    """An account with ten dollars."""
    return Spender.open(database, credits=100_000_000)


def providers_at(url: str = "http://127.0.0.1:9", lookup: UsageLookup = UsageLookup.NONE) -> Providers:
    """One upstream, named as the holds of these tests name it."""
    upstream = Upstream(name="local", base_url=f"{url}/v1", models=("*",), usage_lookup=lookup)
    return Providers((upstream,), {"local": "sk-upstream"})


@asynccontextmanager
async def working(namespace: Namespace, service: ServiceDatabase, providers: Providers) -> AsyncIterator[None]:
    """A worker that resolves holds, for the length of the block."""
    async with Worker(
        namespace.client,
        task_queue=PLATFORM_TASK_QUEUE,
        workflows=[ResolveHold],
        activities=HoldActivities(service, providers, grace_credits=GRACE).activities(),
        interceptors=[DomainErrors()],
    ):
        yield


async def sweep(namespace: Namespace, service: ServiceDatabase, *, limit: int = 100) -> int:
    """One run of housekeeping's step; how many resolutions were started."""
    activities = BillingHousekeepingActivities(service, starter=Starter(namespace.client))
    done = await ActivityEnvironment().run(activities.start_hold_resolutions, LapsedToResolve(limit=limit))
    return done.counts.get("started", 0)


def run_of(namespace: Namespace, hold_id: UUID) -> WorkflowHandle[ResolveHold, ResolvedHold]:
    """The resolution of a hold."""
    return namespace.client.get_workflow_handle_for(ResolveHold.run, resolve_hold_workflow_id(hold_id))


async def resolve(
    namespace: Namespace, service: ServiceDatabase, hold_id: UUID, providers: Providers | None = None
) -> ResolvedHold:
    """Sweep once, and wait for what becomes of the hold."""
    async with working(namespace, service, providers or providers_at()):
        assert await sweep(namespace, service) == 1
        return await asyncio.wait_for(run_of(namespace, hold_id).result(), 60)


def orphan(spender: Spender, *, output_bytes: int = 0, upstream_id: str | None = None, **changes: Any) -> UUID:
    """A call whose gateway was last heard of a minute ago, and had passed on so much until then."""
    hold_id = spender.hold(HELD, **changes)
    with connect(spender.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE credit_holds SET output_bytes = %s, upstream_id = %s WHERE id = %s",
            (output_bytes, upstream_id, hold_id),
        )
    spender.lapse(hold_id)
    return hold_id


def receipt_of(database: Database, hold_id: UUID) -> tuple[Any, ...]:
    """The charge's reason, price, tokens, and whether they are an estimate; there is one receipt."""
    [row] = query(
        database.service_url,
        "SELECT charge_reason, charged_credits, input_tokens, output_tokens, estimated FROM charge_receipts"
        " WHERE hold_id = %s",
        hold_id,
    )
    return row


async def test_without_a_record_a_call_is_charged_by_what_was_produced_and_never_released(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender, output_bytes=101)
    resolved = await resolve(namespace, service, hold_id)
    # 100 tokens of input at 1 USD and 26 of output at 2 USD for a million, twice that for the user.
    assert (resolved.outcome, resolved.charged_credits) == ("captured", 3_040)
    assert receipt_of(spender.database, hold_id) == ("gateway_died", 3_040, 100, 26, True)
    assert query(spender.database.service_url, "SELECT held_credits FROM billing_accounts WHERE held_credits > 0") == []
    assert await check_books(spender.database.superuser_url) == []


async def test_a_call_that_had_produced_nothing_is_charged_its_input(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender)
    assert (await resolve(namespace, service, hold_id)).charged_credits == 2_000
    assert receipt_of(spender.database, hold_id)[2:] == (100, 0, True)


async def test_an_estimate_charges_at_most_what_was_held(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender, output_bytes=4_000_000)
    assert (await resolve(namespace, service, hold_id)).charged_credits == HELD


async def die_in_mid_stream(url: str, **behaviour: Any) -> str:
    """A call whose caller reads a part of the answer and is killed; the upstream's id of it."""
    body = {
        "model": "dev-small",
        "stream": True,
        "messages": [{"role": "user", "content": "one two three"}],
    }
    async with aiohttp.ClientSession() as session:
        order = {"behaviour": {"tokens": 50, "on_abort": "drain", **behaviour}}
        assert (await session.post(f"{url}/_control", json=order)).status < 300
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            async for line in answer.content:
                if line.startswith(b'data: {"id":'):
                    return line.split(b'"')[3].decode()
    raise AssertionError("the upstream named no id")


@pytest.mark.parametrize("lookup", [UsageLookup.OPENROUTER, UsageLookup.LITELLM])
async def test_a_provider_that_keeps_records_is_asked_and_its_record_is_charged(
    namespace: Namespace, service: ServiceDatabase, spender: Spender, lookup: UsageLookup
) -> None:
    upstream = LocalUpstream()
    async with upstream.serve() as url:
        upstream_id = await die_in_mid_stream(url)
        hold_id = orphan(spender, output_bytes=8, upstream_id=upstream_id)
        resolved = await resolve(namespace, service, hold_id, providers_at(url, lookup))
        [bill] = upstream.records.sums()
    assert (resolved.outcome, resolved.basis) == ("captured", "by the provider's record")
    _, charged, _, output_tokens, estimated = receipt_of(spender.database, hold_id)
    assert (output_tokens, estimated) == (50, False)
    assert charged == -(-bill.usd * 2 * 10_000_000 // 1)
    [(cost,)] = query(spender.database.service_url, "SELECT provider_cost_usd FROM charge_receipts")
    assert cost == bill.usd


async def test_a_record_that_comes_late_is_waited_for(
    namespace: Namespace, service: ServiceDatabase, spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.policies.LOOKUP_RETRY.initial_interval", timedelta(milliseconds=50))
    async with LocalUpstream().serve() as url:
        hold_id = orphan(spender, upstream_id=await die_in_mid_stream(url, record_misses=3))
        resolved = await resolve(namespace, service, hold_id, providers_at(url, UsageLookup.OPENROUTER))
    assert resolved.basis == "by the provider's record"
    assert receipt_of(spender.database, hold_id)[4] is False


@pytest.mark.parametrize("away", [False, True], ids=["never there", "provider away"])
async def test_a_record_that_does_not_come_is_waited_for_no_longer_than_a_while(
    namespace: Namespace,
    service: ServiceDatabase,
    spender: Spender,
    monkeypatch: pytest.MonkeyPatch,
    away: bool,
) -> None:
    monkeypatch.setattr("workflows.policies.LOOKUP_SCHEDULE_TO_CLOSE", timedelta(seconds=2))
    async with LocalUpstream().serve() as url:
        upstream_id = await die_in_mid_stream(url, record=False)
        hold_id = orphan(spender, output_bytes=101, upstream_id=upstream_id)
        asked = providers_at("http://127.0.0.1:9" if away else url, UsageLookup.OPENROUTER)
        resolved = await resolve(namespace, service, hold_id, asked)
    assert resolved.charged_credits == 3_040
    assert ("cannot be reached" if away else "no record of call") in resolved.basis
    assert receipt_of(spender.database, hold_id)[4] is True


async def test_a_lease_that_is_renewed_in_between_ends_the_run_and_changes_nothing(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender)
    assert await sweep(namespace, service) == 1
    with connect(spender.database.app_url) as app:
        assert app.execute("SELECT renew_hold(%s, 'gateway-1', 60, 12, NULL)", (hold_id,)).fetchone() == (True,)
    async with working(namespace, service, providers_at()):
        resolved = await run_of(namespace, hold_id).result()
        assert (resolved.outcome, resolved.charged_credits) == ("not_lapsed", None)
        assert query(spender.database.service_url, "SELECT state FROM credit_holds") == [("held",)]
        assert await sweep(namespace, service) == 0, "it is alive"
        spender.lapse(hold_id)
        assert await sweep(namespace, service) == 1, "it is not any more: another run"
        assert (await run_of(namespace, hold_id).result()).outcome == "captured"


async def test_a_gateway_that_was_only_paused_gets_what_was_charged_and_charges_no_more(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender, output_bytes=101)
    await resolve(namespace, service, hold_id)
    late = spender.capture(hold_id, 9_999)
    assert (late["outcome"], late["charged"]) == ("repeated", 3_040)
    assert not spender.void(hold_id)
    assert len(query(spender.database.service_url, "SELECT FROM credit_ledger WHERE reason = 'llm_usage'")) == 1


async def test_a_gateway_that_charges_first_wins_and_the_run_says_so(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender)
    assert await sweep(namespace, service) == 1
    spender.capture(hold_id, 777)
    async with working(namespace, service, providers_at()):
        resolved = await run_of(namespace, hold_id).result()
    assert (resolved.outcome, resolved.charged_credits) == ("repeated", 777)


async def test_a_hold_without_prices_or_record_costs_nothing_and_is_doubtful(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender, rates=None, price_version=None)
    assert (await resolve(namespace, service, hold_id)).charged_credits == 0
    assert query(spender.database.service_url, "SELECT doubt FROM charge_receipts") == [("unknown_cost",)]


async def test_live_holds_are_left_and_lapsed_ones_have_one_run_each_however_often_it_is_swept(
    namespace: Namespace, service: ServiceDatabase, spender: Spender
) -> None:
    lives = spender.hold(HELD)
    lapsed = [orphan(spender) for _ in range(5)]
    assert await sweep(namespace, service, limit=2) == 2
    assert await sweep(namespace, service, limit=2) == 2, "the first two do not stand before the others"
    assert await sweep(namespace, service) == 1
    assert sum(await asyncio.gather(*(sweep(namespace, service) for _ in range(3)))) == 0
    for hold_id in lapsed:
        described = await run_of(namespace, hold_id).describe()
        assert described.status is WorkflowExecutionStatus.RUNNING
        assert described.typed_search_attributes.get(BILLING_ACCOUNT_ID) == spender.account
    async with working(namespace, service, providers_at()):
        for hold_id in lapsed:
            assert (await run_of(namespace, hold_id).result()).outcome == "captured"
    assert query(spender.database.service_url, "SELECT id FROM credit_holds WHERE state = 'held'") == [(lives,)]
