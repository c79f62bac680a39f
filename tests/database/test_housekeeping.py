"""Housekeeping's statements: what is over goes, in bounded batches; what is not over, or held, stays."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from psycopg.errors import CheckViolation

from db.operations import housekeeping
from db.payments import attempts
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from services.payments import lifecycle as payments
from tests.support.payments import Desk, tx_hash, wallet
from tests.support.sql import connect, query, refused, scalar

NO_GRACE = timedelta(0)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


async def expire(desk: Desk, *, grace: timedelta = NO_GRACE, limit: int = 100) -> dict[Purpose, int]:
    async with desk.service.transaction() as connection:
        return await housekeeping.expire_intents(connection, datetime.now(UTC) - grace, limit=limit)


async def intent(desk: Desk, *, expires_in: timedelta, number: int = 1, **values: object) -> PaymentAttempt:
    payer = await desk.open_account(number)
    return await desk.create(payer, expires_at=datetime.now(UTC) + expires_in, **values)


async def status_of(desk: Desk, attempt: PaymentAttempt) -> tuple[AttemptStatus, ErrorCode | None]:
    async with desk.service.transaction() as connection:
        found = await attempts.find_attempt(connection, attempt.id)
    assert found is not None
    return found.status, found.error_code


async def test_an_unpaid_intent_ends_when_its_time_is_up_and_not_before(desk: Desk) -> None:
    over, waits = await intent(desk, expires_in=-MINUTE), await intent(desk, expires_in=MINUTE)
    assert await expire(desk, grace=2 * MINUTE) == {}
    assert await expire(desk) == {Purpose.SELF: 1}
    assert await status_of(desk, over) == (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)
    assert await status_of(desk, waits) == (AttemptStatus.CREATED_INTENT, None)
    assert await expire(desk) == {}


async def test_each_ended_intent_has_one_event_as_a_late_submission_writes_it(desk: Desk) -> None:
    over, late = await intent(desk, expires_in=-MINUTE), await intent(desk, expires_in=-MINUTE)
    await desk.submit(late, tx_hash(1), at=datetime.now(UTC))
    await expire(desk)
    await expire(desk)
    async with desk.service.transaction() as connection:
        swept, submitted = [(await attempts.list_events(connection, one.id))[1:] for one in (over, late)]
    [event], [other] = swept, submitted
    assert (event.event_type, event.from_status, event.to_status, event.error_code) == (
        other.event_type,
        other.from_status,
        other.to_status,
        other.error_code,
    )


async def test_a_batch_is_no_larger_than_asked_for_and_begins_with_the_oldest(desk: Desk) -> None:
    oldest = await intent(desk, expires_in=-3 * MINUTE)
    await intent(desk, expires_in=-MINUTE, purpose=Purpose.SYSTEM)
    newest = await intent(desk, expires_in=-timedelta(seconds=1))
    assert await expire(desk, limit=2) == {Purpose.SELF: 1, Purpose.SYSTEM: 1}
    assert (await status_of(desk, oldest))[0] is AttemptStatus.FAILED
    assert (await status_of(desk, newest))[0] is AttemptStatus.CREATED_INTENT


async def test_many_sweepers_at_once_end_each_intent_once(desk: Desk) -> None:
    for _ in range(12):
        await intent(desk, expires_in=-MINUTE)
    rounds = await asyncio.gather(*(expire(desk, limit=5) for _ in range(6)))
    assert sum(sum(one.values()) for one in rounds) <= 12
    while await expire(desk, limit=5):
        pass
    events = "SELECT count(*), count(DISTINCT attempt_id) FROM payment_events WHERE event_type = 'failed'"
    assert query(desk.database.superuser_url, events) == [(12, 12)]


async def test_an_intent_that_somebody_is_submitting_is_left_to_him(desk: Desk) -> None:
    over = await intent(desk, expires_in=-MINUTE)
    async with desk.app.transaction(over.owner_user_id) as payer:
        await payments.submit(payer, over.id, tx_hash(1), submitted_at=over.created_at)
        assert await expire(desk) == {}
    assert (await status_of(desk, over))[0] is AttemptStatus.PENDING_UNVERIFIED
    assert await expire(desk) == {}


async def test_a_submission_in_time_counts_although_housekeeping_was_quicker(desk: Desk) -> None:
    over = await intent(desk, expires_in=-timedelta(seconds=1))
    await expire(desk)
    late = await desk.submit(over, tx_hash(1), at=datetime.now(UTC))
    assert not late.changed
    in_time = await desk.submit(over, tx_hash(1), at=datetime.now(UTC) - MINUTE)
    assert in_time.attempt.status is AttemptStatus.PENDING_UNVERIFIED
    assert await desk.books() == []


# -- pruning


def plant(desk: Desk) -> None:
    """Of each kind three rows that are over and two that are not."""
    with connect(desk.database.superuser_url) as connection:
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


TABLES = ("sessions", "login_challenges", "rate_limits", "idempotency_keys")


def left(desk: Desk) -> dict[str, int]:
    return {table: scalar(desk.database.superuser_url, f"SELECT count(*) FROM {table}") for table in TABLES}


async def prune(desk: Desk, *, limit: int = 100) -> dict[str, int]:
    async with desk.service.transaction() as connection:
        return await housekeeping.prune_expired(connection, idempotency_keys_older_than=DAY, limit=limit)


async def test_what_is_over_is_deleted_and_what_is_not_stays(desk: Desk) -> None:
    plant(desk)
    assert await prune(desk) == dict.fromkeys(TABLES, 3)
    assert left(desk) == dict.fromkeys(TABLES, 2)
    assert await prune(desk) == dict.fromkeys(TABLES, 0)


async def test_a_batch_deletes_no_more_than_it_may(desk: Desk) -> None:
    plant(desk)
    assert await prune(desk, limit=2) == dict.fromkeys(TABLES, 2)
    assert await prune(desk, limit=2) == dict.fromkeys(TABLES, 1)
    assert left(desk) == dict.fromkeys(TABLES, 2)


async def test_many_at_once_delete_each_row_once(desk: Desk) -> None:
    plant(desk)
    pruned = await asyncio.gather(*(prune(desk, limit=1) for _ in range(8)))
    assert all(sum(one[table] for one in pruned) <= 3 for table in TABLES)
    while any((await prune(desk, limit=1)).values()):
        pass
    assert left(desk) == dict.fromkeys(TABLES, 2)


@pytest.mark.parametrize(("limit", "older_than"), [(0, "1 day"), (-1, "1 day"), (1, "59 minutes")])
def test_the_door_deletes_no_keys_that_are_still_needed(desk: Desk, limit: int, older_than: str) -> None:
    with connect(desk.database.service_url) as service, refused(CheckViolation):
        service.execute("SELECT * FROM prune_expired(%s, %s::interval)", (limit, older_than))


# -- payments that nobody is at work on


async def pending(desk: Desk, *, older_than: timedelta = NO_GRACE, chain_id: int = 31_337, limit: int = 9) -> set[UUID]:
    async with desk.service.transaction() as connection:
        found = await housekeeping.list_pending(
            connection, chain_id, before=datetime.now(UTC) - older_than, limit=limit
        )
    return {one.attempt_id for one in found}


async def without_bonus(
    desk: Desk, *, older_than: timedelta = NO_GRACE, not_older_than: timedelta = DAY, chain_id: int = 31_337
) -> set[UUID]:
    now = datetime.now(UTC)
    async with desk.service.transaction() as connection:
        found = await housekeeping.list_without_bonus(
            connection, chain_id, since=now - not_older_than, before=now - older_than, limit=9
        )
    return {one.attempt_id for one in found}


async def test_pending_payments_are_found_once_they_have_waited_and_only_those(desk: Desk) -> None:
    payer = await desk.open_account(1)
    await desk.create(payer)
    unpaid = await desk.create(payer, expires_at=datetime.now(UTC))
    waits = (await desk.submit(unpaid, tx_hash(1), at=datetime.now(UTC) - 2 * MINUTE)).attempt
    await desk.settle(payer, 2)
    await desk.refuse(await desk.create_submitted(payer, 3))
    assert await pending(desk) == {waits.id}
    assert await pending(desk, older_than=MINUTE) == {waits.id}
    assert await pending(desk, older_than=3 * MINUTE) == set()
    assert await pending(desk, chain_id=1) == set()
    async with desk.service.transaction() as connection:
        [found] = await housekeeping.list_pending(connection, 31_337, before=datetime.now(UTC), limit=1)
    assert (found.owner_user_id, found.tx_hash) == (payer.user_id, tx_hash(1))


async def test_credited_purchases_without_their_bonus_are_found_and_only_those(desk: Desk) -> None:
    payer = await desk.open_account(1)
    await desk.settle(payer, 1)
    await desk.settle(payer, 2, purpose=Purpose.SYSTEM)
    lacks = await desk.create_submitted(payer, 3)
    await desk.credit(lacks)
    wants_none = await desk.create_submitted(payer, 4)
    await desk.credit(wants_none, share=Decimal(0))
    assert await without_bonus(desk) == {lacks.id}
    assert await without_bonus(desk, older_than=MINUTE) == set()
    assert await without_bonus(desk, not_older_than=NO_GRACE) == set()
    assert await without_bonus(desk, chain_id=1) == set()
    await desk.mint(lacks)
    assert await without_bonus(desk) == set()


async def test_where_there_are_more_than_may_be_asked_about_each_has_its_turn(desk: Desk) -> None:
    payer = await desk.open_account(1)
    all_of_them = {(await desk.create_submitted(payer, number)).id for number in range(1, 6)}
    seen: set[UUID] = set()
    for _ in range(200):
        found = await pending(desk, limit=2)
        assert len(found) == 2
        seen |= found
    assert seen == all_of_them
