"""What is reorged out is reversed, what moves is the same deposit, and what returns is credited again."""

from __future__ import annotations

from db.payments.attempts import find_settled_transfer
from domain.money import credits_for_raw
from domain.operations.findings import Remedy
from domain.operations.resolutions import RemedyRequest
from domain.payments.finality import FinalityLevel, ReorgedOut
from services.operations.resolutions import mint_bonus_of_credit, take_remedy
from services.payments import lifecycle as payments
from tests.deposits.conftest import MIN_CONFIRMATIONS, Deposits
from tests.deposits.given import Given
from tests.support.payments import SHARE
from tests.support.sql import connect


async def raw(deposits: Deposits, sent: str) -> str:
    """The signed transaction, to be mined again."""
    return await deposits.chain.raw_transaction(sent)


async def test_one_that_leaves_the_chain_before_it_is_credited_is_no_deposit(deposits: Deposits) -> None:
    given = await deposits.give(charge_cents=500)
    await deposits.pay(given, 5_000_000, blocks=1)
    await deposits.act()
    assert (len(deposits.deposits()), deposits.status_of(given)) == (1, "confirming")
    await deposits.chain.reorg(1)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    assert (deposits.deposits(), deposits.status_of(given)) == ([], "new")


async def test_one_that_moves_before_it_is_credited_is_credited_once(deposits: Deposits) -> None:
    """In its new block another log comes first, so that its place in the block is another one."""
    given = await deposits.give()
    sent = await deposits.pay(given, 5_000_000, blocks=1)
    await deposits.act()
    [(_, before, *_)] = deposits.deposits()
    other = deposits.chain.sign_payment(deposits.payer(2).private_key, deposits.payer(3).address, 1)
    bundle = await deposits.chain.pay_relayed(deposits.payer(4).private_key, other)
    await deposits.chain.mine()
    transactions = [await raw(deposits, bundle), await raw(deposits, sent)]
    await deposits.chain.reorg(2, [(transaction, 0) for transaction in transactions])
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    [(_, after, _, status)] = deposits.deposits()
    assert status == "CREDITED"
    assert after > before
    assert await deposits.balance(given) == credits_for_raw(5_000_000)


async def test_one_that_moves_while_its_attempt_waits_is_the_same_deposit(deposits: Deposits) -> None:
    given = await deposits.give()
    sent = await deposits.pay(given, 5_000_000)
    deposits.settling.is_idle = True
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    transaction = await raw(deposits, sent)
    await deposits.chain.reorg(MIN_CONFIRMATIONS + 1, [(transaction, 1)])
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["PENDING_UNVERIFIED"]
    await deposits.settling.settle(attempt_id)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]
    assert deposits.settling.resumed == [attempt_id]
    assert await deposits.balance(given) == credits_for_raw(5_000_000)


async def reversed_deposit(deposits: Deposits, given: Given) -> tuple[str, str]:
    """A credited deposit that is reorged out; its hash, and the signed transaction."""
    sent = await deposits.pay(given, 5_000_000)
    await deposits.act()
    [(attempt_id,)] = deposits.rows("SELECT id FROM payment_attempts")
    async with deposits.roles.service.transaction() as connection:
        transfer = await find_settled_transfer(connection, attempt_id)
        assert transfer is not None
    transaction = await raw(deposits, sent)
    await deposits.chain.reorg(MIN_CONFIRMATIONS + 1)
    await deposits.chain.mine(MIN_CONFIRMATIONS + 1)
    gone = ReorgedOut(transfer=transfer, level=FinalityLevel.FINALIZED, message="it was reorganised away")
    async with deposits.roles.service.transaction() as connection:
        await payments.reverse_payment(connection, attempt_id, gone)
    async with deposits.roles.service.transaction() as connection:
        await payments.reverse_bonus(connection, attempt_id)
    return sent, transaction


async def test_one_that_is_reversed_is_taken_from_where_it_was_credited(deposits: Deposits) -> None:
    """Fault 14: nothing was ever reversed."""
    given = await deposits.give(charge_cents=500)
    await reversed_deposit(deposits, given)
    await deposits.act()
    assert await deposits.balance(given) == 0
    assert deposits.rows(
        "SELECT side, sum(amount)::bigint FROM journal_lines WHERE account_code = 'cash:usdc:deposits' GROUP BY 1"
        " ORDER BY 1"
    ) == [("credit", 50_000_000), ("debit", 50_000_000)]
    [(_, log_index, _, status)] = deposits.deposits()
    assert (log_index < 0, status, deposits.status_of(given)) == (True, "REVERSED", "new")


async def test_one_that_is_reversed_and_comes_back_is_a_finding_whose_remedy_credits_it(deposits: Deposits) -> None:
    given = await deposits.give()
    sent, transaction = await reversed_deposit(deposits, given)
    await deposits.act()
    await deposits.chain.rpc("eth_sendRawTransaction", transaction)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    await deposits.act()
    assert ("returned_after_reversal", sent) in deposits.findings()
    assert len(deposits.deposits()) == 1

    [(finding_id,)] = deposits.rows("SELECT id FROM findings WHERE kind = 'returned_after_reversal'")
    request = RemedyRequest(finding_id=finding_id, remedy=Remedy.CREDIT, operator="ada", reason="it is back")
    for _ in range(2):
        async with deposits.roles.service.transaction() as connection:
            taken = await take_remedy(connection, request, revenue_share=SHARE)
        async with deposits.roles.service.transaction() as connection:
            await mint_bonus_of_credit(connection, finding_id)
    assert taken.billing_account_id == given.account.billing_account_id, "not its sender's"
    assert await deposits.balance(given) == credits_for_raw(5_000_000)
    assert deposits.rows("SELECT count(*) FROM users WHERE wallet_address IS NOT NULL") == [(1,)]


async def test_one_that_was_not_found_in_time_is_credited_when_it_is_there(deposits: Deposits) -> None:
    given = await deposits.give()
    deposits.settling.is_idle = True
    sent = await deposits.pay(given, 5_000_000)
    await deposits.act()
    [attempt_id] = deposits.settling.resumed
    transaction = await raw(deposits, sent)
    await deposits.chain.reorg(MIN_CONFIRMATIONS + 1)
    await deposits.chain.mine(MIN_CONFIRMATIONS + 1)
    await deposits.act()
    with connect(deposits.roles.database.service_url) as service:
        service.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = 'RECEIPT_NOT_FOUND' WHERE id = %s",
            (attempt_id,),
        )
        service.execute(
            "INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, error_code)"
            " VALUES (%s, 'failed', 'PENDING_UNVERIFIED', 'FAILED', 'RECEIPT_NOT_FOUND')",
            (attempt_id,),
        )
    deposits.settling.is_idle = False
    await deposits.chain.rpc("eth_sendRawTransaction", transaction)
    await deposits.chain.mine(MIN_CONFIRMATIONS)
    await deposits.act()
    assert [status for *_, status in deposits.deposits()] == ["CREDITED"]
    assert await deposits.balance(given) == credits_for_raw(5_000_000)
