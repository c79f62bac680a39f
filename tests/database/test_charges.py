"""A charge's status: the rule in SQL is the one of the domain, and only the time has to be written by housekeeping."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.errors import UniqueViolation

from db.deposits import addresses, charges
from db.deposits.addresses import NewAddress
from db.deposits.charges import NewCharge
from devstack.processes import wait_until
from domain.deposits.charges import ChargeStatus, Received, status_of
from domain.deposits.methods import Scheme
from services.deposits.expiry import expire_charges
from tests.support.deposits import METHOD, add_method, see_deposit, settle_deposit
from tests.support.deposits import status_of as stored_status
from tests.support.payments import CHAIN_ID, TREASURY, RolePair, tx_hash
from tests.support.sql import connect, query, refused, scalar, waits_for_lock

QUOTED_RAW = 1_000
MINUTE = timedelta(minutes=1)


async def charge(roles: RolePair, *, expires_in: timedelta = MINUTE, number: int = 1) -> tuple[UUID, str]:
    """A charge and its address."""
    payer = await roles.open_account(number)
    charge_id, address = uuid4(), f"0x{uuid4().hex:0>40}"
    new = NewAddress(
        id=uuid4(),
        chain_id=CHAIN_ID,
        address=address,
        scheme=Scheme.CREATE2,
        ring_id=None,
        index=None,
        salt="0x" + uuid4().hex * 2,
        treasury=TREASURY,
        billing_account_id=payer.billing_account_id,
        charge_id=charge_id,
    )
    async with roles.app.transaction(payer.user_id) as connection:
        await addresses.insert_address(connection, new)
        await charges.insert_charge(
            connection,
            NewCharge(
                id=charge_id,
                billing_account_id=payer.billing_account_id,
                method_id=METHOD,
                amount_usd_cents=1,
                quoted_amount_raw=QUOTED_RAW,
                address_id=new.id,
                price_expires_at=datetime.now(UTC) + expires_in,
                details={},
            ),
        )
    return charge_id, address


async def expire(roles: RolePair, limit: int = 10) -> int:
    return await expire_charges(roles.service, limit=limit)


CREDITED, LOST = "CREDITED", ("REJECTED", "FAILED", "REVERSED")


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("expires_in", [MINUTE, -MINUTE])
@pytest.mark.parametrize(
    ("deposits", "status"),
    [
        ([], None),
        ([(1, None)], ChargeStatus.PARTIAL),
        ([(QUOTED_RAW - 1, CREDITED)], ChargeStatus.PARTIAL),
        ([(QUOTED_RAW - 1, CREDITED), (1, None)], ChargeStatus.CONFIRMING),
        ([(QUOTED_RAW - 1, CREDITED), (1, "PENDING_UNVERIFIED")], ChargeStatus.CONFIRMING),
        ([(QUOTED_RAW - 1, CREDITED), (1, CREDITED)], ChargeStatus.PAID),
        ([(QUOTED_RAW + 1, CREDITED)], ChargeStatus.PAID),
        ([(QUOTED_RAW, CREDITED), (5, None)], ChargeStatus.PAID),
        *[([(QUOTED_RAW, lost)], None) for lost in LOST],
        *[([(QUOTED_RAW, lost), (1, CREDITED)], ChargeStatus.PARTIAL) for lost in LOST],
    ],
)
async def test_the_status_in_sql_is_the_one_of_the_domain(
    roles: RolePair, deposits: list[tuple[int, str | None]], status: ChargeStatus | None, expires_in: timedelta
) -> None:
    add_method(roles.database)
    charge_id, address = await charge(roles, expires_in=expires_in)
    for value_raw, attempt in deposits:
        deposit_id = see_deposit(roles.database, address, value_raw)
        if attempt is not None:
            settle_deposit(roles.database, deposit_id, attempt)
    await expire(roles)
    expected = status or (ChargeStatus.NEW if expires_in > timedelta(0) else ChargeStatus.EXPIRED)
    assert stored_status(roles.database, charge_id) == expected
    received = Received(
        seen_raw=sum(raw for raw, attempt in deposits if attempt not in LOST),
        credited_raw=sum(raw for raw, attempt in deposits if attempt == CREDITED),
    )
    now = datetime.now(UTC)
    assert status_of(QUOTED_RAW, received, price_expires_at=now + expires_in, now=now) is expected


async def test_a_price_that_has_run_out_is_written_once_and_later_money_counts(roles: RolePair) -> None:
    """Faults 9 and 10: expiry was never stored, and money that came after it was lost."""
    add_method(roles.database)
    over = [await charge(roles, expires_in=-MINUTE, number=number) for number in (1, 2, 3)]
    waits, _ = await charge(roles, number=4)
    assert [await expire(roles, limit=2) for _ in range(3)] == [2, 1, 0]
    assert {stored_status(roles.database, charge_id) for charge_id, _ in over} == {"expired"}
    assert stored_status(roles.database, waits) == "new"
    charge_id, address = over[0]
    deposit_id = see_deposit(roles.database, address, QUOTED_RAW)
    assert stored_status(roles.database, charge_id) == "confirming"
    settle_deposit(roles.database, deposit_id)
    assert stored_status(roles.database, charge_id) == "paid"
    assert await expire(roles) == 0


async def test_a_deposit_that_is_deleted_counts_no_more(roles: RolePair) -> None:
    add_method(roles.database)
    charge_id, address = await charge(roles)
    deposit_id = see_deposit(roles.database, address, QUOTED_RAW)
    assert stored_status(roles.database, charge_id) == "confirming"
    query(roles.database.service_url, "DELETE FROM deposits WHERE id = %s RETURNING 1", deposit_id)
    assert stored_status(roles.database, charge_id) == "new"


async def test_a_transfer_is_one_deposit(roles: RolePair) -> None:
    add_method(roles.database)
    _, address = await charge(roles)
    see_deposit(roles.database, address, QUOTED_RAW)
    with refused(UniqueViolation, "deposits_once"), connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO deposits (id, chain_id, tx_hash, log_index, address_id, method_id, token, from_address,"
            " value_raw, credits, block_number, block_hash, block_time)"
            " SELECT gen_random_uuid(), chain_id, tx_hash, log_index, address_id, method_id, token, from_address,"
            " value_raw, credits, block_number, block_hash, block_time FROM deposits"
        )


async def test_what_was_swept_is_booked_once(roles: RolePair) -> None:
    add_method(roles.database)
    await charge(roles)
    book = (
        "SELECT book_swept_transfer(a.chain_id, %s, 0, a.id, m.id, a.treasury, 5, 50, 1, %s)"
        " FROM deposit_addresses a, payment_methods m"
    )
    booked = [scalar(roles.database.service_url, book, tx_hash(1), tx_hash(2)) for _ in range(2)]
    assert booked == [True, False]
    assert query(roles.database.service_url, "SELECT reason, count(*) FROM general_entries GROUP BY 1") == [
        ("sweep", 1)
    ]


async def test_of_two_deposits_at_once_the_second_one_sees_the_first(roles: RolePair) -> None:
    """Each is half of what is asked for: together they are all of it, whichever is written last."""
    add_method(roles.database)
    charge_id, address = await charge(roles)
    half = QUOTED_RAW // 2
    first = see_deposit(roles.database, address, 1)

    with connect(roles.database.superuser_url) as superuser, superuser.transaction():
        superuser.execute("UPDATE deposits SET value_raw = %s WHERE id = %s", (half, first))
        second = asyncio.create_task(asyncio.to_thread(see_deposit, roles.database, address, half))
        await wait_for_lock(roles)
    await second
    assert stored_status(roles.database, charge_id) == "confirming"


async def test_charges_that_expire_are_not_held_while_another_is_waited_for(roles: RolePair) -> None:
    """What records deposits locks charges in the order of the deposits: with one of each held, both would wait."""
    add_method(roles.database)
    first, _ = await charge(roles, expires_in=-2 * MINUTE, number=1)
    second, _ = await charge(roles, expires_in=-MINUTE, number=2)
    with connect(roles.database.superuser_url) as superuser, superuser.transaction():
        superuser.execute("SELECT refresh_charge(%s)", (second,))
        expiring = asyncio.create_task(expire(roles))
        await wait_for_lock(roles)
        superuser.execute("SELECT refresh_charge(%s)", (first,))
    assert await expiring == 2


async def wait_for_lock(roles: RolePair) -> None:
    """Until a statement in the database waits for another one's."""
    superuser_url = roles.database.superuser_url
    await wait_until(lambda: waits_for_lock(superuser_url), timeout_seconds=10, what="a wait for a lock")
