"""`settle usage`: what was spent, with margin and absorbed cost, as a table, JSON and CSV."""

from __future__ import annotations

import asyncio
import csv
import io
from pathlib import Path

from domain.billing.charges import CallEnd
from tests.cli.command import ResponseModel, settle
from tests.support.postgres import Database
from tests.support.spending import open_caller, open_wallets_account, usage

ALICE, BOB = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


async def run(database: Database, folder: Path, *arguments: str) -> ResponseModel:
    variables = {"SERVICE_DATABASE_URL": database.service_url, "DATABASE_URL": database.app_url}
    return await asyncio.to_thread(settle, ("usage", *arguments), variables, folder)


async def test_operators_see_what_was_earned_and_what_was_absorbed(database: Database, tmp_path: Path) -> None:
    alice, bob = (open_caller(database, open_wallets_account(database, who), 20_000_000) for who in (ALICE, BOB))
    alice.call(usage(1_000, 300))
    alice.call(None, end=CallEnd.UPSTREAM_BROKE, produced=usage(1_000, 300))
    bob.call(usage(2_000, 0))
    # 1,000 of input and 300 of output cost 0.0055 USD, once charged twofold and once absorbed.
    found = (await run(database, tmp_path, "--json")).json()
    assert (found["by"], [row["billingAccountId"] for row in found["rows"]]) == (
        "account",
        [alice.account_id, bob.account_id],
    )
    [of_alice, of_bob] = found["rows"]
    assert [of_alice[name] for name in ("calls", "chargedCredits", "chargedUsd")] == [2, 110_000, "0.011"]
    assert [of_alice[name] for name in ("providerCostUsd", "absorbedCostUsd", "marginUsd")] == ["0.011", "0.0055", "0"]
    assert (of_bob["marginUsd"], found["total"]["marginUsd"]) == ("0.005", "0.005")
    one = (await run(database, tmp_path, "--account", bob.account_id, "--json")).json()
    assert (one["by"], one["rows"][0]["model"], one["total"]["calls"]) == ("model", "gpt-4o", 1)
    text = await run(database, tmp_path, "--by", "day")
    assert "in all" in text.stdout and "0.005" in text.stdout


async def test_the_csv_has_numbers_as_numbers(database: Database, tmp_path: Path) -> None:
    caller = open_caller(database, open_wallets_account(database, ALICE), 20_000_000)
    caller.call(None, end=CallEnd.UPSTREAM_BROKE, produced=usage(1_000, 300))
    [row] = csv.DictReader(io.StringIO((await run(database, tmp_path, "--csv", "--by", "key")).stdout))
    assert (row["key_id"], row["calls"], row["margin_usd"]) == (str(caller.key_id), "1", "-0.0055")


async def test_what_cannot_be_reported_is_refused(database: Database, tmp_path: Path) -> None:
    for arguments, exit_code, code in (
        (("--account", "nothing"), 1, "ACCOUNT_NOT_FOUND"),
        (("--from", "yesterday"), 2, "INVALID_INPUT"),
        (("--csv",), 2, "INVALID_INPUT"),
    ):
        refused = await run(database, tmp_path, *arguments, "--json")
        assert (refused.exit_code, refused.json()["code"]) == (exit_code, code)
