"""Usage by HTTP: reports as JSON and CSV, recent calls, and the credits that are held."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest
from psycopg.types.json import Jsonb

from devstack.chain import payer_wallets
from tests.support.api import RunningApi, Visitor
from tests.support.spending import Spender
from tests.support.sql import connect, scalar

USAGE = "/api/v1/usage"
LINES = {
    "markup_factor": "2",
    "lines": [{"unit": "input_tokens", "count": 100, "usd": "2.50", "per": 1_000_000}],
}


@pytest.fixture
def api(shared_api: RunningApi) -> RunningApi:
    """One interface for the whole file."""
    return shared_api


@pytest.fixture
def payer(shared_payer: Visitor) -> Visitor:
    """Who is signed in at it already."""
    return shared_payer


async def spender_of(api: RunningApi, payer: Visitor, *, label: str = "Agent", credits: int = 1_000_000) -> Spender:
    """A key of the payer's account, which has credits."""
    account = (await payer.get("/api/v1/auth/session")).body["billingAccountId"]
    spender = Spender(api.engine.database, account)
    spender.create_key()
    with connect(api.engine.database.superuser_url) as superuser:
        superuser.execute("UPDATE virtual_keys SET label = %s WHERE id = %s", (label, spender.key_id))
    spender.add_credits(credits)
    return spender


async def test_a_report_has_what_was_charged_by_each_grouping(api: RunningApi, payer: Visitor) -> None:
    spender = await spender_of(api, payer)
    for model, charged in (("gpt-4o", 70), ("o3", 900), ("o3", 30)):
        spender.capture(spender.hold(model=model), charged)
    total = {
        "calls": 3,
        "chargedCredits": 1000,
        "providerCostUsd": "0.00005",
        "absorbedCostUsd": "0",
        "inputTokens": 300,
        "cachedInputTokens": 0,
        "outputTokens": 60,
    }
    today = str(scalar(api.engine.database.service_url, "SELECT (now() AT TIME ZONE 'UTC')::date"))
    by_model = (await payer.get(f"{USAGE}?by=model")).body
    assert by_model["by"] == "model"
    assert by_model["billingAccountId"] == spender.account
    assert [(row["model"], row["calls"], row["chargedCredits"]) for row in by_model["rows"]] == [
        ("o3", 2, 930),
        ("gpt-4o", 1, 70),
    ]
    for by, name in (
        ("key", {"keyId": str(spender.key_id), "label": "Agent"}),
        ("day", {"day": today}),
        ("member", {}),
        ("attributed", {}),
    ):
        report = (await payer.get(f"{USAGE}?by={by}&from={today}&to={today}")).body
        assert (report["from"], report["to"], report["total"]) == (today, today, total)
        assert report["rows"] == [{**total, **name, "isRest": False}]
    assert (await payer.get(f"{USAGE}?by=model&to=2020-01-31")).body["rows"] == []


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=account", "by"),
        ("by=", "by"),
        ("from=yesterday", "from"),
        ("from=1700000000", "from"),
        ("from=2026-02-02&to=2026-02-01", "to"),
        ("from=2024-01-01&to=2026-01-01", "from"),
    ],
)
async def test_a_malformed_question_is_refused_by_the_fields_name(payer: Visitor, query: str, field: str) -> None:
    refused = await payer.get(f"{USAGE}?{query}")
    assert (refused.status, refused.code) == (422, "INVALID_INPUT")
    assert refused.body["errors"][0]["field"] == field


async def test_what_another_account_spent_is_not_seen(api: RunningApi, payer: Visitor) -> None:
    spender = await spender_of(api, payer)
    spender.capture(spender.hold(), 70)
    cursor = (await payer.get(f"{USAGE}/calls?limit=1")).body
    assert len(cursor["calls"]) == 1
    async with api.visitor(payer_wallets()[1]) as stranger:
        for by in ("key", "model", "day", "member", "attributed"):
            report = (await stranger.get(f"{USAGE}?by={by}&account={spender.account}")).body
            assert (report["rows"], report["total"]["calls"]) == ([], 0)
        assert (await stranger.get(f"{USAGE}/calls?account={spender.account}")).body["calls"] == []


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)"]


async def test_csv_runs_no_formula_in_a_spreadsheet(api: RunningApi, payer: Visitor) -> None:
    for number, label in enumerate([*FORMULAS, 'quoted, "label"']):
        spender = await spender_of(api, payer, label=label)
        spender.capture(spender.hold(model=label), 100 - number)
    for by, column in (("key", "label"), ("model", "model")):
        reply = await payer.get(f"{USAGE}?by={by}", headers={"Accept": "text/csv"})
        assert reply.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert f'filename="usage-by-{by}-' in reply.headers["Content-Disposition"]
        rows = list(csv.DictReader(io.StringIO(reply.body)))
        assert [row[column] for row in rows] == [*(f"'{formula}" for formula in FORMULAS), 'quoted, "label"']
        assert [row["charged_credits"] for row in rows] == ["100", "99", "98", "97", "96"]
        assert rows[0]["charged_usd"] == "0.00001"


@pytest.mark.slow(but=3)
@pytest.mark.parametrize(
    ("accept", "is_csv"),
    [
        (None, False),
        ("*/*", False),
        ("text/csv", True),
        ("text/*", True),
        ("text/csv;q=0.5, application/json;q=0.4", True),
        ("text/csv;q=0.4, application/json;q=0.5", False),
        ("text/csv, */*;q=0.1", True),
        ("text/csv;q=0", False),
        ("text/html", False),
        ("TEXT/CSV", True),
        ("text/csv;q=many, application/json;q=0.1", False),
    ],
)
async def test_what_is_preferred_is_answered(payer: Visitor, accept: str | None, *, is_csv: bool) -> None:
    reply = await payer.get(USAGE, headers={"Accept": accept} if accept else {})
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/csv" if is_csv else "application/json")


async def test_calls_are_listed_with_their_receipts_page_by_page(api: RunningApi, payer: Visitor) -> None:
    spender = await spender_of(api, payer)
    for number in range(3):
        hold = spender.hold(request_id=f"req-{number}", model="o3")
        spender.capture(hold, number, unit_prices=Jsonb(LINES), provider_cost_usd=Decimal("1E-7"))
    first = (await payer.get(f"{USAGE}/calls?limit=2")).body
    second = (await payer.get(f"{USAGE}/calls?limit=2&cursor={first['nextCursor']}")).body
    calls = [*first["calls"], *second["calls"]]
    assert [call["requestId"] for call in calls] == ["req-2", "req-1", "req-0"]
    assert second["nextCursor"] is None
    expected = {
        "keyId": str(spender.key_id),
        "keyLabel": "Agent",
        "model": "o3",
        "chargedCredits": 2,
        "providerCostUsd": "0.0000001",
        "userCostUsd": "0.0000002",
        "absorbedCostUsd": "0",
        "markupFactor": "2",
        "lines": [{"unit": "input_tokens", "count": 100, "usd": "2.50", "per": 1_000_000}],
        "inputTokens": 100,
        "outputTokens": 20,
        "estimated": False,
    }
    assert expected.items() <= calls[0].items()


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    "cursor", ["x", "1", "1.", ".ab", "-1." + "0" * 32, "9" * 40 + "." + "0" * 32, "１." + "0" * 32]
)
async def test_a_malformed_cursor_is_refused(payer: Visitor, cursor: str) -> None:
    refused = await payer.get(f"{USAGE}/calls", params={"cursor": cursor})
    assert (refused.status, refused.body["errors"][0]["field"]) == (422, "cursor")


async def test_held_credits_are_part_of_the_balance_and_not_available(api: RunningApi, payer: Visitor) -> None:
    spender = await spender_of(api, payer, credits=10_000)
    hold = spender.hold(4_000)
    summary = (await payer.get("/api/v1/payments/credits/summary")).body
    funds = [summary[name] for name in ("balanceCredits", "heldCredits", "availableCredits")]
    assert funds == [10_000, 4_000, 6_000]
    spender.capture(hold, 1_500)
    summary = (await payer.get("/api/v1/payments/credits/summary")).body
    funds = [summary[name] for name in ("balanceCredits", "heldCredits", "availableCredits")]
    assert funds == [8_500, 0, 8_500]
    latest = summary["ledger"][0]
    assert (latest["reason"], latest["amount"]) == ("llm_usage", -1_500)
