"""A wrong hash was submitted, then the payment came exactly and in time: it is credited, once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from db.payments import attempts
from devstack.chain import dev_wallets, payer_wallets
from devstack.processes import wait_until
from domain.errors import BookkeepingError
from domain.operations.findings import FindingKind
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.verification import Refused
from domain.transfers.matching import renewal_id
from services.payments import lifecycle as payments
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.watcher.conftest import MIN_CONFIRMATIONS, TTL, Watch
from tests.watcher.test_watch_chain import ends, start_watch

WRONG = "0x" + "5e" * 32
MINUTE = timedelta(minutes=1)


async def refused(watch: Watch, code: ErrorCode = ErrorCode.SENDER_MISMATCH, **intent: Any) -> PaymentAttempt:
    """An attempt that ended for a wrong hash."""
    attempt = await watch.intent(**intent)
    await watch.matcher_of_payers.submit(attempt, WRONG, at=attempt.created_at)
    failed = code in {ErrorCode.TX_REVERTED, ErrorCode.RECEIPT_NOT_FOUND}
    status = AttemptStatus.FAILED if failed else AttemptStatus.REJECTED
    await watch.matcher_of_payers.refuse(
        attempt.model_copy(update={"tx_hash": WRONG}), Refused(status=status, error_code=code, message="wrong")
    )
    return attempt


@pytest.mark.parametrize(
    "code",
    [ErrorCode.SENDER_MISMATCH, ErrorCode.TOKEN_TRANSFER_NOT_FOUND, ErrorCode.TX_REVERTED, ErrorCode.RECEIPT_NOT_FOUND],
)
async def test_an_exact_payment_in_time_is_submitted_for_a_renewal(watch: Watch, code: ErrorCode) -> None:
    ended = await refused(watch, code)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    await watch.act()
    assert watch.submitted == [(renewal_id(ended.id), sent)]
    assert await watch.findings() == []
    made = await watch.find(ended.model_copy(update={"id": renewal_id(ended.id)}))
    terms = {"billing_account_id", "from_address", "chain_id", "token", "to_address", "amount_raw", "purpose"}
    assert made.model_dump(include=terms) == ended.model_dump(include=terms)
    assert (made.status, made.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, sent)
    # What has ended stays ended.
    kept = await watch.find(ended)
    assert (kept.error_code, kept.tx_hash) == (code, WRONG)


async def test_a_second_payment_is_an_operators_with_the_attempts_named(watch: Watch) -> None:
    ended = await refused(watch)
    first = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    second = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == [(renewal_id(ended.id), first)]
    assert [(kind, hash_) for kind, hash_, _ in await watch.findings()] == [("transfer_without_intent", second)]
    [row] = await watch.rows("SELECT detail, metadata FROM findings")
    assert str(ended.id) in row["detail"]
    named = {one["attemptId"]: one for one in row["metadata"]["sendersAttempts"]}
    assert named[str(ended.id)]["errorCode"] == "SENDER_MISMATCH"
    assert named[str(ended.id)]["txHash"] == WRONG


async def test_two_concurrent_matchers_make_one_attempt(watch: Watch) -> None:
    ended = await refused(watch)
    await watch.pay(blocks=MIN_CONFIRMATIONS)
    head = (await watch.catch_up()).cursor.head_number
    await asyncio.gather(*(watch.roles.act(head) for _ in range(4)))
    assert {attempt_id for attempt_id, _ in watch.submitted} == {renewal_id(ended.id)}
    [row] = await watch.rows("SELECT count(*) AS count FROM payment_attempts")
    assert row["count"] == 2


async def test_one_that_dies_before_it_hands_the_payment_in_is_followed_by_another(watch: Watch) -> None:
    ended = await refused(watch)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    watch.trouble[renewal_id(ended.id)] = RuntimeError("killed")
    await watch.act()
    assert watch.submitted == []
    watch.trouble.clear()
    made = await watch.find(ended.model_copy(update={"id": renewal_id(ended.id)}))
    await watch.expire(made)
    await watch.act()
    assert watch.submitted == [(made.id, sent)]


@pytest.mark.parametrize(
    ("cents", "age", "kind"),
    [
        (10_000, TTL, FindingKind.LATE_PAYMENT),
        (9_999, timedelta(0), FindingKind.WRONG_AMOUNT),
        (10_001, timedelta(0), FindingKind.WRONG_AMOUNT),
    ],
)
async def test_what_is_not_exact_or_not_in_time_is_an_operators_and_names_the_attempt(
    watch: Watch, cents: int, age: timedelta, kind: FindingKind
) -> None:
    ended = await refused(watch, age=age)
    sent = await watch.pay(cents, blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == []
    assert await watch.findings() == [(kind.value, sent, ended.id)]


async def test_a_strangers_hash_that_is_not_judged_yet_is_waited_for(watch: Watch) -> None:
    strangers = await watch.pay(wallet=payer_wallets()[1], blocks=MIN_CONFIRMATIONS)
    attempt = await watch.intent()
    await watch.submit(attempt, strangers)
    own = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert own not in [hash_ for _, hash_, _ in await watch.findings()], "it is not known yet what it is for"
    await watch.matcher_of_payers.refuse(
        attempt.model_copy(update={"tx_hash": strangers}),
        Refused(status=AttemptStatus.REJECTED, error_code=ErrorCode.SENDER_MISMATCH, message="a stranger's"),
    )
    await watch.act()
    assert watch.submitted == [(renewal_id(attempt.id), own)]


async def test_an_own_transfer_that_was_too_small_leaves_the_right_one_to_be_credited(watch: Watch) -> None:
    attempt = await watch.intent()
    small = await watch.pay(5_000, blocks=MIN_CONFIRMATIONS)
    await watch.submit(attempt, small)
    await watch.matcher_of_payers.refuse(
        attempt.model_copy(update={"tx_hash": small}),
        Refused(status=AttemptStatus.REJECTED, error_code=ErrorCode.INSUFFICIENT_AMOUNT, message="too little"),
    )
    right = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == [(renewal_id(attempt.id), right)]
    assert await watch.findings() == [("underpayment", small, attempt.id)]


async def test_an_open_intent_of_the_amount_comes_first(watch: Watch) -> None:
    await refused(watch, age=2 * MINUTE)
    opened = await watch.intent(age=MINUTE)
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == [(opened.id, sent)]


async def test_an_open_finding_is_matched_again_when_an_attempt_of_its_sender_has_ended(watch: Watch) -> None:
    """Its payer replaced the hash as often as is allowed; the last one was wrong as well."""
    attempt = await watch.intent()
    await watch.submit(attempt, WRONG)
    await watch.change("UPDATE payment_attempts SET submission_count = 50")
    sent = await watch.pay(blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert [hash_ for _, hash_, _ in await watch.findings()] == [sent]
    await watch.matcher_of_payers.refuse(
        attempt.model_copy(update={"tx_hash": WRONG}),
        Refused(status=AttemptStatus.FAILED, error_code=ErrorCode.RECEIPT_NOT_FOUND, message="not there"),
    )
    await watch.scan.rescan(600)
    await watch.act()
    assert watch.submitted == [(renewal_id(attempt.id), sent)]


# -- who cannot be a payer


async def test_what_the_treasury_pays_itself_is_neither_an_attempts_nor_an_operators(watch: Watch) -> None:
    treasury = dev_wallets()[9]
    assert treasury.address == watch.chain.treasury_address
    attempt = await watch.intent(wallet=treasury)
    await watch.chain.mint(treasury.address, 200_000_000)
    await watch.pay(wallet=treasury, blocks=MIN_CONFIRMATIONS)
    await watch.act()
    assert watch.submitted == []
    # The mint is: money came in.
    assert [kind for kind, _, _ in await watch.findings()] == ["transfer_without_intent"]
    [row] = await watch.rows("SELECT metadata, value_raw, billing_account_id FROM findings")
    assert (row["metadata"]["senderKind"], row["value_raw"], row["billing_account_id"]) == ("nobody", 200_000_000, None)
    unhandled = await watch.rows("SELECT 1 FROM observed_transfers WHERE handled_at IS NULL")
    assert unhandled == []
    assert (await watch.find(attempt)).status is AttemptStatus.CREATED_INTENT


# -- to the end, with Temporal


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("purpose", list(Purpose))
async def test_a_payer_who_submitted_a_wrong_hash_gets_what_they_paid_for(watched: Engine, purpose: Purpose) -> None:
    """A hash of another payer's payment: refused. Then the payment, and the tab is closed."""
    payer, intent = await watched.intent(10_000, purpose)
    async with watched.worker():
        strangers = await watched.pay_and_confirm(intent, wallet=payer_wallets()[1])
        await watched.submit(payer, intent, strangers)
        await watched.result(intent.attempt_id)
        assert (await watched.attempt(intent.attempt_id)).error_code is ErrorCode.SENDER_MISMATCH
        sent = await watched.pay_and_confirm(intent)
        await start_watch(watched)
        await becomes_known(watched, renewal_id(intent.attempt_id))
        await ends(watched, renewal_id(intent.attempt_id))
        await watched.result(renewal_id(intent.attempt_id))
    made = await watched.attempt(renewal_id(intent.attempt_id))
    assert (made.status, made.tx_hash, made.purpose) == (AttemptStatus.CREDITED, sent, purpose)
    purchase = {"credits_purchase": 1_000_000_000, "platform_revenue_share": 750_000_000}
    assert await watched.credits(made.id) == (purchase if purpose is Purpose.SELF else {"system_donation": 10**9})
    assert (await watched.attempt(intent.attempt_id)).status is AttemptStatus.REJECTED
    assert await watched.books() == []


async def becomes_known(engine: Engine, attempt_id: UUID) -> None:
    """Returns when there is such an attempt."""

    async def is_known() -> bool:
        async with engine.service.autocommit() as connection:
            return await attempts.find_attempt(connection, attempt_id) is not None

    await wait_until(is_known, timeout_seconds=PATIENCE_SECONDS, what="an attempt in the place of the refused one")


async def test_only_what_has_ended_without_its_payment_is_replaced(watch: Watch) -> None:
    attempt = await watch.intent()
    async with watch.matcher_of_payers.service.transaction() as connection:
        with pytest.raises(BookkeepingError):
            await payments.renew_attempt(connection, attempt.id)
