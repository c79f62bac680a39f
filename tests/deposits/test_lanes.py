"""Which addresses are read in which lane, and that a range is never taken for read without them."""

from __future__ import annotations

import pytest

from domain.chain import DepositLane
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.given import Given
from tests.support.payments import note_former_treasury
from tests.support.sql import connect


def lanes(deposits: Deposits, treasury: str | None = None) -> DepositAddresses:
    """The addresses as a process that has just started knows them."""
    chain = deposits.chain
    return DepositAddresses(deposits.roles.service, chain.chain_id, treasury or chain.treasury_address)


async def read_in(addresses: DepositAddresses, given: Given) -> set[DepositLane]:
    """The lanes that an address is in."""
    return {lane for lane in DepositLane if given.address in (await addresses.scope(lane)).addresses}


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("23 hours", {DepositLane.BUSY, DepositLane.QUIET, DepositLane.COIN}),
        ("25 hours", {DepositLane.QUIET, DepositLane.COIN}),
        ("29 days", {DepositLane.QUIET, DepositLane.COIN}),
        ("31 days", {DepositLane.COIN}),
    ],
)
async def test_an_address_is_read_the_less_often_the_longer_it_is_out_of_use(
    deposits: Deposits, since: str, expected: set[DepositLane]
) -> None:
    given = await deposits.give()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET active_at = now() - %s::interval", (since,))
    assert await read_in(lanes(deposits), given) == expected


async def test_a_payment_brings_an_address_back_into_the_busy_lane(deposits: Deposits) -> None:
    given = await deposits.give()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET active_at = now() - interval '23 hours'")
    await deposits.pay(given, 1_000_000, blocks=1)
    await deposits.read()
    assert deposits.rows("SELECT active_at > now() - interval '1 hour' FROM deposit_addresses") == [(True,)]


async def test_an_address_of_a_former_treasury_is_read_and_one_of_a_strangers_is_not(deposits: Deposits) -> None:
    given = await deposits.give()
    now = deposits.payer(7).address
    assert await read_in(lanes(deposits, treasury=now), given) == set()
    with connect(deposits.roles.database.service_url) as service:
        note_former_treasury(service, deposits.chain.treasury_address)
    assert DepositLane.BUSY in await read_in(lanes(deposits, treasury=now), given)


async def test_an_address_of_another_chain_is_in_no_lane_of_this_one(deposits: Deposits) -> None:
    given = await deposits.give()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET chain_id = 1")
    assert await read_in(lanes(deposits), given) == set()


@pytest.mark.parametrize("how", ["a gap", "a rescan"])
async def test_blocks_that_are_read_again_are_read_for_the_addresses_of_now(deposits: Deposits, how: str) -> None:
    """By a process that has just started: it has read no address yet, and would find nothing."""
    given = await deposits.give()
    await deposits.pay(given, 1_000_000)
    head = await deposits.read()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("DELETE FROM deposits")
        superuser.execute("DELETE FROM observed_transfers")
    started = DepositScanner(
        deposits.reader,
        deposits.roles.service,
        lanes(deposits),
        DepositLane.BUSY,
        chain_id=deposits.chain.chain_id,
        look_back_blocks=0,
    )
    if how == "a gap":
        await started.read_again(head - MIN_CONFIRMATIONS, head)
    else:
        assert (await started.rescan(MIN_CONFIRMATIONS + 1)).added == 1
    assert [value_raw for _, _, value_raw, _ in deposits.deposits()] == [1_000_000]
