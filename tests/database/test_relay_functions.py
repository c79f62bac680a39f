"""What the relay's functions read and write, where rows of other chains, relayers, accounts and days lie beside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from devstack.processes import wait_until
from tests.database.signed_rows import (
    A_WHILE,
    DAY,
    ELSEWHERE,
    MANY,
    OTHER_RELAYER,
    OTHER_TOKEN,
    PAYER,
    RELAYER,
    TOKEN,
    Rows,
    as_api,
    hash_,
    planted,
)
from tests.support.payments import CHAIN_ID, RolePair
from tests.support.sql import waits_for_lock


@pytest.fixture
async def rows(roles: RolePair) -> AsyncIterator[Rows]:
    with planted(roles.database) as rows:
        yield rows


def relayers(rows: Rows, next_nonce: int = 5) -> None:
    for address in (RELAYER, OTHER_RELAYER):
        for chain_id in (CHAIN_ID, ELSEWHERE):
            rows.add("relayers", chain_id=chain_id, address=address, next_nonce=next_nonce)


def claims(rows: Rows, limit: int = MANY, per_day: int = MANY, failed_per_day: int = MANY) -> list[Any]:
    return [row[0] for row in rows.call("relay_claims", CHAIN_ID, limit, per_day, failed_per_day)]


def test_what_the_relay_is_given_are_claims_of_its_chain_that_can_be_paid_and_are_not_on_their_way(rows: Rows) -> None:
    due = [rows.claim("a"), rows.claim("a", status="PENDING_UNVERIFIED"), rows.claim("b"), rows.claim("b")]
    rows.nonce(1, due[2], "reverted")
    rows.nonce(2, due[3], "lost")
    for number, outcome in enumerate((None, "succeeded")):
        rows.nonce(10 + number, rows.claim("c"), outcome)
    rows.claim("a", status="CREDITED")
    rows.claim("a", status="FAILED")
    rows.claim("a", chain_id=ELSEWHERE)
    rows.claim("a", is_claimed=False)
    rows.claim("a", valid_for=-A_WHILE)
    due.append(due.pop(0))
    rows.change("payment_authorizations", "claimed_at = now() + interval '1 s'", attempt_id=due[-1])
    assert claims(rows) == due
    assert claims(rows, limit=2) == due[:2]


def test_the_claims_of_an_account_at_a_limit_of_the_day_wait_and_those_of_others_do_not(rows: Rows) -> None:
    waiting, other = rows.claim("a"), rows.claim("b")
    rows.nonce(1, waiting, "reverted")
    rows.nonce(2, rows.claim("a", status="CREDITED"), "succeeded")
    rows.nonce(3, rows.claim("a", status="CREDITED"), "reverted", ago=2 * DAY)
    assert claims(rows, per_day=3) == claims(rows, failed_per_day=2) == [waiting, other]
    assert claims(rows, per_day=2) == claims(rows, failed_per_day=1) == [other]


def charge_claims(rows: Rows, limit: int = MANY, per_charge: int = MANY, per_account: int = MANY) -> list[Any]:
    return [row[0] for row in rows.call("relay_charge_claims", CHAIN_ID, limit, per_charge, per_account)]


def test_of_charges_it_is_given_what_can_be_executed_and_is_not_on_its_way(rows: Rows) -> None:
    due = [rows.signed("a"), rows.signed("b"), rows.signed("b")]
    rows.nonce(1, due[1], "reverted", is_of_charge=True)
    rows.nonce(2, due[2], "lost", is_of_charge=True)
    for number, outcome in enumerate((None, "succeeded")):
        rows.nonce(10 + number, rows.signed("c"), outcome, is_of_charge=True)
    rows.signed("a", chain_id=ELSEWHERE)
    rows.signed("a", valid_for=-A_WHILE)
    rows.signed("a", ended="executed")
    rows.signed("a", ended="expired")
    due.append(due.pop(0))
    rows.change("charge_authorizations", "claimed_at = now() + interval '1 s'", id=due[-1])
    assert charge_claims(rows) == due
    assert charge_claims(rows, limit=2) == due[:2]


def test_what_is_signed_for_a_charge_or_an_account_at_a_limit_of_failures_waits(rows: Rows) -> None:
    charge_id = rows.charge("a")
    same, another, other = rows.signed("a", charge_id=charge_id), rows.signed("a"), rows.signed("b")
    rows.nonce(1, same, "reverted", is_of_charge=True)
    rows.nonce(2, rows.signed("a", charge_id=charge_id, ended="executed"), "succeeded", is_of_charge=True)
    old = rows.signed("a", charge_id=charge_id, ended="expired")
    rows.nonce(3, old, "reverted", is_of_charge=True, ago=2 * DAY)
    rows.nonce(4, rows.signed("c", ended="expired"), "reverted", is_of_charge=True)
    assert charge_claims(rows, per_charge=2) == charge_claims(rows, per_account=2) == [same, another, other]
    assert charge_claims(rows, per_charge=1) == [another, other]
    assert charge_claims(rows, per_account=1) == [other]


def test_each_relayer_of_each_chain_has_nonces_of_its_own(rows: Rows) -> None:
    assert rows.call("relay_next_nonce", CHAIN_ID, RELAYER, 5) == [5]
    relayers_before = {(ELSEWHERE, RELAYER): 7, (CHAIN_ID, OTHER_RELAYER): 7}
    for (chain_id, address), next_nonce in relayers_before.items():
        rows.add("relayers", chain_id=chain_id, address=address, next_nonce=next_nonce)
    assert [rows.call("relay_next_nonce", CHAIN_ID, RELAYER, nonce) for nonce in (4, 7, 6)] == [[5], [7], [7]]
    assert rows.call("relay_store", CHAIN_ID, RELAYER, 7, rows.claim("a"), 0, hash_(1), b"", 1, 1, 1) == [True]
    stored = rows.superuser.execute("SELECT chain_id, address, next_nonce FROM relayers").fetchall()
    assert {row[:2]: row[2] for row in stored} == {(CHAIN_ID, RELAYER): 8, **relayers_before}


def test_nothing_is_stored_for_what_must_not_be_paid(rows: Rows) -> None:
    relayers(rows)
    rows.claim("b")
    rows.signed("b")
    for refused in (
        rows.claim("a", status="FAILED"),
        rows.claim("a", status="CREDITED"),
        rows.claim("a", is_claimed=False),
        rows.signed("a", chain_id=ELSEWHERE),
        rows.signed("a", ended="executed"),
        rows.signed("a", ended="expired"),
        uuid4(),
    ):
        assert rows.call("relay_store", CHAIN_ID, RELAYER, 5, refused, 0, hash_(1), b"", 1, 1, 1) == [False]
    for number, paid in enumerate((rows.claim("a", status="PENDING_UNVERIFIED"), rows.signed("a"))):
        assert rows.call("relay_store", CHAIN_ID, RELAYER, 5 + number, paid, 0, hash_(2 + number), b"", 1, 1, 1) == [
            True
        ]
        assert rows.call("relay_store", CHAIN_ID, RELAYER, 7, paid, 0, hash_(9), b"", 1, 1, 1) == [False]


def test_a_replacement_replaces_all_of_its_own_open_nonce(rows: Rows) -> None:
    relayers(rows)
    mine, *others = (rows.claim("a") for _ in range(3))
    rows.nonce(3, mine)
    rows.transaction(3, hash_(1))
    rows.elsewhere(3, others)
    rows.nonce(2, rows.claim("b"))
    rows.transaction(2, hash_(2))

    def store(replaces: int, number: int) -> list[Any]:
        return rows.call("relay_store", CHAIN_ID, RELAYER, 3, mine, replaces, hash_(number), b"", 1, 1, 1)

    rows.relay.execute("SET lock_timeout = '5s'")
    with rows.superuser.transaction():
        rows.superuser.execute(
            "SELECT FROM relayers WHERE (chain_id, address) <> (%s, %s) FOR UPDATE", (CHAIN_ID, RELAYER)
        )
        assert store(2, 3) == [False], "and no other relayer is waited for"
    assert [store(replaces, 3 + replaces) for replaces in (1, 2)] == [[True], [True]]
    rows.change("relay_nonces", "outcome = 'succeeded', ended_at = now()", nonce=3)
    assert store(3, 6) == [False]


@pytest.mark.parametrize("what", ["attempt", "charge"])
async def test_what_ends_while_it_is_stored_is_not_stored(rows: Rows, roles: RolePair, what: str) -> None:
    relayers(rows)
    paid = rows.claim("a") if what == "attempt" else rows.signed("a")
    with rows.superuser.transaction():
        if what == "attempt":
            rows.change("payment_attempts", "status = 'FAILED', error_code = 'INTENT_EXPIRED'", id=paid)
        else:
            rows.change("charge_authorizations", "outcome = 'expired', ended_at = now()", id=paid)
        values = (CHAIN_ID, RELAYER, 5, paid, 0, hash_(1), b"", 1, 1, 1)
        storing = asyncio.create_task(asyncio.to_thread(rows.call, "relay_store", *values))
        superuser_url = roles.database.superuser_url
        await wait_until(lambda: waits_for_lock(superuser_url) or storing.done(), timeout_seconds=10, what="its wait")
    assert await storing == [False]


def test_open_transactions_are_the_relayers_own_in_the_order_of_nonces(rows: Rows) -> None:
    mine, *others = (rows.claim("a") for _ in range(3))
    signed = rows.signed("a")
    rows.nonce(4, signed, is_of_charge=True)
    rows.transaction(4, hash_(3))
    rows.nonce(3, mine)
    rows.transaction(3, hash_(2))
    rows.transaction(3, hash_(1))
    rows.elsewhere(3, others)
    rows.nonce(2, rows.claim("b"), "succeeded")
    rows.transaction(2, hash_(4))
    rows.change("relay_transactions", "stored_at = now()", tx_hash=hash_(2))
    found = [row[:3] for row in rows.call("relay_open_transactions", CHAIN_ID, RELAYER)]
    assert found == [(3, mine, hash_(1)), (3, mine, hash_(2)), (4, signed, hash_(3))]


def test_an_end_is_of_one_nonce_and_says_that_its_transaction_was_sent(rows: Rows) -> None:
    mine, *others = (rows.claim("a") for _ in range(3))
    rows.nonce(3, mine)
    for chain_id in (CHAIN_ID, ELSEWHERE):
        rows.transaction(3, hash_(1), chain_id=chain_id)
    rows.transaction(3, hash_(2))
    rows.elsewhere(3, others)
    rows.nonce(4, rows.claim("b"))
    ended = (CHAIN_ID, RELAYER, 3, "succeeded", hash_(1), 7)
    assert [rows.call("relay_ended", *ended) for _ in range(2)] == [[True], [False]]

    def marked() -> list[Any]:
        return rows.superuser.execute(
            "SELECT chain_id, tx_hash, sent_at FROM relay_transactions WHERE sent_at IS NOT NULL"
        ).fetchall()

    [(chain_id, tx_hash, sent_at)] = marked()
    assert (chain_id, tx_hash) == (CHAIN_ID, hash_(1))
    rows.call("relay_sent", CHAIN_ID, hash_(1))
    assert marked() == [(CHAIN_ID, hash_(1), sent_at)]
    ends = rows.superuser.execute("SELECT chain_id, relayer, nonce FROM relay_nonces WHERE outcome IS NOT NULL")
    assert ends.fetchall() == [(CHAIN_ID, RELAYER, 3)]


def test_what_became_of_a_signature_is_written_once(rows: Rows, roles: RolePair) -> None:
    executed, expired, beside = (rows.signed("a") for _ in range(3))

    def end(signed: UUID, executed_by: str | None) -> bool:
        with psycopg.connect(roles.database.service_url) as service:
            [(is_new,)] = service.execute("SELECT end_charge_authorization(%s, %s)", (signed, executed_by)).fetchall()
        return bool(is_new)

    assert [end(executed, hash_(1)), end(executed, None), end(expired, None), end(expired, hash_(2))] == [
        *(True, False),
        *(True, False),
    ]
    found = rows.superuser.execute("SELECT id, outcome, executed_by, ended_at IS NULL FROM charge_authorizations")
    assert {row[0]: row[1:] for row in found.fetchall()} == {
        executed: ("executed", hash_(1), False),
        expired: ("expired", None, False),
        beside: (None, None, True),
    }


def test_gas_of_the_day_is_what_was_spent_and_of_what_is_open_the_most_that_it_can_cost(rows: Rows) -> None:
    assert rows.call("relay_spent_today", CHAIN_ID, RELAYER) == [0]
    rows.nonce(1, rows.claim("a"), "succeeded", spent_wei=5)
    rows.transaction(1, hash_(1), gas=1_000)
    rows.nonce(2, rows.claim("a"))
    rows.transaction(2, hash_(2), gas=10, max_fee_wei=7)
    rows.transaction(2, hash_(3), gas=10, max_fee_wei=9)
    rows.nonce(3, rows.claim("a"), "succeeded", spent_wei=1_000, ago=2 * DAY)
    rows.elsewhere(2, [rows.claim("a"), rows.claim("a")], gas=1_000)
    assert rows.call("relay_spent_today", CHAIN_ID, RELAYER) == [5 + 90]


def test_a_relay_is_there_on_its_chain_for_as_long_as_it_was_just_seen(rows: Rows, roles: RolePair) -> None:
    def is_there(chain_id: int = CHAIN_ID) -> bool:
        return bool(as_api(roles.database, "SELECT is_relay_there(%s, 60)", chain_id)[0][0])

    relayers(rows)
    assert not is_there()
    for balance_wei in (1, 2):
        rows.call("relay_seen", CHAIN_ID, RELAYER, 0, balance_wei)
    assert is_there()
    assert not is_there(ELSEWHERE)
    seen = rows.superuser.execute(
        "SELECT chain_id, address, balance_wei, next_nonce FROM relayers WHERE seen_at IS NOT NULL"
    )
    assert seen.fetchall() == [(CHAIN_ID, RELAYER, 2, 5)]
    rows.change("relayers", "seen_at = now() - interval '61 s'", address=RELAYER, chain_id=CHAIN_ID)
    assert not is_there()


async def test_what_was_sent_last_for_an_attempt_is_for_its_owner(rows: Rows, roles: RolePair) -> None:
    alice, bob = await roles.open_account(1), await roles.open_account(2)
    mine, *others = (rows.claim(alice.billing_account_id) for _ in range(3))

    def last(user_id: str) -> Any:
        return as_api(roles.database, "SELECT relayed_hash(%s)", mine, user_id=user_id)[0][0]

    rows.nonce(2, mine, "reverted", ago=A_WHILE, mined=hash_(1))
    for number in (1, 2):
        rows.transaction(2, hash_(number), is_sent=True)
    assert last(alice.user_id) == hash_(1)
    rows.nonce(3, mine)
    rows.transaction(3, hash_(3))
    rows.elsewhere(3, others, is_sent=True)
    assert last(alice.user_id) == hash_(1)
    for number in (5, 4):
        rows.transaction(3, hash_(number), is_sent=True)
    assert last(alice.user_id) == hash_(4)
    assert last(bob.user_id) is last("") is None


def test_a_claim_by_its_transfer_is_of_the_open_attempt_with_that_nonce_token_and_chain(
    rows: Rows, roles: RolePair
) -> None:
    def claim(attempt_id: UUID, *, chain_id: int = CHAIN_ID, token: str = TOKEN) -> bool:
        with psycopg.connect(roles.database.service_url) as service:
            [(nonce,)] = service.execute(
                "SELECT own_nonce FROM payment_authorizations WHERE attempt_id = %s", (attempt_id,)
            ).fetchall()
            [(is_claimed,)] = service.execute(
                "SELECT claim_by_transfer(%s, %s, %s, %s)", (chain_id, token, PAYER, nonce)
            ).fetchall()
        return bool(is_claimed)

    offer = rows.claim("a", is_claimed=False)
    assert not claim(offer, chain_id=ELSEWHERE)
    assert not claim(offer, token=OTHER_TOKEN)
    assert not claim(rows.claim("a"))
    assert not claim(rows.claim("a", is_claimed=False, status="FAILED"))
    assert [claim(offer) for _ in range(2)] == [True, False]
    found = rows.superuser.execute("SELECT attempt_id FROM payment_events").fetchall()
    assert found == [(offer,)]
