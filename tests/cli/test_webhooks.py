"""`settle webhooks`: what was sent to whom, and sending it again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from db.accounts.wallets import Payer
from tests.cli.command import ResponseModel, settle
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.sql import connect, query
from tests.support.webhooks import Endpoint, deliveries_of, make_endpoint, written


async def run(database: Database, folder: Path, *arguments: str) -> ResponseModel:
    variables = {"SERVICE_DATABASE_URL": database.service_url}
    return await asyncio.to_thread(settle, ("webhooks", *arguments), variables, folder)


@pytest.fixture
async def payer(roles: RolePair) -> Payer:
    """Whose account has an endpoint."""
    return await roles.open_account(1)


@pytest.fixture
async def endpoint(roles: RolePair, payer: Payer) -> Endpoint:
    """An endpoint with a webhook that was given up and one that was delivered."""
    made = make_endpoint(roles.database, payer)
    await roles.credit(await roles.create_submitted(payer, 1))
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE webhook_deliveries d SET due_at = NULL, ended_at = now(),"
            " state = CASE v.type WHEN 'payment.credited' THEN 'delivered' ELSE 'failed' END"
            " FROM webhook_events v WHERE v.id = d.event_id"
        )
        superuser.execute(
            "INSERT INTO webhook_tries (delivery_id, billing_account_id, sent_at, duration_ms, error)"
            " SELECT id, billing_account_id, now(), 7, 'no answer within 10 seconds' FROM webhook_deliveries"
        )
    return made


async def test_endpoints_are_listed_with_what_is_pending_and_was_given_up(
    database: Database, payer: Payer, endpoint: Endpoint, tmp_path: Path
) -> None:
    listed = await run(database, tmp_path, "list", "--json")
    assert listed.exit_code == 0, listed.stderr
    [view] = listed.json()
    assert view["endpointId"] == str(endpoint.id)
    assert (view["pendingDeliveries"], view["failedDeliveries"], view["state"]) == (0, 1, "active")
    assert "secret" not in view
    assert endpoint.secret not in listed.stdout
    text = await run(database, tmp_path, "list", "--account", payer.billing_account_id)
    assert "https://example.com/" in text.stdout
    assert "no endpoints" in (await run(database, tmp_path, "list", "--account", "another")).stdout


async def test_deliveries_of_an_endpoint_are_listed_with_the_last_answer(
    database: Database, endpoint: Endpoint, tmp_path: Path
) -> None:
    listed = await run(database, tmp_path, "list", "--endpoint", str(endpoint.id), "--json")
    assert sorted((view["type"], view["state"], view["triesCount"]) for view in listed.json()) == [
        ("payment.credited", "delivered", 1),
        ("payment.submitted", "failed", 1),
    ]
    text = await run(database, tmp_path, "list", "--endpoint", str(endpoint.id))
    assert "payment.submitted" in text.stdout
    unknown = await run(database, tmp_path, "list", "--endpoint", str(uuid4()), "--json")
    assert (unknown.exit_code, unknown.json()["code"]) == (1, "WEBHOOK_ENDPOINT_NOT_FOUND")


async def test_one_is_sent_again(database: Database, endpoint: Endpoint, tmp_path: Path) -> None:
    [(delivery_id,)] = query(database.service_url, "SELECT id FROM webhook_deliveries WHERE state = 'failed'")
    done = await run(database, tmp_path, "redeliver", str(delivery_id), "--json")
    assert (done.exit_code, done.json()) == (0, {"deliveryId": str(delivery_id), "state": "pending"})
    assert deliveries_of(database, endpoint) == [("payment.submitted", "pending"), ("payment.credited", "delivered")]
    unknown = await run(database, tmp_path, "redeliver", str(uuid4()), "--json")
    assert (unknown.exit_code, unknown.json()["code"]) == (1, "WEBHOOK_DELIVERY_NOT_FOUND")
    assert (await run(database, tmp_path, "redeliver", "seven")).exit_code == 2


async def test_a_stopped_endpoint_is_enabled(database: Database, endpoint: Endpoint, tmp_path: Path) -> None:
    with connect(database.superuser_url) as superuser:
        superuser.execute("UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'stopped_by_receiver'")
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    refused = await run(database, tmp_path, "replay", str(endpoint.id), "--from", since, "--json")
    assert (refused.exit_code, refused.json()["code"]) == (1, "WEBHOOK_ENDPOINT_STOPPED")
    enabled = await run(database, tmp_path, "enable", str(endpoint.id), "--json")
    assert (enabled.exit_code, enabled.json()["state"]) == (0, "active")
    assert (await run(database, tmp_path, "replay", str(endpoint.id), "--from", since)).exit_code == 0
    unknown = await run(database, tmp_path, "enable", str(uuid4()), "--json")
    assert (unknown.exit_code, unknown.json()["code"]) == (1, "WEBHOOK_ENDPOINT_NOT_FOUND")


@pytest.mark.parametrize(
    ("more", "count", "states"), [(("--failed",), 1, {"pending", "delivered"}), ((), 2, {"pending"})]
)
async def test_a_time_is_sent_again_or_what_was_given_up_of_it(
    database: Database, endpoint: Endpoint, tmp_path: Path, more: tuple[str, ...], count: int, states: set[str]
) -> None:
    ids = {event.id for event in written(database)}
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    done = await run(database, tmp_path, "replay", str(endpoint.id), "--from", since, *more, "--json")
    assert (done.exit_code, done.json()) == (0, {"endpointId": str(endpoint.id), "events": count})
    assert {state for _, state in deliveries_of(database, endpoint)} == states
    assert {event.id for event in written(database)} == ids


async def test_a_replay_that_cannot_be_is_refused(
    database: Database, payer: Payer, endpoint: Endpoint, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    backwards = ("--from", now.isoformat(), "--to", (now - timedelta(hours=1)).isoformat())
    assert (await run(database, tmp_path, "replay", str(endpoint.id), *backwards)).exit_code == 2
    assert (await run(database, tmp_path, "replay", str(endpoint.id), "--from", "yesterday")).exit_code == 2
    assert (await run(database, tmp_path, "replay", str(endpoint.id))).exit_code == 2
    unknown = await run(database, tmp_path, "replay", str(uuid4()), "--from", "2026-01-01", "--json")
    assert (unknown.exit_code, unknown.json()["code"]) == (1, "WEBHOOK_ENDPOINT_NOT_FOUND")
    with connect(database.superuser_url) as superuser:
        superuser.execute("UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'stopped_by_receiver'")
    stopped = await run(database, tmp_path, "replay", str(endpoint.id), "--from", "2026-01-01", "--json")
    assert (stopped.exit_code, stopped.json()["code"]) == (1, "WEBHOOK_ENDPOINT_STOPPED")
