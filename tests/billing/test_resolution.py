"""Lapsed holds, step by step: when the provider is asked, what its record is worth, how many runs start at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from temporalio.testing import ActivityEnvironment

from activities.billing.holds import NOT_DUE, HoldActivities
from activities.billing.signatures import CallRecord, HoldToResolve
from activities.messages import HoldRef
from db.billing.lapsed import LapsedHold, StoredHold
from db.engine import ServiceDatabase
from domain.billing.charges import Doubt
from domain.billing.upstreams import UsageLookup
from domain.billing.usage import Usage
from domain.errors import ProviderUnavailable, TemporalUnavailable
from services.billing.resolution import STARTED_AT_ONCE_MAX, charge_of, start_lapsed
from tests.billing.test_orphans import HELD, orphan, providers_at, receipt_of
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.spending import GRACE, Spender
from tests.support.sql import query

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def service(roles: RolePair) -> ServiceDatabase:
    """Role settle_service, as the worker has it."""
    return roles.service


@pytest.fixture
def spender(database: Database) -> Spender:
    """An account with ten dollars."""
    return Spender.open(database, credits=100_000_000)


@asynccontextmanager
async def keeper(record: dict[str, Any], **answered: Any) -> AsyncIterator[str]:
    """A provider with this record of every call; `answered` otherwise changes its answer."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(**({"text": json.dumps({"data": record})} | answered))

    async def elsewhere(_: web.Request) -> web.Response:
        return web.json_response({"data": record})

    app = web.Application()
    app.router.add_get("/v1/generation", answer)
    app.router.add_get("/elsewhere", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def look_up(
    service: ServiceDatabase, hold_id: UUID, url: str = NOWHERE, lookup: UsageLookup = UsageLookup.OPENROUTER
) -> CallRecord:
    """What the first step says of a hold."""
    activities = HoldActivities(service, providers_at(url, lookup), grace_credits=GRACE)
    hold = HoldRef(hold_id=hold_id, billing_account_id="x", model="m", upstream="local")
    return await ActivityEnvironment().run(activities.look_up_call, hold)


async def resolve(service: ServiceDatabase, hold_id: UUID, record: CallRecord) -> str:
    """The outcome of the second step."""
    activities = HoldActivities(service, providers_at(), grace_credits=GRACE)
    wanted = HoldToResolve(hold_id=hold_id, billing_account_id="x", record=record)
    return (await ActivityEnvironment().run(activities.resolve_hold, wanted)).outcome


async def test_a_provider_is_asked_only_about_a_call_that_is_due_and_that_it_may_know(
    service: ServiceDatabase, spender: Spender
) -> None:
    alive, done = spender.hold(HELD), orphan(spender, upstream_id="gen-1")
    spender.capture(done, 7)
    for hold_id in (alive, done, uuid4()):
        assert (await look_up(service, hold_id)).words == NOT_DUE
    due = orphan(spender, upstream_id="gen-2")
    assert "keeps no records" in (await look_up(service, due, lookup=UsageLookup.NONE)).words
    assert "had not named" in (await look_up(service, orphan(spender))).words
    # What may be known is asked for.
    with pytest.raises(ProviderUnavailable):
        await look_up(service, due)


async def test_an_unknown_hold_is_said_to_be_unknown(service: ServiceDatabase) -> None:
    assert await resolve(service, uuid4(), CallRecord()) == "unknown_hold"


async def test_a_record_that_cannot_be_true_charges_an_estimate_and_is_doubtful(
    service: ServiceDatabase, spender: Spender
) -> None:
    hold_id = orphan(spender, output_bytes=101, upstream_id="gen-1")
    record = {"native_tokens_prompt": 100, "native_tokens_completion": -5, "total_cost": 0.1}
    async with keeper(record) as url:
        found = await look_up(service, hold_id, url)
    assert found.is_there
    assert found.implausible
    # As Temporal keeps it between the two steps.
    found = CallRecord.model_validate(json.loads(found.model_dump_json()))
    assert await resolve(service, hold_id, found) == "captured"
    assert receipt_of(spender.database, hold_id) == ("gateway_died", 3_040, 100, 26, True)
    assert query(spender.database.service_url, "SELECT doubt FROM charge_receipts") == [("implausible_usage",)]


async def test_a_charge_is_on_the_terms_that_the_call_was_held_at(service: ServiceDatabase, spender: Spender) -> None:
    hold_id = orphan(spender, output_bytes=101, upstream_id="gen-1", markup_factor=Decimal(3))
    assert await resolve(service, hold_id, CallRecord()) == "captured"
    [(charged, upstream_id, factor)] = query(
        spender.database.service_url,
        "SELECT charged_credits, upstream_id, unit_prices ->> 'markup_factor' FROM charge_receipts",
    )
    assert (charged, upstream_id, factor) == (4_560, "gen-1", "3")


async def test_a_record_may_exceed_the_hold_by_balance_and_grace(service: ServiceDatabase, database: Database) -> None:
    spender = Spender.open(database, credits=HELD)
    hold_id = orphan(spender, upstream_id="gen-1")
    # Within the bound of its output, and dearer than what was held and is left.
    record = CallRecord(is_there=True, units={"input_tokens": 300_000}, stated_cost_usd=Decimal("0.3"))
    assert await resolve(service, hold_id, record) == "captured"
    [(charged, uncollected)] = query(
        database.service_url, "SELECT charged_credits, uncollected_credits FROM charge_receipts"
    )
    assert (charged, uncollected) == (HELD + GRACE, 6_000_000 - HELD - GRACE)


@pytest.mark.parametrize(
    "answered",
    [{"status": 500}, {"status": 302, "headers": {"Location": "/elsewhere"}}, {"text": "<html>"}],
    ids=["failure", "redirect", "page"],
)
async def test_an_answer_that_is_no_record_is_none(
    service: ServiceDatabase, spender: Spender, answered: dict[str, Any]
) -> None:
    record = {"native_tokens_prompt": 100, "native_tokens_completion": 5, "total_cost": 0.1}
    async with keeper(record, **answered) as url:
        with pytest.raises(ProviderUnavailable):
            await look_up(service, orphan(spender, upstream_id="gen-1"), url)


async def test_an_upstream_that_the_file_has_no_more_is_not_asked(service: ServiceDatabase, spender: Spender) -> None:
    left = orphan(spender, upstream_id="gen-1", upstream="left")
    assert "left keeps no records" in (await look_up(service, left)).words


def stored(**changes: Any) -> StoredHold:
    """A hold whose call may write ten tokens."""
    values: dict[str, Any] = {
        "state": "held",
        "has_lapsed": True,
        "billing_account_id": "x",
        "model": "m",
        "upstream": "local",
        "upstream_id": "gen-1",
        "amount_credits": 1_000,
        "markup_factor": Decimal(2),
        "rates": {"input_tokens": {"usd": "1"}, "output_tokens": {"usd": "2"}},
        "input_tokens_estimate": 100,
        "output_tokens_limit": 10,
        "output_bytes": 0,
        "dialect": "chat",
    }
    return StoredHold(**{**values, **changes})


def test_a_record_of_far_more_output_than_was_allowed_is_not_believed() -> None:
    record = Usage({"input_tokens": 100, "output_tokens": 100_000})
    assert charge_of(stored(), record).doubt is Doubt.IMPLAUSIBLE_USAGE
    assert charge_of(stored(output_tokens_limit=None), record).doubt is None


@pytest.mark.parametrize(
    ("dialect", "unit", "count"),
    [
        ("speech", "input_characters", 400),
        ("transcriptions", "input_audio_seconds", 10),
        ("chat", "input_characters", 0),
    ],
)
def test_what_is_not_priced_by_tokens_is_charged_by_its_input(dialect: str, unit: str, count: int) -> None:
    owed = charge_of(stored(dialect=dialect, rates={unit: {"usd": "1"}}), None)
    assert [(line.unit, line.count) for line in owed.lines] == ([(unit, count)] if count else [])
    assert owed.is_estimated


@dataclass
class Slow:
    """A Temporal that takes a moment, and counts how many starts it has at once."""

    at_once: int = 0
    most: int = 0
    started: list[UUID] = field(default_factory=list)

    async def start_hold_resolution(self, hold: LapsedHold) -> bool:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        self.at_once -= 1
        self.started.append(hold.id)
        return True


async def test_many_lapsed_holds_are_started_a_few_at_a_time_the_longest_lapsed_first(
    service: ServiceDatabase, spender: Spender
) -> None:
    lapsed = [orphan(spender) for _ in range(STARTED_AT_ONCE_MAX + 4)]
    spender.hold(HELD)
    spender.capture(orphan(spender), 1)
    starter = Slow()
    assert await start_lapsed(service, starter, limit=100, on_progress=lambda: None) == len(lapsed)
    assert starter.most == STARTED_AT_ONCE_MAX
    assert set(starter.started) == set(lapsed)
    first = Slow()
    assert await start_lapsed(service, first, limit=2, on_progress=lambda: None) == 2
    assert set(first.started) == set(lapsed[:2])


async def test_an_outage_of_temporal_is_one_error(service: ServiceDatabase, spender: Spender) -> None:
    for _ in range(2):
        orphan(spender)

    class Away:
        async def start_hold_resolution(self, hold: LapsedHold) -> bool:
            raise TemporalUnavailable("it does not answer")

    with pytest.raises(TemporalUnavailable):
        await start_lapsed(service, Away(), limit=10, on_progress=lambda: None)
