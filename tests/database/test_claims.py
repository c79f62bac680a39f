"""What `claim_authorization`, `claim_charge_authorization` and `charge_authorizations_of` take, refuse and say."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from db.accounts.wallets import Payer
from devstack.processes import wait_until
from tests.database.signed_rows import (
    A_WHILE,
    DAY,
    ELSEWHERE,
    MANY,
    OTHER_TOKEN,
    PAYER,
    TOKEN,
    Rows,
    as_api,
    hash_,
    planted,
)
from tests.support.deposits import METHOD, add_method, see_deposit
from tests.support.payments import CHAIN_ID, RolePair
from tests.support.sql import scalar, waits_for_lock

STRANGER = "0x" + "9" * 40
PAY_TO = "0x" + "2" * 40
QUOTED_RAW = 100


@dataclass
class Claims:
    """Two payees, and what they ask for."""

    rows: Rows
    roles: RolePair
    alice: Payer
    bob: Payer

    def claim(
        self,
        attempt_id: UUID,
        nonce: str | None = None,
        *,
        wallet: str = PAYER,
        by: Payer | None = None,
        per_day: int = MANY,
        failed_per_day: int = MANY,
        valid_before: int = 2_000_000_000,
    ) -> str:
        """An authorization for an attempt, with its own nonce where none is given."""
        if nonce is None:
            nonce = self.own_nonce(attempt_id)
        statement = "SELECT claim_authorization(%s, %s, %s, 3, %s, 's', true, 7, %s, %s)"
        values = (attempt_id, wallet, nonce, valid_before, per_day, failed_per_day)
        user_id = (by or self.alice).user_id
        return str(as_api(self.roles.database, statement, *values, user_id=user_id)[0][0])

    def own_nonce(self, attempt_id: UUID) -> str:
        found = "SELECT own_nonce FROM payment_authorizations WHERE attempt_id = %s"
        return str(scalar(self.roles.database.service_url, found, attempt_id))

    def offer(self, payer: Payer | None = None, **values: Any) -> UUID:
        """An attempt that nothing has been signed for."""
        return self.rows.claim((payer or self.alice).billing_account_id, is_claimed=False, **values)

    def sign(
        self,
        charge_id: UUID,
        nonce: int,
        *,
        by: Payer | None = None,
        wallet: str = PAYER,
        value_raw: int = QUOTED_RAW,
        chain_id: int = CHAIN_ID,
        token: str = TOKEN,
        to: str | None = None,
        valid_after: int = 0,
        valid_for: timedelta = A_WHILE,
        per_charge: int = MANY,
        failed_per_charge: int = MANY,
        per_account: int = MANY,
        failed_per_account: int = MANY,
    ) -> str:
        """An authorization for a charge."""
        valid_before = BEFORE[valid_for]
        return str(
            as_api(
                self.roles.database,
                "SELECT claim_charge_authorization(%s, %s, %s, %s, %s, %s, %s, %s, %s, '', false, 1, %s, %s, %s, %s)",
                *(charge_id, chain_id, token, wallet),
                to or self.address(charge_id),
                *(value_raw, valid_after, valid_before, hash_(nonce)),
                *(per_charge, failed_per_charge, per_account, failed_per_account),
                user_id=(by or self.alice).user_id,
            )[0][0]
        )

    def address(self, charge_id: UUID) -> str:
        """Where a charge is paid to."""
        found = "SELECT address FROM deposit_addresses WHERE charge_id = %s"
        return str(scalar(self.roles.database.service_url, found, charge_id))

    def charge(self, payer: Payer | None = None) -> UUID:
        """A charge of 100 raw units."""
        return self.rows.charge((payer or self.alice).billing_account_id, quoted_raw=QUOTED_RAW)

    def signed(self, charge_id: UUID, user_id: str | None = None) -> list[Any]:
        """What is said of what was signed for a charge, without its id: the newest first."""
        owner = self.alice.user_id if user_id is None else user_id
        statement = "SELECT nonce, state, tx_hash, is_on_its_way, is_seen FROM charge_authorizations_of(%s)"
        return as_api(self.roles.database, statement, charge_id, user_id=owner)


NOW = datetime.now(UTC)
BEFORE = {length: int((NOW + length).timestamp()) for length in (A_WHILE, 2 * A_WHILE, -A_WHILE)}


@pytest.fixture
async def claims(roles: RolePair) -> AsyncIterator[Claims]:
    add_method(roles.database, address=TOKEN)
    alice, bob = await roles.open_account(1), await roles.open_account(2)
    with planted(roles.database) as rows:
        yield Claims(rows, roles, alice, bob)


# -- an attempt's ----------------------------------------------------------------------------------------------------


def test_a_claim_is_of_ones_own_open_attempt_once(claims: Claims) -> None:
    offer, beside = claims.offer(), claims.offer()
    assert claims.claim(offer, by=claims.bob) == claims.claim(uuid4(), hash_(1)) == "not_found"
    nonce = claims.own_nonce(offer)
    assert [claims.claim(offer) for _ in range(2)] == ["new", "same"]
    assert claims.claim(offer, hash_(500)) == claims.claim(offer, nonce, wallet=STRANGER) == "claimed_another"
    found = claims.rows.superuser.execute(
        "SELECT a.id, a.from_address, a.authorization_nonce, extract(epoch FROM a.expires_at)::bigint, c.valid_after,"
        " c.valid_before, c.signature, c.is_contract, c.from_block FROM payment_attempts a"
        " JOIN payment_authorizations c ON c.attempt_id = a.id WHERE c.claimed_at IS NOT NULL"
    ).fetchall()
    assert found == [(offer, PAYER, nonce, 2_000_000_000, 3, 2_000_000_000, b"s", True, 7)]
    [(attempt_id, details)] = claims.rows.superuser.execute(
        "SELECT attempt_id, metadata FROM payment_events"
    ).fetchall()
    assert (attempt_id, details["nonceIsOwn"]) == (offer, True)
    assert claims.claim(claims.offer(expires_in=-A_WHILE)) == claims.claim(claims.offer(status="FAILED")) == "expired"
    assert claims.claim(beside) == "new"


def test_a_random_nonce_is_of_the_accounts_own_wallets_or_of_nobodys(claims: Claims) -> None:
    nonces = (hash_(number) for number in itertools.count(500))
    assert claims.claim(claims.offer(), claims.own_nonce(claims.offer(claims.bob))) == "of_another_attempt"
    wallets = {claims.alice.wallet_address: "new", claims.bob.wallet_address: "of_another_wallet", STRANGER: "new"}
    for wallet, outcome in wallets.items():
        assert claims.claim(claims.offer(), next(nonces), wallet=wallet.lower()) == outcome
    for account, outcome in (("other", "of_another_wallet"), (claims.alice.billing_account_id, "new")):
        claims.rows.add("account_members", billing_account_id=account, user_id=claims.bob.user_id, role="member")
        assert claims.claim(claims.offer(), next(nonces), wallet=claims.bob.wallet_address) == outcome
    claims.rows.add("account_members", billing_account_id=claims.alice.billing_account_id, user_id="u", role="member")
    claims.rows.superuser.execute("DELETE FROM account_members WHERE user_id = %s", (claims.bob.user_id,))
    assert claims.claim(claims.offer(), next(nonces), wallet=claims.bob.wallet_address) == "of_another_wallet"
    assert [claims.claim(claims.offer(), hash_(499)) for _ in range(2)] == ["new", "in_use"]


def test_claims_of_a_day_are_limited_and_those_that_failed(claims: Claims) -> None:
    account = claims.alice.billing_account_id
    claims.rows.claim(account, claimed_ago=2 * DAY)
    claims.rows.claim("other")
    claims.offer()
    claims.rows.nonce(1, claims.rows.claim(account), "reverted")
    claims.rows.nonce(2, claims.rows.claim(account, claimed_ago=2 * DAY), "reverted", ago=2 * DAY)
    claims.rows.nonce(3, claims.rows.claim("other"), "reverted")
    claims.rows.nonce(4, claims.rows.claim(account, claimed_ago=2 * DAY), "succeeded")
    assert claims.claim(claims.offer(), per_day=1) == claims.claim(claims.offer(), failed_per_day=1) == "limit"
    assert claims.claim(claims.offer(), per_day=2, failed_per_day=2) == "new"


async def test_of_two_claims_at_once_the_second_one_is_refused(claims: Claims) -> None:
    offer = claims.offer()
    with psycopg.connect(claims.roles.database.app_url) as first:
        first.execute("SELECT set_config('settle.user_id', %s, true)", (claims.alice.user_id,))
        first.execute(
            "SELECT claim_authorization(%s, %s, %s, 0, 2000000000, '', false, 1, 9, 9)", (offer, PAYER, hash_(500))
        )
        second = asyncio.create_task(asyncio.to_thread(claims.claim, offer))
        await wait_until(
            lambda: waits_for_lock(claims.roles.database.superuser_url), timeout_seconds=10, what="the second's wait"
        )
    assert await second == "claimed_another"


# -- a charge's ------------------------------------------------------------------------------------------------------


def test_what_is_signed_for_a_charge_is_of_its_owners_scope_token_chain_address_and_amount(claims: Claims) -> None:
    add_method(claims.roles.database, "DAI:local", address=OTHER_TOKEN)
    charge_id, other = claims.charge(), claims.charge(claims.bob)
    for wrong in ({"by": claims.bob}, {"chain_id": ELSEWHERE}, {"token": OTHER_TOKEN}, {"to": PAY_TO}):
        assert claims.sign(charge_id, 1, **wrong) == "not_found"
    assert claims.sign(uuid4(), 1, to=PAY_TO) == claims.sign(uuid4(), 1, to=claims.address(charge_id)) == "not_found"
    assert claims.sign(charge_id, 1, to=claims.address(claims.charge())) == "not_found"
    for value_raw in (QUOTED_RAW - 1, QUOTED_RAW + 1):
        assert claims.sign(charge_id, 1, value_raw=value_raw) == "another_amount"
    see_deposit(claims.roles.database, claims.address(charge_id), 40)
    assert claims.sign(charge_id, 1) == "another_amount"
    assert claims.sign(charge_id, 1, value_raw=QUOTED_RAW - 40) == "new"
    assert claims.sign(other, 2, by=claims.bob) == "new"
    assert claims.rows.superuser.execute("SELECT charge_id FROM charge_authorizations").fetchall() == [
        (charge_id,),
        (other,),
    ]


def test_one_is_on_its_way_at_a_time_and_a_nonce_is_used_once(claims: Claims) -> None:
    charge_id, other = claims.charge(), claims.charge()
    assert [claims.sign(charge_id, 1) for _ in range(2)] == ["new", "same"]
    assert claims.sign(charge_id, 1, wallet="0x" + PAYER[2:].upper()) == "same"
    for changed in ({"value_raw": 1}, {"valid_after": 1}, {"valid_for": 2 * A_WHILE}):
        assert claims.sign(charge_id, 1, **changed) == "in_use"
    assert claims.sign(other, 1) == "in_use"
    assert claims.sign(charge_id, 2) == claims.sign(charge_id, 1, wallet=STRANGER) == "on_its_way"
    assert claims.sign(other, 1, wallet=STRANGER) == "new"
    assert claims.sign(charge_id, 1, wallet=STRANGER) == "in_use"
    third = claims.charge()
    for place in ({"chain_id": ELSEWHERE}, {"token": OTHER_TOKEN}):
        claims.rows.signed("other", nonce=9, **place)
    assert claims.sign(third, 9) == "new"
    assert claims.sign(charge_id, 9) == "in_use"
    claims.rows.signed("other", nonce=8, charge_id=third, wallet=STRANGER, valid_for=-A_WHILE)
    assert claims.sign(claims.charge(), 8) == "new"


def test_after_one_that_has_expired_or_failed_another_may_sign(claims: Claims) -> None:
    for case in ("expired", "reverted"):
        charge_id = claims.charge()
        lasts = -A_WHILE if case == "expired" else A_WHILE
        one = claims.rows.signed("a", charge_id=charge_id, valid_for=lasts)
        if case == "reverted":
            claims.rows.nonce(1, one, "reverted", is_of_charge=True)
        assert claims.sign(charge_id, 800 + lasts.days) == "new"


@pytest.mark.parametrize("what", ["charge", "nonce"])
async def test_of_two_who_sign_at_once_the_second_one_is_refused(claims: Claims, what: str) -> None:
    charge_id = claims.charge()
    second = (charge_id, 2) if what == "charge" else (claims.charge(), 1)
    with psycopg.connect(claims.roles.database.app_url) as first:
        first.execute("SELECT set_config('settle.user_id', %s, true)", (claims.alice.user_id,))
        first.execute(
            "SELECT claim_charge_authorization(%s, %s, %s, %s, %s, 100, 0, 2000000000, %s, '', false, 1, 9, 9, 9, 9)",
            (charge_id, CHAIN_ID, TOKEN, PAYER, claims.address(charge_id), hash_(1)),
        )
        signing = asyncio.create_task(asyncio.to_thread(claims.sign, *second))
        superuser_url = claims.roles.database.superuser_url
        await wait_until(lambda: waits_for_lock(superuser_url) or signing.done(), timeout_seconds=10, what="its wait")
    assert await signing == ("on_its_way" if what == "charge" else "in_use")


def test_signatures_of_a_day_are_limited_and_those_that_failed(claims: Claims) -> None:
    account, charge_id = claims.alice.billing_account_id, claims.charge()
    beside = claims.charge()
    claims.rows.signed(account, charge_id=charge_id, ended="executed")
    claims.rows.signed(account, charge_id=charge_id, ended="executed", claimed_ago=2 * DAY)
    claims.rows.signed(account, charge_id=beside, ended="executed")
    claims.rows.signed("other", ended="executed")
    failed = claims.rows.signed(account, charge_id=charge_id, ended="expired", claimed_ago=2 * DAY)
    claims.rows.nonce(1, failed, "reverted", is_of_charge=True)
    limits: list[dict[str, Any]] = [
        {"per_charge": 1},
        {"per_account": 2},
        {"failed_per_charge": 1},
        {"failed_per_account": 1},
    ]
    for limit in limits:
        assert claims.sign(charge_id, 900, **limit) == "limit"
    assert claims.sign(charge_id, 900, per_charge=2, per_account=3, failed_per_charge=2, failed_per_account=2) == "new"


def test_what_is_said_of_a_signature_is_what_the_relay_and_the_chain_know_of_it(claims: Claims) -> None:
    rows, charge_id = claims.rows, claims.charge()

    def add(**values: Any) -> tuple[UUID, str]:
        return rows.signed("a", charge_id=charge_id, **values), hash_(rows.number)

    claimed, expired = add(), add(valid_for=-A_WHILE)
    unsent, sent, late = add(), add(), add(valid_for=-A_WHILE)
    reverted, lost, succeeded = add(), add(), add()
    executed, ended = add(ended="executed", executed_by=hash_(77)), add(ended="expired")
    over = add(valid_for=-A_WHILE)
    rows.nonce(30, over[0], "succeeded", is_of_charge=True, mined=hash_(230))
    claims.charge()
    for number, open_one in enumerate((unsent, sent, late)):
        rows.nonce(10 + number, open_one[0], is_of_charge=True)
        rows.transaction(10 + number, hash_(110 + number), is_sent=open_one != unsent)
    rows.nonce(1, sent[0], "reverted", is_of_charge=True, ago=A_WHILE)
    rows.transaction(11, hash_(114), is_sent=True)
    rows.transaction(11, hash_(115))
    for number, (one, outcome) in enumerate(((reverted, "reverted"), (lost, "lost"), (succeeded, "succeeded"))):
        mined = None if outcome == "lost" else hash_(220 + number)
        rows.nonce(20 + number, one[0], outcome, is_of_charge=True, mined=mined)
        rows.transaction(20 + number, hash_(120 + number), is_sent=outcome != "lost")
    for number in (10, 11):
        rows.elsewhere(number, [rows.claim("a"), rows.claim("a")], is_sent=True)
    rows.signed("a")
    assert claims.signed(charge_id) == [
        (over[1], "succeeded", hash_(230), False, False),
        (ended[1], "expired", None, False, False),
        (executed[1], "executed", hash_(77), False, False),
        (succeeded[1], "succeeded", hash_(222), True, False),
        (lost[1], "claimed", None, True, False),
        (reverted[1], "reverted", hash_(220), False, False),
        (late[1], "sent", hash_(112), True, False),
        (sent[1], "sent", hash_(114), True, False),
        (unsent[1], "claimed", None, True, False),
        (expired[1], "claimed", None, False, False),
        (claimed[1], "claimed", None, True, False),
    ]
    assert claims.signed(charge_id, claims.bob.user_id) == claims.signed(charge_id, "") == []
    for _ in range(50):
        add()
    assert len(claims.signed(charge_id)) == 50


def test_a_signature_is_seen_where_its_own_transfer_is_among_the_charges_deposits(claims: Claims) -> None:
    rows, charge_id = claims.rows, claims.charge()
    mine = rows.signed("a", charge_id=charge_id, value_raw=5)
    rows.nonce(1, mine, is_of_charge=True)
    rows.transaction(1, hash_(1), is_sent=True)
    rows.signed("a", charge_id=charge_id, value_raw=6, ended="executed", executed_by=hash_(2))
    rows.elsewhere(1, [rows.claim("a"), rows.claim("a")], is_sent=True)
    rows.nonce(2, rows.claim("a"))
    rows.transaction(2, hash_(4))
    [(address_id,)] = rows.superuser.execute("SELECT address_id FROM charges WHERE id = %s", (charge_id,)).fetchall()
    deposit = {
        "chain_id": CHAIN_ID,
        "method_id": METHOD,
        "token": TOKEN,
        "credits": 1,
        "block_number": 1,
        "block_hash": hash_(1),
        "block_time": NOW,
    }

    def seen(number: int, *, at: UUID = address_id, value_raw: int = 5, sender: str = PAYER.upper()) -> list[bool]:
        rows.superuser.execute("DELETE FROM deposits")
        rows.add(
            "deposits",
            id=uuid4(),
            tx_hash=hash_(number),
            log_index=0,
            address_id=at,
            value_raw=value_raw,
            from_address="0x" + sender[2:],
            **deposit,
        )
        return [is_seen for *_, is_seen in reversed(claims.signed(charge_id))]

    assert seen(1) == [True, False]
    assert [way for *_, way, _ in reversed(claims.signed(charge_id))] == [False, False]
    assert seen(2, value_raw=6) == [False, True]
    others = [seen(number) for number in (3, 4, 910, 911)]
    others += [seen(1, at=uuid4()), seen(1, value_raw=4), seen(1, sender=STRANGER)]
    assert others == [[False, False]] * len(others)
