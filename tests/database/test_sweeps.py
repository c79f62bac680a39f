"""Sweeps in the database: what was moved is booked once, an outcome written once, and a second pass moves nothing."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from db.deposits import sweeps
from db.deposits.sweeps import SignedSweepTransaction, SweepScope
from domain.chain import Transfer
from tests.database.test_deposits import TX, Log, address, keep, observe
from tests.support.deposits import CHAIN_ID, METHOD, NEVER_DEPLOYED, add_method
from tests.support.payments import NOW, RolePair, tx_hash, wallet
from tests.support.sql import query

TREASURY = wallet(70)
SCOPE = SweepScope(METHOD, CHAIN_ID, NEVER_DEPLOYED, TREASURY, first_block=1, cursor=None)


@pytest.fixture
def roles(roles: RolePair) -> RolePair:
    """With a method."""
    add_method(roles.database)
    return roles


async def paid(roles: RolePair) -> tuple[UUID, str]:
    """A deposit address that something came to."""
    at = await address(roles)
    observe(roles, [Log(at)])
    await keep(roles)
    [(address_id,)] = query(roles.database.service_url, "SELECT id FROM deposit_addresses")
    return address_id, at


async def test_a_swept_transfer_is_booked_once(roles: RolePair) -> None:
    address_id, at = await paid(roles)
    transfer = Transfer(
        tx_hash=tx_hash(1),
        log_index=3,
        block_number=9,
        block_hash=tx_hash(2),
        block_time=NOW,
        from_address=at,
        value_raw=5,
    )
    for expected in (True, False):
        async with roles.service.transaction() as connection:
            assert await sweeps.book_swept_transfer(connection, SCOPE, transfer, address_id, 50) is expected
    lines = query(roles.database.service_url, "SELECT side, account_code, amount::bigint FROM journal_lines ORDER BY 1")
    assert lines == [("credit", "cash:usdc:deposits", 50), ("debit", "cash:usdc", 50)]


async def test_of_two_passes_over_the_same_blocks_one_moves_the_cursor(roles: RolePair) -> None:
    async def move(scope: SweepScope, block: int) -> bool:
        async with roles.service.transaction() as connection:
            return await sweeps.move_sweep_cursor(connection, scope, block)

    at_ten = SweepScope(METHOD, CHAIN_ID, NEVER_DEPLOYED, TREASURY, first_block=11, cursor=10)
    assert [await move(SCOPE, 10), await move(SCOPE, 10)] == [True, False]
    assert [await move(at_ten, 20), await move(at_ten, 15)] == [True, False]
    assert query(roles.database.service_url, "SELECT block_number FROM sweep_cursors") == [(20,)]


async def test_what_has_left_the_chain_is_at_no_address(roles: RolePair) -> None:
    await paid(roles)

    async def holders() -> int:
        async with roles.service.transaction() as connection:
            return len(
                await sweeps.list_holders(
                    connection, chain_id=CHAIN_ID, scheme="create2", ring_id=None, token=NEVER_DEPLOYED
                )
            )

    assert await holders() == 1
    query(roles.database.superuser_url, "UPDATE deposits SET log_index = -1 WHERE tx_hash = %s RETURNING 1", TX)
    assert await holders() == 0


async def test_an_outcome_is_written_once_and_a_sweep_with_another_transaction_goes_on(roles: RolePair) -> None:
    sweep_id = uuid4()

    def signed(number: int) -> SignedSweepTransaction:
        return SignedSweepTransaction(tx_hash(number), wallet(60), 7, b"raw")

    async def store(*numbers: int) -> None:
        async with roles.service.transaction() as connection:
            await sweeps.insert_sweep(connection, sweep_id, CHAIN_ID, {}, [signed(number) for number in numbers])

    await store(1)
    async with roles.service.transaction() as connection:
        for outcome in ("reverted", "replaced"):
            await sweeps.note_outcome(connection, CHAIN_ID, tx_hash(1), outcome)
        await sweeps.end_sweep(connection, sweep_id, "failed")
    assert query(roles.database.service_url, "SELECT outcome FROM sweep_transactions") == [("reverted",)]
    await store(1)
    assert query(roles.database.service_url, "SELECT status FROM sweeps") == [("failed",)], "there is nothing new"
    await store(1, 2)
    assert query(roles.database.service_url, "SELECT status FROM sweeps") == [("sent",)]
