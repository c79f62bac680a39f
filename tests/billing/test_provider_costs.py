"""What providers say they billed for a day, against receipts, ledger and holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import aiohttp
import pytest
from temporalio.testing import ActivityEnvironment

from activities.billing.reconciliation import ProviderReconciliationActivities
from activities.billing.signatures import DaysToReconcile, ProvidersReconciled
from db.engine import ServiceDatabase
from devstack.upstream import Upstream as LocalUpstream
from domain.billing.upstreams import CostKind, Costs, Upstream
from domain.errors import ProviderUnavailable
from services.billing.provider_api import Providers
from services.billing.provider_costs import cost_source
from services.billing.provider_reconciliation import ProviderReconciliation
from tests.support.oracle import check_books
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.spending import Spender
from tests.support.sql import connect, query

TODAY: Final = datetime.now(UTC).date()
YESTERDAY: Final = TODAY - timedelta(days=1)
KINDS: Final = list(CostKind)
PATH: Final = {CostKind.ANTHROPIC: "messages"}
"""Which API is billed in the kind's report."""


@pytest.fixture
def service(roles: RolePair) -> ServiceDatabase:
    """Role settle_service, as the worker has it."""
    return roles.service


@asynccontextmanager
async def provider(*bills: tuple[date, str]) -> AsyncIterator[tuple[str, LocalUpstream]]:
    """A running upstream that billed a call of some tokens for each of these days, through this API."""
    upstream = LocalUpstream()
    async with upstream.serve() as url, aiohttp.ClientSession() as session:
        for day, path in bills:
            order = {"behaviour": {"tokens": 1_000, "billed_on": day.isoformat()}}
            assert (await session.post(f"{url}/_control", json=order)).status < 300
            body = {
                "model": "dev-small",
                "max_tokens": 2_000,
                "messages": [{"role": "user", "content": "one two three"}],
            }
            assert (await session.post(f"{url}/v1/{path}", json=body)).status == 200
        yield url, upstream


def configured(url: str, kind: CostKind, **tolerance: Decimal) -> Upstream:
    """The upstream as UPSTREAMS_FILE has it."""
    costs = Costs(kind=kind, admin_key_env="ADMIN_KEY", **tolerance)
    return Upstream(name="local", base_url=f"{url}/v1", models=("*",), costs=costs)


def book(spender: Spender, usd: Decimal, day: date = YESTERDAY) -> None:
    """A charge of a call that was made on that day and cost so much."""
    hold_id = spender.hold(100_000)
    with connect(spender.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "UPDATE credit_holds SET created_at = %s::date + interval '12 hours' WHERE id = %s", (day, hold_id)
        )
    spender.capture(hold_id, 1_000, provider_cost_usd=usd, absorbed_cost_usd=max(usd - Decimal("0.0001"), Decimal(0)))


async def reconcile(
    service: ServiceDatabase, *upstreams: Upstream, days: int = 1, until: date = TODAY
) -> ProvidersReconciled:
    """One run of the job's activity."""
    providers = Providers(upstreams, admin_keys={upstream.name: "sk-admin" for upstream in upstreams})
    activities = ProviderReconciliationActivities(ProviderReconciliation(service, providers))
    noon = datetime(until.year, until.month, until.day, 12, tzinfo=UTC)
    return await ActivityEnvironment().run(activities.reconcile_providers, DaysToReconcile(days=days, until=noon))


def open_findings(database: Database) -> list[tuple[Any, ...]]:
    """Key and detail of those that are open."""
    return query(database.service_url, "SELECT key, detail FROM findings WHERE resolved_at IS NULL ORDER BY key")


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_each_kind_of_report_is_read_by_utc_day(kind: CostKind) -> None:
    days = [YESTERDAY - timedelta(days=back) for back in (0, 0, 1, 9)]
    path = PATH.get(kind, "chat/completions")
    async with provider(*((day, path) for day in days)) as (url, upstream):
        source = cost_source(configured(url, kind), "sk-admin")
        read = await source.read(YESTERDAY - timedelta(days=9), TODAY)
        wanted: dict[date, Decimal] = {}
        for total in upstream.records.sums():
            wanted[total.day] = wanted.get(total.day, Decimal(0)) + total.usd
        assert {day: usd for day, usd in read.items() if usd} == wanted
        assert len(wanted) == 3
        assert not any((await source.read(YESTERDAY - timedelta(days=5), YESTERDAY - timedelta(days=4))).values())


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_a_day_that_agrees_is_no_finding(service: ServiceDatabase, database: Database, kind: CostKind) -> None:
    spender = Spender.open(database, credits=100_000_000)
    async with provider((YESTERDAY, PATH.get(kind, "chat/completions"))) as (url, upstream):
        [bill] = upstream.records.sums()
        book(spender, bill.usd)
        exact = configured(url, kind, tolerance_usd=Decimal(0), tolerance_percent=Decimal(0))
        done = await reconcile(service, exact)
    assert (done.compared, done.differences, done.unread) == ({"local": 1}, (), {})
    assert open_findings(database) == []
    assert await check_books(database.superuser_url) == []


async def test_a_bill_beyond_the_tolerance_is_one_finding_which_closes_when_the_day_agrees(
    service: ServiceDatabase, database: Database
) -> None:
    spender = Spender.open(database, credits=100_000_000)
    async with provider((YESTERDAY, "chat/completions")) as (url, upstream):
        [bill] = upstream.records.sums()
        half = bill.usd / 2
        book(spender, half)
        tolerant = configured(url, CostKind.OPENAI, tolerance_usd=half, tolerance_percent=Decimal(0))
        assert (await reconcile(service, tolerant)).differences == ()
        exact = configured(url, CostKind.OPENAI, tolerance_usd=half - Decimal("1e-9"), tolerance_percent=Decimal(0))
        for _ in range(2):
            [words] = (await reconcile(service, exact)).differences
        assert f"billed {bill.usd:f} USD, {half:f} more than" in words
        assert open_findings(database) == [(f"provider_cost_differs:local:{YESTERDAY.isoformat()}", words)]
        book(spender, half)
        assert (await reconcile(service, exact)).differences == ()
    assert open_findings(database) == []


async def test_calls_of_the_days_around_and_of_other_upstreams_do_not_count(
    service: ServiceDatabase, database: Database
) -> None:
    spender = Spender.open(database, credits=100_000_000)
    for day in (YESTERDAY - timedelta(days=1), TODAY):
        book(spender, Decimal(5), day)
    hold_id = spender.hold(10)
    spender.capture(hold_id, 10, provider="another", provider_cost_usd=Decimal(5), absorbed_cost_usd=Decimal(5))
    async with provider() as (url, _):
        done = await reconcile(service, configured(url, CostKind.OPENAI, tolerance_usd=Decimal(0)))
    assert done.differences == ()


async def test_a_ledger_that_owes_something_else_and_a_hold_that_is_open_are_differences(
    service: ServiceDatabase, database: Database
) -> None:
    spender = Spender.open(database, credits=100_000_000)
    book(spender, Decimal("0.001"))
    left = spender.hold(10)
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE journal_lines SET amount = amount - 1 WHERE account_code = 'payable:providers'")
        superuser.execute("UPDATE credit_holds SET created_at = %s WHERE id = %s", (YESTERDAY, left))
    async with provider() as (url, _):
        [words] = (await reconcile(service, configured(url, CostKind.LITELLM))).differences
    assert "owes 9999 credits" in words
    assert "1 holds" in words


async def test_a_provider_that_does_not_answer_is_named_and_the_others_are_compared(
    service: ServiceDatabase,
) -> None:
    async with provider() as (url, _):
        away = configured("http://127.0.0.1:9", CostKind.OPENAI).model_copy(update={"name": "away"})
        wrong = configured(f"{url}/nowhere", CostKind.ANTHROPIC).model_copy(update={"name": "wrong"})
        none = Upstream(name="none", base_url=url, models=("*",))
        done = await reconcile(service, away, wrong, none, configured(url, CostKind.OPENROUTER), days=2)
    assert done.compared == {"local": 2}
    assert set(done.unread) == {"away", "wrong"}
    assert "ClientConnectorError" in done.unread["away"]
    assert "organizations/cost_report" in done.unread["wrong"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_a_report_of_another_shape_is_not_read_as_zero(kind: CostKind, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*_: object, **__: object) -> object:
        return {"object": "page", "results": []}

    monkeypatch.setattr("services.billing.provider_costs.get_json", answer)
    with pytest.raises(ProviderUnavailable, match="cannot be read"):
        await cost_source(configured("http://127.0.0.1:9", kind), "sk-admin").read(YESTERDAY, TODAY)
