"""PostgreSQL answers and cannot work: a standby, a full disk. The interface says so, and comes back."""

from __future__ import annotations

import asyncio

import pytest

from api.http.problems import RETRY_AFTER_UNAVAILABLE_SECONDS
from db.schema import SCHEMA_REVISION
from devstack.processes import wait_until
from domain.errors import DatabaseUnavailable
from tests.database.test_outages import make_probes_due, read_only
from tests.database.test_rolling_deploy import NEXT, fabricate
from tests.support.api import PATIENCE_SECONDS, Reply, RunningApi, Visitor
from tests.support.sql import connect

INTENTS = "/api/v1/payments/intents"
SUMMARY = "/api/v1/payments/credits/summary"
BODY = {"amountUsdCents": 10_000}


def assert_unavailable(reply: Reply) -> None:
    """A 503 that says when to come back, and nothing of the inside."""
    assert (reply.status, reply.body["code"]) == (503, DatabaseUnavailable.code)
    assert reply.headers["Retry-After"] == str(RETRY_AFTER_UNAVAILABLE_SECONDS)
    assert "PostgreSQL" not in reply.body["detail"]


async def comes_back(payer: Visitor) -> None:
    """It is ready, and takes intents."""

    async def is_ready() -> bool:
        return (await payer.get("/readyz")).status == 200

    await wait_until(is_ready, timeout_seconds=PATIENCE_SECONDS, what="readiness")
    assert (await payer.post(INTENTS, BODY)).status == 201


async def test_a_database_that_takes_no_writes_is_unavailability_and_not_ready(api: RunningApi, payer: Visitor) -> None:
    await payer.intent()
    with read_only(api.engine.database):
        first, *_ = [await payer.post(INTENTS, BODY) for _ in range(3)]
        assert_unavailable(first)
        ready = await payer.get("/readyz")
        assert ready.status == 503
        assert "read-only" in ready.body["checks"]["database"]
        assert [name for name, result in ready.body["checks"].items() if result != "ok"] == ["database"]
        assert (await payer.get(SUMMARY)).status == 200, "what only reads goes on"
    await comes_back(payer)


@pytest.mark.slow(but=3)
@pytest.mark.parametrize(
    "sqlstate",
    ["53100", "53200", "53300", "53400", "57014", "57P01", "57P03", "58030", "58P01", "25006", "08006", "40001"],
)
async def test_whatever_keeps_a_write_from_the_disk_is_unavailability(
    api: RunningApi, payer: Visitor, sqlstate: str
) -> None:
    with connect(api.engine.database.migration_url) as owner:
        owner.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'as the server says' USING ERRCODE = '{sqlstate}'; END $$"
        )
        owner.execute(
            "CREATE TRIGGER fails BEFORE INSERT ON payment_attempts FOR EACH STATEMENT EXECUTE FUNCTION fail()"
        )
    reply = await payer.post(INTENTS, BODY)
    assert reply.status == 503
    assert reply.headers["Retry-After"]
    with connect(api.engine.database.migration_url) as owner:
        owner.execute("DROP TRIGGER fails ON payment_attempts")
    assert (await payer.post(INTENTS, BODY)).status == 201


async def test_a_full_disk_is_not_ready_though_reading_works(api: RunningApi, payer: Visitor) -> None:
    await payer.get("/readyz")
    make_probes_due(api.engine.database)
    with connect(api.engine.database.migration_url) as owner:
        owner.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION"
            " 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        owner.execute("CREATE TRIGGER fails BEFORE UPDATE ON write_probes FOR EACH ROW EXECUTE FUNCTION fail()")

    async def says_so() -> bool:
        ready = await payer.get("/readyz")
        return ready.status == 503 and "No space left" in ready.body["checks"]["database"]

    await wait_until(says_so, timeout_seconds=PATIENCE_SECONDS, what="a readiness that knows")
    with connect(api.engine.database.migration_url) as owner:
        owner.execute("DROP TRIGGER fails ON write_probes")
    await comes_back(payer)


async def test_a_newer_schema_that_allows_it_fails_no_request_and_one_that_does_not_is_said(
    api: RunningApi, payer: Visitor
) -> None:
    answers: list[Reply] = []
    stopping = asyncio.Event()

    async def ask() -> None:
        while not stopping.is_set():
            answers.append(await payer.post(INTENTS, BODY))
            answers.append(await payer.get("/readyz"))

    asking = asyncio.create_task(ask())
    try:
        await wait_until(lambda: len(answers) > 4, timeout_seconds=PATIENCE_SECONDS, what="answers before")
        fabricate(api.engine.database, NEXT, SCHEMA_REVISION)
        count = len(answers)
        await wait_until(lambda: len(answers) > count + 20, timeout_seconds=PATIENCE_SECONDS, what="answers after")
    finally:
        stopping.set()
        await asking
    assert {answer.status for answer in answers} <= {200, 201, 429}
    with connect(api.engine.database.superuser_url) as superuser:
        superuser.execute("UPDATE schema_compatibility SET compatible_from = revision WHERE revision = %s", (NEXT,))

    async def says_so() -> bool:
        ready = await payer.get("/readyz")
        return ready.status == 503 and NEXT in ready.body["checks"]["schema"]

    await wait_until(says_so, timeout_seconds=PATIENCE_SECONDS, what="a readiness that knows")
