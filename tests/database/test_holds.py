"""Holds and charges: what the database functions decide, and what no role and no mistake gets past them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

import pytest
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    RestrictViolation,
    UniqueViolation,
)

from tests.database.spending_rows import BALANCE, account, when_it_waits
from tests.support.oracle import check_books
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.spending import GRACE, ServiceKey, add_credits, capture, create_key, hold
from tests.support.sql import connect, query, refused, scalar


def set_account(database: Database, key: ServiceKey, **columns: Any) -> None:
    with connect(database.superuser_url) as superuser:
        setting = ", ".join(f"{column} = %s" for column in columns)
        superuser.execute(
            f"UPDATE billing_accounts SET {setting} WHERE id = %s".encode(), (*columns.values(), key.billing_account_id)
        )


# -- a call


async def test_a_call_is_held_and_charged_and_the_books_show_its_margin(database: Database, key: ServiceKey) -> None:
    held = hold(database, key, 600)
    assert (held["outcome"], held["held"], held["available"]) == ("held", 600, BALANCE - 600)
    assert account(database, key) == (BALANCE, 600)
    charged = capture(database, held["hold_id"], 500, tokens=[10, 2, 0, 5, 1])
    assert (charged["outcome"], charged["charged"], charged["uncollected"]) == ("captured", 500, 0)
    assert (charged["balance"], charged["available"]) == (BALANCE - 500, BALANCE - 500)
    assert account(database, key) == (BALANCE - 500, 0)
    [receipt] = query(
        database.superuser_url,
        "SELECT charged_credits, user_cost_usd, provider_cost_usd, absorbed_cost_usd, source_system, source_reference,"
        " input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, entry_id FROM charge_receipts",
    )
    *values, entry_id = receipt
    cost = Decimal("0.00005")
    assert values == [500, cost, cost / 2, 0, "gateway", str(held["hold_id"]), 10, 2, 5, 1]
    assert query(
        database.superuser_url, "SELECT amount, reason, reference FROM credit_ledger WHERE id = %s", entry_id
    ) == [(-500, "llm_usage", f"gateway:{held['hold_id']}")]
    lines = query(
        database.superuser_url,
        "SELECT account_code, side, amount FROM journal_lines WHERE entry_id = %s ORDER BY account_code",
        entry_id,
    )
    assert lines == [
        (f"credits:{key.billing_account_id}", "debit", 500),
        ("expense:providers", "debit", 250),
        ("payable:providers", "credit", 250),
        ("revenue:usage", "credit", 500),
    ]
    sums = "SELECT calls, charged_credits, provider_cost_usd, input_tokens, output_tokens FROM usage_by_day"
    assert query(database.superuser_url, sums) == [(1, 500, cost / 2, 10, 5)]
    assert await check_books(database.service_url) == []


async def test_a_charge_says_what_is_left_beside_other_calls_and_keeps_the_upstreams_id(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 600)
    hold(database, key, 100)
    charged = capture(database, held["hold_id"], 500, upstream_id="gen-1")
    assert (charged["balance"], charged["available"]) == (BALANCE - 500, BALANCE - 600)
    ids = "SELECT h.upstream_id, r.upstream_id FROM credit_holds h JOIN charge_receipts r ON r.hold_id = h.id"
    assert query(database.superuser_url, ids) == [("gen-1", "gen-1")]


async def test_a_cost_that_is_charged_to_no_account_has_an_entry_of_its_own(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 600)
    capture(
        database, held["hold_id"], 0, provider_cost_usd=Decimal("0.0000251"), absorbed_cost_usd=Decimal("0.0000251")
    )
    assert account(database, key) == (BALANCE, 0)
    lines = """
        SELECT e.reason, e.reference, l.account_code, l.side, l.amount FROM general_entries e
          JOIN journal_lines l ON l.entry_id = e.id JOIN charge_receipts r ON r.entry_id = e.id ORDER BY l.side
    """
    reference = f"gateway:{held['hold_id']}"
    assert query(database.superuser_url, lines) == [
        ("absorbed_cost", reference, "payable:providers", "credit", 251),
        ("absorbed_cost", reference, "expense:absorbed", "debit", 251),
    ]
    assert await check_books(database.service_url) == []


async def test_a_second_capture_is_answered_with_the_first(database: Database, key: ServiceKey) -> None:
    held = hold(database, key, 600)
    first = capture(database, held["hold_id"], 500)
    again = capture(database, held["hold_id"], 600)
    assert (again["outcome"], again["receipt_id"], again["charged"]) == ("repeated", first["receipt_id"], 500)
    assert account(database, key) == (BALANCE - 500, 0)


async def test_a_void_releases_once_and_nothing_is_charged_after_it(database: Database, key: ServiceKey) -> None:
    held = hold(database, key, 600)
    void = "SELECT void_hold(%s)"
    assert [scalar(database.app_url, void, held["hold_id"]) for _ in range(2)] == [True, False]
    assert account(database, key) == (BALANCE, 0)
    assert capture(database, held["hold_id"], 500)["outcome"] == "voided"
    assert capture(database, uuid4(), 500)["outcome"] == "unknown_hold"
    assert account(database, key) == (BALANCE, 0)


async def test_many_at_once_on_a_balance_for_one(database: Database, key: ServiceKey) -> None:
    answers = await asyncio.gather(*(asyncio.to_thread(hold, database, key, BALANCE) for _ in range(16)))
    outcomes = Counter((answer["outcome"], answer["limit_source"]) for answer in answers)
    assert outcomes == {("held", None): 1, ("insufficient_credits", "in_flight"): 15}
    assert account(database, key) == (BALANCE, BALANCE)


# -- what is refused


def _attribute(database: Database, key: ServiceKey) -> dict[str, Any]:
    return hold(database, key, 1, attribute_to=key.billing_account_id)


def _bill(database: Database, key: ServiceKey) -> dict[str, Any]:
    return hold(database, key, 1, bill_to="cogni_system")


@pytest.mark.parametrize(
    ("columns", "call", "outcome"),
    [
        ({"active": False}, None, "unknown_key"),
        ({"revoked_at": "2026-01-01"}, None, "key_revoked"),
        ({"expires_at": "2026-01-01"}, None, "key_expired"),
        ({"models": ["dev-large"]}, None, "model_not_allowed"),
        ({}, _attribute, "attribution_not_allowed"),
        ({}, _bill, "billing_not_granted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_key_is_refused(
    database: Database,
    key: ServiceKey,
    columns: dict[str, Any],
    call: Callable[[Database, ServiceKey], dict[str, Any]] | None,
    outcome: str,
) -> None:
    asking = create_key(database, key.billing_account_id, **columns)
    answer = call(database, asking) if call else hold(database, asking, 1)
    assert (answer["outcome"], answer["held"]) == (outcome, 0)
    assert account(database, key) == (BALANCE, 0)


async def test_a_key_that_is_not_there_opens_nothing(database: Database, key: ServiceKey) -> None:
    assert hold(database, ServiceKey(key.id, "0" * 64, key.billing_account_id), 1)["outcome"] == "unknown_key"


async def test_what_is_granted_is_allowed_until_it_is_revoked(database: Database, key: ServiceKey) -> None:
    add_credits(database, "cogni_system", 10)
    with connect(database.service_url) as service:
        service.execute(
            "INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES ('cogni_system', %s)",
            (key.billing_account_id,),
        )
    answer = _bill(database, key)
    assert (answer["outcome"], answer["account_id"]) == ("held", "cogni_system")
    with connect(database.service_url) as service:
        service.execute("UPDATE billing_grants SET revoked_at = now()")
    assert _bill(database, key)["outcome"] == "billing_not_granted"
    attributing = create_key(database, key.billing_account_id, may_attribute=True)
    assert hold(database, attributing, 1, attribute_to="cogni_system")["outcome"] == "held"
    assert hold(database, attributing, 1, attribute_to="no account")["outcome"] == "attribution_not_allowed"


async def test_calls_beyond_the_rate_wait_and_count_for_whom_they_are_attributed_to(
    database: Database, key: ServiceKey
) -> None:
    attributing = create_key(database, key.billing_account_id, may_attribute=True)
    answers = [hold(database, attributing, 1, rate_per_minute=2) for _ in range(3)]
    assert [answer["outcome"] for answer in answers] == ["held", "held", "rate_limited"]
    assert [answer["rate_remaining"] for answer in answers] == [1, 0, None]
    assert 0 < answers[2]["retry_after_seconds"] <= 60
    assert hold(database, attributing, 1, rate_per_minute=2, attribute_to="cogni_system")["outcome"] == "held"


async def test_a_hold_notes_once_a_minute_that_its_key_is_in_use(database: Database, key: ServiceKey) -> None:
    used = "SELECT last_used_at FROM virtual_keys WHERE id = %s"

    def is_noted_after(ago: str) -> bool:
        with connect(database.superuser_url) as superuser:
            superuser.execute(
                "UPDATE virtual_keys SET last_used_at = now() - %s::interval WHERE id = %s", (ago, key.id)
            )
        before = scalar(database.superuser_url, used, key.id)
        hold(database, key, 1)
        return bool(scalar(database.superuser_url, used, key.id) != before)

    assert scalar(database.superuser_url, used, key.id) is None
    hold(database, key, 1)
    assert scalar(database.superuser_url, used, key.id) is not None
    assert [is_noted_after(ago) for ago in ("50 seconds", "61 seconds")] == [False, True]


async def test_the_reason_says_whether_waiting_may_help(database: Database, key: ServiceKey) -> None:
    answer = hold(database, key, BALANCE + 1)
    assert (answer["limit_source"], answer["available"]) == ("balance", BALANCE)
    hold(database, key, BALANCE - 10)
    answer = hold(database, key, 11)
    assert (answer["limit_source"], answer["available"], answer["all_held"]) == ("in_flight", 10, BALANCE - 10)


@pytest.mark.parametrize("period", ["day", "month"])
@pytest.mark.parametrize("source", ["key_limit", "account_limit"])
async def test_a_limit_counts_what_is_held_and_what_was_spent(
    database: Database, key: ServiceKey, source: str, period: str
) -> None:
    limit = {f"limit_{period}_credits": 1_000}
    if source == "account_limit":
        set_account(database, key, **limit)
    else:
        key = create_key(database, key.billing_account_id, **limit)
    first = hold(database, key, 600)
    answer = hold(database, key, 401)
    assert (answer["outcome"], answer["limit_source"], answer["available"]) == ("insufficient_credits", source, 400)
    capture(database, first["hold_id"], 300)
    assert hold(database, key, 701)["limit_source"] == source
    assert hold(database, key, 700)["outcome"] == "held"


async def test_a_limit_of_a_past_day_counts_no_more(database: Database, key: ServiceKey) -> None:
    key = create_key(database, key.billing_account_id, limit_day_credits=1_000)
    capture(database, hold(database, key, 1_000)["hold_id"], 1_000)
    assert hold(database, key, 1)["limit_source"] == "key_limit"
    with connect(database.superuser_url) as superuser:
        superuser.execute("UPDATE usage_by_day SET day = day - 1")
    assert hold(database, key, 1_000)["outcome"] == "held"


async def test_less_is_held_where_less_is_enough(database: Database, key: ServiceKey) -> None:
    limited = create_key(database, key.billing_account_id, limit_day_credits=500)
    assert hold(database, limited, 600, amount_min=400)["held"] == 500
    answer = hold(database, key, BALANCE, amount_min=BALANCE - 500)
    assert (answer["held"], answer["available"]) == (BALANCE - 500, 0)
    assert hold(database, key, 10, amount_min=1)["limit_source"] == "in_flight"


async def test_a_service_of_the_platform_is_never_refused_for_lack_of_credits(
    database: Database, key: ServiceKey
) -> None:
    set_account(database, key, kind="platform_service", tier="internal")
    answer = hold(database, key, 2 * BALANCE)
    assert answer["outcome"] == "held"
    assert capture(database, answer["hold_id"], 3 * BALANCE)["charged"] == 3 * BALANCE
    assert account(database, key) == (-2 * BALANCE, 0)
    assert await check_books(database.service_url) == []


async def test_the_system_tenant_is_refused_like_anyone(database: Database, key: ServiceKey) -> None:
    assert hold(database, create_key(database, "cogni_system"), 1)["limit_source"] == "balance"


# -- more than was held


async def test_a_charge_beyond_its_hold_takes_what_is_left_and_the_grace_that_all_share(
    database: Database, key: ServiceKey
) -> None:
    first, second = hold(database, key, 100), hold(database, key, 100)
    charged = capture(database, first["hold_id"], 2 * GRACE)
    most = BALANCE - 100 + GRACE
    assert (charged["charged"], charged["uncollected"]) == (most, 2 * GRACE - most)
    assert account(database, key) == (BALANCE - most, 100)
    # What the second call holds is its own; of the grace nothing is left.
    assert capture(database, second["hold_id"], 2 * GRACE)["charged"] == 100
    assert account(database, key) == (-GRACE, 0)
    assert await check_books(database.service_url) == []


async def test_what_is_not_collected_is_absorbed_as_far_as_it_cost_anything(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 100)
    capture(database, held["hold_id"], 100_000_000)
    [costs] = query(
        database.superuser_url,
        "SELECT charged_credits, user_cost_usd, provider_cost_usd, absorbed_cost_usd FROM charge_receipts",
    )
    paid = Decimal(BALANCE + GRACE) / 10**7
    assert costs == (BALANCE + GRACE, paid, 5, 5 - paid)
    assert await check_books(database.service_url) == []


# -- the owner and its lease


async def test_only_a_lapsed_hold_is_captured_in_its_owners_place(database: Database, key: ServiceKey) -> None:
    alive, dead = hold(database, key, 100), hold(database, key, 100, lease_seconds=-1)
    assert capture(database, alive["hold_id"], 50, only_lapsed=True)["outcome"] == "not_lapsed"
    assert capture(database, dead["hold_id"], 50, only_lapsed=True)["outcome"] == "captured"
    assert account(database, key) == (BALANCE - 50, 100)
    # The owner was only paused: its late capture is answered with what was charged.
    late = capture(database, dead["hold_id"], 90)
    assert (late["outcome"], late["charged"]) == ("repeated", 50)


async def test_a_lease_is_renewed_by_its_owner_only_and_while_the_hold_is_open(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 100, lease_seconds=-1, owner="gateway-1")

    def renew(owner: str) -> bool:
        return bool(scalar(database.app_url, "SELECT renew_hold(%s, %s, 60, 40, 'gen-1')", held["hold_id"], owner))

    assert (renew("another"), renew("gateway-1")) == (False, True)
    progress = "SELECT output_bytes, upstream_id, lease_until > now() FROM credit_holds"
    assert query(database.superuser_url, progress) == [(40, "gen-1", True)]
    capture(database, held["hold_id"], 50)
    assert renew("gateway-1") is False


# -- what cannot be changed, and who sees it


REFUSED_TO_THE_OWNER: Final[tuple[tuple[str, Any], ...]] = (
    ("UPDATE credit_holds SET amount_credits = amount_credits + 1 WHERE state = 'held'", RestrictViolation),
    ("UPDATE credit_holds SET state = 'held', resolved_at = NULL WHERE state = 'captured'", RestrictViolation),
    ("DELETE FROM credit_holds", RestrictViolation),
    ("UPDATE charge_receipts SET charged_credits = 1", RestrictViolation),
    ("DELETE FROM charge_receipts", RestrictViolation),
    ("TRUNCATE charge_receipts", RestrictViolation),
    ("DELETE FROM charge_references", RestrictViolation),
    ("DELETE FROM general_entries", RestrictViolation),
    (
        "INSERT INTO charge_receipts SELECT gen_random_uuid(), r.request_id, r.hold_id, r.billing_account_id,"
        " r.virtual_key_id, 1, 0, 0, 1, 0, r.source_system, r.source_reference, 'x', 'm', 'p', 0, 0, 0, 0, 0,"
        " false, NULL, NULL, NULL, '{}', NULL, NULL, NULL, NULL, now(), now() FROM charge_receipts r",
        UniqueViolation,
    ),
    (
        "INSERT INTO journal_lines (entry_id, account_code, side, amount)"
        " VALUES (gen_random_uuid(), 'cash:usdc', 'debit', 1)",
        ForeignKeyViolation,
    ),
    (
        "WITH e AS (INSERT INTO general_entries (reason, reference) VALUES ('absorbed_cost', 'x') RETURNING id)"
        " INSERT INTO journal_lines (entry_id, account_code, side, amount)"
        " SELECT id, code, side, 5 FROM e, (VALUES ('cash:usdc', 'debit'), ('credits:cogni_system', 'credit')) l"
        " (code, side)",
        CheckViolation,
    ),
    ("INSERT INTO general_entries (reason, reference) VALUES ('absorbed_cost', 'x')", CheckViolation),
)


async def test_the_owner_of_the_tables_is_refused(database: Database, key: ServiceKey) -> None:
    capture(database, hold(database, key, 100)["hold_id"], 50)
    hold(database, key, 100)
    for statement, error in REFUSED_TO_THE_OWNER:
        with refused(error), connect(database.migration_url) as owner:
            owner.execute(statement.encode())


@pytest.mark.parametrize("charged", [-1, -BALANCE])
async def test_a_charge_never_credits(database: Database, key: ServiceKey, charged: int) -> None:
    held = hold(database, key, 100)
    with refused(CheckViolation, "charge_receipts_charged_credits_check"):
        capture(database, held["hold_id"], charged, user_cost_usd=0, provider_cost_usd=0)
    with refused(CheckViolation):
        hold(database, key, -1)
    assert account(database, key) == (BALANCE, 100)


async def test_a_tenant_sees_its_own_rows_and_without_a_scope_none(roles: RolePair, key: ServiceKey) -> None:
    database = roles.database
    other = await roles.open_account(2)
    owner = scalar(
        database.superuser_url, "SELECT owner_user_id FROM billing_accounts WHERE id = %s", key.billing_account_id
    )
    capture(database, hold(database, key, BALANCE)["hold_id"], BALANCE)
    for table in ("credit_holds", "charge_receipts", "usage_by_day", "billing_alerts"):
        count = f"SELECT count(*) FROM {table}"
        assert scalar(database.app_url, count, user_id=owner) == 1, table
        assert scalar(database.app_url, count, user_id=other.user_id) == 0, table
        assert scalar(database.app_url, count) == 0, table
        with refused(InsufficientPrivilege), connect(database.app_url, user_id=owner) as app:
            app.execute(f"DELETE FROM {table}".encode())


async def test_an_organizations_admins_see_its_account_and_its_members_do_not(roles: RolePair, key: ServiceKey) -> None:
    database = roles.database
    admin, member = await roles.open_account(2), await roles.open_account(3)
    with connect(database.service_url) as service:
        service.execute(
            "INSERT INTO account_members (billing_account_id, user_id, role)"
            " VALUES (%s, %s, 'admin'), (%s, %s, 'member')",
            (key.billing_account_id, admin.user_id, key.billing_account_id, member.user_id),
        )
    seen = "SELECT count(*) FROM billing_accounts WHERE id = %s"
    assert scalar(database.app_url, seen, key.billing_account_id, user_id=admin.user_id) == 1
    assert scalar(database.app_url, seen, key.billing_account_id, user_id=member.user_id) == 0


# -- crossings


async def test_the_end_of_the_balance_is_noted_by_the_charge_that_crosses_it(
    database: Database, key: ServiceKey
) -> None:
    for charged in (BALANCE - 1, 2, 2):
        capture(
            database, hold(database, key, 1)["hold_id"] if charged == BALANCE - 1 else _open(database, key), charged
        )
    alerts = "SELECT kind, balance_credits FROM billing_alerts"
    assert query(database.superuser_url, alerts) == [("balance_exhausted", -1)]
    add_credits(database, key.billing_account_id, 100)
    capture(database, hold(database, key, 1)["hold_id"], 1_000)
    assert [row[0] for row in query(database.superuser_url, alerts)] == ["balance_exhausted"] * 2


def _open(database: Database, key: ServiceKey) -> Any:
    """A hold although the balance is used up: as one that was taken before."""
    set_account(database, key, kind="platform_service", tier="testing")
    held = hold(database, key, 1)["hold_id"]
    set_account(database, key, kind="personal", tier=None)
    return held


async def test_a_share_of_a_limit_is_noted_once_in_its_period(database: Database, key: ServiceKey) -> None:
    key = create_key(database, key.billing_account_id, limit_day_credits=100, limit_month_credits=1_000)
    for charged in (79, 1, 1, 19):
        capture(database, hold(database, key, charged)["hold_id"], charged)
    noted = "SELECT kind, period, threshold_percent, spent_credits, limit_credits FROM billing_alerts ORDER BY id"
    assert query(database.superuser_url, noted) == [
        ("key_limit", "day", 80, 80, 100),
        ("key_limit", "day", 100, 100, 100),
    ]


# -- partitions


async def test_a_receipt_is_in_its_months_partition(database: Database, key: ServiceKey) -> None:
    capture(database, hold(database, key, 100)["hold_id"], 50)
    [name] = query(database.superuser_url, "SELECT tableoid::regclass::text FROM charge_receipts")[0]
    month = scalar(database.superuser_url, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
    assert name == f"charge_receipts_{month}"
    opened = [scalar(database.service_url, "SELECT open_receipt_months(5)") for _ in range(2)]
    assert opened == [2, 0]
    assert await check_books(database.service_url) == []


# -- two at once


async def test_two_holds_in_different_buckets_see_each_other(database: Database, key: ServiceKey) -> None:
    attributing = create_key(database, key.billing_account_id, may_attribute=True)
    with connect(database.app_url) as first:
        assert hold(first, key, BALANCE)["outcome"] == "held"
        other = await when_it_waits(
            database, first, lambda: hold(database, attributing, 1, attribute_to="cogni_system")
        )
    assert other["limit_source"] == "in_flight"


async def test_two_holds_of_one_limited_key_on_two_accounts_see_each_other(database: Database, key: ServiceKey) -> None:
    """Neither the bucket nor the account makes them wait: the key does."""
    add_credits(database, "cogni_system", 100)
    limited = create_key(database, key.billing_account_id, may_attribute=True, limit_day_credits=100)
    with connect(database.service_url) as service:
        service.execute(
            "INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES ('cogni_system', %s)",
            (key.billing_account_id,),
        )
    with connect(database.app_url) as first:
        assert hold(first, limited, 80)["outcome"] == "held"
        other = await when_it_waits(
            database, first, lambda: hold(database, limited, 80, attribute_to="cogni_system", bill_to="cogni_system")
        )
    assert (other["outcome"], other["limit_source"]) == ("insufficient_credits", "key_limit")


async def test_two_captures_of_one_hold_charge_once(database: Database, key: ServiceKey) -> None:
    held = hold(database, key, 100)["hold_id"]
    with connect(database.app_url) as first:
        charged = capture(first, held, 50)
        other = await when_it_waits(database, first, lambda: capture(database, held, 70))
    assert (other["outcome"], other["receipt_id"], other["charged"]) == ("repeated", charged["receipt_id"], 50)
    assert account(database, key) == (BALANCE - 50, 0)


async def test_a_capture_waits_for_the_grace_that_another_takes(database: Database, key: ServiceKey) -> None:
    one, two = hold(database, key, 100)["hold_id"], hold(database, key, 100)["hold_id"]
    with connect(database.app_url) as first:
        capture(first, one, 2 * GRACE)
        other = await when_it_waits(database, first, lambda: capture(database, two, 2 * GRACE))
    assert other["charged"] == 100
    assert account(database, key) == (-GRACE, 0)
