"""`settle findings list` and `resolve --all` on real servers, with a thousand findings that hide one that counts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from commands.findings import BULK_AT_ONCE
from devstack.processes import wait_until
from tests.cli.command import ResponseModel, settle
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.service_process import clean_environment
from tests.support.sql import connect, query, scalar

WHO: Final = ("--operator", "ada", "--reason", "dust")
SENDER: Final = "0x" + "11" * 20
MONEY_RAW: Final = 5_000_000


async def _run(variables: Mapping[str, str], folder: Path, *arguments: str) -> ResponseModel:
    return await asyncio.to_thread(settle, arguments, variables, folder)


def _plant(engine: Engine, number: int, value_raw: int, kind: str = "transfer_without_intent") -> None:
    with connect(engine.database.superuser_url) as owner:
        owner.execute(
            "INSERT INTO findings (key, kind, chain_id, tx_hash, log_index, value_raw, detail, metadata)"
            " SELECT 'transfer:' || %(kind)s || n || ':' || %(value)s, %(kind)s, %(chain)s,"
            " '0x' || lpad(to_hex(n), 64, '0'), n, %(value)s, 'a payment',"
            " jsonb_build_object('sender', %(sender)s::text) FROM generate_series(1, %(number)s) n",
            {
                "number": number,
                "value": value_raw,
                "kind": kind,
                "sender": SENDER,
                "chain": engine.chain.chain_id,
            },
        )


def _resolved(engine: Engine) -> int:
    found: int = scalar(engine.database.superuser_url, "SELECT count(*) FROM operator_actions")
    return found


async def test_a_list_shows_money_first_and_says_what_it_does_not_show(engine: Engine, tmp_path: Path) -> None:
    _plant(engine, 1, MONEY_RAW)
    _plant(engine, 1_080, 1)
    listed, as_json, totals, filtered, narrowed = await asyncio.gather(
        _run(engine.variables, tmp_path, "findings", "list"),
        _run(engine.variables, tmp_path, "findings", "list", "--json"),
        _run(engine.variables, tmp_path, "findings", "list", "--json", "--totals", "--limit", "3"),
        _run(engine.variables, tmp_path, "findings", "list", "--json", "--min-value", "2"),
        _run(engine.variables, tmp_path, "findings", "list", "--json", "--sender", SENDER.upper().replace("X", "x"),
             "--below", "2", "--limit", "7", "--sort", "oldest"),
    )  # fmt: skip
    assert [answer.exit_code for answer in (listed, as_json, totals, filtered, narrowed)] == [0] * 5
    assert "100 of 1,081 shown" in listed.stdout
    assert "5,000,000" in listed.stdout
    assert "--after" in listed.stderr
    rows = as_json.json()
    assert (len(rows), rows[0]["valueRaw"]) == (1_000, MONEY_RAW)
    assert "1,000 of 1,081 shown" in as_json.stderr
    document = totals.json()
    assert {name: document[name] for name in ("shown", "shownValueRaw", "total", "totalValueRaw")} == {
        "shown": 3, "shownValueRaw": MONEY_RAW + 2, "total": 1_081, "totalValueRaw": MONEY_RAW + 1_080,
    }  # fmt: skip
    [kind] = document["byKind"]
    assert (kind["kind"], kind["findings"], kind["withoutValue"]) == ("transfer_without_intent", 1_081, 0)
    rest = await _run(
        engine.variables,
        tmp_path,
        "findings",
        "list",
        "--json",
        "--totals",
        "--limit",
        "3",
        "--after",
        document["next"],
    )
    assert [one["id"] for one in rest.json()["findings"]] == [one["id"] for one in rows[3:6]]
    assert [one["valueRaw"] for one in filtered.json()] == [MONEY_RAW]
    assert len(narrowed.json()) == 7


async def test_a_bulk_remedy_says_what_it_would_do_and_does_it_when_confirmed(engine: Engine, tmp_path: Path) -> None:
    _plant(engine, 1, MONEY_RAW)
    # More than are resolved at the same time.
    _plant(engine, BULK_AT_ONCE, 1)
    _plant(engine, 2, 1, kind="surplus")
    _plant(engine, 2, 1, kind="ledger_disagrees")
    bulk = ("findings", "resolve", "--all", "--below", "100", "--remedy", "write_off", *WHO)
    words, preview = await asyncio.gather(
        _run(engine.variables, tmp_path, *bulk), _run(engine.variables, tmp_path, *bulk, "--json")
    )
    assert (words.exit_code, preview.exit_code) == (0, 0)
    assert "--yes" in words.stdout
    found = preview.json()
    assert (found["confirmed"], found["matching"], found["matchingValueRaw"], found["resolved"]) == (False, 10, 10, 0)
    assert {one["kind"]: one["findings"] for one in found["byKind"]} == {"transfer_without_intent": 8, "surplus": 2}
    assert _resolved(engine) == 0

    async with engine.worker():
        done = await _run(engine.variables, tmp_path, *bulk, "--yes", "--json")
        again = await _run(engine.variables, tmp_path, *bulk, "--yes", "--json")
    assert (done.exit_code, again.exit_code) == (0, 0), done.stderr
    assert (done.json()["resolved"], done.json()["refused"]) == (10, [])
    assert again.json()["matching"] == 0
    assert "10 of 10" in done.stderr
    # Findings with a value, and alarms that were not named, are as they were.
    left = query(engine.database.superuser_url, "SELECT kind FROM findings WHERE resolved_at IS NULL ORDER BY kind")
    assert [kind for (kind,) in left] == ["ledger_disagrees", "ledger_disagrees", "transfer_without_intent"]
    actions = query(
        engine.database.superuser_url,
        "SELECT action, operator, reason, count(*), count(DISTINCT finding_id) FROM operator_actions GROUP BY 1, 2, 3",
    )
    assert actions == [("write_off", "ada", "dust", 10, 10)]


@pytest.mark.slow
async def test_a_bulk_remedy_that_is_killed_half_way_is_finished_by_the_next(engine: Engine, tmp_path: Path) -> None:
    _plant(engine, 150, 1)
    bulk = ("findings", "resolve", "--all", "--kind", "transfer_without_intent", "--remedy", "write_off", *WHO, "--yes")
    async with engine.worker():
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", *bulk],
            cwd=tmp_path,
            env=clean_environment(engine.variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            async def has_begun() -> bool:
                return await asyncio.to_thread(_resolved, engine) >= 5

            await wait_until(has_begun, timeout_seconds=PATIENCE_SECONDS, what="first remedies")
        finally:
            process.kill()
            process.wait()
        assert process.returncode < 0, "it had come to its end before it was killed"
        rest = await _run(engine.variables, tmp_path, *bulk, "--json")
    assert rest.exit_code == 0, rest.stderr
    assert 0 < rest.json()["resolved"] < 150
    actions = query(engine.database.superuser_url, "SELECT count(*), count(DISTINCT finding_id) FROM operator_actions")
    assert actions == [(150, 150)]
    assert scalar(engine.database.superuser_url, "SELECT count(*) FROM findings WHERE resolved_at IS NULL") == 0


async def test_too_many_or_too_few_options_of_a_bulk_remedy_are_a_usage_error(engine: Engine, tmp_path: Path) -> None:
    resolve = ("findings", "resolve")
    answers = await asyncio.gather(
        _run(engine.variables, tmp_path, *resolve, "--remedy", "write_off", *WHO, "--json"),
        _run(engine.variables, tmp_path, *resolve, "--all", "--remedy", "write_off", *WHO, "--json"),
        _run(engine.variables, tmp_path, *resolve, "--all", "--below", "9", "--remedy", "credit", *WHO, "--json"),
        _run(engine.variables, tmp_path, *resolve, "--all", "ab", "--below", "9", "--remedy", "retry", *WHO, "--json"),
        _run(engine.variables, tmp_path, *resolve, "ab12", "--below", "9", "--remedy", "retry", *WHO, "--json"),
        _run(engine.variables, tmp_path, *resolve, "--all", "--kind", "payment_reversed", "--remedy", "retry", *WHO,
             "--json"),
        _run(engine.variables, tmp_path, "findings", "list", "--sender", "0x12", "--json"),
    )  # fmt: skip
    assert [answer.exit_code for answer in answers] == [2] * 7
    assert {answer.json()["code"] for answer in answers} == {"INVALID_INPUT"}
