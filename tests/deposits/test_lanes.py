"""Which addresses are read in which lane, and that a range is never taken for read without them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from devstack.processes import wait_until
from domain.chain import DepositLane
from services.deposits import lanes as deposit_lanes
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.given import Given
from tests.support.payments import note_former_treasury
from tests.support.sql import connect, waits_for_lock


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


async def test_a_chain_is_read_for_its_own_addresses_and_methods(deposits: Deposits) -> None:
    addresses = lanes(deposits)
    assert not await addresses.exist()
    await deposits.give()
    assert await addresses.exist()
    deposits.method("ETH:other", None, kind="native", decimals=18, chain_id=1)
    deposits.method("USDT:other", deposits.payer(7).address, chain_id=1)
    assert not await addresses.has_coin()
    deposits.method("ETH:test", None, kind="native", decimals=18)
    assert await addresses.has_coin()
    assert (await addresses.scope(DepositLane.BUSY)).tokens == (deposits.chain.token_address,)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET chain_id = 1")
    assert not await addresses.exist()


async def test_an_address_that_changes_its_owner_is_read_no_more(deposits: Deposits) -> None:
    """No role of the product may change it: this is what is left where another has."""
    given, other = await deposits.give(1), await deposits.account(2)
    addresses = lanes(deposits)
    assert given.address in (await addresses.scope(DepositLane.BUSY)).addresses
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET billing_account_id = %s", (other.billing_account_id,))
    assert (await addresses.scope(DepositLane.BUSY)).addresses == ()


async def test_the_coins_lane_knows_each_treasury_from_when_it_is_noted(deposits: Deposits) -> None:
    await deposits.give()
    addresses = lanes(deposits)
    of_the_settings, former = deposits.chain.treasury_address, deposits.payer(7).address
    assert (await addresses.scope(DepositLane.COIN)).treasuries == (of_the_settings,)
    with connect(deposits.roles.database.service_url) as service:
        note_former_treasury(service, former)
    assert set((await addresses.scope(DepositLane.COIN)).treasuries) == {of_the_settings, former}


async def test_the_coins_lane_reads_all_addresses_again_after_a_while(
    deposits: Deposits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was given out while the database was away is too old for what is read with each block."""
    addresses = lanes(deposits)
    first = await deposits.give(1)
    assert (await addresses.scope(DepositLane.COIN)).addresses == (first.address,)
    missed = await deposits.give(2)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET active_at = now() - interval '1 hour'")
    assert (await addresses.scope(DepositLane.COIN)).addresses == (first.address,)
    monkeypatch.setattr(deposit_lanes, "COIN_READ_EVERY", timedelta(0))
    assert set((await addresses.scope(DepositLane.COIN)).addresses) == {first.address, missed.address}


async def test_an_address_in_use_at_a_time_that_python_lacks_stops_no_lane(deposits: Deposits) -> None:
    """Who has the API's password can write when an address was in use, and would stop all deposits of the chain."""
    given, other = await deposits.give(1), await deposits.give(2)
    user_id = given.account.user_id
    with connect(deposits.roles.database.app_url, user_id=user_id) as app:
        written = app.execute("UPDATE deposit_addresses SET active_at = 'infinity' WHERE id = %s", (given.id,))
    assert written.rowcount == 1
    assert DepositLane.BUSY in await read_in(lanes(deposits), given) & await read_in(lanes(deposits), other)


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


def leave_the_busy_lane(deposits: Deposits) -> None:
    """Out of use for a day: read in the quiet lane only."""
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET active_at = now() - interval '25 hours'")


async def test_a_rescan_leaves_the_transfers_of_addresses_that_its_lane_does_not_read(deposits: Deposits) -> None:
    """As the quiet lane has just read one, or the chain has stood still for a day: nodes were not asked for it."""
    given = await deposits.give(charge_cents=100)
    await deposits.pay(given, 1_000_000)
    await deposits.act()
    leave_the_busy_lane(deposits)
    report = await deposits.scan.rescan(MIN_CONFIRMATIONS + 1)
    assert (report.added, report.orphaned) == (0, 0)
    assert [(log_index >= 0, status) for _, log_index, _, status in deposits.deposits()] == [(True, "CREDITED")]
    assert deposits.status_of(given) == "paid"


async def test_a_rescan_is_of_the_addresses_that_it_began_with(deposits: Deposits) -> None:
    """What follows the chain chooses the lane's addresses again before the re-scan is done."""
    given = await deposits.give()
    await deposits.pay(given, 1_000_000)
    await deposits.read()
    superuser_url = deposits.roles.database.superuser_url
    with connect(superuser_url) as superuser:
        superuser.execute("DELETE FROM deposits")
        superuser.execute("DELETE FROM observed_transfers")
    with connect(superuser_url) as superuser:
        superuser.execute("LOCK observed_transfers IN ACCESS EXCLUSIVE MODE")
        rescan = asyncio.create_task(deposits.scan.rescan(MIN_CONFIRMATIONS + 1))
        # The nodes have answered, and what they say is compared with the database next.
        await wait_until(lambda: waits_for_lock(superuser_url), timeout_seconds=10, what="the re-scan's wait")
        leave_the_busy_lane(deposits)
        await deposits.scan.advance()
        assert given.address not in deposits.scan.scope.recipients
    report = await rescan
    assert (report.added, report.orphaned) == (1, 0)
