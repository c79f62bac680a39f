"""PostgreSQL is killed around the charge of a call: charged once, and the answer's end says what is right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest

from db.engine import ServiceDatabase
from gateway import books
from services.billing.resolution import resolve
from telemetry.metrics import gateway as metrics
from tests.gateway.support import POLICY, Answer, Served, faulty, served, until
from tests.support.oracle import check_books
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database, running_cluster, state_folder
from tests.support.relay import Relay, relay_to, through
from tests.support.sql import connect, query, scalar

OWN_SERVER_NUMBER: Final = 41
"""Its preferred port lies beyond those of the session's servers."""

TOKENS: Final = 30
FUNDED: Final = 10_000_000

CAPTURE_WAITS: Final = """
    SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%capture_hold%%'
"""


@pytest.fixture(scope="module")
async def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A PostgreSQL server that may be killed, and started again, by each test of the file."""
    with state_folder(tmp_path_factory.mktemp("cluster")) as folder:
        async with running_cluster(folder, worker_number=OWN_SERVER_NUMBER) as running:
            yield running


@dataclass(frozen=True, slots=True)
class Killable:
    """A gateway on a server that may be killed, with a relay between them that can keep answers back."""

    cluster: Cluster
    relay: Relay
    gateway: Served

    @property
    def database(self) -> Database:
        """The gateway's, past the relay."""
        return self.gateway.books.database

    def call(self, streamed: bool) -> asyncio.Task[Answer]:
        """A call, on the way: its upstream takes half a second."""
        pace = {"tokens_per_second": 2 * TOKENS} if streamed else {"delay": 0.5}
        return asyncio.create_task(self.gateway.client.post(faulty(stream=streamed, tokens=TOKENS, **pace)))

    async def reaches_the_upstream(self) -> None:
        """The call is held, and made."""
        await until(self.gateway.calls)

    async def books_are_right(self) -> None:
        """No rule of the ledger is violated."""
        assert await check_books(self.database.superuser_url) == []


@pytest.fixture
async def killable(own_cluster: Cluster) -> AsyncIterator[Killable]:
    """A database on the own server, and a gateway on it."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(own_cluster.temporary(template=MIGRATED_TEMPLATE))
        # Whatever became of the test: the next one needs it.
        stack.push_async_callback(own_cluster.server.start)
        relay = relay_to(database.app_url)
        await relay.open()
        stack.push_async_callback(relay.cut)
        gateway = await stack.enter_async_context(served(database, app_url=through(relay, database.app_url)))
        yield Killable(own_cluster, relay, gateway)


def capture_retries() -> float:
    """How often a charge was tried in vain so far."""
    return float(metrics.CAPTURE_RETRIES._value.get())


@asynccontextmanager
async def killed_before_the_charge(system: Killable) -> AsyncIterator[None]:
    """The answer comes while there is no server; it is there again after the block."""
    before = capture_retries()
    await system.cluster.kill()
    await until(lambda: capture_retries() > before)
    yield
    await system.cluster.server.start()


@asynccontextmanager
async def charge_waits(system: Killable) -> AsyncIterator[None]:
    """The charge has begun and waits, for the length of the block, for the account's row."""
    with closing(psycopg.connect(system.database.superuser_url)) as blocker:
        blocker.execute("SELECT FROM billing_accounts WHERE id = %s FOR UPDATE", (system.gateway.account.id,))
        await until(lambda: scalar(system.database.superuser_url, CAPTURE_WAITS))
        yield


@asynccontextmanager
async def killed_in_the_charge(system: Killable) -> AsyncIterator[None]:
    """The charge has begun and waits for the account's row, which another transaction has."""
    async with charge_waits(system):
        await system.cluster.kill()
    yield
    await system.cluster.server.start()


@asynccontextmanager
async def killed_after_the_charge(system: Killable) -> AsyncIterator[None]:
    """The charge is committed, and its answer has not reached the gateway."""
    async with charge_waits(system):
        # Not before: on a busy machine the call takes so long that its connection is tested before the charge is sent,
        # and without the test's answer it never is.
        system.relay.keep_answers()
    await until(lambda: query(system.database.service_url, "SELECT FROM charge_receipts"))
    await system.cluster.kill()
    system.relay.pass_answers()
    yield
    await system.cluster.server.start()


MOMENTS: Final = {
    "before the charge": killed_before_the_charge,
    "in the charge": killed_in_the_charge,
    "after the charge": killed_after_the_charge,
}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_postgresql_killed_around_the_charge_charges_a_call_once_and_the_answer_says_so(
    killable: Killable, moment: str, streamed: bool
) -> None:
    call = killable.call(streamed)
    await killable.reaches_the_upstream()
    async with MOMENTS[moment](killable):
        # The end is held back: nothing says yet that the call was charged, or what it cost.
        assert not call.done()
    answer = await call
    receipt = killable.gateway.books.receipt()
    charged = receipt["charged_credits"]
    assert (receipt["charge_reason"], receipt["output_tokens"], receipt["estimated"]) == ("completed", TOKENS, False)
    assert answer.status == 200
    if streamed:
        assert answer.comment == {"charged": str(charged), "remaining": str(FUNDED - charged)}
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        said = answer.headers["X-Credits-Charged"], answer.headers["X-Credits-Remaining"]
        assert said == (str(charged), str(FUNDED - charged))
        assert answer.json["usage"]["completion_tokens"] == TOKENS
    assert killable.gateway.books.balance(killable.gateway.account.id) == (FUNDED - charged, 0)
    await killable.books_are_right()


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_postgresql_that_stays_away_leaves_the_charge_to_who_resolves_it_and_the_answer_promises_none(
    killable: Killable, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(books, "CAPTURE_SECONDS_MAX", 0.5)
    call = killable.call(streamed)
    await killable.reaches_the_upstream()
    await killable.cluster.kill()
    answer: Answer = await call
    if streamed:
        assert answer.comment == {"charged": "pending", "usage": f"/v1/usage/{answer.request_id}"}
    else:
        assert not {"X-Credits-Charged", "X-Credits-Remaining"} & set(answer.headers)
    await killable.gateway.is_quiet()
    await killable.cluster.server.start()
    assert killable.gateway.books.states() == ["held"]
    usage: Any = (await killable.gateway.client.get(f"/v1/usage/{answer.request_id}")).json
    assert (usage["status"], usage["chargedCredits"]) == ("held", 0)

    outcomes = [await resolve_lapsed(killable.database) for _ in range(2)]
    assert outcomes == ["captured", "repeated"]
    receipt = killable.gateway.books.receipt()
    assert (receipt["charge_reason"], receipt["estimated"]) == ("gateway_died", True)
    charged = receipt["charged_credits"]
    assert killable.gateway.books.balance(killable.gateway.account.id) == (FUNDED - charged, 0)
    assert charged > 0
    usage = json.loads((await killable.gateway.client.get(f"/v1/usage/{answer.request_id}")).body)
    assert (usage["status"], usage["chargedCredits"]) == ("charged", charged)
    await killable.books_are_right()


async def resolve_lapsed(database: Database) -> str:
    """What a worker does with the only hold, once its lease is over."""
    with connect(database.superuser_url) as superuser:
        lapse = "UPDATE credit_holds SET lease_until = clock_timestamp() - interval '1 s' WHERE state = 'held'"
        superuser.execute(lapse)
    service = ServiceDatabase(database.service_url)
    try:
        async with service.transaction() as connection:
            [(hold_id,)] = query(database.service_url, "SELECT id FROM credit_holds")
            return (await resolve(connection, hold_id, None, grace_credits=POLICY.grace_credits)).outcome
    finally:
        await service.dispose()
