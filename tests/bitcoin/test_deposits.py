"""What is paid to an address of a key is credited once, each output by itself, and follows its chain."""

from __future__ import annotations

from db.payments.attempts import find_settled_transfer
from devstack.bitcoin_chain import COINBASE_MATURITY
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest
from domain.payments.finality import FinalityLevel, ReorgedOut
from services.operations.resolutions import mint_bonus_of_credit, take_remedy
from services.payments import lifecycle as payments
from tests.bitcoin.conftest import BitcoinDeposits
from tests.bitcoin.given import REGTEST, credits_of
from tests.bitcoin.scripts import script_of
from tests.deposits.conftest import MIN_CONFIRMATIONS
from tests.support.payments import SHARE

SATOSHIS = 150_000_000


async def test_a_deposit_is_credited_once_when_it_is_confirmed(deposits: BitcoinDeposits) -> None:
    given = await deposits.give()
    payment = await deposits.pay(given, SATOSHIS, blocks=0)
    await deposits.act()
    assert deposits.deposits() == [], "in no block"
    await deposits.bitcoin.mine(MIN_CONFIRMATIONS - 1)
    await deposits.act()
    assert deposits.deposits() == [("0x" + payment.txid, 0, SATOSHIS, None)]
    await deposits.bitcoin.mine()
    for _ in range(2):
        await deposits.act()
    assert deposits.statuses() == ["CREDITED"]
    assert await deposits.balance(given) == credits_of(SATOSHIS)
    assert deposits.rows("SELECT chain_id, from_address <> to_address FROM payment_attempts") == [
        (REGTEST.chain_id, True)
    ]
    assert deposits.rows("SELECT kind FROM findings") == []


async def test_each_output_of_a_transaction_is_a_deposit(deposits: BitcoinDeposits) -> None:
    """Fault 15: of the outputs of a transaction only the first counted."""
    given, other = await deposits.give(1), await deposits.give(2)
    twice = (script_of(given.address), SATOSHIS)
    await deposits.bitcoin.pay(twice, (script_of(other.address), 7), twice, (script_of(given.address), 9))
    await deposits.bitcoin.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    assert [(output, value, status) for _, output, value, status in deposits.deposits()] == [
        (0, SATOSHIS, "CREDITED"),
        (1, 7, None),
        (2, SATOSHIS, "CREDITED"),
        (3, 9, None),
    ], "seven satoshis are worth no credit"
    assert await deposits.balance(given) == 2 * credits_of(SATOSHIS)


async def test_what_is_below_the_minimum_waits_for_more(deposits: BitcoinDeposits) -> None:
    deposits.rows("UPDATE payment_methods SET min_amount_raw = 1000 RETURNING 1")
    given = await deposits.give()
    await deposits.pay(given, 600)
    await deposits.act()
    assert deposits.statuses() == [None]
    await deposits.pay(given, 400)
    await deposits.act()
    assert deposits.statuses() == ["CREDITED", "CREDITED"]
    assert await deposits.balance(given) == credits_of(600) + credits_of(400)


async def test_a_reward_is_credited_when_it_is_mature(deposits: BitcoinDeposits) -> None:
    given = await deposits.give()
    await deposits.bitcoin.mine_to(script_of(given.address))
    await deposits.bitcoin.mine(COINBASE_MATURITY - 2)
    await deposits.act()
    assert deposits.statuses() == [None]
    await deposits.bitcoin.mine()
    await deposits.act()
    assert deposits.statuses() == ["CREDITED"]


async def test_one_that_leaves_the_chain_before_it_is_credited_is_no_deposit(deposits: BitcoinDeposits) -> None:
    given = await deposits.give()
    payment = await deposits.pay(given, SATOSHIS, blocks=1)
    await deposits.act()
    assert deposits.statuses() == [None]
    await deposits.bitcoin.reorganise(1, drop=True, blocks=MIN_CONFIRMATIONS)
    await deposits.act()
    assert deposits.deposits() == []
    await deposits.bitcoin.send(payment)
    await deposits.bitcoin.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert deposits.statuses() == ["CREDITED"]
    assert await deposits.balance(given) == credits_of(SATOSHIS)


async def test_one_that_moves_to_another_block_is_the_same_deposit(deposits: BitcoinDeposits) -> None:
    given = await deposits.give()
    await deposits.pay(given, SATOSHIS)
    deposits.settling.is_idle = True
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    await deposits.bitcoin.reorganise(MIN_CONFIRMATIONS, drop=False)
    await deposits.act()
    assert deposits.statuses() == ["PENDING_UNVERIFIED"]
    await deposits.settling.settle(attempt_id)
    await deposits.bitcoin.reorganise(MIN_CONFIRMATIONS + 1, drop=False)
    for _ in range(2):
        await deposits.act()
    assert deposits.statuses() == ["CREDITED"]
    assert deposits.settling.resumed == [attempt_id]
    assert await deposits.balance(given) == credits_of(SATOSHIS)


async def test_one_that_is_reversed_and_returns_is_a_finding_whose_remedy_credits_it(deposits: BitcoinDeposits) -> None:
    given = await deposits.give()
    payment = await deposits.pay(given, SATOSHIS)
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    async with deposits.roles.service.transaction() as connection:
        transfer = await find_settled_transfer(connection, attempt_id)
        assert transfer is not None
    await deposits.bitcoin.reorganise(MIN_CONFIRMATIONS, drop=True)
    out = ReorgedOut(transfer=transfer, level=FinalityLevel.CONFIRMATIONS, message="its block was replaced")
    async with deposits.roles.service.transaction() as connection:
        await payments.reverse_payment(connection, attempt_id, out)
    async with deposits.roles.service.transaction() as connection:
        await payments.reverse_bonus(connection, attempt_id)
    await deposits.act()
    assert await deposits.balance(given) == 0

    await deposits.bitcoin.send(payment)
    await deposits.bitcoin.mine(MIN_CONFIRMATIONS)
    for _ in range(2):
        await deposits.act()
    [(finding_id,)] = deposits.rows("SELECT id FROM findings WHERE kind = 'returned_after_reversal'")
    request = RemedyRequest(finding_id=finding_id, remedy=Remedy.CREDIT, operator="ada", reason="it is back")
    async with deposits.roles.service.transaction() as connection:
        await take_remedy(connection, request, revenue_share=SHARE)
    async with deposits.roles.service.transaction() as connection:
        await mint_bonus_of_credit(connection, finding_id)
    assert await deposits.balance(given) == credits_of(SATOSHIS)


async def test_an_address_that_derives_differently_is_not_read(deposits: BitcoinDeposits) -> None:
    """The row is written by a process that people reach."""
    given, forged = await deposits.give(1), await deposits.give(2)
    deposits.rows(f"UPDATE deposit_addresses SET index = 77 WHERE id = '{forged.id}' RETURNING 1")
    await deposits.pay(given, SATOSHIS)
    await deposits.pay(forged, SATOSHIS)
    await deposits.act()
    assert len(deposits.deposits()) == 1
    assert await deposits.balance(forged) == 0


async def test_an_old_address_is_read_as_a_new_one_is(deposits: BitcoinDeposits) -> None:
    """Blocks are read whole, so that no address is too old to be read with each."""
    given = await deposits.give()
    deposits.rows("UPDATE deposit_addresses SET active_at = now() - interval '5 years' RETURNING 1")
    await deposits.pay(given, SATOSHIS)
    await deposits.act()
    assert deposits.statuses() == ["CREDITED"]
