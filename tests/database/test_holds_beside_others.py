"""Holds beside those of other keys, accounts and months: each is decided about by its own rows, no other changes."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from psycopg.errors import RestrictViolation

from tests.database.spending_rows import BALANCE, account, change
from tests.support.postgres import Database
from tests.support.spending import GRACE, HELD, ServiceKey, add_credits, capture, create_key, hold
from tests.support.sql import connect, query, refused, scalar

REFUSED: Final = ("outcome", "limit_source", "held", "available")


def _hold_of(database: Database, hold_id: UUID) -> Any:
    return query(database.superuser_url, "SELECT h FROM credit_holds h WHERE id = %s", hold_id)


# -- whose key, whose grant


def _bill(database: Database, key: ServiceKey) -> dict[str, Any]:
    return hold(database, key, 1, bill_to="cogni_system")


async def test_a_grant_is_of_one_payer_to_one_account_and_opens_no_key_that_is_refused(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    add_credits(database, "cogni_system", 10)
    revoked = create_key(database, key.billing_account_id, revoked_at="2026-01-01")

    def grant(payer: str, grantee: str) -> None:
        statement = "INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES (%s, %s)"
        change(database, statement, payer, grantee)

    grant(others_key.billing_account_id, key.billing_account_id)
    grant("cogni_system", others_key.billing_account_id)
    assert _bill(database, key)["outcome"] == "billing_not_granted"
    grant("cogni_system", key.billing_account_id)
    assert [_bill(database, asking)["outcome"] for asking in (revoked, key)] == ["key_revoked", "held"]


async def test_a_key_for_some_models_calls_those(database: Database, key: ServiceKey) -> None:
    asking = create_key(database, key.billing_account_id, models=["dev-large", "dev-small"])
    answers = [hold(database, asking, 1, model=model) for model in ("dev-large", "dev-small", "dev")]
    assert [answer["outcome"] for answer in answers] == ["held", "held", "model_not_allowed"]
    assert {answer["key_id"] for answer in answers} == {asking.id}


async def test_a_hold_notes_that_its_own_key_is_in_use(database: Database, key: ServiceKey) -> None:
    create_key(database, key.billing_account_id)
    hold(database, key, 1)
    used = "SELECT id FROM virtual_keys WHERE last_used_at IS NOT NULL"
    assert query(database.superuser_url, used) == [(key.id,)]


# -- limits


@pytest.mark.parametrize("limit", [None, 2 * BALANCE])
async def test_what_a_key_refuses_is_not_held_because_its_account_has_room(
    database: Database, key: ServiceKey, limit: int | None
) -> None:
    change(database, "UPDATE billing_accounts SET limit_day_credits = %s WHERE id = %s", limit, key.billing_account_id)
    limited = create_key(database, key.billing_account_id, limit_day_credits=300)
    answer = hold(database, limited, 600, amount_min=400)
    assert tuple(answer[name] for name in REFUSED) == ("insufficient_credits", "key_limit", 0, 300)
    assert account(database, key) == (BALANCE, 0)


async def test_waiting_may_help_where_the_balance_is_enough_for_the_least_and_nothing_is_less_than_nothing(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, BALANCE)["hold_id"]
    answer = hold(database, key, 2 * BALANCE, amount_min=BALANCE)
    assert tuple(answer[name] for name in REFUSED) == ("insufficient_credits", "in_flight", 0, 0)
    capture(database, held, BALANCE + GRACE)
    answer = hold(database, key, 1)
    assert tuple(answer[name] for name in REFUSED) == ("insufficient_credits", "balance", 0, 0)


@pytest.mark.parametrize("source", ["key_limit", "account_limit"])
async def test_a_limit_of_a_month_counts_its_own_spending_from_the_first_day_on(
    database: Database, key: ServiceKey, others_key: ServiceKey, source: str
) -> None:
    if source == "key_limit":
        others_key = key
        key = create_key(database, key.billing_account_id, limit_month_credits=1_000)
    else:
        change(database, "UPDATE billing_accounts SET limit_month_credits = 1000 WHERE id = %s", key.billing_account_id)
    capture(database, hold(database, others_key, 700)["hold_id"], 700)
    hold(database, others_key, 700)
    capture(database, hold(database, key, 400)["hold_id"], 400)

    def room_with_spending_on(day: str) -> Any:
        change(database, f"UPDATE usage_by_day SET day = ({day})::date")
        answer = hold(database, key, 1_001)
        assert answer["limit_source"] == source
        return answer["available"]

    first = "date_trunc('month', now() AT TIME ZONE 'UTC')"
    assert room_with_spending_on(first) == 600
    assert room_with_spending_on(f"{first} - interval '1 day'") == 1_000


@pytest.mark.parametrize("source", ["key_limit", "account_limit"])
async def test_a_limit_of_a_day_counts_that_day(database: Database, key: ServiceKey, source: str) -> None:
    table, name = ("virtual_keys", key.id) if source == "key_limit" else ("billing_accounts", key.billing_account_id)
    change(database, f"UPDATE {table} SET limit_day_credits = 1000 WHERE id = %s", name)
    capture(database, hold(database, key, 400)["hold_id"], 400)
    assert hold(database, key, 1_001)["available"] == 600
    change(database, "UPDATE usage_by_day SET day = day - 1")
    assert hold(database, key, 1_001)["available"] == 1_000


# -- one hold and no other


async def test_a_hold_keeps_the_terms_that_its_call_is_charged_by(database: Database, key: ServiceKey) -> None:
    asking = create_key(database, key.billing_account_id, may_attribute=True)
    held = hold(database, asking, 600, attribute_to="cogni_system")
    names = (
        "id, billing_account_id, virtual_key_id, amount_credits, request_id, dialect, model, upstream, is_streamed,"
        " owner, markup_factor, price_version, rates, input_tokens_estimate, output_tokens_limit, attributed_to"
    )
    [row] = query(database.superuser_url, f"SELECT {names} FROM credit_holds")
    given = {**HELD, "input_tokens_estimate": HELD["input_tokens"], "attributed_to": "cogni_system"}
    given |= {"id": held["hold_id"], "billing_account_id": asking.billing_account_id, "virtual_key_id": asking.id}
    given |= {"amount_credits": 600, "rates": HELD["rates"].obj}
    assert dict(zip(names.split(", "), row, strict=True)) == {name: given[name] for name in names.split(", ")}


async def test_what_was_set_aside_is_never_changed(database: Database, key: ServiceKey, others_key: ServiceKey) -> None:
    held = hold(database, key, 100)["hold_id"]
    changed = {
        "id": uuid4(),
        "billing_account_id": others_key.billing_account_id,
        "virtual_key_id": others_key.id,
        "request_id": "req-2",
        "amount_credits": 50,
        "model": "dev",
        "rates": None,
        "markup_factor": 1,
        "attributed_to": "cogni_system",
        "created_at": "2026-01-01",
    }
    with connect(database.migration_url) as owner:
        for column, value in changed.items():
            with refused(RestrictViolation, "credit_holds_write_once"), owner.transaction():
                owner.execute(f"UPDATE credit_holds SET {column} = %s WHERE id = %s".encode(), (value, held))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT renew_hold(%s, 'gateway-1', 600, 40, 'gen-1')",
        "SELECT move_hold(%s, 'gateway-1', 'another')",
        "SELECT void_hold(%s)",
    ],
)
async def test_what_is_done_with_a_hold_is_done_with_no_other(
    database: Database, key: ServiceKey, others_key: ServiceKey, statement: str
) -> None:
    mine, beside = hold(database, key, 100)["hold_id"], [hold(database, asking, 50) for asking in (key, others_key)]
    before = [_hold_of(database, other["hold_id"]) for other in beside]
    assert scalar(database.app_url, statement, uuid4()) is False
    assert scalar(database.app_url, statement, mine) is True
    assert [_hold_of(database, other["hold_id"]) for other in beside] == before
    assert account(database, others_key) == (BALANCE, 50)


async def test_another_upstream_is_tried_by_the_owner_only_and_while_the_hold_is_open(
    database: Database, key: ServiceKey
) -> None:
    held = hold(database, key, 100, owner="gateway-1")["hold_id"]
    query(database.app_url, "SELECT renew_hold(%s, 'gateway-1', 60, 40, 'gen-1')", held)

    def move(owner: str) -> bool:
        return bool(scalar(database.app_url, "SELECT move_hold(%s, %s, 'another')", held, owner))

    def upstream() -> Any:
        return query(database.superuser_url, "SELECT upstream, upstream_id FROM credit_holds")

    assert move("another") is False and upstream() == [("local", "gen-1")]
    assert move("gateway-1") is True and upstream() == [("another", None)]
    capture(database, held, 50)
    assert move("gateway-1") is False


async def test_progress_of_a_call_never_shrinks(database: Database, key: ServiceKey) -> None:
    held = hold(database, key, 100)["hold_id"]
    for output_bytes, upstream_id in ((40, "gen-1"), (30, None)):
        query(
            database.app_url,
            "SELECT renew_hold(%s, 'gateway-1', 60, %s, %s)",
            *(held, output_bytes, upstream_id),
        )
    progress = "SELECT output_bytes, upstream_id FROM credit_holds"
    assert query(database.superuser_url, progress) == [(40, "gen-1")]
    capture(database, held, 50)
    assert query(database.superuser_url, "SELECT upstream_id FROM charge_receipts") == [("gen-1",)]
