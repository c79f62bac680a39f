"""`settle findings`, `settle reconcile` and `settle attempt retry` on real servers: what they print, how they end."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devstack.chain import payer_wallets
from domain.operations.findings import FindingKind
from tests.cli.command import ResponseModel, settle
from tests.reconciliation.planting import REASON, find_receipt, find_transfer
from tests.support.engine import MIN_CONFIRMATIONS, Engine
from tests.support.payments import RolePair, open_roles
from tests.support.sql import connect, query, scalar

WHO = ("--operator", "ada", "--reason", REASON)


async def _run(variables: Mapping[str, str], folder: Path, *arguments: str) -> ResponseModel:
    return await asyncio.to_thread(settle, arguments, variables, folder)


async def test_an_operator_finds_reads_and_resolves(engine: Engine, tmp_path: Path) -> None:
    # A credit is checked against the chain, so this one is really there.
    wallet = payer_wallets()[1]
    sent = await engine.chain.pay(wallet.private_key, engine.chain.treasury_address, 5_000_000)
    await engine.chain.mine(MIN_CONFIRMATIONS)
    finding_id = str(await find_receipt(engine, sent, wallet.address, 5_000_000))
    other = str(await find_transfer(engine.service, 2, kind=FindingKind.WRONG_SENDER))
    listed, narrowed, shown = await asyncio.gather(
        _run(engine.variables, tmp_path, "findings", "list"),
        _run(engine.variables, tmp_path, "findings", "list", "--kind", "wrong_sender", "--json"),
        _run(engine.variables, tmp_path, "findings", "show", finding_id[:13]),
    )
    assert (listed.exit_code, narrowed.exit_code, shown.exit_code) == (0, 0, 0)
    assert finding_id in listed.stdout
    assert other in listed.stdout
    assert [one["id"] for one in narrowed.json()] == [other]
    for remedy in ("credit", "refund_recorded", "retry", "write_off"):
        assert f"settle findings resolve {finding_id} --remedy {remedy}" in shown.stdout
    assert "5,000,000" in shown.stdout

    async with engine.worker():
        resolve = ("findings", "resolve", finding_id[:8], "--remedy", "credit", *WHO)
        first, second = await asyncio.gather(
            _run(engine.variables, tmp_path, *resolve, "--json"), _run(engine.variables, tmp_path, *resolve, "--json")
        )
        again = await _run(engine.variables, tmp_path, *resolve)
        refused = await _run(
            engine.variables, tmp_path, "findings", "resolve", finding_id, "--remedy", "write_off", *WHO, "--json"
        )
    assert (first.exit_code, second.exit_code, again.exit_code, refused.exit_code) == (0, 0, 0, 1)
    answers = [{**answer.json(), "isRepeated": None} for answer in (first, second)]
    assert answers[0] == answers[1]
    assert (answers[0]["amountCredits"], answers[0]["bonusCredits"]) == (50_000_000, 37_500_000)
    assert "(repeated request)" in again.stdout
    assert "37,500,000 credits" in again.stdout
    assert refused.json()["code"] == "REMEDY_REFUSED"
    assert "credit of 50000000 credits" in refused.json()["detail"]
    assert "by ada" in refused.json()["detail"]

    after, everything, in_full = await asyncio.gather(
        _run(engine.variables, tmp_path, "findings", "list", "--json"),
        _run(engine.variables, tmp_path, "findings", "list", "--all", "--json"),
        _run(engine.variables, tmp_path, "findings", "show", finding_id, "--json"),
    )
    assert [one["id"] for one in after.json()] == [other]
    assert {one["id"] for one in everything.json()} == {finding_id, other}
    found = in_full.json()
    assert (found["resolution"], found["remedies"]) == ("credit", [])
    [action] = found["actions"]
    assert (action["action"], action["operator"], action["reason"]) == ("credit", "ada", REASON)
    assert await engine.books() == []


async def test_usage_errors_and_an_unknown_finding(engine: Engine, tmp_path: Path) -> None:
    finding_id = str(await find_transfer(engine.service, 1))
    resolve = ("findings", "resolve", finding_id, "--remedy")
    answers = await asyncio.gather(
        _run(engine.variables, tmp_path, *resolve, "write_off", "--operator", " ", "--reason", "x", "--json"),
        _run(engine.variables, tmp_path, *resolve, "write_off", "--operator", "x", "--reason", "", "--json"),
        _run(engine.variables, tmp_path, *resolve, "write_off", "--operator", "x"),
        _run(engine.variables, tmp_path, *resolve, "write_off", *WHO, "--account", "x", "--json"),
        _run(engine.variables, tmp_path, *resolve, "burn", *WHO),
        _run(engine.variables, tmp_path, "findings", "show", "ffffffff", "--json"),
    )
    assert [answer.exit_code for answer in answers] == [2, 2, 2, 2, 2, 1]
    refusal = answers[0].json()
    assert refusal["code"] == "INVALID_INPUT"
    assert refusal["detail"].startswith("--operator: ")
    assert answers[5].json()["code"] == "FINDING_NOT_FOUND"
    assert scalar(engine.database.superuser_url, "SELECT count(*) FROM operator_actions") == 0


async def _pay_and_watch(engine: Engine) -> str:
    """A settled payment as chain and watcher have it; the attempt's id."""
    payer, intent, sent = await engine.buy()
    async with engine.worker():
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    with connect(engine.database.service_url) as service:
        service.execute(
            "INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,"
            " from_address, to_address, value_raw, handled_at, attempt_id) SELECT s.chain_id, s.tx_hash, s.log_index,"
            " s.block_number, s.block_hash, now() - interval '1 h', a.token, s.from_address, a.to_address, s.value_raw,"
            " now(), a.id FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id"
            " ON CONFLICT DO NOTHING"
        )
        service.execute(
            "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)"
            " SELECT chain_id, token, to_address, 0, 10000000, 10000000 FROM payment_attempts LIMIT 1"
            " ON CONFLICT DO NOTHING"
        )
    return str(intent.attempt_id)


async def test_a_reconciliation_says_what_it_found_and_how_it_stands(engine: Engine, tmp_path: Path) -> None:
    await _pay_and_watch(engine)
    clean = await _run(engine.variables, tmp_path, "reconcile", "--json", "--csv", "books.csv")
    assert clean.exit_code == 0, clean.stdout + clean.stderr
    report = clean.json()
    assert (report["closes"], report["alarms"], report["counts"]) == (True, 0, {})
    assert report["totals"]["purchasesCredits"] == report["totals"]["inflowRaw"] * 10 == 1_000_000_000
    assert set(report["period"]) == {"from", "to"}
    [row] = csv.DictReader((tmp_path / "books.csv").read_text().splitlines())
    assert (row["kind"], row["value_raw"], row["purchase_credits"]) == ("purchase", "100000000", "1000000000")
    assert "transfers read" in clean.stderr

    async with desk_of(engine) as roles:
        await find_transfer_now(roles)
    waits = await _run(engine.variables, tmp_path, "reconcile")
    # It merely waits for an operator, and is named with what to do.
    assert waits.exit_code == 0
    assert "settle findings show" in waits.stdout
    assert "the totals balance" in waits.stdout
    with connect(engine.database.service_url) as service:
        service.execute("SELECT post_entry('cogni_system', 10, 'gift', 'x', 'cash:usdc', '{}')")
    alarmed = await _run(engine.variables, tmp_path, "reconcile", "--json")
    assert (alarmed.exit_code, alarmed.json()["closes"]) == (1, False)
    assert alarmed.json()["counts"] == {
        "ledger_without_transfer": 1,
        "totals_do_not_close": 1,
        "transfer_without_intent": 1,
    }
    assert scalar(engine.database.superuser_url, "SELECT count(*) FROM balance_assertions") == 3
    other_day = await _run(
        engine.variables, tmp_path, "reconcile", "--from", "2020-01-01", "--to", "2020-01-02T00:00:00Z", "--json"
    )
    assert (other_day.exit_code, other_day.json()["totals"]["transfers"]) == (0, 0)
    assert json.loads(other_day.stdout)["period"]["from"].startswith("2020-01-01T00:00:00")


def desk_of(engine: Engine) -> Any:
    """The payments helper on the engine's database."""
    return open_roles(engine.database)


async def find_transfer_now(roles: RolePair) -> None:
    """A transfer without an attempt, just mined."""
    finding_id = await find_transfer(roles.service, 7)
    chain_id = scalar(roles.database.superuser_url, "SELECT chain_id FROM payment_attempts LIMIT 1")
    with connect(roles.database.superuser_url) as owner:
        owner.execute(
            "UPDATE observed_transfers SET block_time = now() - interval '1 h', chain_id = %s"
            " WHERE value_raw = 5000000",
            (chain_id,),
        )
        owner.execute(
            "UPDATE findings SET chain_id = %s, key = 'transfer:' || %s || ':' || tx_hash || ':0' WHERE id = %s",
            (chain_id, str(chain_id), finding_id),
        )


async def test_a_period_that_cannot_be_read_is_a_usage_error(engine: Engine, tmp_path: Path) -> None:
    answers = await asyncio.gather(
        _run(engine.variables, tmp_path, "reconcile", "--from", "yesterday", "--json"),
        _run(engine.variables, tmp_path, "reconcile", "--from", "2026-01-02", "--to", "2026-01-01", "--json"),
    )
    assert [answer.exit_code for answer in answers] == [2, 2]
    assert "--from: expected" in answers[0].json()["detail"]
    assert "--to: expected" in answers[1].json()["detail"]


async def test_retrying_an_attempt_twice_starts_one_workflow_and_is_in_the_audit_trail(
    engine: Engine, tmp_path: Path
) -> None:
    payer, intent, sent = await engine.buy()
    await engine.submit(payer, intent, sent)  # no worker: recorded, and started
    await engine.handle(intent.attempt_id).terminate("lost")
    retry = ("attempt", "retry", str(intent.attempt_id), *WHO, "--json")
    async with engine.worker():
        answers = await asyncio.gather(
            _run(engine.variables, tmp_path, *retry), _run(engine.variables, tmp_path, *retry)
        )
        await engine.result(intent.attempt_id)
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert await engine.credits(intent.attempt_id) == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    assert (
        query(engine.database.superuser_url, "SELECT action, operator, attempt_id FROM operator_actions")
        == [("retry", "ada", intent.attempt_id)] * 2
    )
    _, unpaid = await engine.intent(wallet=payer_wallets()[0])
    refused = await _run(engine.variables, tmp_path, "attempt", "retry", str(unpaid.attempt_id), *WHO, "--json")
    assert (refused.exit_code, refused.json()["code"]) == (1, "REMEDY_REFUSED")
