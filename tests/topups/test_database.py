"""What the database itself refuses of claims, whatever calls it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege, RestrictViolation

from db.clock import read_clock
from db.operations.housekeeping import expire_intents
from devstack.processes import wait_until
from domain.payments.attempt import AttemptStatus
from tests.support.sql import waits_for_lock
from tests.topups.conftest import CENTS, HOLDER, PATH, STRANGER, Till


async def test_housekeeping_ends_offers_and_no_claims(till: Till) -> None:
    offer = UUID((await till.offer())["attemptId"])
    claimed, _ = await till.claimed()
    async with till.engine.service.transaction() as connection:
        later = await read_clock(connection.connection) + timedelta(days=1)
        await expire_intents(connection, later, limit=10)
    assert await till.status(offer) is AttemptStatus.FAILED
    assert await till.status(claimed) is AttemptStatus.CREATED_INTENT


async def test_the_apis_role_can_neither_end_nor_change_a_claim(till: Till) -> None:
    claimed, _ = await till.claimed()
    holder = await till.engine.payer(HOLDER)
    await till.rows(
        f"WITH moved AS (UPDATE payment_attempts SET expires_at = now() - interval '1 s' WHERE id = '{claimed}'"
        " RETURNING 1) SELECT * FROM moved"
    )
    changes = (
        "status = 'FAILED', error_code = 'INTENT_EXPIRED'",
        "from_address = '0x' || repeat('1', 40)",
        "authorization_nonce = NULL",
    )
    with psycopg.connect(till.engine.database.app_url, autocommit=True) as connection:
        connection.execute("SELECT set_config('settle.user_id', %s, false)", (holder.user_id,))
        assert connection.execute("SELECT count(*) FROM payment_attempts").fetchone() == (1,)
        for change in changes:
            with pytest.raises(InsufficientPrivilege):
                connection.execute(f"UPDATE payment_attempts SET {change} WHERE id = %s".encode(), (claimed,))


async def test_no_role_changes_whose_nonce_pays(till: Till) -> None:
    claimed, _ = await till.claimed()
    with psycopg.connect(till.engine.database.superuser_url) as connection:
        for change in ("from_address = '0x' || repeat('1', 40)", "authorization_nonce = '0x' || repeat('1', 64)"):
            with pytest.raises(RestrictViolation), connection.transaction():
                connection.execute(f"UPDATE payment_attempts SET {change} WHERE id = %s".encode(), (claimed,))


async def test_an_attempt_of_another_kind_has_no_nonce_and_one_of_this_kind_a_payer(till: Till) -> None:
    offer = (await till.offer())["attemptId"]
    async with till.api.visitor(STRANGER) as stranger:
        wallets = (await stranger.intent())["attemptId"]
    with psycopg.connect(till.engine.database.superuser_url) as connection:
        for attempt, change, refusal in (
            (wallets, "authorization_nonce = '0x' || repeat('1', 64)", RestrictViolation),
            (offer, "authorization_nonce = '0x' || repeat('1', 64)", CheckViolation),
            (offer, "from_address = '0x' || repeat('1', 40)", CheckViolation),
            (offer, "authorization_nonce = 'x', from_address = '0x' || repeat('1', 40)", CheckViolation),
        ):
            with pytest.raises(refusal), connection.transaction():
                connection.execute(f"UPDATE payment_attempts SET {change} WHERE id = %s".encode(), (attempt,))


async def test_a_signature_comes_with_the_same_request_that_it_was_asked_for(till: Till) -> None:
    offer = await till.offer()
    reply = await till.payee.post(f"{PATH}?attemptId={offer['attemptId']}", {"amountUsdCents": CENTS + 1})
    assert (reply.status, reply.code) == (422, "INVALID_INPUT")
    other = await till.payee.post(
        f"{PATH}?attemptId={offer['attemptId']}", {"amountUsdCents": CENTS, "purpose": "system"}
    )
    assert (other.status, other.code) == (422, "INVALID_INPUT")


async def test_the_relay_stores_the_next_nonce_and_no_other(till: Till) -> None:
    claimed, _ = await till.claimed()
    relayer = "0x" + "7" * 40
    store = "SELECT relay_store(%s, %s, %s, %s, 0, '0x' || repeat('a', 64), '', 100000, 1, 1)"
    with psycopg.connect(till.engine.database.relay_url) as connection:
        chain_id = till.engine.chain.chain_id
        connection.execute("SELECT relay_next_nonce(%s, %s, 5)", (chain_id, relayer))
        for nonce in (4, 6):
            with pytest.raises(CheckViolation) as refused, connection.transaction():
                connection.execute(store, (chain_id, relayer, nonce, claimed))
            assert refused.value.diag.constraint_name == "relay_nonces_in_order"
        assert connection.execute(store, (chain_id, relayer, 5, claimed)).fetchone() == (True,)


async def test_of_two_replacements_at_once_one_is_stored(till: Till) -> None:
    """Each replaces what it has read: of the second one that is no longer all that there is."""
    claimed, _ = await till.claimed()
    database, chain_id, relayer = till.engine.database, till.engine.chain.chain_id, "0x" + "7" * 40

    def store(connection: psycopg.Connection[Any], replaces: int, digit: str) -> object:
        statement = f"SELECT relay_store(%s, %s, 5, %s, %s, '0x' || repeat('{digit}', 64), '', 100000, 1, 1)"
        return connection.execute(statement.encode(), (chain_id, relayer, claimed, replaces)).fetchone()

    connections = [psycopg.connect(database.relay_url, autocommit=True) for _ in range(2)]
    with connections[0] as first, connections[1] as second:
        first.execute("SELECT relay_next_nonce(%s, %s, 5)", (chain_id, relayer))
        assert store(first, 0, "a") == (True,)
        with first.transaction():
            assert store(first, 1, "b") == (True,)
            waiting = asyncio.create_task(asyncio.to_thread(store, second, 1, "c"))
            await wait_until(
                lambda: waits_for_lock(database.superuser_url), timeout_seconds=10, what="the second one's wait"
            )
        assert await waiting == (False,)
