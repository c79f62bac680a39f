"""Each night the chain says what deposit addresses hold: what no lane has read is found, what differs is a finding."""

from __future__ import annotations

from datetime import timedelta

import pytest

from db.deposits.lanes import list_tokens
from devstack.chain import LocalChain, payer_wallets
from domain.chain import DepositLane
from domain.money import credits_for_raw
from services.deposits.balances import DepositBalances
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.support.sql import connect

SETTLED_AFTER = MIN_CONFIRMATIONS + 2
"""The local chain keeps the states of its last blocks only, as full nodes do."""


@pytest.fixture(autouse=True)
async def old_chain(chain: LocalChain) -> None:
    """The final block is so long ago that the node has not kept its state."""
    if await chain.block_number() < 100:
        await chain.mine(100)


def quiet_lane(deposits: Deposits) -> DepositScanner:
    """What reads the quiet lane, every few minutes."""
    chain = deposits.chain
    return DepositScanner(
        deposits.reader,
        deposits.roles.service,
        DepositAddresses(deposits.roles.service, chain.chain_id, chain.treasury_address),
        DepositLane.QUIET,
        chain_id=chain.chain_id,
        look_back_blocks=0,
    )


def checks(deposits: Deposits) -> DepositBalances:
    """The nightly check."""
    chain = deposits.chain
    return DepositBalances(
        deposits.reader,
        deposits.roles.service,
        quiet_lane(deposits),
        chain_id=chain.chain_id,
        treasury=chain.treasury_address,
        min_confirmations=MIN_CONFIRMATIONS,
    )


async def finalize(deposits: Deposits) -> None:
    """Everything up to now is confirmed, and read by the lane."""
    await deposits.chain.mine(SETTLED_AFTER)
    await deposits.act()


async def test_what_came_is_what_they_hold(deposits: Deposits) -> None:
    first, second = await deposits.give(1), await deposits.give(2)
    await deposits.pay(first, 5_000_000)
    await deposits.pay(second, 1)
    await finalize(deposits)
    checked = await checks(deposits).check()
    assert (checked.addresses, checked.differences, checked.found_transfers) == (2, [], 0)
    assert deposits.findings() == []


async def test_a_payment_to_an_address_long_out_of_use_is_found_and_credited(deposits: Deposits) -> None:
    given = await deposits.give()
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("UPDATE deposit_addresses SET active_at = now() - interval '400 days'")
    await deposits.pay(given, 5_000_000)
    await finalize(deposits)
    assert deposits.deposits() == [], "it is in no lane"
    checked = await checks(deposits).check()
    assert (checked.found_transfers, checked.differences) == (1, [])
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]
    assert await deposits.balance(given) == credits_for_raw(5_000_000)
    assert deposits.findings() == []


async def test_an_address_is_read_from_the_block_in_which_it_was_given_out(deposits: Deposits) -> None:
    await deposits.give()
    check, last = checks(deposits), await deposits.chain.block_number()
    [address] = await check._derived()
    now = address.created_at
    for created_at, first in ((now - timedelta(days=1), 0), (now + timedelta(days=1), last)):
        moved = address.model_copy(update={"created_at": created_at})
        assert await check._first_block_after(moved, last) == first


async def test_a_transfer_that_a_node_left_out_is_found(deposits: Deposits) -> None:
    given = await deposits.give()
    await deposits.pay(given, 5_000_000)
    await finalize(deposits)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("DELETE FROM observed_transfers")
        superuser.execute("DELETE FROM deposits WHERE attempt_id IS NULL")
    other = await deposits.give(2)
    await deposits.pay(other, 3_000_000)
    await finalize(deposits)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("DELETE FROM observed_transfers WHERE lower(to_address) = lower(%s)", (other.address,))
        superuser.execute("UPDATE deposits SET log_index = -1 WHERE address_id = %s", (other.id,))
    checked = await checks(deposits).check()
    assert checked.found_transfers == 1
    assert checked.differences == []


async def test_a_token_that_lies_is_a_finding_until_it_is_true(deposits: Deposits) -> None:
    """Its log says that it came, and it did not: credited by the log, and found by the balance."""
    chain = deposits.chain
    lying = await chain.deploy_token("LyingToken", "USDS", 6)
    deposits.method("USDS:test", lying)
    given = await deposits.give()
    async with deposits.roles.service.autocommit() as connection:
        assert lying in await list_tokens(connection, chain.chain_id)
    owner = payer_wallets()[-1]
    await chain.mint(owner.address, 10**9, token=lying, owner=owner)
    await chain.mine()
    await chain.pay(owner.private_key, given.address, 5_000_000, token=lying)
    await chain.mine(MIN_CONFIRMATIONS)
    await finalize(deposits)
    checked = await checks(deposits).check()
    [difference] = checked.differences
    assert (difference.token, difference.address.address) == (lying, given.address)
    assert (difference.holds_raw, difference.expected_raw) == (0, 5_000_000)
    assert [kind for kind, _ in deposits.findings()] == ["deposits_differ"]
    [(value_raw, detail)] = deposits.rows("SELECT value_raw::bigint, detail FROM findings")
    assert value_raw == 5_000_000
    assert "hold 0 raw units" in detail
    again = await checks(deposits).check()
    assert again.opened == [], "it is open already"


async def test_where_the_nodes_keep_its_state_the_block_is_final(deposits: Deposits) -> None:
    given = await deposits.give()
    await deposits.pay(given, 5_000_000)
    await finalize(deposits)
    checked = await checks(deposits).check()
    [progress] = [await deposits.reader.heads.progress(("finalized",))]
    kept = await checks(deposits)._has_state(progress.tagged["finalized"])
    assert checked.block == (progress.tagged["finalized"] if kept else progress.head_number - MIN_CONFIRMATIONS + 1)


async def test_the_block_is_the_newest_that_lanes_and_sweeps_have_read(deposits: Deposits) -> None:
    given = await deposits.give()
    await deposits.pay(given, 5_000_000)
    await finalize(deposits)
    await quiet_lane(deposits).advance()
    read_by_all = await deposits.chain.block_number()
    await deposits.pay(given, 1_000_000)
    await finalize(deposits)
    second = await checks(deposits).check()
    assert second.block is not None and second.block > read_by_all, "the quiet lane was read first"
    assert second.differences == []
    behind = second.block - 1
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute(
            "INSERT INTO sweep_cursors (chain_id, token, treasury, block_number) VALUES (%s, 'a', 'b', %s)",
            (deposits.chain.chain_id, behind),
        )
    assert (await checks(deposits).check()).block == behind


async def test_an_address_that_does_not_derive_is_not_asked_about(deposits: Deposits) -> None:
    """What a forged row names holds others' money: it is another check's finding."""
    given = await deposits.give()
    await finalize(deposits)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute(
            "UPDATE deposit_addresses SET address = %s WHERE id = %s", (deposits.payer(3).address, given.id)
        )
    checked = await checks(deposits).check()
    assert (checked.addresses, checked.differences, checked.found_transfers) == (0, [], 0)
    assert deposits.findings() == []


async def test_a_finding_closes_when_there_is_no_difference_left(deposits: Deposits) -> None:
    given = await deposits.give()
    await deposits.pay(given, 5_000_000)
    await finalize(deposits)
    for change, resolution in (("+ 1", None), ("- 1", "settled")):
        with connect(deposits.roles.database.superuser_url) as superuser:
            superuser.execute(f"UPDATE deposits SET value_raw = value_raw {change}".encode())
        await checks(deposits).check()
        assert deposits.rows("SELECT kind, resolution FROM findings") == [("deposits_differ", resolution)]
