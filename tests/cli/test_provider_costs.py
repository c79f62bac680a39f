"""`settle provider-costs`: providers' bills beside the books, as the scheduled job compares them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from tests.billing.test_provider_costs import TODAY, YESTERDAY, book, open_findings, provider
from tests.cli.command import ResponseModel, settle
from tests.support.postgres import Database
from tests.support.spending import Spender

BEFORE = YESTERDAY - timedelta(days=1)


def file_of(folder: Path, url: str, *, tolerance: str = "0", more: tuple[dict[str, object], ...] = ()) -> Path:
    """UPSTREAMS_FILE with one upstream that reports its bill, and one that does not."""
    costs = {"kind": "openai", "admin_key_env": "ADMIN_KEY", "tolerance_usd": tolerance, "tolerance_percent": "0"}
    local = {"name": "local", "base_url": f"{url}/v1", "models": ["*"]}
    path = folder / "upstreams.yaml"
    path.write_text(
        yaml.safe_dump({"upstreams": [{**local, "costs": costs}, {**local, "name": "other"}, *more]}), "utf-8"
    )
    return path


async def run(database: Database, file: Path, *arguments: str, key: str = "sk-admin") -> ResponseModel:
    """The command with these upstreams."""
    variables = {
        "SERVICE_DATABASE_URL": database.service_url,
        "DATABASE_URL": database.app_url,
        "UPSTREAMS_FILE": str(file),
        "ADMIN_KEY": key,
    }
    return await asyncio.to_thread(settle, ("provider-costs", *arguments), variables, file.parent)


async def test_bills_are_compared_day_by_day_and_a_difference_is_a_finding_until_it_agrees(
    database: Database, tmp_path: Path
) -> None:
    spender = Spender.open(database, credits=100_000_000)
    async with provider((YESTERDAY, "chat/completions"), (BEFORE, "chat/completions")) as (url, upstream):
        usd = upstream.records.sums()[0].usd
        book(spender, usd, BEFORE)
        file = file_of(tmp_path, url)
        found = await run(database, file, "--json")
        assert (found.exit_code, found.json()["agrees"]) == (1, False)
        first, before, last = found.json()["days"]
        assert [day["day"] for day in (first, before, last)] == [
            str(BEFORE - timedelta(days=1)), str(BEFORE), str(YESTERDAY)
        ]  # fmt: skip
        assert [day["agrees"] for day in (first, before, last)] == [True, True, False]
        assert (Decimal(before["billedUsd"]), before["differenceUsd"], before["receipts"]) == (usd, "0", 1)
        assert (Decimal(last["differenceUsd"]), last["bookedUsd"]) == (usd, "0")
        [(key, detail)] = open_findings(database)
        assert key == f"provider_cost_differs:local:{YESTERDAY.isoformat()}"
        assert last["problems"][0] in detail

        text = await run(database, file)
        assert (text.exit_code, "1 days differ" in text.stderr) == (1, True)
        assert str(YESTERDAY) in text.stdout

        book(spender, usd)
        agreed = await run(database, file, "--from", str(YESTERDAY), "--upstream", "local", "--json")
        assert (agreed.exit_code, agreed.json()["agrees"], len(agreed.json()["days"])) == (0, True, 1)
    assert open_findings(database) == []


async def test_a_bill_that_cannot_be_read_is_named_and_is_not_zero(database: Database, tmp_path: Path) -> None:
    found = await run(database, file_of(tmp_path, "http://127.0.0.1:9"), "--json")
    assert (found.exit_code, found.json()["agrees"], found.json()["days"]) == (1, False, [])
    [unread] = found.json()["unread"]
    assert (unread["upstream"], "cannot be reached" in unread["reason"]) == ("local", True)
    assert open_findings(database) == []


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        (("--to", str(TODAY)), "k", "a UTC day that is over"),
        (("--from", str(TODAY)), "k", "a UTC day that is over"),
        (("--from", str(YESTERDAY - timedelta(days=28))), "k", "at most 28 days"),
        (("--from", "yesterday"), "k", "as YYYY-MM-DD"),
        (("--upstream", "other"), "k", "with costs"),
        ((), "", "ADMIN_KEY is not set"),
    ],
    ids=str,
)
async def test_what_cannot_be_compared_is_refused(
    database: Database, tmp_path: Path, arguments: tuple[str, ...], key: str, words: str
) -> None:
    refused = await run(database, file_of(tmp_path, "http://127.0.0.1:9"), *arguments, key=key)
    assert (refused.exit_code, words in refused.stderr) == (2, True), refused
