"""Events of webhooks: written by what causes them, in its transaction, for who takes them, and seen by no other."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, RestrictViolation, UniqueViolation
from standardwebhooks import Webhook

from db.accounts.wallets import Payer
from db.webhooks import deliveries
from domain.payments.attempt import Purpose
from domain.webhooks.events import EventType
from domain.webhooks.signatures import make_secret, signed_headers
from services.payments import lifecycle
from tests.support.payments import NOW, REVERTED, WRONG_PAYMENT, RolePair, tx_hash
from tests.support.postgres import Database
from tests.support.spending import Spender
from tests.support.sql import connect, query, scalar
from tests.support.webhooks import Endpoint, deliveries_of, make_endpoint, types_of, written

TOKEN: Final = "0x" + "70" * 20


@pytest.fixture
async def payer(roles: RolePair) -> Payer:
    """Who has an endpoint that takes everything, unless a test makes others."""
    return await roles.open_account(1)


# -- payments


async def test_each_step_of_a_payment_is_an_event(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    attempt = await roles.create_submitted(payer, 1)
    await roles.credit(attempt)
    await roles.reverse(attempt)
    events = written(roles.database)
    assert [event.type for event in events] == ["payment.submitted", "payment.credited", "payment.reversed"]
    assert {event.subject for event in events} == {f"payment:{attempt.id}"}
    assert events[1].data == {
        "attemptId": str(attempt.id),
        "billingAccountId": payer.billing_account_id,
        "kind": "wallet",
        "purpose": "self",
        "status": "CREDITED",
        "errorCode": None,
        "chainId": attempt.chain_id,
        "token": attempt.token,
        "from": attempt.from_address,
        "to": attempt.to_address,
        "amountRaw": str(attempt.amount_raw),
        "amountUsdCents": attempt.amount_usd_cents,
        "amountCredits": attempt.amount_usd_cents * 100_000,
        "txHash": tx_hash(1),
    }


@pytest.mark.parametrize(("refused", "code"), [(WRONG_PAYMENT, "INSUFFICIENT_AMOUNT"), (REVERTED, "TX_REVERTED")])
async def test_a_payment_that_ends_without_credits_says_why(
    roles: RolePair, payer: Payer, refused: Any, code: str
) -> None:
    make_endpoint(roles.database, payer, events=["payment.failed"])
    attempt = await roles.create_submitted(payer, 1)
    await roles.refuse(attempt, refused)
    [event] = written(roles.database)
    assert (event.type, event.data["errorCode"], event.data["status"]) == ("payment.failed", code, refused.status.value)


async def test_a_donation_is_its_donors_event(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer, events=["payment.credited"])
    attempt = await roles.create_submitted(payer, 1, purpose=Purpose.SYSTEM)
    await roles.credit(attempt)
    [event] = written(roles.database)
    assert (event.data["purpose"], event.data["billingAccountId"]) == ("system", payer.billing_account_id)


async def test_a_body_is_a_standard_webhook_and_is_never_changed(roles: RolePair, payer: Payer) -> None:
    endpoint = make_endpoint(roles.database, payer)
    await roles.create_submitted(payer, 1)
    [event] = written(roles.database)
    body = json.loads(event.body)
    assert list(body) == ["type", "timestamp", "sequence", "data"]
    assert (body["type"], body["sequence"]) == ("payment.submitted", event.sequence)
    assert abs(datetime.fromisoformat(body["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert event.sequence < 2**53, "every reader of JSON keeps it"
    [(secret,)] = query(roles.database.service_url, "SELECT secret FROM webhook_secrets")
    headers = dict(signed_headers(str(event.id), datetime.now(UTC), event.body.encode(), [secret]))
    assert Webhook(endpoint.secret).verify(event.body, headers) == body
    with (
        pytest.raises(RestrictViolation),
        connect(roles.database.superuser_url) as superuser,
    ):
        superuser.execute("UPDATE webhook_events SET body = '{}'")


async def test_what_is_rolled_back_has_no_event(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    attempt = await roles.create(payer)

    async def submit_and_fail() -> None:
        async with roles.app.transaction(payer.user_id) as connection:
            await lifecycle.submit(connection, attempt.id, tx_hash(1), submitted_at=NOW)
            rows = await connection.connection.exec_driver_sql("SELECT count(*) FROM webhook_events")
            assert rows.scalar_one() == 1, "it is written by the submission's own transaction"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await submit_and_fail()
    assert written(roles.database) == []


async def test_a_writer_that_knows_nothing_of_webhooks_writes_one(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    attempt = await roles.create_submitted(payer, 1)
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = 'TX_REVERTED' WHERE id = %s", (attempt.id,)
        )
    assert types_of(roles.database) == ["payment.submitted", "payment.failed"]


async def test_a_hash_that_is_replaced_is_no_step(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    attempt = await roles.create_submitted(payer, 1)
    await roles.submit(attempt, tx_hash(2))
    assert types_of(roles.database) == ["payment.submitted"]


# -- who takes what


@pytest.mark.parametrize(
    ("events", "taken"),
    [
        (None, ["payment.submitted", "payment.credited"]),
        (["payment.*"], ["payment.submitted", "payment.credited"]),
        (["payment.credited"], ["payment.credited"]),
        (["charge.*", "deposit.seen"], []),
    ],
)
async def test_an_event_that_no_endpoint_takes_is_not_written(
    roles: RolePair, payer: Payer, events: list[str] | None, taken: list[str]
) -> None:
    endpoint = make_endpoint(roles.database, payer, events=events)
    await roles.credit(await roles.create_submitted(payer, 1))
    assert types_of(roles.database) == taken
    assert deliveries_of(roles.database, endpoint) == [(kind, "pending") for kind in taken]


async def test_each_endpoint_has_a_delivery_of_what_it_takes(roles: RolePair, payer: Payer) -> None:
    all_of_it = make_endpoint(roles.database, payer)
    credits = make_endpoint(roles.database, payer, events=["payment.credited"])
    await roles.credit(await roles.create_submitted(payer, 1))
    assert len(written(roles.database)) == 2
    assert [kind for kind, _ in deliveries_of(roles.database, all_of_it)] == ["payment.submitted", "payment.credited"]
    assert [kind for kind, _ in deliveries_of(roles.database, credits)] == ["payment.credited"]


async def test_an_account_without_an_endpoint_in_force_has_no_events(roles: RolePair, payer: Payer) -> None:
    stranger = await roles.open_account(2)
    make_endpoint(roles.database, stranger)
    deleted = make_endpoint(roles.database, payer)
    assert scalar(roles.database.app_url, "SELECT delete_webhook_endpoint(%s)", deleted.id, user_id=payer.user_id)
    await roles.credit(await roles.create_submitted(payer, 1))
    assert written(roles.database) == []


# -- order


async def test_the_events_of_a_subject_are_in_order_whatever_the_clock_does(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    attempt = await roles.create_submitted(payer, 1)
    ahead = 9 * 10**15 - 10
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE webhook_events SET sequence = %s", (ahead,))
    await roles.credit(attempt)
    await roles.reverse(attempt)
    assert [event.sequence for event in written(roles.database)] == [ahead, ahead + 1, ahead + 2]


async def test_two_of_a_subject_never_have_the_same_sequence(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    await roles.create_submitted(payer, 1)
    with pytest.raises(UniqueViolation), connect(roles.database.superuser_url) as superuser:
        superuser.execute(
            "INSERT INTO webhook_events SELECT gen_random_uuid(), billing_account_id, type, subject,"
            " sequence, body, created_at FROM webhook_events"
        )


async def test_payments_of_an_account_at_once_do_not_wait_for_each_other(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    first, second = await roles.create(payer), await roles.create(payer)
    async with roles.app.transaction(payer.user_id) as connection:
        await lifecycle.submit(connection, first.id, tx_hash(1), submitted_at=NOW)
        async with asyncio.timeout(5):
            await roles.submit(second, tx_hash(2))
    assert len(written(roles.database)) == 2


# -- deposits and charges


def plant_charge(database: Database, payer: Payer) -> tuple[UUID, UUID]:
    """A charge of a dollar in a local dollar token; its id and its address's."""
    charge, address = uuid4(), uuid4()
    with connect(database.superuser_url) as superuser:
        superuser.execute(
            "INSERT INTO payment_methods (id, chain_id, token, address, decimals, kind, scheme)"
            " VALUES ('USDC:local', 31337, 'USDC', %s, 6, 'erc20', 'create2')",
            (TOKEN,),
        )
        superuser.execute(
            "INSERT INTO deposit_addresses (id, chain_id, address, scheme, salt, treasury, billing_account_id,"
            " charge_id) VALUES (%s, 31337, %s, 'create2', %s, %s, %s, %s)",
            (address, "0x" + "ab" * 20, "0x" + "00" * 32, "0x" + "71" * 20, payer.billing_account_id, charge),
        )
        superuser.execute(
            "INSERT INTO charges (id, billing_account_id, method_id, amount_usd_cents, quoted_amount_raw, address_id,"
            " price_expires_at, metadata) VALUES (%s, %s, 'USDC:local', 100, 1000000, %s, now() + interval '1 hour',"
            " '{\"order\": 7}')",
            (charge, payer.billing_account_id, address),
        )
    return charge, address


def plant_deposit(database: Database, address: UUID, value_raw: int) -> UUID:
    """A transfer to the address that is seen; its id."""
    deposit = uuid4()
    with connect(database.service_url) as service:
        service.execute(
            "INSERT INTO deposits (id, chain_id, tx_hash, log_index, address_id, method_id, token, from_address,"
            " value_raw, credits, block_number, block_hash, block_time)"
            " VALUES (%s, 31337, %s, 3, %s, 'USDC:local', %s, %s, %s, %s, 7, %s, now())",
            (
                deposit,
                tx_hash(deposit.int % 10**9),
                address,
                TOKEN,
                "0x" + "1" * 40,
                value_raw,
                value_raw * 10,
                tx_hash(7),
            ),
        )
    return deposit


async def test_a_deposit_that_is_seen_and_what_it_is_for_its_charge(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    charge, address = plant_charge(roles.database, payer)
    first = plant_deposit(roles.database, address, 400_000)
    plant_deposit(roles.database, address, 600_000)
    events = {event.type: event for event in written(roles.database)}
    assert sorted(types_of(roles.database)) == ["charge.confirming", "charge.partial", "deposit.seen", "deposit.seen"]
    seen = [event for event in written(roles.database) if event.type == "deposit.seen"]
    assert (
        seen[0].data.items()
        >= {
            "depositId": str(first),
            "billingAccountId": payer.billing_account_id,
            "chargeId": str(charge),
            "attemptId": None,
            "method": "USDC:local",
            "address": "0x" + "ab" * 20,
            "amountRaw": "400000",
            "amountCredits": 4_000_000,
            "logIndex": 3,
        }.items()
    )
    assert (
        events["charge.confirming"].data.items()
        >= {
            "chargeId": str(charge),
            "method": "USDC:local",
            "status": "confirming",
            "amountUsdCents": 100,
            "amountRaw": "1000000",
            "receivedRaw": "1000000",
            "creditedRaw": "0",
            "metadata": {"order": 7},
        }.items()
    )


async def test_a_deposit_that_leaves_the_chain_before_its_credit_is_reversed(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer, events=["deposit.*"])
    _, address = plant_charge(roles.database, payer)
    deposit = plant_deposit(roles.database, address, 400_000)
    with connect(roles.database.service_url) as service:
        service.execute("DELETE FROM deposits")
    assert types_of(roles.database) == ["deposit.seen", "deposit.reversed"]
    assert {event.subject for event in written(roles.database)} == {f"deposit:{deposit}"}


# -- the balance


def test_the_end_of_a_balance_and_a_limit_are_events_of_the_account(database: Database) -> None:
    spender = Spender.open(database, credits=10_000)
    owner = scalar(database.superuser_url, "SELECT owner_user_id FROM billing_accounts WHERE id = %s", spender.account)
    make_endpoint(database, Payer(owner, spender.account, "0x"))
    with connect(database.service_url) as service:
        service.execute("UPDATE billing_accounts SET limit_day_credits = 10000 WHERE id = %s", (spender.account,))
    spender.capture(spender.hold(9_000), 9_000)
    spender.capture(spender.hold(1_000), 1_000)
    assert sorted(types_of(database)) == ["balance.exhausted", "limit.reached", "limit.reached"]
    [exhausted] = [event for event in written(database) if event.type == "balance.exhausted"]
    assert exhausted.subject == f"account:{spender.account}"
    assert exhausted.data == {
        "billingAccountId": spender.account,
        "balanceCredits": 0,
        "reference": exhausted.data["reference"],
    }
    reached = sorted(event.data["thresholdPercent"] for event in written(database) if event.type == "limit.reached")
    assert reached == [80, 100]


# -- the types


def test_every_type_that_triggers_write_is_documented(database: Database) -> None:
    """Of payments and deposits by the steps that they know, of charges by the statuses that they may have."""
    [(check,)] = query(
        database.superuser_url,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'charges_status_check'",
    )
    statuses = {part.split("'")[0] for part in check.split("'")[1::2]}
    assert {f"charge.{status}" for status in statuses} <= set(EventType)
    [(text,)] = query(
        database.superuser_url, "SELECT string_agg(prosrc, '') FROM pg_proc WHERE proname LIKE 'record_webhook%'"
    )
    for kind in EventType:
        group, step = kind.split(".")
        assert f"'{kind}'" in text or (f"'{group}.'" in text and (f"'{step}'" in text or group == "charge")), kind


# -- whose they are

TABLES: Final = ("webhook_endpoints", "webhook_events", "webhook_deliveries", "webhook_tries")


async def plant_one_of_each(roles: RolePair, payer: Payer) -> Endpoint:
    endpoint = make_endpoint(roles.database, payer)
    await roles.create_submitted(payer, 1)
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO webhook_tries (delivery_id, billing_account_id, sent_at, duration_ms, status_code)"
            " SELECT id, billing_account_id, now(), 1, 200 FROM webhook_deliveries"
        )
    return endpoint


async def test_a_tenant_sees_its_own_rows_only(roles: RolePair, payer: Payer) -> None:
    stranger = await roles.open_account(2)
    await plant_one_of_each(roles, payer)
    for table in TABLES:
        count = f"SELECT count(*) FROM {table}"
        assert scalar(roles.database.app_url, count, user_id=payer.user_id) == 1, table
        assert scalar(roles.database.app_url, count, user_id=stranger.user_id) == 0, table
        assert scalar(roles.database.app_url, count) == 0, table


async def test_no_tenant_writes_them(roles: RolePair, payer: Payer) -> None:
    await plant_one_of_each(roles, payer)
    for table in TABLES:
        for change in ("DELETE FROM {}", "UPDATE {} SET billing_account_id = 'cogni_system'"):
            with pytest.raises(InsufficientPrivilege), connect(roles.database.app_url, user_id=payer.user_id) as app:
                app.execute(change.format(table).encode())


async def test_a_secret_is_read_by_workers_only(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    for role in ("app_url", "settlement_url", "operator_url"):
        with pytest.raises(InsufficientPrivilege):
            query(getattr(roles.database, role), "SELECT secret FROM webhook_secrets", user_id=payer.user_id)
    assert scalar(roles.database.service_url, "SELECT count(*) FROM webhook_secrets") == 1


FOREIGN: Final = {
    "rotate": "SELECT rotate_webhook_secret(%(endpoint)s, %(secret)s, interval '1 hour')",
    "enable": "SELECT enable_webhook_endpoint(%(endpoint)s)",
    "redeliver": "SELECT redeliver_webhook(%(delivery)s)",
    "delete": "SELECT delete_webhook_endpoint(%(endpoint)s)",
}


async def test_a_stranger_changes_nothing_of_an_endpoint(roles: RolePair, payer: Payer) -> None:
    stranger = await roles.open_account(2)
    endpoint = await plant_one_of_each(roles, payer)
    [(delivery,)] = query(roles.database.service_url, "SELECT id FROM webhook_deliveries")
    values = {"endpoint": endpoint.id, "secret": make_secret(), "delivery": delivery}
    for name, statement in FOREIGN.items():
        with connect(roles.database.app_url, user_id=stranger.user_id) as app:
            assert app.execute(statement.encode(), values).fetchone() == (False,), name
        with connect(roles.database.app_url, user_id=payer.user_id) as app:
            assert app.execute(statement.encode(), values).fetchone() == (True,), name


async def test_what_was_deleted_is_not_enabled(roles: RolePair, payer: Payer) -> None:
    endpoint = make_endpoint(roles.database, payer)
    with connect(roles.database.app_url, user_id=payer.user_id) as app:
        for name, expected in (("enable", True), ("delete", True), ("enable", False)):
            assert app.execute(FOREIGN[name].encode(), {"endpoint": endpoint.id}).fetchone() == (expected,)


async def test_an_endpoint_is_made_for_the_own_account_only(roles: RolePair, payer: Payer) -> None:
    stranger = await roles.open_account(2)
    made = "SELECT create_webhook_endpoint(%s, %s, 'https://example.com/', NULL, %s, 10)"
    values = (uuid4(), payer.billing_account_id, make_secret())
    assert scalar(roles.database.app_url, made, *values, user_id=stranger.user_id) == "not_managed"
    assert scalar(roles.database.app_url, made, *values) == "not_managed"
    with pytest.raises(InsufficientPrivilege):
        query(roles.database.app_url, "SELECT replay_webhooks(%s, now(), now(), false)", uuid4(), user_id=payer.user_id)


async def test_an_account_has_as_many_endpoints_as_it_may_also_when_they_are_made_at_once(
    roles: RolePair, payer: Payer
) -> None:
    def make() -> str:
        outcome: str = scalar(
            roles.database.app_url,
            "SELECT create_webhook_endpoint(%s, %s, 'https://example.com/', NULL, %s, 3)",
            uuid4(),
            payer.billing_account_id,
            make_secret(),
            user_id=payer.user_id,
        )
        return outcome

    outcomes = await asyncio.gather(*(asyncio.to_thread(make) for _ in range(8)))
    assert sorted(outcomes) == ["created"] * 3 + ["too_many"] * 5


# -- secrets


def secrets_in_force(database: Database, endpoint: Endpoint) -> int:
    count: int = scalar(
        database.service_url,
        "SELECT count(*) FROM webhook_secrets WHERE endpoint_id = %s AND (expires_at IS NULL OR expires_at > now())",
        endpoint.id,
    )
    return count


async def test_a_rotated_secret_signs_beside_the_new_one_for_as_long_as_was_asked(
    roles: RolePair, payer: Payer
) -> None:
    endpoint = make_endpoint(roles.database, payer)

    def rotate(overlap: str) -> None:
        assert scalar(
            roles.database.app_url,
            "SELECT rotate_webhook_secret(%s, %s, %s::interval)",
            endpoint.id,
            make_secret(),
            overlap,
            user_id=payer.user_id,
        )

    rotate("1 hour")
    assert secrets_in_force(roles.database, endpoint) == 2
    rotate("0 seconds")
    assert secrets_in_force(roles.database, endpoint) == 2, "the newest, and the first, which has its hour"
    for _ in range(9):
        rotate("1 hour")
    assert secrets_in_force(roles.database, endpoint) == 4, "a header has an end"


# -- redelivery, replay, pruning


def end_all(database: Database, state: str, *, ago: str = "0 seconds") -> None:
    with connect(database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE webhook_deliveries SET state = %s, due_at = NULL, ended_at = now() - %s::interval", (state, ago)
        )


@pytest.mark.parametrize(("only_failed", "count"), [(True, 0), (False, 2)])
async def test_a_replay_sends_what_the_endpoint_takes_or_what_was_given_up_with_the_same_ids(
    roles: RolePair, payer: Payer, only_failed: bool, count: int
) -> None:
    make_endpoint(roles.database, payer)
    await roles.credit(await roles.create_submitted(payer, 1))
    end_all(roles.database, "delivered")
    later = make_endpoint(roles.database, payer, events=["payment.*"])
    events = {event.id for event in written(roles.database)}
    async with roles.service.transaction() as connection:
        since, until = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
        sent = await deliveries.replay(connection, later.id, since=since, until=until, only_failed=only_failed)
    assert sent == count
    assert [state for _, state in deliveries_of(roles.database, later)] == ["pending"] * count
    assert {event.id for event in written(roles.database)} == events


async def test_a_replay_is_of_its_time(roles: RolePair, payer: Payer) -> None:
    endpoint = make_endpoint(roles.database, payer)
    await roles.create_submitted(payer, 1)
    end_all(roles.database, "failed")
    for since, until, count in ((1, 2, 0), (-2, -1, 0), (-1, 1, 1)):
        now = datetime.now(UTC)
        async with roles.service.transaction() as connection:
            first, last = now + timedelta(hours=since), now + timedelta(hours=until)
            assert await deliveries.replay(connection, endpoint.id, since=first, until=last) == count


async def test_nothing_is_sent_again_to_an_endpoint_that_is_stopped(roles: RolePair, payer: Payer) -> None:
    endpoint = make_endpoint(roles.database, payer)
    await roles.create_submitted(payer, 1)
    async with roles.service.transaction() as connection:
        await deliveries.stop_endpoint(connection, endpoint.id)
    assert deliveries_of(roles.database, endpoint) == [("payment.submitted", "stopped")]
    [(delivery,)] = query(roles.database.service_url, "SELECT id FROM webhook_deliveries")
    async with roles.service.transaction() as connection:
        assert not await deliveries.redeliver(connection, delivery)
        far = timedelta(days=1)
        assert (
            await deliveries.replay(connection, endpoint.id, since=datetime.now(UTC) - far, until=datetime.now(UTC))
            == 0
        )


async def test_what_ended_long_ago_is_deleted_with_its_events_and_nothing_else(roles: RolePair, payer: Payer) -> None:
    await plant_one_of_each(roles, payer)
    end_all(roles.database, "delivered", ago="31 days")
    with connect(roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute("UPDATE webhook_events SET created_at = now() - interval '31 days'")
    waiting = make_endpoint(roles.database, payer)
    await roles.create_submitted(payer, 2)
    async with roles.service.transaction() as connection:
        pruned = await deliveries.prune(connection, limit=100, older_than=timedelta(days=30))
        assert pruned == {"webhook_deliveries": 1, "webhook_events": 1}
        assert await deliveries.prune(connection, limit=100, older_than=timedelta(days=30)) == {}
    assert deliveries_of(roles.database, waiting) == [("payment.submitted", "pending")]
    with pytest.raises(psycopg.errors.CheckViolation), connect(roles.database.service_url) as service:
        service.execute("SELECT * FROM prune_webhooks(1, interval '1 hour')")


# Line by line ---------------------------------------------------------------------------------------------------------


def pending(roles: RolePair) -> list[tuple[Any, ...]]:
    """State, round, failures of each delivery, and whether it waits for a workflow, the oldest event first."""
    return query(
        roles.database.service_url,
        "SELECT d.state, d.round, d.failures, d.started_at IS NULL FROM webhook_deliveries d"
        " JOIN webhook_events v ON v.id = d.event_id ORDER BY v.sequence, d.id",
    )


async def test_what_is_deleted_has_no_secret_no_delivery_and_no_place(roles: RolePair, payer: Payer) -> None:
    endpoint = await plant_one_of_each(roles, payer)
    values = {"endpoint": endpoint.id, "secret": make_secret()}
    with connect(roles.database.app_url, user_id=payer.user_id) as app:
        assert app.execute(FOREIGN["delete"].encode(), values).fetchone() == (True,)
        assert app.execute(FOREIGN["rotate"].encode(), values).fetchone() == (False,)
    assert scalar(roles.database.service_url, "SELECT count(*) FROM webhook_secrets") == 0
    assert {state for state, *_ in pending(roles)} == {"stopped"}
    for _ in range(10):
        make_endpoint(roles.database, payer)


async def test_a_redelivery_is_a_round_of_its_own(roles: RolePair, payer: Payer) -> None:
    await plant_one_of_each(roles, payer)
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE webhook_deliveries SET failures = 7, started_at = now(), tried_since = now() - interval '2 days'"
        )
    [(delivery,)] = query(roles.database.service_url, "SELECT id FROM webhook_deliveries")
    assert scalar(roles.database.service_url, "SELECT redeliver_webhook(%s)", delivery) is True
    [(state, number, failures, waits)] = pending(roles)
    assert (state, failures, waits) == ("pending", 0, True)
    assert number > 0 and number == scalar(roles.database.service_url, "SELECT max(round) FROM webhook_deliveries")
    before = number
    assert scalar(roles.database.service_url, "SELECT redeliver_webhook(%s)", delivery) is True
    assert pending(roles)[0][1] == before + 1
    since = "SELECT tried_since > now() - interval '1 hour' FROM webhook_deliveries"
    assert scalar(roles.database.service_url, since) is True


async def test_a_replay_is_of_what_the_endpoint_takes_and_to_no_stopped_one(roles: RolePair, payer: Payer) -> None:
    make_endpoint(roles.database, payer)
    await roles.credit(await roles.create_submitted(payer, 1))
    chosen = make_endpoint(roles.database, payer, events=["payment.credited"])
    replay = "SELECT replay_webhooks(%s, now() - interval '1 hour', now() + interval '1 hour', false)"
    stop = "UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'stopped_by_receiver' WHERE id = %s"
    count = "SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = %s"
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(stop, (chosen.id,))
    assert scalar(roles.database.service_url, replay, chosen.id) == 0
    assert scalar(roles.database.service_url, count, chosen.id) == 0
    assert scalar(roles.database.service_url, "SELECT enable_webhook_endpoint(%s)", chosen.id) is True
    assert scalar(roles.database.service_url, replay, chosen.id) == 1
    assert scalar(roles.database.service_url, count, chosen.id) == 1


async def test_a_stopped_endpoint_is_written_nothing_while_another_one_takes_it(roles: RolePair, payer: Payer) -> None:
    stopped, active = make_endpoint(roles.database, payer), make_endpoint(roles.database, payer)
    with connect(roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'stopped_by_receiver' WHERE id = %s",
            (stopped.id,),
        )
    await roles.create_submitted(payer, 1)
    assert query(roles.database.service_url, "SELECT endpoint_id FROM webhook_deliveries") == [(active.id,)]
