"""What the treasury pays itself is no inflow; what was credited for it once is an alarm."""

from __future__ import annotations

from datetime import timedelta

import pytest

from db.accounts import wallets as accounts
from db.operations import findings
from db.transfers import observed
from domain.chain import TransferScope
from domain.transfers.income import ZERO_ADDRESS
from tests.reconciliation.books import Books, ago, finalise, plant
from tests.reconciliation.planting import observe, observe_payment
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, note_former_treasury, transfer_for, tx_hash, wallet
from tests.support.sql import connect

HOUR = timedelta(hours=1)
FORMER_TREASURY = "0x" + "7A" * 20


@pytest.mark.parametrize("sender", [TREASURY, TREASURY.upper().replace("0X", "0x"), FORMER_TREASURY])
async def test_what_the_treasury_pays_itself_is_no_inflow_and_no_finding(books: Books, sender: str) -> None:
    with connect(books.roles.database.service_url) as service:
        note_former_treasury(service, FORMER_TREASURY)
    before = await books.reconcile()
    await observe(books.roles.service, tx_hash(40), sender, 10**9, at=ago(HOUR), handled=False)
    after = await books.reconcile()
    assert after.totals == before.totals
    assert (after.closes, after.counts) == (True, {})


async def test_what_is_minted_came_in_and_waits_for_an_operator(books: Books) -> None:
    await observe(books.roles.service, tx_hash(41), ZERO_ADDRESS, 7_000, at=ago(HOUR))
    report = await books.reconcile()
    assert (report.closes, report.counts) == (True, {"transfer_without_intent": 1})
    assert report.totals.open_raw == 7_000


async def test_what_was_credited_for_it_before_is_an_alarm_that_stays(books: Books) -> None:
    async with books.roles.app.unscoped() as connection:
        payer = await accounts.provision_wallet(connection, TREASURY)
    inflow_raw = (await books.reconcile()).totals.inflow_raw
    attempt = await books.roles.create_submitted(payer, 42)
    with connect(books.roles.database.superuser_url) as owner:
        owner.execute("ALTER TABLE settled_transfers DISABLE TRIGGER settled_transfers_is_income")
    await books.roles.credit(attempt, transfer_for(attempt))
    await books.roles.mint(attempt)
    await observe_payment(books.roles, attempt, at=ago(2 * HOUR))
    finalise(books.roles, attempt)
    report = await books.reconcile()
    assert (report.closes, report.counts, report.alarms) == (True, {"ledger_without_transfer": 1}, 1)
    assert report.totals.inflow_raw == inflow_raw
    async with books.roles.service.transaction() as connection:
        assert await findings.close_settled_findings(connection, CHAIN_ID) == 0, "it is seen, and it is no income"


async def test_what_was_mined_before_the_first_block_is_no_inflow_unless_it_was_credited(books: Books) -> None:
    before = await books.reconcile()
    await observe(books.roles.service, tx_hash(43), wallet(8), 7_000, at=ago(HOUR), block_number=9, handled=False)
    scope = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)
    async with books.roles.service.autocommit() as connection:
        await observed.set_from_block(connection, scope, 10)
    after = await books.reconcile()
    assert (after.totals, after.counts, after.closes) == (before.totals, before.counts, True)
    plant(books.roles, "UPDATE chain_cursors SET answers_from = NULL")
    assert (await books.reconcile()).counts == {"transfer_without_intent": 1}
