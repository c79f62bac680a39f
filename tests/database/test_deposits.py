"""Deposits are what is observed: each keeps what it is, wherever it is mined, also where two write at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import pytest

from db.deposits.balances import expected_balances, find_block_read_to
from db.deposits.deposits import keep_deposits
from devstack.processes import wait_until
from domain.chain import DEPOSITS_TOKEN, DepositLane
from domain.coin import NATIVE_COIN
from tests.support.deposits import CHAIN_ID, METHOD, NEVER_DEPLOYED, add_method, add_ring, settle_deposit
from tests.support.payments import RolePair, tx_hash, wallet
from tests.support.sql import connect, query, scalar, waits_for_lock

TX: Final = tx_hash(9)
OTHER_TOKEN: Final = "0x" + "6b" * 20
FROM: Final = wallet(50)
BLOCKS: Final = {"first": tx_hash(100), "second": tx_hash(101)}


@dataclass(frozen=True)
class Log:
    """A transfer as it is observed."""

    to: str
    from_address: str = FROM
    token: str = NEVER_DEPLOYED
    value_raw: int = 5


async def address(roles: RolePair, number: int = 1, *, ring_id: UUID | None = None) -> str:
    """A deposit address that belongs to an account."""
    payer = await roles.open_account(number)
    at = f"0x{uuid4().hex:0>40}"
    query(
        roles.database.superuser_url,
        "INSERT INTO deposit_addresses (id, chain_id, address, scheme, salt, treasury, ring_id, index,"
        " billing_account_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING 1",
        *(uuid4(), CHAIN_ID, at, "xpub" if ring_id else "create2", None if ring_id else "0x" + uuid4().hex * 2),
        *(None if ring_id else wallet(77), ring_id, 0 if ring_id else None, payer.billing_account_id),
    )
    return at


def observe(roles: RolePair, logs: list[Log], *, block: str = "first", first_index: int = 0) -> None:
    """The transaction is in this block with these logs, and in no other."""
    with connect(roles.database.superuser_url) as superuser, superuser.transaction():
        superuser.execute("DELETE FROM observed_transfers")
        for index, log in enumerate(logs):
            superuser.execute(
                "INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time,"
                " token, from_address, to_address, value_raw) VALUES (%s, %s, %s, 7, %s, now(), %s, %s, %s, %s)",
                (CHAIN_ID, TX, first_index + index, BLOCKS[block], log.token, log.from_address, log.to, log.value_raw),
            )


async def keep(roles: RolePair) -> None:
    async with roles.service.transaction() as connection:
        await keep_deposits(connection, CHAIN_ID, [TX])


def kept(roles: RolePair) -> dict[int, Log]:
    """What the deposits say is at each place."""
    rows = query(
        roles.database.service_url,
        "SELECT d.log_index, a.address, d.from_address, d.token, d.value_raw::bigint FROM deposits d"
        " JOIN deposit_addresses a ON a.id = d.address_id",
    )
    return {index: Log(*rest) for index, *rest in rows}


@pytest.fixture
def roles(roles: RolePair) -> RolePair:
    """With a method."""
    add_method(roles.database)
    return roles


@pytest.mark.parametrize("what", ["senders", "tokens", "addresses", "values"])
async def test_transfers_that_differ_are_never_taken_for_each_other(roles: RolePair, what: str) -> None:
    """In its new block the transaction's logs come in another order."""
    add_method(roles.database, "USDT:local", address=OTHER_TOKEN)
    first = Log(await address(roles, 1))
    second = {
        "senders": Log(first.to, from_address=wallet(51)),
        "tokens": Log(first.to, token=OTHER_TOKEN),
        "addresses": Log(await address(roles, 2)),
        "values": Log(first.to, value_raw=6),
    }[what]
    observe(roles, [first, second])
    await keep(roles)
    assert kept(roles) == {0: first, 1: second}
    observe(roles, [second, first], block="second")
    await keep(roles)
    assert kept(roles) == {0: second, 1: first}


async def test_of_two_first_seen_at_one_place_each_has_an_id_of_its_own(roles: RolePair) -> None:
    first, second = Log(await address(roles)), Log(await address(roles, 2))
    observe(roles, [first])
    await keep(roles)
    observe(roles, [second, first], block="second")
    await keep(roles)
    assert kept(roles) == {0: second, 1: first}
    assert scalar(roles.database.service_url, "SELECT count(DISTINCT id) FROM deposits") == 2


async def test_what_has_an_attempt_is_kept_off_the_chain_each_at_a_place_of_its_own(roles: RolePair) -> None:
    at = await address(roles)
    observe(roles, [Log(at, value_raw=5), Log(at, value_raw=6), Log(at, value_raw=7)])
    await keep(roles)
    for deposit_id, value_raw in query(roles.database.service_url, "SELECT id, value_raw::bigint FROM deposits"):
        if value_raw != 7:
            settle_deposit(roles.database, deposit_id)
    observe(roles, [])
    for _ in range(2):
        await keep(roles)
        assert {index for index in kept(roles)} == {-1, -2}, "and stays where it is"
    observe(roles, [Log(at, value_raw=6)], block="second", first_index=3)
    await keep(roles)
    assert sorted(kept(roles)) in ([-2, 3], [-1, 3])


async def test_a_tokens_deposit_is_of_the_method_that_made_its_address(roles: RolePair) -> None:
    ring_id = add_ring(roles.database)
    add_method(roles.database, "USDC:wallet", ring_id=ring_id)
    for ring, method in ((None, METHOD), (ring_id, "USDC:wallet")):
        observe(roles, [Log(await address(roles, 2 if ring else 1, ring_id=ring))], block="second")
        await keep(roles)
        assert scalar(roles.database.service_url, "SELECT method_id FROM deposits") == method


async def test_of_two_that_write_at_once_the_second_one_waits_and_changes_nothing(roles: RolePair) -> None:
    observe(roles, [Log(await address(roles))])

    async with roles.service.transaction() as connection:
        await keep_deposits(connection, CHAIN_ID, [TX])
        second = asyncio.create_task(keep(roles))
        await wait_until(
            lambda: waits_for_lock(roles.database.superuser_url), timeout_seconds=10, what="the second one's wait"
        )
    await second
    assert len(kept(roles)) == 1


# What addresses should hold -------------------------------------------------------------------------------------------


async def test_what_is_expected_is_of_a_token_up_to_a_block(roles: RolePair) -> None:
    add_method(roles.database, "USDT:local", address=OTHER_TOKEN)
    at = await address(roles)
    [(address_id,)] = query(roles.database.service_url, "SELECT id FROM deposit_addresses")
    observe(roles, [Log(at, value_raw=50), Log(at, value_raw=20, token=OTHER_TOKEN)])
    await keep(roles)
    for method, value_raw in ((METHOD, 30), ("USDT:local", 4)):
        with connect(roles.database.superuser_url, triggers=False) as superuser:
            superuser.execute(
                "INSERT INTO swept_transfers (chain_id, tx_hash, log_index, address_id, method_id, treasury, value_raw,"
                " credits, block_number, block_hash) VALUES (%s, %s, %s, %s, %s, %s, %s, 0, 9, %s)",
                (CHAIN_ID, tx_hash(value_raw), 0, address_id, method, wallet(77), value_raw, tx_hash(1)),
            )
    async with roles.service.transaction() as connection:
        by_block = {
            block: (await expected_balances(connection, NEVER_DEPLOYED.lower(), [address_id], block=block))
            for block in (6, 7, 8, 9)
        }
        other = await expected_balances(connection, OTHER_TOKEN, [address_id], block=9)
    assert {block: found[address_id] for block, found in by_block.items()} == {6: 0, 7: 50, 8: 50, 9: 20}
    assert other == {address_id: 16}


async def test_a_block_is_compared_once_lanes_and_sweeps_have_read_it(roles: RolePair) -> None:
    async def read_to(*, is_coin: bool = False) -> int | None:
        async with roles.service.transaction() as connection:
            return await find_block_read_to(connection, CHAIN_ID, is_coin=is_coin)

    def cursor(token: str, treasury: str, block: int, retired: str = "NULL") -> None:
        with connect(roles.database.superuser_url, triggers=False) as superuser:
            superuser.execute(
                "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, block_hash,"
                f" head_number, retired_at) VALUES (%s, %s, %s, 0, %s, %s, %s, {retired})".encode(),
                (CHAIN_ID, token, treasury, block, tx_hash(block), block),
            )

    assert await read_to() is None
    cursor(NEVER_DEPLOYED, wallet(77), 1)
    assert await read_to() is None, "of a treasury's scope nothing follows"
    cursor(DEPOSITS_TOKEN, wallet(1), 30)
    cursor(DEPOSITS_TOKEN, wallet(2), 20)
    cursor(DEPOSITS_TOKEN, wallet(3), 5, retired="now()")
    assert await read_to() == 20

    def swept(token: str, block: int) -> None:
        query(
            roles.database.superuser_url,
            "INSERT INTO sweep_cursors (chain_id, token, treasury, block_number) VALUES (%s, %s, 'b', %s) RETURNING 1",
            *(CHAIN_ID, token, block),
        )

    swept("a", 10)
    assert await read_to() == 10
    # The coin has a lane of its own: neither waits for the other.
    swept(NATIVE_COIN.lower(), 3)
    assert await read_to(is_coin=True) is None, "its lane is not read"
    cursor(DEPOSITS_TOKEN, DepositLane.COIN, 4)
    assert (await read_to(is_coin=True), await read_to()) == (3, 10)
