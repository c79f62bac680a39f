"""The HTTP interface's SECURITY DEFINER functions attacked: challenges, sessions, idempotency keys, rate limits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.errors import InsufficientPrivilege, UniqueViolation

from db.accounts import idempotency, rate_limits, sessions
from db.accounts.rate_limits import Bucket
from db.accounts.sessions import Session
from domain.accounts.sign_in import Challenge, new_challenge
from domain.errors import IdempotencyKeyReused
from tests.support.payments import RolePair, wallet
from tests.support.sql import connect, query, refused, scalar

SECRET_TABLES = ("login_challenges", "sessions", "rate_limits")
HOUR = timedelta(hours=1)


def challenge(number: int, *, lifetime: timedelta = timedelta(minutes=5)) -> Challenge:
    """A challenge for wallet `number`."""
    return new_challenge(
        nonce=f"nonce{number:019}",
        address=wallet(number),
        origin="https://pay.example.com",
        chain_id=1,
        platform="Cogni",
        issued_at=datetime.now(UTC),
        lifetime=lifetime,
    )


def token(number: int) -> bytes:
    """A token's hash for each number."""
    return number.to_bytes(32, "big")


async def ask(roles: RolePair, found: Challenge) -> None:
    """Store a challenge."""
    async with roles.app.unscoped() as connection:
        await sessions.open_challenge(connection, found)


async def enter(roles: RolePair, found: Challenge, number: int, former: int | None = None) -> Session | None:
    """Use a challenge up."""
    async with roles.app.unscoped() as connection:
        return await sessions.open_session(
            connection,
            found.nonce,
            token(number),
            lifetime=HOUR,
            former_token_hash=token(former) if former is not None else None,
        )


async def session_of(roles: RolePair, number: int) -> Session | None:
    """The session of a token."""
    async with roles.app.unscoped_statement() as connection:
        return await sessions.find_session(connection, token(number))


@pytest.mark.parametrize("role", ["settle_app", "settle_service"])
@pytest.mark.parametrize("table", SECRET_TABLES)
@pytest.mark.parametrize(
    "statement", ["SELECT * FROM {}", "DELETE FROM {}", "TRUNCATE {}", "INSERT INTO {} DEFAULT VALUES"]
)
async def test_no_role_touches_the_tables_themselves(roles: RolePair, role: str, table: str, statement: str) -> None:
    with refused(InsufficientPrivilege), connect(roles.database.url_as(role)) as connection:
        connection.execute(statement.format(table).encode())


async def test_a_challenge_is_used_once_and_opens_the_account_with_the_session(roles: RolePair) -> None:
    found = challenge(1)
    await ask(roles, found)
    session = await enter(roles, found, 1)
    assert session is not None
    assert session.wallet_address == wallet(1)
    assert await enter(roles, found, 2) is None
    assert await session_of(roles, 1) == session
    assert await session_of(roles, 2) is None


async def test_a_session_that_cannot_be_written_leaves_the_challenge_and_no_account(roles: RolePair) -> None:
    first, second = challenge(1), challenge(2)
    await ask(roles, first)
    await ask(roles, second)
    await enter(roles, first, 1)
    with connect(roles.database.app_url) as app, pytest.raises(UniqueViolation):
        app.execute("SELECT * FROM open_session(%s, %s, now() + interval '1 hour', NULL)", (second.nonce, token(1)))
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM users WHERE wallet_address = %s", wallet(2)) == 0
    assert await enter(roles, second, 2) is not None


async def test_of_thirty_who_use_one_challenge_at_once_one_gets_in(roles: RolePair) -> None:
    found = challenge(1)
    await ask(roles, found)
    opened = await asyncio.gather(*(enter(roles, found, number) for number in range(30)))
    assert len([session for session in opened if session is not None]) == 1


async def test_an_expired_challenge_is_not_found_and_not_used(roles: RolePair) -> None:
    late = challenge(1, lifetime=timedelta(seconds=-1))
    await ask(roles, late)
    async with roles.app.unscoped_statement() as connection:
        assert await sessions.find_challenge(connection, nonce=late.nonce) is None
        assert await sessions.find_challenge(connection, message=late.message) is None
    assert await enter(roles, late, 1) is None


async def test_a_challenge_is_found_by_what_names_it_and_by_nothing_else(roles: RolePair) -> None:
    mine, other = challenge(1), challenge(2)
    await ask(roles, mine)
    await ask(roles, other)
    async with roles.app.unscoped_statement() as connection:
        for given, expected in (
            ({"nonce": mine.nonce}, mine),
            ({"message": mine.message}, mine),
            ({"nonce": mine.nonce, "message": mine.message}, mine),
            ({"nonce": mine.nonce, "message": other.message}, None),
            ({"nonce": "x" * 24}, None),
            ({}, None),
        ):
            found = await sessions.find_challenge(connection, **given)
            assert (found.message if found else None) == (expected.message if expected else None), given


async def test_expired_challenges_and_sessions_are_swept_by_later_ones(roles: RolePair) -> None:
    for number in range(5):
        await ask(roles, challenge(number, lifetime=timedelta(seconds=-1)))
    await ask(roles, challenge(99))
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM login_challenges") == 1
    await enter(roles, challenge(99), 1)
    query(roles.database.superuser_url, "UPDATE sessions SET expires_at = now() - interval '1 s' RETURNING 1")
    await ask(roles, challenge(100))
    await enter(roles, challenge(100), 2)
    assert query(roles.database.superuser_url, "SELECT token_hash FROM sessions") == [(token(2),)]


async def test_an_expired_session_is_nobodys(roles: RolePair) -> None:
    await ask(roles, challenge(1))
    await enter(roles, challenge(1), 1)
    query(roles.database.superuser_url, "UPDATE sessions SET expires_at = now() RETURNING 1")
    assert await session_of(roles, 1) is None


async def test_a_new_session_ends_the_one_it_replaces(roles: RolePair) -> None:
    for number in (1, 2):
        await ask(roles, challenge(number))
    await enter(roles, challenge(1), 1)
    await enter(roles, challenge(2), 2, former=1)
    assert await session_of(roles, 1) is None
    assert await session_of(roles, 2) is not None


async def test_ending_a_session_ends_it_alone_or_all_of_its_user(roles: RolePair) -> None:
    nonces = [challenge(1), challenge(1).model_copy(update={"nonce": "n" * 24, "message": "another"}), challenge(2)]
    for number, found in enumerate(nonces):
        await ask(roles, found)
        await enter(roles, found, number)
    async with roles.app.unscoped_statement() as connection:
        assert await sessions.end_session(connection, token(9)) == 0
        assert await sessions.end_session(connection, token(9), everywhere=True) == 0
        assert await sessions.end_session(connection, token(0), everywhere=True) == 2
    assert [await session_of(roles, number) is not None for number in range(3)] == [False, False, True]


async def test_operators_end_the_sessions_of_a_wallet_however_its_address_is_written(roles: RolePair) -> None:
    for number in (1, 2):
        await ask(roles, challenge(number))
        await enter(roles, challenge(number), number)
    async with roles.service.transaction() as connection:
        assert await sessions.end_sessions_of_wallet(connection, wallet(1).upper().replace("0X", "0x")) == 1
    assert await session_of(roles, 1) is None
    assert await session_of(roles, 2) is not None
    with refused(InsufficientPrivilege), connect(roles.database.app_url) as app:
        app.execute("SELECT end_sessions_of_wallet(%s)", (wallet(2),))


# -- rate limits -----------------------------------------------------------------------------------------------------


async def take(roles: RolePair, *buckets: Bucket) -> float | None:
    """Take one from each bucket."""
    async with roles.app.unscoped_statement() as connection:
        return await rate_limits.take(connection, buckets)


async def test_a_bucket_gives_a_minutes_worth_at_once_and_says_when_there_is_more(roles: RolePair) -> None:
    bucket = Bucket("intents:account:1", 6)
    assert [await take(roles, bucket) for _ in range(6)] == [None] * 6
    wait = await take(roles, bucket)
    assert wait is not None
    assert 9 < wait <= 10
    assert await take(roles, Bucket("intents:account:2", 6)) is None


async def test_what_was_taken_comes_back_with_time(roles: RolePair) -> None:
    bucket = Bucket("b", 6)
    for _ in range(6):
        await take(roles, bucket)
    query(roles.database.superuser_url, "UPDATE rate_limits SET full_at = full_at - interval '20 s' RETURNING 1")
    assert [await take(roles, bucket) is None for _ in range(3)] == [True, True, False]


async def test_refused_requests_do_not_lengthen_the_wait(roles: RolePair) -> None:
    bucket = Bucket("b", 2)
    for _ in range(2):
        await take(roles, bucket)
    waits = [await take(roles, bucket) for _ in range(20)]
    assert waits == sorted(waits, key=lambda seconds: -(seconds or 0))


async def test_of_a_hundred_at_once_as_many_pass_as_fit(roles: RolePair) -> None:
    taken = await asyncio.gather(*(take(roles, Bucket("b", 30)) for _ in range(100)))
    # One more every two seconds: the hundred do not take that long.
    assert 30 <= len([wait for wait in taken if wait is None]) <= 31


async def test_an_empty_account_takes_nothing_from_its_address(roles: RolePair) -> None:
    account, address = Bucket("account", 1), Bucket("address", 2)
    for _ in range(5):
        await take(roles, account, address)
    assert await take(roles, address) is None
    assert await take(roles, address) is not None


async def test_buckets_that_are_full_again_are_swept(roles: RolePair) -> None:
    for number in range(3):
        await take(roles, Bucket(f"old:{number}", 60))
    query(roles.database.superuser_url, "UPDATE rate_limits SET full_at = now() - interval '1 h' RETURNING 1")
    await take(roles, Bucket("new", 60))
    assert query(roles.database.superuser_url, "SELECT bucket FROM rate_limits") == [("new",)]


# -- idempotency keys ------------------------------------------------------------------------------------------------


async def keep(roles: RolePair, number: int, key: str, request: int, answer: dict[str, Any]) -> dict[str, Any] | None:
    """Keep an answer for the payer of wallet `number`."""
    payer = await roles.open_account(number)
    async with roles.app.transaction(payer.user_id) as connection:
        return await idempotency.keep_answer(connection, payer.billing_account_id, key, token(request), answer)


async def test_an_answer_is_kept_once_for_each_account_and_key(roles: RolePair) -> None:
    assert await keep(roles, 1, "k", 1, {"first": True}) is None
    assert await keep(roles, 1, "k", 1, {"first": False}) == {"first": True}
    assert await keep(roles, 2, "k", 2, {"other": True}) is None
    with pytest.raises(IdempotencyKeyReused):
        await keep(roles, 1, "k", 2, {})


async def test_a_tenant_keeps_no_answer_for_another_account_and_sees_none(roles: RolePair) -> None:
    await keep(roles, 1, "k", 1, {"secret": True})
    mine, other = await roles.open_account(1), await roles.open_account(2)
    with connect(roles.database.app_url, user_id=other.user_id) as app:
        assert app.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)
    with refused(InsufficientPrivilege), connect(roles.database.app_url, user_id=other.user_id) as app:
        app.execute(
            "INSERT INTO idempotency_keys (billing_account_id, key, request_hash, answer) VALUES (%s, 'x', %s, '{}')",
            (mine.billing_account_id, token(1)),
        )


@pytest.mark.parametrize("statement", ["UPDATE idempotency_keys SET answer = '{}'", "DELETE FROM idempotency_keys"])
async def test_a_kept_answer_stays(roles: RolePair, statement: str) -> None:
    payer = await roles.open_account(1)
    with refused(InsufficientPrivilege), connect(roles.database.app_url, user_id=payer.user_id) as app:
        app.execute(statement.encode())
