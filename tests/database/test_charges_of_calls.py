"""Charges beside others: what a receipt keeps, what is answered again, and the sums and alerts that follow."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from psycopg.types.json import Jsonb

from tests.database.spending_rows import BALANCE, account, change, ingest
from tests.support.postgres import Database
from tests.support.spending import GRACE, HELD, ServiceKey, add_credits, capture, create_key, hold
from tests.support.sql import connect, query, scalar


async def test_a_receipt_keeps_what_the_call_was_and_the_terms_of_its_hold(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    asking = create_key(database, key.billing_account_id, may_attribute=True)
    hold(database, others_key, 50, model="beside", request_id="beside", price_version="beside")
    held = hold(database, asking, 600, attribute_to="cogni_system")["hold_id"]
    change(database, "UPDATE credit_holds SET lease_until = now() - interval '1 hour' WHERE id = %s", held)
    given = {
        "charge_reason": "stopped",
        "provider": "openai",
        "estimated": True,
        "doubt": "no_usage",
        "doubt_detail": "what was read",
        "unit_prices": {"markup_factor": "2", "lines": []},
        "provider_cost_usd": Decimal("0.00002"),
        "user_cost_usd": Decimal("0.0000499"),
        "absorbed_cost_usd": Decimal("0.00001"),
        "upstream_id": "gen-1",
    }
    values = {**given, "unit_prices": Jsonb(given["unit_prices"]), "tokens": [16, 2, 3, 8, 4]}
    captured = capture(database, held, 500, **values)
    wanted = given | {
        "id": captured["receipt_id"],
        "charged_credits": 500,
        "uncollected_credits": 0,
        "input_tokens": 16,
        "cached_input_tokens": 2,
        "cache_write_tokens": 3,
        "output_tokens": 8,
        "reasoning_tokens": 4,
        "hold_id": held,
        "billing_account_id": asking.billing_account_id,
        "virtual_key_id": asking.id,
        "attributed_to": "cogni_system",
        "source_system": "gateway",
        "source_reference": str(held),
        **{name: HELD[name] for name in ("request_id", "model", "price_version")},
        "called_at": scalar(database.superuser_url, "SELECT created_at FROM credit_holds WHERE id = %s", held),
        "body_hash": None,
    }
    [row] = query(database.superuser_url, f"SELECT {', '.join(wanted)} FROM charge_receipts")
    assert dict(zip(wanted, row, strict=True)) == wanted
    assert account(database, others_key) == (BALANCE, 50)


# -- a charge that is asked for again, or is more than there is


async def test_a_charge_that_was_made_is_answered_as_it_was_made(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    """Beside another one of the same moment, and one of another source with the same reference."""
    first, second = (hold(database, asking, 100)["hold_id"] for asking in (others_key, key))
    ingest(database, others_key, source_system="another", source_reference=str(second), charged=70)
    with connect(database.app_url) as app:
        captures = [capture(app, held, charged) for held, charged in ((first, 60), (second, 2 * GRACE))]
    change(
        database, "UPDATE billing_accounts SET held_credits = held_credits + 7 WHERE id = %s", key.billing_account_id
    )
    again = [capture(database, held, 1) for held in (first, second)]
    made = ("receipt_id", "charged", "uncollected")
    assert [[one[name] for name in made] for one in again] == [[one[name] for name in made] for one in captures]
    assert again[1]["charged"] == BALANCE + GRACE
    assert [(one["balance"], one["available"]) for one in again] == [
        (BALANCE - 60 - 70, BALANCE - 60 - 70),
        (-GRACE, -GRACE - 7),
    ]


async def test_what_a_call_holds_is_charged_whatever_the_balance_has_become(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 100)["hold_id"]
    add_credits(database, key.billing_account_id, -BALANCE - 2 * GRACE)
    assert capture(database, held, 150)["charged"] == 100


async def test_a_service_of_the_platform_pays_beyond_any_grace(database: Database, key: ServiceKey) -> None:
    service = "UPDATE billing_accounts SET kind = 'platform_service', tier = 'internal' WHERE id = %s"
    change(database, service, key.billing_account_id)
    charged = capture(database, hold(database, key, 100)["hold_id"], BALANCE + 2 * GRACE)
    assert (charged["charged"], charged["uncollected"]) == (BALANCE + 2 * GRACE, 0)


async def test_what_a_proxy_reports_again_is_what_it_reported_of_that_call(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    """Beside one of the same moment, and one of another source with the same reference."""
    reports = [
        (key, 50, {}),
        (others_key, 60, {"source_reference": "call-2"}),
        (others_key, 70, {"source_system": "another"}),
    ]
    with connect(database.app_url) as app:
        first = [ingest(app, asking, charged=charged, **changes) for asking, charged, changes in reports]
    again = [ingest(database, asking, charged=1, **changes) for asking, _, changes in reports]
    assert [one["outcome"] for one in first + again] == ["charged"] * 3 + ["repeated"] * 3
    made = [(one["receipt_id"], one["charged"]) for one in first]
    assert [(one["receipt_id"], one["charged"]) for one in again] == made
    other_body = ingest(database, key, charged=1, body_hash=b"2")
    assert (other_body["outcome"], other_body["charged"]) == ("conflict", 50)
    assert (account(database, key), account(database, others_key)) == ((BALANCE - 50, 0), (BALANCE - 130, 0))


async def test_a_call_of_a_proxy_is_the_default_keys_and_keeps_what_was_reported(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    ingest(database, others_key, charged=60, source_reference="call-2")
    change(database, "UPDATE virtual_keys SET label = label WHERE is_default")
    default = "SELECT id FROM virtual_keys WHERE billing_account_id = %s AND is_default"
    reported = {
        "source_system": "proxy",
        "source_reference": "call-1",
        "body_hash": b"1",
        "request_id": "req-2",
        "charge_reason": "completed",
        "provider": "openai",
        "upstream_id": "gen-2",
        "estimated": True,
        "doubt": "zero_cost",
        "doubt_detail": "what was read",
        "model": "dev",
        "price_version": "7",
        "called_at": datetime(2026, 2, 1, tzinfo=UTC),
        "user_cost_usd": Decimal("0.0000049"),
        "provider_cost_usd": Decimal("0.000002"),
        "absorbed_cost_usd": Decimal("0.000001"),
    }
    report = ingest(database, key, charged=50, tokens=[16, 2, 3, 8, 4], **reported)
    wanted = reported | {
        "id": report["receipt_id"],
        "charged_credits": 50,
        "uncollected_credits": 0,
        "input_tokens": 16,
        "cache_write_tokens": 3,
        "hold_id": None,
        "billing_account_id": key.billing_account_id,
        "virtual_key_id": scalar(database.superuser_url, default, key.billing_account_id),
        "attributed_to": None,
    }
    received = f"SELECT {', '.join(wanted)} FROM charge_receipts WHERE request_id = 'req-2'"
    [row] = query(database.superuser_url, received)
    assert dict(zip(wanted, row, strict=True)) == wanted


async def test_a_call_that_cost_its_provider_nothing_is_charged_too_and_its_entry_names_the_key(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 100)["hold_id"]
    capture(database, held, 50, provider_cost_usd=0)
    entry = (
        "SELECT e.virtual_key_id, e.amount, e.balance_after, e.reason, e.reference FROM credit_ledger e"
        " JOIN charge_receipts r ON r.entry_id = e.id"
    )
    assert query(database.superuser_url, entry) == [(key.id, -50, BALANCE - 50, "llm_usage", f"gateway:{held}")]


# -- sums and crossings


async def test_each_limit_that_a_charge_crosses_is_noted_with_what_was_spent_of_it(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    paying, beside = key.billing_account_id, key
    key = create_key(database, paying, limit_day_credits=100, limit_month_credits=200)
    for asking, charged in ((beside, 200), (others_key, 500)):
        capture(database, hold(database, asking, charged)["hold_id"], charged)
    change(
        database,
        "UPDATE billing_accounts SET limit_day_credits = 300, limit_month_credits = 1000 WHERE id = %s",
        paying,
    )
    noted = (
        "SELECT kind, billing_account_id, virtual_key_id, period, period_start, threshold_percent, balance_credits,"
        " spent_credits, limit_credits, reference FROM billing_alerts ORDER BY kind, threshold_percent"
    )
    today = scalar(database.superuser_url, "SELECT (now() AT TIME ZONE 'UTC')::date")
    held = hold(database, key, 80)["hold_id"]
    capture(database, held, 80)
    of_charge = (f"gateway:{held}",)
    of_account = ("account_limit", paying, None, "day", today, 80, BALANCE - 280, 280, 300, *of_charge)
    of_key = ("key_limit", paying, key.id, "day", today, 80, BALANCE - 280, 80, 100, *of_charge)
    assert query(database.superuser_url, noted) == [of_account, of_key]
    change(database, "UPDATE usage_by_day SET day = (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 day')")
    held = hold(database, key, 100)["hold_id"]
    capture(database, held, 120)
    again = ("key_limit", paying, key.id, "day", today, 100, BALANCE - 400, 120, 100, f"gateway:{held}")
    assert query(database.superuser_url, noted) == [of_account, of_key, again]
    change(database, "UPDATE billing_accounts SET limit_month_credits = 200 WHERE id = %s", paying)
    change(database, "UPDATE virtual_keys SET limit_day_credits = 1000 WHERE id = %s", key.id)
    held = hold(database, key, 40)["hold_id"]
    capture(database, held, 40)
    of_month = ("month", today.replace(day=1), 80, BALANCE - 440, 160, 200, f"gateway:{held}")
    months = f"SELECT * FROM ({noted}) n WHERE period = 'month'"
    assert query(database.superuser_url, months) == [
        ("account_limit", paying, None, *of_month),
        ("key_limit", paying, key.id, *of_month),
    ]


async def test_the_end_of_a_balance_is_noted_with_its_charge(database: Database, key: ServiceKey) -> None:
    held, free = hold(database, key, BALANCE)["hold_id"], hold(database, key, 0)["hold_id"]
    capture(database, held, BALANCE)
    capture(database, free, 0)
    noted = "SELECT kind, billing_account_id, balance_credits, reference FROM billing_alerts"
    assert query(database.superuser_url, noted) == [("balance_exhausted", key.billing_account_id, 0, f"gateway:{held}")]


async def test_the_sums_of_a_day_are_of_each_key_model_and_attribution(database: Database, key: ServiceKey) -> None:
    attributing = create_key(database, key.billing_account_id, may_attribute=True)
    tokens = [16, 2, 3, 8, 4]
    for asking, changes in (
        (attributing, {"attribute_to": "cogni_system"}),
        (attributing, {"attribute_to": "cogni_system"}),
        (attributing, {}),
        (attributing, {"model": "dev"}),
        (key, {}),
    ):
        held = hold(database, asking, 100, **changes)["hold_id"]
        capture(database, held, 50, tokens=tokens, absorbed_cost_usd=Decimal("0.000001"))
    sums = (
        "SELECT virtual_key_id, model, attributed_to, calls, charged_credits, provider_cost_usd, absorbed_cost_usd,"
        " input_tokens, cached_input_tokens, output_tokens FROM usage_by_day"
    )
    cost, absorbed = Decimal("0.0000025"), Decimal("0.000001")
    once = (1, 50, cost, absorbed, 16, 2, 8)
    assert sorted(query(database.superuser_url, sums)) == sorted(
        [
            (attributing.id, HELD["model"], "cogni_system", 2, 100, 2 * cost, 2 * absorbed, 32, 4, 16),
            (attributing.id, HELD["model"], "", *once),
            (attributing.id, "dev", "", *once),
            (key.id, HELD["model"], "", *once),
        ]
    )


# -- months


async def test_a_month_whose_receipts_have_another_place_already_gets_no_partition(
    database: Database, key: ServiceKey
) -> None:
    capture(database, hold(database, key, 100)["hold_id"], 50)
    start = "(date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => {ahead})) AT TIME ZONE 'UTC'"
    with connect(database.superuser_url, triggers=False) as superuser:
        for ahead in (4, 6):
            superuser.execute(
                f"INSERT INTO charge_receipts SELECT (jsonb_populate_record(r, jsonb_build_object('created_at',"
                f" {start.format(ahead=ahead)}))).* FROM charge_receipts r LIMIT 1".encode()
            )
    assert scalar(database.service_url, "SELECT open_receipt_months(5)") == 1
    opened = f"SELECT to_regclass('charge_receipts_' || to_char({start} AT TIME ZONE 'UTC', 'YYYY_MM')) IS NOT NULL"
    found = [scalar(database.superuser_url, opened.format(ahead=ahead)) for ahead in range(3, 7)]
    assert found == [True, False, True, False]
