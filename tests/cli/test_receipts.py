"""`settle receipt show|verify`: every way in which a call is charged is computed again; what was changed is named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from db.engine import ServiceDatabase
from domain.billing.charges import CallEnd
from domain.billing.usage import Usage
from services.billing import receipts
from tests.cli.command import ResponseModel, settle
from tests.support.postgres import Database
from tests.support.spending import Caller, open_caller, open_wallets_account, usage
from tests.support.sql import connect, scalar

WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def variables(database: Database) -> Mapping[str, str]:
    return {"SERVICE_DATABASE_URL": database.service_url, "DATABASE_URL": database.app_url}


async def run(database: Database, folder: Path, *arguments: str) -> ResponseModel:
    return await asyncio.to_thread(settle, arguments, variables(database), folder)


def charged_in_every_way(caller: Caller) -> Mapping[str, UUID]:
    """A receipt for each rule that the price depends on."""
    produced = usage(100, 50)
    return {
        "completed": caller.call(usage(1_000, 300, cached=400)),
        "estimated": caller.call(None, produced=produced),
        "estimated, at most the hold": caller.call(None, produced=produced, held_credits=700),
        "broke off without usage": caller.call(None, end=CallEnd.UPSTREAM_BROKE, produced=produced),
        "broke off with usage": caller.call(usage(10, 5), end=CallEnd.UPSTREAM_BROKE),
        "error with usage": caller.call(usage(10, 5), end=CallEnd.ERROR_ONLY),
        "stated by the provider": caller.call(Usage({"input_tokens": 3}, stated_cost_usd=UNROUND)),
        "a third of a credit": caller.call(usage(1, 0), markup="1.3"),
        "more than the account has": caller.call(usage(10_000_000, 1), grace_credits=0),
    }


UNROUND = Decimal("0.00000123456789")


async def test_receipts_of_every_kind_are_computed_again(database: Database, tmp_path: Path) -> None:
    account = open_wallets_account(database, WALLET)
    caller = open_caller(database, account, 20_000_000)
    receipts = charged_in_every_way(caller)
    assert scalar(database.service_url, "SELECT count(*) FROM charge_receipts WHERE uncollected_credits > 0") == 1
    assert scalar(database.service_url, "SELECT count(*) FROM charge_receipts WHERE absorbed_cost_usd > 0") == 4
    every = await run(database, tmp_path, "receipt", "verify", "--all", "--json")
    assert (every.exit_code, every.json()) == (0, {"verified": len(receipts), "differing": 0, "receipts": []})
    assert "9 of 9 receipts verified" in every.stderr
    one = await run(database, tmp_path, "receipt", "verify", str(receipts["completed"]), "--json")
    assert (one.exit_code, one.json()["isRight"], one.json()["differences"]) == (0, True, [])
    later = await run(database, tmp_path, "receipt", "verify", "--all", "--since", "2999-01-01", "--json")
    assert later.json()["verified"] == 0


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("provider_cost_usd", "UPDATE charge_receipts SET provider_cost_usd = provider_cost_usd + 0.0000001"),
        ("user_cost_usd", "UPDATE charge_receipts SET user_cost_usd = user_cost_usd * 2"),
        ("absorbed_cost_usd", "UPDATE charge_receipts SET absorbed_cost_usd = 0.0000001"),
        ("charged_credits", "UPDATE charge_receipts SET charged_credits = charged_credits - 1"),
        ("unit_prices.markup_factor", "UPDATE charge_receipts SET unit_prices = unit_prices - 'markup_factor'"),
        ("entry.amount", "UPDATE credit_ledger SET amount = amount - 1 WHERE reason = 'llm_usage'"),
        ("entry.reference", "UPDATE credit_ledger SET reference = 'x' WHERE reason = 'llm_usage'"),
        ("entry.billing_account_id", "UPDATE credit_ledger SET billing_account_id = 'cogni_system' WHERE amount < 0"),
        ("entry.lines", "UPDATE journal_lines SET amount = amount + 1 WHERE account_code = 'payable:providers'"),
        ("entry_id", "UPDATE charge_receipts SET entry_id = gen_random_uuid()"),
    ],
)
async def test_what_was_changed_behind_a_receipt_is_named(
    database: Database, tmp_path: Path, field: str, change: str
) -> None:
    caller = open_caller(database, open_wallets_account(database, WALLET), 20_000_000)
    receipt_id = caller.call(usage(1_000, 300))
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute(change.encode())
    one = await run(database, tmp_path, "receipt", "verify", str(receipt_id), "--json")
    assert one.exit_code == 1
    differing = [found["field"] for found in one.json()["differences"]]
    assert any(name.startswith(field) for name in differing), differing
    every = await run(database, tmp_path, "receipt", "verify", "--all", "--json")
    assert (every.exit_code, every.json()["differing"]) == (1, 1)


async def test_all_receipts_are_verified_page_by_page_and_only_so_many_listed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "PAGE", 2)
    monkeypatch.setattr(receipts, "DIFFERING_MAX", 3)
    caller = open_caller(database, open_wallets_account(database, WALLET), 20_000_000)
    for _ in range(5):
        caller.call(usage(1_000, 300))
    with connect(database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE charge_receipts SET charged_credits = charged_credits + 1")
    seen: list[tuple[int, int]] = []
    service = ServiceDatabase(database.service_url)
    since = datetime.now(UTC) - timedelta(days=1)
    done = await receipts.verify_all(service, since=since, on_progress=lambda *counts: seen.append(counts))
    await service.dispose()
    assert (done.verified, done.differing, len(done.listed)) == (5, 5, 3)
    assert seen == [(2, 5), (4, 5), (5, 5)]


async def test_a_receipt_says_why_so_much_was_charged(database: Database, tmp_path: Path) -> None:
    caller = open_caller(database, open_wallets_account(database, WALLET), 20_000_000)
    receipt_id = caller.call(usage(1_000, 300, cached=400))
    shown = (await run(database, tmp_path, "receipt", "show", str(receipt_id), "--json")).json()
    # 600 at 2.50, 400 at 1.25 and 300 at 10 USD for a million, times 2.
    assert (shown["providerCostUsd"], shown["userCostUsd"], shown["chargedCredits"]) == ("0.005", "0.01", 100_000)
    assert shown["unitPrices"]["lines"] == [
        {"unit": "cache_read_tokens", "count": 400, "usd": "1.25", "per": 1_000_000},
        {"unit": "input_tokens", "count": 600, "usd": "2.5", "per": 1_000_000},
        {"unit": "output_tokens", "count": 300, "usd": "10", "per": 1_000_000},
    ]
    assert shown["entry"]["amountCredits"] == -100_000
    assert shown["entry"]["lines"]["payable:providers credit"] == 50_000
    by_request = await run(database, tmp_path, "receipt", "show", shown["requestId"])
    assert str(receipt_id) in by_request.stdout and "cache_read_tokens" in by_request.stdout


@pytest.mark.slow(but=2)
@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("show", "nothing"), 1, "RECEIPT_NOT_FOUND"),
        (("verify", "00000000-0000-0000-0000-000000000000"), 1, "RECEIPT_NOT_FOUND"),
        (("verify",), 2, "INVALID_INPUT"),
        (("verify", "x", "--all"), 2, "INVALID_INPUT"),
        (("verify", "x", "--since", "2026-01-01"), 2, "INVALID_INPUT"),
        (("verify", "--all", "--since", "yesterday"), 2, "INVALID_INPUT"),
    ],
)
async def test_what_is_no_receipt_is_refused(
    database: Database, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, code: str
) -> None:
    refused = await run(database, tmp_path, "receipt", *arguments, "--json")
    assert (refused.exit_code, refused.json()["code"]) == (exit_code, code)
