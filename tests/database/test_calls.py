"""Calls with an `Idempotency-Key`, and what a key may read of its account's calls: beside those of other keys."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from devstack.processes import wait_until
from tests.database.spending_rows import change, ingest
from tests.support.postgres import Database
from tests.support.spending import ServiceKey, call, capture, create_key, hold
from tests.support.sql import Connection, connect, lent, query, scalar

KEY: Final = "order-7"
ANSWER: Final[dict[str, Any]] = {"status": 200, "headers": {"content-type": "application/json"}, "body": b"{}"}
NOTHING: Final = dict.fromkeys(ANSWER)


def _app(on: Database | Connection) -> AbstractContextManager[Connection]:
    return lent(on.app_url) if isinstance(on, Database) else nullcontext(on)


def claim(
    on: Database | Connection, asking: ServiceKey, request_id: str, name: str = KEY, **changes: Any
) -> dict[str, Any]:
    """Claim a call with the gateway's role."""
    values = {"key": name, "request_hash": b"1", "hold_id": uuid4(), "lease_seconds": 60.0, **changes}
    with _app(on) as app:
        return call(app, "claim_call", key_hash=asking.key_hash, request_id=request_id, **values)


def finish(
    on: Database | Connection, key: ServiceKey, request_id: str, answer: dict[str, Any] | None, name: str = KEY
) -> Any:
    """Store a call's answer, or give its claim up."""
    values = {**(answer or NOTHING), "headers": Jsonb(answer["headers"]) if answer else None}
    with _app(on) as app:
        finished = call(app, "finish_call", key_id=key.id, key=name, request_id=request_id, **values)
    return finished["finish_call"]


def _said(claimed: dict[str, Any]) -> tuple[Any, ...]:
    return claimed["outcome"], claimed["request_id"]


@pytest.mark.parametrize(
    ("columns", "outcome"),
    [
        ({"active": False}, "unknown_key"),
        ({"revoked_at": "2026-01-01"}, "key_revoked"),
        ({"expires_at": "2026-01-01"}, "key_expired"),
        ({"expires_at": "2100-01-01"}, "claimed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_call_is_claimed_by_a_key_in_force(
    database: Database, key: ServiceKey, columns: dict[str, Any], outcome: str
) -> None:
    asking = create_key(database, key.billing_account_id, **columns)
    assert claim(database, asking, "req-1")["outcome"] == outcome
    unknown = ServiceKey(key.id, "0" * 64, key.billing_account_id)
    assert claim(database, unknown, "req-1")["outcome"] == "unknown_key"
    claims = scalar(database.superuser_url, "SELECT count(*) FROM call_claims")
    assert claims == (outcome == "claimed")


async def test_a_claim_is_of_one_key_and_one_name(database: Database, key: ServiceKey, others_key: ServiceKey) -> None:
    claimed = [
        claim(database, key, "req-1"),
        claim(database, others_key, "req-2", request_hash=b"2"),
        claim(database, key, "req-3", name="order-8", request_hash=b"3"),
    ]
    assert [_said(one) for one in claimed] == [("claimed", f"req-{number}") for number in (1, 2, 3)]
    assert [one["key_id"] for one in claimed] == [key.id, others_key.id, key.id]
    assert finish(database, others_key, "req-2", ANSWER) is True
    assert finish(database, key, "req-3", ANSWER, "order-8") is True
    assert _said(claim(database, key, "req-4")) == ("in_flight", "req-1")
    assert _said(claim(database, key, "req-4", request_hash=b"2")) == ("conflict", "req-1")


async def test_an_answer_is_stored_once_by_the_call_that_has_the_claim(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    claim(database, key, "req-1")
    claim(database, others_key, "req-1")
    claim(database, key, "req-1", name="order-8")
    assert finish(database, key, "req-2", ANSWER) is False
    assert finish(database, key, "req-2", None) is False
    assert finish(database, key, "req-1", ANSWER) is True
    assert finish(database, key, "req-1", {**ANSWER, "status": 500}) is False
    assert finish(database, key, "req-1", None) is False
    again = claim(database, key, "req-3")
    assert {name: again[name] for name in ("outcome", "request_id", *ANSWER)} == {
        "outcome": "answered",
        "request_id": "req-1",
        **ANSWER,
    }
    beside = [claim(database, others_key, "req-3"), claim(database, key, "req-3", name="order-8")]
    assert [_said(one) for one in beside] == [("in_flight", "req-1")] * 2


async def test_a_claim_that_is_given_up_is_free_and_no_other_is(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    claim(database, key, "req-1")
    claim(database, others_key, "req-1")
    claim(database, key, "req-1", name="order-8")
    assert finish(database, key, "req-1", None) is True
    assert _said(claim(database, key, "req-2")) == ("claimed", "req-2")
    beside = [claim(database, others_key, "req-2"), claim(database, key, "req-2", name="order-8")]
    assert [_said(one) for one in beside] == [("in_flight", "req-1")] * 2


@pytest.mark.parametrize(
    ("state", "resolved", "is_free"),
    [
        ("held", None, False),
        ("captured", "20 seconds", False),
        ("captured", "31 seconds", True),
        ("voided", "20 seconds", False),
        (None, None, True),
    ],
)
async def test_the_claim_of_an_owner_that_died_is_free_once_its_hold_is_resolved_for_a_while(
    database: Database,
    key: ServiceKey,
    others_key: ServiceKey,
    state: str | None,
    resolved: str | None,
    is_free: bool,
) -> None:
    hold(database, key, 1)
    held = hold(database, key, 1)["hold_id"] if state else uuid4()
    claim(database, others_key, "req-1", hold_id=held)
    beside = claim(database, key, "req-1", name="order-8", hold_id=held)
    claim(database, key, "req-1", hold_id=held, lease_seconds=-1.0)
    if resolved:
        change(
            database,
            "UPDATE credit_holds SET state = %s, resolved_at = clock_timestamp() - %s::interval WHERE id = %s",
            *(state, resolved, held),
        )
    next_hold = uuid4()
    said = _said(claim(database, key, "req-2", hold_id=next_hold))
    assert said == (("claimed", "req-2") if is_free else ("in_flight", "req-1"))
    stored = "SELECT virtual_key_id, key, request_id, hold_id, lease_until > clock_timestamp() FROM call_claims"
    mine = ("req-2", next_hold, True) if is_free else ("req-1", held, False)
    assert set(query(database.superuser_url, stored)) == {
        (key.id, KEY, *mine),
        (key.id, "order-8", beside["request_id"], held, True),
        (others_key.id, KEY, "req-1", held, True),
    }
    assert _said(claim(database, key, "req-3")) == ("in_flight", mine[0])


async def test_of_two_who_claim_at_once_what_its_owner_has_left_one_makes_the_call(
    database: Database, key: ServiceKey
) -> None:
    claim(database, key, "req-1", lease_seconds=-1.0)
    with connect(database.superuser_url) as holder:
        # Both have seen that there is a claim, and wait for its row.
        holder.execute("SELECT FROM call_claims FOR UPDATE")
        asking = [asyncio.create_task(asyncio.to_thread(claim, database, key, f"req-{number}")) for number in (2, 3)]
        await wait_until(lambda: _waiting(database) == 2, timeout_seconds=30, what="two calls that wait")
    claims = [await one for one in asking]
    assert sorted(one["outcome"] for one in claims) == ["claimed", "in_flight"]
    assert len({one["request_id"] for one in claims}) == 1


def _waiting(database: Database) -> int:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(scalar(database.superuser_url, waiting))


# -- what became of a request


def usage(database: Database, key: ServiceKey, request_id: str = "req-1") -> list[dict[str, Any]]:
    """The answer to the key, of one row or none."""
    columns = (
        "status, model, charged_credits, held_credits, input_tokens, cached_input_tokens, output_tokens,"
        " reasoning_tokens, estimated, provider_cost_usd, user_cost_usd, created_at"
    )
    rows = query(database.app_url, f"SELECT {columns} FROM usage_of_request(%s, %s)", key.key_hash, request_id)
    return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]


def _first_hold(database: Database, hold_id: UUID) -> datetime:
    made = datetime(2026, 1, 1, tzinfo=UTC)
    with_triggers_off = "SET LOCAL session_replication_role = replica; UPDATE credit_holds SET created_at = "
    change(database, with_triggers_off + f"'{made.isoformat()}' WHERE id = '{hold_id}'")
    return made


async def test_a_request_that_went_to_two_upstreams_is_the_sum_of_both(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    """Beside a charge of the same moment, and one of another source with the same reference."""
    first, second = (hold(database, key, 100)["hold_id"] for _ in range(2))
    beside = hold(database, others_key, 100, request_id="req-2")["hold_id"]
    ingest(database, others_key, source_system="another", source_reference=str(second), charged=70)
    made = _first_hold(database, first)
    held = {"status": "held", "held_credits": 200, "charged_credits": 0, "created_at": made, "model": "gpt-4o-mini"}
    assert usage(database, key) == [
        held
        | dict.fromkeys(("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"), 0)
        | {"estimated": False, "provider_cost_usd": 0, "user_cost_usd": 0}
    ]
    capture(database, first, 50, tokens=[16, 2, 0, 8, 4], estimated=True)
    [half] = usage(database, key)
    assert (half["status"], half["held_credits"], half["charged_credits"]) == ("held", 100, 50)
    with connect(database.app_url) as app:
        capture(app, second, 30, tokens=[16, 2, 0, 8, 4])
        capture(app, beside, 60)
    cost = Decimal("0.000008")
    charged = {
        "status": "charged",
        "held_credits": 0,
        "charged_credits": 80,
        "created_at": made,
        "model": "gpt-4o-mini",
    }
    assert usage(database, key) == [
        charged
        | {"input_tokens": 32, "cached_input_tokens": 4, "output_tokens": 16, "reasoning_tokens": 8}
        | {"estimated": True, "provider_cost_usd": cost / 2, "user_cost_usd": cost}
    ]


async def test_a_request_that_was_released_and_then_charged_is_charged(database: Database, key: ServiceKey) -> None:
    first, second = (hold(database, key, 100)["hold_id"] for _ in range(2))
    query(database.app_url, "SELECT void_hold(%s)", first)
    capture(database, second, 50)
    assert [one["status"] for one in usage(database, key)] == ["charged"]
    query(database.app_url, "SELECT void_hold(%s)", hold(database, key, 100, request_id="req-2")["hold_id"])
    assert [one["status"] for one in usage(database, key, "req-2")] == ["voided"]


async def test_a_request_is_seen_by_keys_in_force_of_who_made_it_and_of_who_pays(
    database: Database, key: ServiceKey, others_key: ServiceKey
) -> None:
    payers = create_key(database, "cogni_system")
    change(
        database,
        "INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES ('cogni_system', %s);",
        key.billing_account_id,
    )
    change(database, "UPDATE billing_accounts SET kind = 'platform_service', tier = 'demo' WHERE is_system_tenant")
    held = hold(database, key, 100, bill_to="cogni_system")
    capture(database, held["hold_id"], 50)
    revoked = create_key(database, key.billing_account_id, revoked_at="2026-01-01")
    seen = {name: usage(database, asking) for name, asking in
            {"maker": key, "payer": payers, "stranger": others_key, "revoked": revoked}.items()}  # fmt: skip
    assert {name: [one["charged_credits"] for one in rows] for name, rows in seen.items()} == {
        "maker": [50],
        "payer": [50],
        "stranger": [],
        "revoked": [],
    }
    assert usage(database, key, "req-2") == []
