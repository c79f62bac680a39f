"""Housekeeping's statements: what is over goes, in bounded batches; what is not over, or held, stays."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from psycopg.errors import CheckViolation

from db.operations import housekeeping
from db.payments import attempts
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from services.payments import lifecycle as payments
from tests.support.payments import RolePair, tx_hash, wallet
from tests.support.sql import connect, query, refused, scalar

NO_GRACE = timedelta(0)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


async def expire(roles: RolePair, *, grace: timedelta = NO_GRACE, limit: int = 100) -> dict[Purpose, int]:
    async with roles.service.transaction() as connection:
        return await housekeeping.expire_intents(connection, datetime.now(UTC) - grace, limit=limit)


async def intent(roles: RolePair, *, expires_in: timedelta, number: int = 1, **values: object) -> PaymentAttempt:
    payer = await roles.open_account(number)
    return await roles.create(payer, expires_at=datetime.now(UTC) + expires_in, **values)


async def status_of(roles: RolePair, attempt: PaymentAttempt) -> tuple[AttemptStatus, ErrorCode | None]:
    async with roles.service.transaction() as connection:
        found = await attempts.find_attempt(connection, attempt.id)
    assert found is not None
    return found.status, found.error_code


async def test_an_unpaid_intent_ends_when_its_time_is_up_and_not_before(roles: RolePair) -> None:
    over, waits = await intent(roles, expires_in=-MINUTE), await intent(roles, expires_in=MINUTE)
    assert await expire(roles, grace=2 * MINUTE) == {}
    assert await expire(roles) == {Purpose.SELF: 1}
    assert await status_of(roles, over) == (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)
    assert await status_of(roles, waits) == (AttemptStatus.CREATED_INTENT, None)
    assert await expire(roles) == {}


async def test_each_ended_intent_has_one_event_as_a_late_submission_writes_it(roles: RolePair) -> None:
    over, late = await intent(roles, expires_in=-MINUTE), await intent(roles, expires_in=-MINUTE)
    await roles.submit(late, tx_hash(1), at=datetime.now(UTC))
    await expire(roles)
    await expire(roles)
    async with roles.service.transaction() as connection:
        swept, submitted = [(await attempts.list_events(connection, one.id))[1:] for one in (over, late)]
    [event], [other] = swept, submitted
    assert (event.event_type, event.from_status, event.to_status, event.error_code) == (
        other.event_type,
        other.from_status,
        other.to_status,
        other.error_code,
    )


async def test_a_batch_is_no_larger_than_asked_for_and_begins_with_the_oldest(roles: RolePair) -> None:
    oldest = await intent(roles, expires_in=-3 * MINUTE)
    await intent(roles, expires_in=-MINUTE, purpose=Purpose.SYSTEM)
    newest = await intent(roles, expires_in=-timedelta(seconds=1))
    assert await expire(roles, limit=2) == {Purpose.SELF: 1, Purpose.SYSTEM: 1}
    assert (await status_of(roles, oldest))[0] is AttemptStatus.FAILED
    assert (await status_of(roles, newest))[0] is AttemptStatus.CREATED_INTENT


async def test_many_sweepers_at_once_end_each_intent_once(roles: RolePair) -> None:
    for _ in range(12):
        await intent(roles, expires_in=-MINUTE)
    rounds = await asyncio.gather(*(expire(roles, limit=5) for _ in range(6)))
    assert sum(sum(one.values()) for one in rounds) <= 12
    while await expire(roles, limit=5):
        pass
    events = "SELECT count(*), count(DISTINCT attempt_id) FROM payment_events WHERE event_type = 'failed'"
    assert query(roles.database.superuser_url, events) == [(12, 12)]


async def test_an_intent_that_is_being_submitted_is_left_to_the_submission(roles: RolePair) -> None:
    over = await intent(roles, expires_in=-MINUTE)
    async with roles.app.transaction(over.owner_user_id) as payer:
        await payments.submit(payer, over.id, tx_hash(1), submitted_at=over.created_at)
        assert await expire(roles) == {}
    assert (await status_of(roles, over))[0] is AttemptStatus.PENDING_UNVERIFIED
    assert await expire(roles) == {}


async def test_a_submission_in_time_counts_although_housekeeping_was_quicker(roles: RolePair) -> None:
    over = await intent(roles, expires_in=-timedelta(seconds=1))
    await expire(roles)
    late = await roles.submit(over, tx_hash(1), at=datetime.now(UTC))
    assert not late.changed
    in_time = await roles.submit(over, tx_hash(1), at=datetime.now(UTC) - MINUTE)
    assert in_time.attempt.status is AttemptStatus.PENDING_UNVERIFIED
    assert await roles.books() == []


# -- pruning


def plant(roles: RolePair) -> None:
    """Of each kind three rows that are over and two that are not."""
    with connect(roles.database.superuser_url) as connection:
        connection.execute(
            "INSERT INTO sessions (token_hash, user_id, billing_account_id, expires_at)"
            " SELECT decode(lpad(to_hex(n), 64, '0'), 'hex'), 'cogni_system_principal', 'cogni_system',"
            "        now() + (n - 3.5) * interval '1 minute' FROM generate_series(1, 5) n"
        )
        connection.execute(
            "INSERT INTO login_challenges (nonce, wallet_address, message, expires_at)"
            " SELECT lpad(n::text, 16, '0'), %s, n::text, now() + (n - 3.5) * interval '1 minute'"
            "   FROM generate_series(1, 5) n",
            (wallet(1),),
        )
        connection.execute(
            "INSERT INTO rate_limits (bucket, full_at)"
            " SELECT n::text, now() + (n - 4.5) * interval '1 minute' FROM generate_series(1, 5) n"
        )
        connection.execute(
            "INSERT INTO idempotency_keys (billing_account_id, key, request_hash, answer, created_at)"
            " SELECT 'cogni_system', n::text, decode(repeat('00', 32), 'hex'), '{}',"
            "        now() - interval '1 day' + (n - 3.5) * interval '1 minute' FROM generate_series(1, 5) n"
        )
        connection.execute(
            "INSERT INTO call_claims (virtual_key_id, key, request_hash, request_id, lease_until, created_at)"
            " SELECT k.id, n::text, '', 'r', now() - interval '1 hour',"
            "        now() - interval '1 day' + (n - 3.5) * interval '1 minute'"
            "   FROM virtual_keys k, generate_series(1, 5) n WHERE k.billing_account_id = 'cogni_system'"
        )


TABLES = ("sessions", "login_challenges", "rate_limits", "idempotency_keys", "call_claims")


def left(roles: RolePair) -> dict[str, int]:
    return {table: scalar(roles.database.superuser_url, f"SELECT count(*) FROM {table}") for table in TABLES}


async def prune(roles: RolePair, *, limit: int = 100) -> dict[str, int]:
    async with roles.service.transaction() as connection:
        return await housekeeping.prune_expired(connection, idempotency_keys_older_than=DAY, limit=limit)


async def test_what_is_over_is_deleted_and_what_is_not_stays(roles: RolePair) -> None:
    plant(roles)
    assert await prune(roles) == dict.fromkeys(TABLES, 3)
    assert left(roles) == dict.fromkeys(TABLES, 2)
    assert await prune(roles) == dict.fromkeys(TABLES, 0)


async def test_a_batch_deletes_no_more_than_it_may(roles: RolePair) -> None:
    plant(roles)
    assert await prune(roles, limit=2) == dict.fromkeys(TABLES, 2)
    assert await prune(roles, limit=2) == dict.fromkeys(TABLES, 1)
    assert left(roles) == dict.fromkeys(TABLES, 2)


async def test_many_at_once_delete_each_row_once(roles: RolePair) -> None:
    plant(roles)
    pruned = await asyncio.gather(*(prune(roles, limit=1) for _ in range(8)))
    assert all(sum(one[table] for one in pruned) <= 3 for table in TABLES)
    while any((await prune(roles, limit=1)).values()):
        pass
    assert left(roles) == dict.fromkeys(TABLES, 2)


@pytest.mark.parametrize(("limit", "older_than"), [(0, "1 day"), (-1, "1 day"), (1, "59 minutes")])
def test_prune_expired_deletes_no_keys_that_are_still_needed(roles: RolePair, limit: int, older_than: str) -> None:
    with connect(roles.database.service_url) as service, refused(CheckViolation):
        service.execute("SELECT * FROM prune_expired(%s, %s::interval)", (limit, older_than))
