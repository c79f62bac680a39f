"""Unsubmitted transfers are submitted, once, for the right attempt; what cannot be inferred is an operator's."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from db.operations.findings import open_finding
from db.transfers import observed
from devstack.chain import payer_wallets
from domain.errors import EventNotDelivered, HashInUse, TemporalUnavailable, TooManyReplacements
from domain.operations.findings import Finding, FindingKind
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.finality import FinalityLevel, ReorgedOut
from domain.payments.verification import Refused
from services.payments import lifecycle as payments
from tests.support.payments import WRONG_PAYMENT
from tests.watcher.conftest import MIN_CONFIRMATIONS, TTL, Watch, Watches

MINUTE = timedelta(minutes=1)


async def test_a_payer_who_closed_the_tab_before_submitting_is_submitted_for(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    await watch.act()
    assert watch.submitted == [(attempt.id, sent)]
    found = await watch.find(attempt)
    assert (found.status, found.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, sent)
    assert await watch.findings() == []


async def test_before_it_is_confirmed_a_transfer_is_its_payers_to_submit(watch: Watch) -> None:
    await watch.intent()
    await watch.pay(blocks=MIN_CONFIRMATIONS - 1)
    await watch.act()
    assert watch.submitted == []
    await watch.chain.mine()
    await watch.act()
    assert len(watch.submitted) == 1


async def test_what_its_payer_submitted_is_ticked_off_when_it_is_credited(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.submit(attempt, sent)
    await watch.act()
    assert await watch.rows("SELECT handled_at FROM observed_transfers") == [{"handled_at": None}]
    await watch.credit(attempt, sent)
    await watch.act()
    rows = await watch.rows("SELECT attempt_id, handled_at IS NOT NULL AS handled FROM observed_transfers")
    assert rows == [{"attempt_id": attempt.id, "handled": True}]
    assert (watch.submitted, await watch.findings()) == ([], [])


async def test_a_sped_up_transaction_replaces_the_hash_that_never_appears(watch: Watch) -> None:
    attempt = await watch.intent()
    first = await watch.pay(blocks=0)
    await watch.submit(attempt, first)
    second = await watch.chain.speed_up(payer_wallets()[0].private_key, first)
    await watch.chain.mine(MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == [(attempt.id, second)]
    assert (await watch.find(attempt)).tx_hash == second


async def test_two_intents_of_one_amount_are_paid_oldest_first(watch: Watch) -> None:
    newer, older = await watch.intent(age=MINUTE), await watch.intent(age=2 * MINUTE)
    sent = [await watch.pay(blocks=0), await watch.pay(blocks=0)]
    await watch.chain.mine(MIN_CONFIRMATIONS)
    await watch.act()
    by_block = [hash_ for hash_ in await watch.seen() if hash_ in sent]
    assert watch.submitted == list(zip([older.id, newer.id], by_block, strict=True))
    assert await watch.findings() == []


async def test_an_intent_that_was_paid_in_time_is_paid_although_it_has_expired_since(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.expire(attempt)
    await watch.act()
    assert watch.submitted == [(attempt.id, sent)]
    found = await watch.find(attempt)
    assert (found.status, found.error_code) == (AttemptStatus.PENDING_UNVERIFIED, None)


async def test_a_payment_that_was_mined_too_late_is_an_operators(watch: Watch) -> None:
    attempt = await watch.intent(age=TTL)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == []
    assert await watch.findings() == [("late_payment", sent, attempt.id)]


@pytest.mark.parametrize("cents", [9_999, 10_001])
async def test_another_amount_is_an_operators(watch: Watch, cents: int) -> None:
    attempt = await watch.intent(10_000)
    sent = await watch.pay(cents, blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == []
    assert await watch.findings() == [("wrong_amount", sent, attempt.id)]


async def test_a_transfer_of_an_account_without_an_intent_is_an_operators_and_names_the_account(watch: Watch) -> None:
    stranger, member = payer_wallets()[1:3]
    ended = await watch.intent(wallet=member)
    done = await watch.pay(wallet=member)
    await watch.submit(ended, done)
    await watch.credit(ended, done)
    sent = [await watch.pay(wallet=wallet, blocks=MIN_CONFIRMATIONS) for wallet in (stranger, member)]
    await watch.act()
    assert await watch.findings() == [("transfer_without_intent", hash_, None) for hash_ in sent]
    accounts = await watch.rows("SELECT tx_hash, billing_account_id FROM findings")
    assert {row["tx_hash"]: row["billing_account_id"] for row in accounts} == dict(
        zip(sent, [None, ended.billing_account_id], strict=True)
    )


async def test_too_little_is_an_operators_when_its_attempt_has_been_refused(watch: Watch) -> None:
    attempt = await watch.intent(10_000)
    sent = await watch.pay(9_000, blocks=MIN_CONFIRMATIONS)
    await watch.submit(attempt, sent)
    await watch.act()
    assert await watch.findings() == [], "the attempt may still take it"
    await watch.matcher_of_payers.refuse(
        await watch.find(attempt),
        Refused(status=AttemptStatus.REJECTED, error_code=ErrorCode.INSUFFICIENT_AMOUNT, message="too little"),
    )
    await watch.act()
    assert await watch.findings() == [("underpayment", sent, attempt.id)]


async def test_who_submits_a_strangers_transfer_gets_nothing_and_takes_nothing_away(watch: Watch) -> None:
    thief, payer = payer_wallets()[1], payer_wallets()[0]
    sent = await watch.pay(wallet=payer, blocks=MIN_CONFIRMATIONS)
    stolen = await watch.intent(wallet=thief)
    await watch.submit(stolen, sent)
    await watch.act()
    assert (watch.submitted, await watch.findings()) == ([], [])
    await watch.matcher_of_payers.refuse(
        await watch.find(stolen),
        Refused(status=AttemptStatus.REJECTED, error_code=ErrorCode.SENDER_MISMATCH, message="not yours"),
    )
    await watch.act()
    assert await watch.findings() == [("wrong_sender", sent, stolen.id)]


async def test_of_two_transfers_in_one_transaction_the_one_that_pays_nothing_is_an_operators(watch: Watch) -> None:
    payer, relayer = payer_wallets()[:2]
    attempt = await watch.intent()
    bundle = [watch.chain.sign_payment(payer.private_key, watch.chain.treasury_address, 100_000_000) for _ in range(2)]
    sent = await watch.chain.pay_bundle(relayer.private_key, bundle)
    await watch.chain.mine(MIN_CONFIRMATIONS)
    await watch.chain.wait_for_receipt(sent)
    await watch.act()
    assert watch.submitted == [(attempt.id, sent)]
    await watch.act()
    assert await watch.findings() == [], "which of the two pays is not known yet"
    log = (await watch.rows("SELECT log_index FROM observed_transfers ORDER BY log_index LIMIT 1"))[0]
    await watch.credit(attempt, sent, log_index=log["log_index"])
    await watch.act()
    assert await watch.findings() == [("transfer_without_intent", sent, attempt.id)]


async def test_a_credited_payment_that_moves_to_another_block_is_no_finding(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.submit(attempt, sent)
    await watch.credit(attempt, sent)
    await watch.act()
    raw = await watch.chain.raw_transaction(sent)
    other = await watch.pay(wallet=payer_wallets()[1], blocks=0)
    other_raw = await watch.chain.raw_transaction(other)
    before = (await watch.rows("SELECT log_index FROM observed_transfers"))[0]["log_index"]
    await watch.chain.reorg(MIN_CONFIRMATIONS, [(other_raw, 0), (raw, 0)])
    await watch.chain.mine(MIN_CONFIRMATIONS)
    await watch.act()
    rows = await watch.rows(f"SELECT log_index, attempt_id FROM observed_transfers WHERE tx_hash = '{sent}'")
    assert rows != [{"log_index": before, "attempt_id": attempt.id}], "the test has to move the log"
    assert [row["attempt_id"] for row in rows] == [attempt.id]
    assert [found for found in await watch.findings() if found[1] == sent] == []


async def test_a_reversed_payment_that_comes_back_is_an_operators(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    raw = await watch.chain.raw_transaction(sent)
    await watch.submit(attempt, sent)
    transfer = await watch.credit(attempt, sent)
    await watch.act()
    await watch.chain.reorg(MIN_CONFIRMATIONS)
    gone = ReorgedOut(transfer=transfer, level=FinalityLevel.CONFIRMATIONS, message="gone")
    async with watch.matcher_of_payers.service.transaction() as connection:
        await payments.reverse_payment(connection, attempt.id, gone)
    await watch.chain.mine()
    await watch.act()
    await watch.chain.rpc("eth_sendRawTransaction", raw)
    await watch.chain.mine(MIN_CONFIRMATIONS)
    await watch.act()
    assert ("returned_after_reversal", sent, attempt.id) in await watch.findings()


async def test_a_transfer_that_is_in_another_block_is_matched_again(watch: Watch) -> None:
    await watch.pay(blocks=MIN_CONFIRMATIONS)
    cursor = (await watch.catch_up()).cursor
    (transfer,) = await watch.roles._page(cursor.block_number, (-1, -1))
    await watch.act()
    assert await watch.roles._page(cursor.block_number, (-1, -1)) == []
    moved = transfer.model_copy(update={"block_hash": "0x" + "ee" * 32})
    async with watch.matcher_of_payers.service.transaction() as connection:
        assert await observed.record_transfers(connection, watch.scan.scope, [transfer]) == 0
    assert await watch.roles._page(cursor.block_number, (-1, -1)) == []
    async with watch.matcher_of_payers.service.transaction() as connection:
        assert await observed.record_transfers(connection, watch.scan.scope, [moved]) == 0
    assert await watch.roles._page(cursor.block_number, (-1, -1)) == [moved]


async def test_an_attempt_that_refuses_does_not_stop_the_others_and_its_transfer_is_found(watch: Watch) -> None:
    wallets = payer_wallets()[:3]
    intents = [await watch.intent(wallet=wallet) for wallet in wallets]
    sent = [await watch.pay(wallet=wallet, blocks=0) for wallet in wallets]
    await watch.chain.mine(MIN_CONFIRMATIONS)
    watch.trouble[intents[0].id] = TooManyReplacements(50)
    watch.trouble[intents[1].id] = RuntimeError("a fault of ours")
    await watch.act()
    assert watch.submitted == [(intents[2].id, sent[2])]
    assert await watch.findings() == [("transfer_without_intent", sent[0], None)]
    del watch.trouble[intents[1].id]
    await watch.act()
    assert watch.submitted[1:] == [(intents[1].id, sent[1])]


async def test_a_payer_who_was_quicker_with_another_attempt_is_left_to_it(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    watch.trouble[attempt.id] = HashInUse(sent)
    await watch.act()
    assert await watch.findings() == []
    assert await watch.rows("SELECT handled_at FROM observed_transfers") == [{"handled_at": None}]


async def test_without_temporal_nothing_is_decided_and_everything_later(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    watch.trouble[attempt.id] = TemporalUnavailable("gone")
    with pytest.raises(TemporalUnavailable):
        await watch.act()
    watch.trouble.clear()
    await watch.act()
    assert watch.submitted == [(attempt.id, sent)]


async def test_two_concurrent_matchers_do_it_once(watches: Watches) -> None:
    one, other = await watches(), await watches()
    wallets = payer_wallets()[:4]
    intents = [await one.intent(wallet=wallet) for wallet in wallets]
    for wallet in wallets:
        await one.pay(wallet=wallet, blocks=0)
    without = await one.pay(wallet=payer_wallets()[5], blocks=0)
    await one.chain.mine(MIN_CONFIRMATIONS)
    head = (await one.catch_up()).cursor.head_number
    await asyncio.gather(one.roles.act(head), other.roles.act(head))
    events = await one.rows("SELECT attempt_id FROM payment_events WHERE event_type = 'submitted'")
    assert sorted(row["attempt_id"] for row in events) == sorted(attempt.id for attempt in intents)
    assert [found[:2] for found in await one.findings()] == [("transfer_without_intent", without)]


async def test_a_transfer_that_is_taken_out_while_it_is_decided_about_is_no_finding(watch: Watch) -> None:
    await watch.pay(blocks=MIN_CONFIRMATIONS)
    cursor = (await watch.catch_up()).cursor
    (transfer,) = await watch.roles._page(cursor.block_number, (-1, -1))
    await watch.chain.reorg(MIN_CONFIRMATIONS)
    await watch.chain.mine()
    await watch.catch_up()
    await watch.roles._decide_about([transfer])
    assert await watch.findings() == []


async def test_a_finding_is_published_until_it_was_received(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.transfers.matcher.ANNOUNCE_AGAIN_SECONDS", 0.0)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    watch.deaf.append(EventNotDelivered("receiver", "answered 503"))
    await watch.act()
    assert len(await watch.findings()) == 1, "it is recorded with or without a receiver"
    assert watch.told == []
    watch.deaf.clear()
    await watch.act()
    await watch.act()
    (event,) = watch.told
    assert (event.type, event.data["kind"], event.data["txHash"]) == ("finding.opened", "transfer_without_intent", sent)
    assert event.id.startswith("finding.opened:transfer:")
    assert event.data["valueRaw"] == "100000000"


async def test_a_receiver_that_does_not_answer_is_left_alone_for_a_while(watch: Watch) -> None:
    for _ in range(3):
        await watch.pay(blocks=0)
    await watch.chain.mine(MIN_CONFIRMATIONS)
    watch.deaf.append(EventNotDelivered("receiver", "did not answer"))
    await watch.act()
    watch.deaf.clear()
    await watch.act()
    assert len(await watch.findings()) == 3
    assert watch.told == []


async def test_a_finding_says_what_is_known_by_now_of_what_it_was_meant_for(watch: Watch) -> None:
    """The transfer was found first, then its hash was submitted for an intent of more, and refused."""
    attempt = await watch.intent(20_000)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert await watch.findings() == [("wrong_amount", sent, attempt.id)]
    await watch.submit(attempt, sent)
    await watch.matcher_of_payers.refuse(
        attempt, WRONG_PAYMENT.model_copy(update={"tx_hash": sent, "error_code": ErrorCode.INSUFFICIENT_AMOUNT})
    )
    await watch.scan.rescan(600)
    await watch.act()
    assert await watch.findings() == [("underpayment", sent, attempt.id)]


async def test_what_a_credited_payment_was_paid_with_is_nobodys_to_credit_again(watch: Watch) -> None:
    """The tables' owner has removed the record: the transfer is not one without an attempt."""
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.submit(attempt, sent)
    await watch.credit(attempt, sent)
    await watch.change("SET session_replication_role = replica; DELETE FROM settled_transfers")
    await watch.act()
    assert await watch.findings() == []


async def test_an_alarm_ends_when_the_transfer_is_seen_again(watch: Watch) -> None:
    attempt = await watch.intent()
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.submit(attempt, sent)
    await watch.credit(attempt, sent)
    alarm = Finding(
        kind=FindingKind.LEDGER_WITHOUT_TRANSFER,
        detail="not seen",
        chain_id=watch.chain.chain_id,
        attempt_id=attempt.id,
    )
    async with watch.matcher_of_payers.service.transaction() as connection:
        await open_finding(connection, alarm)
    assert (await watch.scan.rescan(600)).closed_findings == 0
    await watch.act()
    assert (await watch.scan.rescan(600)).closed_findings == 1
