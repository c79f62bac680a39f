"""Processes that die between two writes, and two that do the same at once: each deposit is credited once."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from domain.chain import DepositLane
from domain.errors import TemporalUnavailable
from domain.money import credits_for_raw
from services.deposits.lanes import DepositAddresses
from services.deposits.scanner import DepositScanner
from services.payments.recovery import PaymentRecovery, Recovered
from services.transfers.block_scanner import BlockScanner
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits, crediting_of
from tests.support.sql import connect


async def test_watchers_that_act_at_once_credit_each_deposit_once(deposits: Deposits) -> None:
    """Fault 11: two transfers at once credited a charge twice."""
    given = [await deposits.give(number) for number in range(1, 4)]
    for _ in range(4):
        for each in given:
            await deposits.pay(each, 1_000_000, blocks=1)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    head = await deposits.read()
    others = [crediting_of(deposits.chain, deposits.roles, deposits.reader, deposits.settling) for _ in range(2)]
    with capture_logs() as lines:
        await asyncio.gather(*(crediting.act(head) for crediting in others))
    assert [line for line in lines if line["log_level"] == "error"] == [], "who is second has nothing to do"
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"] * 12
    assert [await deposits.balance(each) for each in given] == [credits_for_raw(4_000_000)] * 3


async def test_both_lanes_read_the_same_transfer_as_one_deposit(deposits: Deposits) -> None:
    quiet = DepositScanner(
        deposits.reader,
        deposits.roles.service,
        DepositAddresses(deposits.roles.service, deposits.chain.chain_id, deposits.chain.treasury_address),
        DepositLane.QUIET,
        chain_id=deposits.chain.chain_id,
        look_back_blocks=1_000,
    )
    given = await deposits.give()
    await deposits.pay(given, 1_000_000)
    await asyncio.gather(deposits.scan.advance(), quiet.advance())
    await deposits.act()
    await quiet.advance()
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]


async def test_one_whose_workflow_could_not_be_started_is_found_and_settled(deposits: Deposits) -> None:
    """Fault 12: what was marked as done was lost. Here the process dies with the attempt committed, and no run."""
    given = await deposits.give()
    await deposits.pay(given, 1_000_000)

    class Deaf:
        async def resume_payment(self, user_id: str, attempt_id: object) -> bool:
            raise TemporalUnavailable("no Temporal")

    deaf = crediting_of(deposits.chain, deposits.roles, deposits.reader, Deaf())
    with pytest.raises(TemporalUnavailable):
        await deaf.act(await deposits.read())
    assert [status for *_, status in deposits.deposits()] == ["PENDING_UNVERIFIED"]
    await deposits.act()
    assert deposits.settling.resumed == [], "it is decided about: not this one's to start"

    recovery = PaymentRecovery(deposits.roles.service, chain_id=deposits.chain.chain_id, starter=deposits.settling)
    [(attempt_id,)] = deposits.rows("SELECT attempt_id FROM deposits")
    await recovery.recover_these([attempt_id], Recovered())
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]


async def test_what_is_written_is_written_with_the_cursor_or_not_at_all(deposits: Deposits) -> None:
    """Fault 12: a cursor ahead of what was handled. A scanner that dies in its transaction has read nothing."""
    given = await deposits.give()
    sent = await deposits.pay(given, 1_000_000)
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("ALTER TABLE deposits ADD CONSTRAINT refused CHECK (value_raw < 0) NOT VALID")
    with pytest.raises(Exception, match="refused"):
        await deposits.read()
    assert deposits.rows("SELECT count(*) FROM observed_transfers") == [(0,)]
    with connect(deposits.roles.database.superuser_url) as superuser:
        superuser.execute("ALTER TABLE deposits DROP CONSTRAINT refused")
    await deposits.act()
    assert [(tx_hash, status) for tx_hash, _, _, status in deposits.deposits()] == [(sent, "CREDITED")]


async def test_an_address_given_out_after_the_set_was_read_is_found_with_the_next_range(
    deposits: Deposits, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await deposits.give(1)
    await deposits.read()
    second = await deposits.give(2)
    await deposits.pay(second, 1_000_000, blocks=1)
    stale = await deposits.scan._addresses.scope(DepositLane.BUSY)
    deposits.scan.scope = stale.model_copy(update={"addresses": (first.address,)})
    with monkeypatch.context() as before:
        before.setattr(DepositScanner, "_choose_scope", BlockScanner._choose_scope)
        await deposits.scan.advance()
    assert deposits.deposits() == []
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]
