"""One transfer, two who get its worth: what an operator does, and what payers and the chain do before or after it."""

from __future__ import annotations

from uuid import UUID

import pytest

from db.operations import findings
from db.transfers import observed
from domain.chain import Transfer, TransferScope
from domain.errors import RemedyRefused, TransferAlreadySettled
from domain.operations.findings import Finding, FindingKind, Remedy
from domain.payments.attempt import AttemptStatus, PaymentAttempt
from tests.reconciliation.planting import find_receipt, find_transfer, observe, observe_payment, take
from tests.support.engine import MIN_CONFIRMATIONS, Engine
from tests.support.payments import CHAIN_ID, NOW, TOKEN, TREASURY, RolePair, transfer_for, tx_hash, wallet

CENTS = 10_000
VALUE_RAW = 100_000_000


# -- what was sent back


async def test_money_that_was_sent_back_buys_no_credits(engine: Engine) -> None:
    """The payer is refunded, makes an intent of that amount, and submits the transfer that was refunded."""
    async with engine.worker():
        payer, late = await engine.intent(CENTS)
        sent = await engine.pay(late)
        await engine.chain.mine(MIN_CONFIRMATIONS)
        finding = await find_receipt(engine, sent, payer.wallet_address, late.amount_raw)
        await take(engine.service, finding, Remedy.REFUND_RECORDED, refund_tx_hash=tx_hash(99))
        again = await engine.payments.create_intent(payer, CENTS)
        await engine.submit(payer, again, sent)
        result = await engine.result(again.attempt_id)
    assert result.status is not AttemptStatus.CREDITED
    assert await engine.credits(again.attempt_id) == {}


async def test_a_transfer_that_has_paid_is_not_sent_back_as_well(roles: RolePair) -> None:
    """The finding is still open when its transfer has paid: nothing shows that to the operator who refunds it."""
    payer = await roles.open_account(1)
    finding = await find_transfer(roles.service, 1, value_raw=VALUE_RAW)
    await roles.settle(payer, 1)
    with pytest.raises(RemedyRefused):
        await take(roles.service, finding, Remedy.REFUND_RECORDED, refund_tx_hash=tx_hash(99))


async def test_money_that_was_sent_back_is_not_credited_where_its_transaction_has_moved(roles: RolePair) -> None:
    """A reorganisation gives the log another index: its new key is not on record as refunded."""
    await take(roles.service, await find_transfer(roles.service, 1), Remedy.REFUND_RECORDED, refund_tx_hash=tx_hash(99))
    scope = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)
    async with roles.service.transaction() as connection:
        await observed.orphan_transfers(connection, scope, [tx_hash(7)])
    await observe(roles.service, tx_hash(1), wallet(1), 5_000_000, log_index=4, block_number=8)
    moved = await find_transfer(roles.service, 1, observed=False, log_index=4)
    with pytest.raises(RemedyRefused):
        await take(roles.service, moved, Remedy.CREDIT)


# -- what is not final


async def _find_surplus(roles: RolePair, attempt: PaymentAttempt) -> UUID:
    """10 USD more than the attempt wanted; the finding's id."""
    finding = Finding(
        kind=FindingKind.SURPLUS,
        detail="more came",
        chain_id=CHAIN_ID,
        tx_hash=tx_hash(1),
        log_index=0,
        attempt_id=attempt.id,
        sender=attempt.from_address,
        value_raw=10_000_000,
    )
    async with roles.service.transaction() as connection:
        return (await findings.write_finding(connection, finding)).finding_id


async def test_a_surplus_is_not_kept_when_its_payment_is_reversed(roles: RolePair) -> None:
    """10 USD more than asked, credited before the payment was final; the chain takes all of it back."""
    payer = await roles.open_account(1)
    attempt = await roles.create_submitted(payer, 1)
    paid = transfer_for(attempt, value_raw=VALUE_RAW + 10_000_000)
    await roles.credit(attempt, paid)
    await roles.mint(attempt)
    await observe_payment(roles, attempt, value_raw=paid.value_raw)
    finding_id = await _find_surplus(roles, attempt)
    try:
        await take(roles.service, finding_id, Remedy.CREDIT)
    except RemedyRefused:
        return  # it is not final: the right answer
    await roles.reverse(attempt)
    await roles.reverse_bonus(attempt)
    assert await roles.balance(payer.billing_account_id) == 0, "credits of an unpaid surplus"


async def test_a_payment_that_returns_brings_no_more_than_was_paid(roles: RolePair) -> None:
    """100 + 10 USD: surplus credited, reversed, back at another index, credited as a whole: 120 USD of credits."""
    payer = await roles.open_account(1)
    attempt = await roles.create_submitted(payer, 1)
    value_raw = VALUE_RAW + 10_000_000
    await roles.credit(attempt, transfer_for(attempt, value_raw=value_raw))
    finding_id = await _find_surplus(roles, attempt)
    try:
        await take(roles.service, finding_id, Remedy.CREDIT)
    except RemedyRefused:
        return  # it is not final: the right answer
    await roles.reverse(attempt)
    returned = await find_transfer(
        roles.service, 1, kind=FindingKind.RETURNED_AFTER_REVERSAL, value_raw=value_raw, log_index=4
    )
    await take(roles.service, returned, Remedy.CREDIT)
    assert await roles.balance(payer.billing_account_id) <= value_raw * 10


# -- another transfer in its place


async def test_an_operator_credits_what_was_found_and_no_other_transfer(roles: RolePair) -> None:
    """5 USD of wallet 1 were found. In the block that replaced its own, that place holds 1,000 USD of wallet 2."""
    mallory = await roles.open_account(1)
    finding = await find_transfer(roles.service, 1)
    scope = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)
    other = Transfer(
        tx_hash=tx_hash(1),
        log_index=0,
        block_number=8,
        block_hash=tx_hash(8),
        block_time=NOW,
        from_address=wallet(2),
        value_raw=1_000_000_000,
    )
    async with roles.service.transaction() as connection:
        await observed.record_transfers(connection, scope, [other])
    with pytest.raises(RemedyRefused):
        await take(roles.service, finding, Remedy.CREDIT, billing_account_id=mallory.billing_account_id)


async def test_a_returned_payment_pays_a_new_intent_no_more_than_the_page_says(roles: RolePair) -> None:
    """docs/decisions/finality.md: submitted with a new intent, it is refused, for one transfer pays one attempt."""
    payer = await roles.open_account(1)
    attempt = await roles.settle(payer, 1)
    await roles.reverse(attempt)
    await roles.reverse_bonus(attempt)
    again = await roles.create_submitted(payer, 1)
    with pytest.raises(TransferAlreadySettled):
        await roles.credit(again, transfer_for(again, log_index=4, block_number=9, block_hash=tx_hash(9)))
