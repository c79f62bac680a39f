"""`settle bench` runs, says what it promises to say, and notices when a run does not count."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psycopg
import pytest

from bench.cost import SqlCount, counting_postgres
from bench.parts import Latency
from bench.rounds import Deadline, Side, at_once, compare, measure_alternately
from bench.run import find_violations
from bench.surroundings import without_servers
from bench.webhooks_report import Webhooks
from db.engine import ServiceDatabase
from db.ledger.entries import count_entries
from tests.support.payments import RolePair

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 420
"""A machine that does much else at the same time takes many times as long as a quiet one."""

RANGE = {"median", "min", "max"}
MEASURED = {
    "name",
    "baseline",
    "rounds",
    "perRound",
    "concurrency",
    "productPerSecond",
    "baselinePerSecond",
    "ratio",
    "aim",
    "aimMet",
}
CROWD = ("--clients", "5", "--payments", "2")
HTTP_PATH = {
    "clients",
    "paymentsPerClient",
    "begun",
    "credited",
    "seconds",
    "paymentsPerSecond",
    "pollSeconds",
    "signIn",
    "calls",
    "submitToCredited",
    "errors",
    "firstErrors",
}
REPORT = {
    "valid",
    "violations",
    "seconds",
    "settlement",
    "postingsSpread",
    "postingsOneAccount",
    "buyerCreditsPerSecond",
    "httpPath",
    "spending",
    "deposits",
    "webhooks",
    "settled",
    "posted",
}


@pytest.mark.slow
async def test_a_small_bench_prints_one_document_with_every_field() -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "cli",
            "bench",
            "--settlements",
            "20",
            "--postings",
            "100",
            "--rounds",
            "1",
            *CROWD,
            "--waiting",
            "20",
            "--calls",
            "100",
            "--deposits",
            "10",
            "--watched",
            "600",
            "--webhooks",
            "50",
            "--json",
        ),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Servers that the environment names may be in use: the bench never puts its load on them.
        env={**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "TEMPORAL_ADDRESS": "127.0.0.1:1"},
    )
    try:
        output, progress = await asyncio.wait_for(process.communicate(), SECONDS_MAX)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, progress.decode()
    report = json.loads(output)

    assert set(report) == REPORT
    assert report["valid"] is True
    assert report["violations"] == []
    settlements = report["settlement"]["settlements"]
    assert settlements["dbosMissing"] is None
    for measured, aim in (
        (settlements["overDbos"], 0.85),
        (settlements["overInline"], 0.2),
        (report["postingsSpread"], 0.8),
        (report["postingsOneAccount"], 0.8),
    ):
        assert set(measured) == MEASURED
        assert measured["rounds"] == 1
        for figure in ("productPerSecond", "baselinePerSecond", "ratio"):
            assert set(measured[figure]) == RANGE
            assert measured[figure]["min"] <= measured[figure]["median"] <= measured[figure]["max"]
        assert measured["aim"] == aim
        assert measured["aimMet"] is (measured["ratio"]["median"] >= measured["aim"])
    cpu = {side["side"]: side["byProcess"] for side in settlements["cpu"]}
    assert set(cpu) == {"settle", "dbos", "inline"}
    assert set(cpu["settle"]) == {"Temporal", "worker", "PostgreSQL", "chain", "client"}
    for name in ("dbos", "inline"):
        assert set(cpu[name]) == {name, "PostgreSQL", "chain", "client"}
        assert cpu[name][name] > 0
    cost = settlements["atOnce"]
    assert 2 <= cost["activities"] + cost["localActivities"] < cost["historyEvents"] < 50
    assert cost["billedActionsEstimated"] >= 1 + cost["activities"]
    assert 0 < cost["rpcRequests"] <= 4
    assert cost["rpcRequests"] < cost["rpcCalls"]
    assert 0 < cost["sqlTransactions"] <= cost["sqlStatements"] <= cost["sqlRoundTrips"]
    assert (settlements["submit"]["payments"], settlements["submit"]["submit"]["count"]) == (10, 10)
    (wait,) = report["settlement"]["waiting"]
    assert (wait["payments"], wait["credited"], wait["final"]) == (20, 20, 20)
    assert wait["blocks"] >= 32, "`finalized` trails by so many"
    assert 0 < wait["requestsPerPayment"] < wait["callsPerPayment"]
    assert wait["watcherRequestsPerBlock"] > 0
    assert all(spent > 0 for spent in wait["cpuMsByProcess"].values())
    history = wait["history"]
    assert history["polls"]["await_confirmation"] >= 1
    assert history["billedActionsEstimated"] >= cost["billedActionsEstimated"]
    assert {aim["name"] for aim in report["settlement"]["aims"]} >= {
        "history events",
        "submit p99, 5 clients",
        "billed actions, 20 waiting",
    }
    path = report["httpPath"]
    assert set(path) == HTTP_PATH
    assert (path["begun"], path["credited"], path["errors"], path["firstErrors"]) == (10, 10, 0, [])
    counts = {measured["call"]: measured["count"] for measured in path["signIn"] + path["calls"]}
    assert counts.pop("status") > 0  # a payment that is credited when its submission is answered needs none
    assert counts == {"challenge": 5, "login": 5, "intent": 10, "submit": 10}
    for measured in (*path["signIn"], *path["calls"], path["submitToCredited"]):
        assert 0 < measured["p50Ms"] <= measured["p95Ms"] <= measured["p99Ms"]
    spending = report["spending"]
    assert (spending["failed"], spending["firstErrors"], spending["litellm"]) == (0, [], None)
    assert spending["charged"] > 300
    assert [aim["name"] for aim in spending["aims"]][:2] == ["added latency, p50", "added latency, p99"]
    for name in ("latency", "firstToken"):
        assert spending[name]["straightP50Ms"] > 0
    deposits = report["deposits"]
    assert (deposits["deposits"], deposits["credited"], deposits["watched"]) == (10, 10, 600)
    assert deposits["confirmedToCredited"]["count"] == 10
    assert deposits["queriesPerBlock"] >= 2, "600 addresses take two queries"
    webhooks = report["webhooks"]
    assert webhooks["deliveries"] == webhooks["delivered"] == webhooks["atOnce"]["count"] + webhooks["spaced"]["count"]
    assert webhooks["atOnce"]["count"] == 50
    assert webhooks["deliveriesPerSecond"] > 0
    for measured in (webhooks["atOnce"], webhooks["spaced"]):
        assert 0 < measured["p50Ms"] <= measured["p95Ms"]
    assert b"round 1" in progress
    assert b"5 clients, 2 payments each" in progress


@pytest.mark.slow
async def test_a_missing_entry_makes_the_run_invalid(roles: RolePair) -> None:
    assert await find_violations(roles.service, settled=0, posted=0, credited=0) == []
    [violation] = await find_violations(roles.service, settled=2, posted=3, credited=1)
    assert "0 entries, and 8" in violation


async def test_books_that_do_not_balance_make_the_run_invalid(roles: RolePair) -> None:
    async with await psycopg.AsyncConnection.connect(roles.database.superuser_url) as superuser:
        await superuser.execute("SET session_replication_role = replica")  # no trigger stands in the way
        await superuser.execute("UPDATE billing_accounts SET balance_credits = 1 WHERE id = 'cogni_system'")

    [violation] = await find_violations(roles.service, settled=0, posted=0, credited=0)
    assert "account cogni_system" in violation


def test_webhooks_that_did_not_come_make_the_run_invalid() -> None:
    none = Latency.of([])
    found = Webhooks(
        accounts=1, deliveries=3, delivered=3, repeated=0, deliveries_per_second=0, at_once=none, spaced=none
    )
    assert found.violations == []
    [violation] = found.model_copy(update={"delivered": 2}).violations
    assert "1 of 3" in violation


def test_no_server_that_the_environment_names_is_used() -> None:
    given = {
        "DATABASE_URL": "x",
        "CHAIN_RPC_URLS": "x",
        "TEMPORAL_ADDRESS": "x",
        "PGHOST": "x",
        "PATH": "/bin",
        "LOG_LEVEL": "INFO",
    }
    assert without_servers(given) == {"PATH": "/bin", "LOG_LEVEL": "INFO"}


async def test_sides_alternate_and_every_other_round_begins_with_the_other_one() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        async def prepare(_count: int) -> None:
            order.append(f"prepare {name}")

        async def work(_count: int) -> None:
            order.append(name)

        return Side(name, prepare, work)

    compared = await compare(side("a"), side("b"), count=1, rounds=3, deadline=Deadline(60))

    assert [step for step in order if not step.startswith("prepare")] == ["a", "b", "b", "a", "a", "b"]
    assert order[:2] == ["prepare a", "a"]
    assert compared.rounds == 3
    assert compared.ratio.min <= compared.ratio.median <= compared.ratio.max


async def test_each_round_of_three_sides_begins_with_another() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        async def prepare(_count: int) -> None:
            pass

        async def work(_count: int) -> None:
            order.append(name)

        return Side(name, prepare, work)

    rates = await measure_alternately([side(name) for name in "abc"], count=1, rounds=3, deadline=Deadline(60))

    assert order == [*"abc", *"bca", *"cab"]
    assert [len(found) for found in rates] == [3, 3, 3]


async def test_the_first_round_is_always_measured_and_a_late_one_is_left_out() -> None:
    async def nothing(_count: int) -> None:
        pass

    side = Side("a", nothing, nothing)
    assert (await compare(side, side, count=1, rounds=5, deadline=Deadline(-1))).rounds == 1


async def test_the_first_error_is_raised_as_it_is() -> None:
    async def fail() -> None:
        raise LookupError("this one")

    async def wait() -> None:
        await asyncio.sleep(60)

    with pytest.raises(LookupError, match="this one"):
        await at_once([wait(), fail()])


async def test_statements_and_transactions_are_counted_on_the_wire(roles: RolePair) -> None:
    count = SqlCount()
    host = roles.database.host.rpartition(":")
    async with counting_postgres(host[0], int(host[2]), count) as port:
        url = roles.database.service_url.replace(roles.database.host, f"127.0.0.1:{port}")
        service = ServiceDatabase(url, pool_size=1, pre_ping=False)
        async with service.autocommit() as connection:
            await count_entries(connection)
        count.statements = count.transactions = count.round_trips = 0
        async with service.autocommit() as connection:
            await count_entries(connection)
        assert (count.statements, count.transactions, count.round_trips) == (1, 1, 1)
        async with service.transaction() as connection:
            await count_entries(connection)
            await count_entries(connection)
        await service.dispose()
    assert (count.statements, count.transactions, count.round_trips) == (3, 2, 5)
