"""Credits without a payment, where reconciliation does not search; and a payer who makes the watcher search long."""

from __future__ import annotations

from datetime import timedelta

import pytest

from db.transfers import observed
from domain.chain import Transfer, TransferScope
from domain.errors import TransferAlreadySettled
from domain.operations.findings import Remedy
from tests.reconciliation.books import Books, ago
from tests.reconciliation.planting import find_transfer, take
from tests.support.payments import CHAIN_ID, INTENT_TTL, NOW, TOKEN, TREASURY, RolePair, transfer_for, tx_hash
from tests.support.sql import connect

HOUR = timedelta(hours=1)


@pytest.mark.parametrize("block_number", [0, 10**12])
async def test_a_credit_for_a_transfer_that_is_not_there_is_an_alarm_whatever_block_it_names(
    books: Books,
    block_number: int,
) -> None:
    """Role settle_app may write settled transfers. With a block that is never watched the credit is never doubted."""
    roles = books.roles
    forged = await roles.create_submitted(books.payer, 77, cents=1_000_000)
    await roles.credit(forged, transfer_for(forged, block_number=block_number))
    await roles.mint(forged)
    report = await books.reconcile()
    assert not report.is_well, f"{report.totals.unobserved_raw} raw units were credited without a payment"


async def test_money_that_was_sent_back_and_credited_is_an_alarm(books: Books) -> None:
    """However it came about: the operator refunded it, and an attempt was paid with it."""
    roles = books.roles
    attempt = await roles.create_submitted(books.payer, 77)
    finding = await find_transfer(
        roles.service,
        77,
        sender=attempt.from_address,
        value_raw=attempt.amount_raw,
        at=ago(2 * HOUR),
    )
    await take(roles.service, finding, Remedy.REFUND_RECORDED, refund_tx_hash=tx_hash(99))
    try:
        await roles.credit(attempt)
    except TransferAlreadySettled:
        return  # all the better
    await roles.mint(attempt)
    report = await books.reconcile()
    assert not report.is_well


async def test_a_payer_of_many_intents_does_not_hold_up_others(roles: RolePair) -> None:
    """60 intents a minute are allowed. One dust transfer reads them all: of 43,200 the worker stood still for 4 s."""
    payer = await roles.open_account(1)
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO payment_attempts (id, billing_account_id, from_address, chain_id, token, to_address,"
            " amount_raw, amount_usd_cents, purpose, status, expires_at, created_at)"
            " SELECT gen_random_uuid(), %s, %s, %s, %s, %s, 1000000, 100, 'self', 'CREATED_INTENT', %s, %s"
            " FROM generate_series(1, 3000)",
            (payer.billing_account_id, payer.wallet_address, CHAIN_ID, TOKEN, TREASURY, NOW + INTENT_TTL, NOW),
        )
    dust = Transfer(
        tx_hash=tx_hash(5),
        log_index=0,
        block_number=8,
        block_hash=tx_hash(8),
        block_time=NOW + HOUR,
        from_address=payer.wallet_address,
        value_raw=1,
    )
    scope = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)
    async with roles.service.transaction() as connection:
        around = await observed.find_match_context(connection, scope, dust)
    assert len(around.candidates) <= 500
