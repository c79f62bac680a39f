"""Each step of `services.payments.lifecycle`: what it writes, what a second call finds, what many at once do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from typing import TypeVar
from uuid import uuid4

import psycopg
import pytest

from db.accounts import wallets as accounts
from db.engine import TenantDatabase
from db.ledger import entries as ledger
from db.ledger.entries import PostedMeanwhile
from db.payments import attempts
from domain.errors import (
    AttemptNotFound,
    BookkeepingError,
    DatabaseUnavailable,
    HashInUse,
    TooManyReplacements,
    TransferAlreadySettled,
)
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Posting, Reason, Side
from domain.payments.attempt import MAX_SUBMISSIONS, AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.postings import purchase_posting
from services.payments import lifecycle as payments
from tests.database.conftest import TwoTenants
from tests.support.oracle import wrong_bonuses
from tests.support.payments import (
    INTENT_TTL,
    NOW,
    REVERTED,
    SHARE,
    WRONG_PAYMENT,
    RolePair,
    transfer_for,
    tx_hash,
    wallet,
)
from tests.support.sql import connect, scalar

AT_ONCE = 10
CREDITS = 1_000_000_000
BONUS = 750_000_000

T = TypeVar("T")


async def _at_once(call: Callable[[], Awaitable[T]], times: int = AT_ONCE) -> tuple[list[T], Counter[str]]:
    """Answers and names of the errors of many calls at the same time."""
    done = await asyncio.gather(*(call() for _ in range(times)), return_exceptions=True)
    answers: list[T] = [answer for answer in done if not isinstance(answer, BaseException)]
    return answers, Counter(type(error).__name__ for error in done if isinstance(error, BaseException))


async def _trail(roles: RolePair, attempt: PaymentAttempt) -> list[str]:
    async with roles.service.transaction() as connection:
        return [event.event_type for event in await attempts.list_events(connection, attempt.id)]


async def _read(roles: RolePair, attempt: PaymentAttempt) -> PaymentAttempt:
    async with roles.service.transaction() as connection:
        found = await attempts.find_attempt(connection, attempt.id)
    assert found is not None
    return found


# -- accounts


async def test_a_wallet_has_one_account_however_often_and_at_once_it_is_provisioned(roles: RolePair) -> None:
    payers, errors = await _at_once(lambda: roles.open_account(1))
    assert errors == Counter()
    assert len(set(payers)) == 1
    assert await roles.open_account(1) == payers[0]
    async with roles.service.transaction() as connection:
        assert set(await accounts.balances(connection)) == {payers[0].billing_account_id, SYSTEM_TENANT_ACCOUNT_ID}
    assert await roles.books() == []


async def test_a_user_without_an_account_is_given_one_by_two_callers_at_once(roles: RolePair) -> None:
    with connect(roles.database.migration_url) as owner:
        owner.execute("INSERT INTO users VALUES ('early', %s)", (wallet(1),))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with roles.app.unscoped() as first:
        opened = await accounts.provision_wallet(first, wallet(1))
        second = asyncio.create_task(roles.open_account(1))
        while not second.done() and scalar(roles.database.superuser_url, waits) == 0:
            await asyncio.sleep(0)
    assert await second == opened


async def test_two_wallets_have_two_accounts(roles: RolePair) -> None:
    first, second = await roles.open_account(1), await roles.open_account(2)
    assert first.user_id != second.user_id
    assert first.billing_account_id != second.billing_account_id


# -- intent and submission


async def test_an_intent_is_read_back_as_it_was_written(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1), cents=12_345)
    assert await _read(roles, attempt) == attempt
    assert await _trail(roles, attempt) == ["intent_created"]


async def test_a_first_hash_makes_the_attempt_wait_and_clears_its_expiry(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    ending = await roles.submit(attempt, tx_hash(1))
    assert ending.changed
    assert ending.attempt == await _read(roles, attempt)
    assert (ending.attempt.status, ending.attempt.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, tx_hash(1))
    assert (ending.attempt.expires_at, ending.attempt.submitted_at) == (None, NOW)
    assert await _trail(roles, attempt) == ["intent_created", "submitted"]


async def test_the_same_hash_again_changes_nothing(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    ending = await roles.submit(attempt, tx_hash(1), at=NOW + timedelta(hours=1))
    assert (ending.changed, ending.attempt) == (False, attempt)
    assert await _trail(roles, attempt) == ["intent_created", "submitted"]


async def test_another_hash_replaces_the_first(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    ending = await roles.submit(attempt, tx_hash(2), at=NOW + timedelta(hours=1))
    assert (ending.changed, ending.attempt.tx_hash, ending.attempt.submission_count) == (True, tx_hash(2), 2)
    assert await _trail(roles, attempt) == ["intent_created", "submitted", "hash_replaced"]
    assert await roles.books() == []


async def test_a_submission_after_the_expiry_ends_the_intent_and_keeps_the_hash_in_the_trail(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    ending = await roles.submit(attempt, tx_hash(1), at=NOW + INTENT_TTL)
    assert ending.changed
    assert (ending.attempt.status, ending.attempt.error_code) == (AttemptStatus.FAILED, ErrorCode.INTENT_EXPIRED)
    async with roles.service.transaction() as connection:
        [*_, last] = await attempts.list_events(connection, attempt.id)
    assert (last.event_type, last.details) == ("failed", {"submittedTxHash": tx_hash(1)})
    again = await roles.submit(attempt, tx_hash(1), at=NOW + INTENT_TTL)
    assert (again.changed, again.attempt) == (False, ending.attempt)


async def test_a_submission_in_time_that_is_recorded_after_the_intents_end_counts(roles: RolePair) -> None:
    """It waited for its workflow while housekeeping ended what had expired."""
    attempt = await roles.create(await roles.open_account(1))
    await roles.submit(attempt, tx_hash(1), at=NOW + INTENT_TTL)
    ending = await roles.submit(attempt, tx_hash(2), at=NOW + INTENT_TTL - timedelta(microseconds=1))
    assert (ending.attempt.status, ending.attempt.tx_hash) == (AttemptStatus.PENDING_UNVERIFIED, tx_hash(2))


async def test_a_submission_just_before_the_expiry_counts(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    ending = await roles.submit(attempt, tx_hash(1), at=NOW + INTENT_TTL - timedelta(microseconds=1))
    assert ending.attempt.status is AttemptStatus.PENDING_UNVERIFIED


async def test_a_hash_is_replaced_only_so_often(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    for number in range(MAX_SUBMISSIONS):
        await roles.submit(attempt, tx_hash(number))
    with pytest.raises(TooManyReplacements):
        await roles.submit(attempt, tx_hash(MAX_SUBMISSIONS))
    assert (await roles.submit(attempt, tx_hash(MAX_SUBMISSIONS - 1))).changed is False


async def test_many_submissions_of_one_hash_at_once_are_one(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    endings, errors = await _at_once(lambda: roles.submit(attempt, tx_hash(1)))
    assert errors == Counter()
    assert Counter(ending.changed for ending in endings) == {True: 1, False: AT_ONCE - 1}
    assert {ending.attempt.tx_hash for ending in endings} == {tx_hash(1)}
    assert await _trail(roles, attempt) == ["intent_created", "submitted"]


async def test_a_hash_that_an_own_attempt_holds_is_refused_and_anothers_is_not(roles: RolePair) -> None:
    alice, bob = await roles.open_account(1), await roles.open_account(2)
    await roles.create_submitted(alice, 1)
    second = await roles.create(alice)
    with pytest.raises(HashInUse, match=tx_hash(1)):
        await roles.submit(second, tx_hash(1))
    assert (await _read(roles, second)).status is AttemptStatus.CREATED_INTENT
    assert (await roles.create_submitted(bob, 1)).tx_hash == tx_hash(1)


async def test_two_own_attempts_that_name_one_hash_at_once_do_not_both_get_it(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    intents = iter([await roles.create(payer) for _ in range(AT_ONCE)])
    endings, errors = await _at_once(lambda: roles.submit(next(intents), tx_hash(1)))
    assert (len(endings), errors) == (1, {"HashInUse": AT_ONCE - 1})


@pytest.mark.parametrize("refused", [WRONG_PAYMENT, REVERTED], ids=["rejected", "failed"])
async def test_a_refused_attempt_lets_go_of_its_hash(roles: RolePair, refused: object) -> None:
    payer = await roles.open_account(1)
    first = await roles.create_submitted(payer, 1)
    await roles.refuse(first, WRONG_PAYMENT if refused is WRONG_PAYMENT else REVERTED)
    assert (await roles.create_submitted(payer, 1)).status is AttemptStatus.PENDING_UNVERIFIED


async def test_a_credited_attempt_keeps_its_hash(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    await roles.settle(payer, 1)
    with pytest.raises(HashInUse):
        await roles.create_submitted(payer, 1)


async def test_anothers_attempt_is_not_found(roles: RolePair) -> None:
    alice, bob = await roles.open_account(1), await roles.open_account(2)
    attempt = await roles.create_submitted(alice, 1)
    transfer = transfer_for(attempt)
    async with roles.settlement.transaction(bob.user_id) as connection:
        assert await attempts.find_attempt(connection, attempt.id) is None
        with pytest.raises(AttemptNotFound):
            await payments.submit(connection, attempt.id, tx_hash(2), submitted_at=NOW)
        with pytest.raises(AttemptNotFound):
            await payments.credit_buyer(connection, attempt.id, transfer, revenue_share=SHARE)
        with pytest.raises(AttemptNotFound):
            await payments.refuse(connection, attempt.id, WRONG_PAYMENT)
    async with roles.service.transaction() as service:
        with pytest.raises(AttemptNotFound):
            await payments.mint_revenue_share(service, uuid4())
    assert await _read(roles, attempt) == attempt


# -- credits


async def test_a_purchase_credits_the_buyer_and_mints_the_bonus(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    attempt = await roles.create_submitted(payer, 1)
    ending = await roles.credit(attempt)
    assert (ending.changed, ending.attempt.status) == (True, AttemptStatus.CREDITED)
    assert (await roles.balance(payer.billing_account_id), await roles.balance(SYSTEM_TENANT_ACCOUNT_ID)) == (
        CREDITS,
        0,
    )
    assert await roles.books(pending_bonus_ok=True) == []
    assert await roles.books() == [wrong_bonuses(attempt.id, 0, BONUS)]

    entry = await roles.mint(attempt)
    assert entry is not None
    assert (entry.amount_credits, entry.posted) == (BONUS, True)
    assert await roles.balance(SYSTEM_TENANT_ACCOUNT_ID) == BONUS
    assert [row.reason for row in await roles.entries(attempt)] == ["credits_purchase", "platform_revenue_share"]
    assert await roles.books(nothing_stuck=True) == []


async def test_a_donation_credits_the_system_tenant_and_no_other_account(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    attempt = await roles.settle(payer, 1, purpose=Purpose.SYSTEM)
    assert attempt.status is AttemptStatus.CREDITED
    assert (await roles.balance(payer.billing_account_id), await roles.balance(SYSTEM_TENANT_ACCOUNT_ID)) == (
        0,
        CREDITS,
    )
    assert [row.reason for row in await roles.entries(attempt)] == ["system_donation"]
    with pytest.raises(BookkeepingError, match="purpose system"):
        await roles.mint(attempt)
    assert await roles.books(nothing_stuck=True) == []


async def test_a_purchase_is_no_donation_and_a_donation_no_purchase(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    purchase = await roles.create_submitted(payer, 1)
    donation = await roles.create_submitted(payer, 2, purpose=Purpose.SYSTEM)
    async with roles.service.transaction() as service:
        with pytest.raises(BookkeepingError):
            await payments.credit_donation(service, purchase.id, transfer_for(purchase))
    async with roles.settlement.transaction(payer.user_id) as connection:
        with pytest.raises(BookkeepingError):
            await payments.credit_buyer(connection, donation.id, transfer_for(donation), revenue_share=SHARE)


async def test_the_transfer_that_paid_is_read_back_with_its_surplus(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    # More than a bigint holds: a token's amounts are 256 bits wide.
    transfer = transfer_for(attempt, value_raw=attempt.amount_raw + 2**200, unapplied_raw=2**201)
    await roles.credit(attempt, transfer)
    async with roles.service.transaction() as connection:
        assert await attempts.find_settled_transfer(connection, attempt.id) == transfer
        [*_, credited] = await attempts.list_events(connection, attempt.id)
    assert credited.details["surplusRaw"] == str(2**200)
    assert credited.details["unappliedRaw"] == str(2**201)
    assert await roles.balance(attempt.billing_account_id) == CREDITS
    assert await roles.books(pending_bonus_ok=True) == []


async def test_an_attempt_that_no_transfer_paid_has_none(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    async with roles.service.transaction() as connection:
        assert await attempts.find_settled_transfer(connection, attempt.id) is None


@pytest.mark.parametrize("purpose", Purpose)
async def test_a_credit_done_twice_is_done_once(roles: RolePair, purpose: Purpose) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1, purpose=purpose)
    first, second = await roles.credit(attempt), await roles.credit(attempt)
    assert (first.changed, second.changed) == (True, False)
    assert first.attempt == second.attempt
    assert len(await roles.entries(attempt)) == 1
    assert await roles.books(pending_bonus_ok=True) == []


async def test_a_credit_that_was_decided_before_the_attempt_ended_writes_nothing(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await roles.refuse(attempt)
    async with roles.settlement.statements(attempt.owner_user_id) as connection:
        credited = await attempts.credit_purchase(
            connection,
            attempt,
            transfer_for(attempt),
            purchase_posting(attempt),
            revenue_share=SHARE,
            facts={},
            details={},
        )
    assert credited is None
    assert (await _read(roles, attempt)).status is AttemptStatus.REJECTED
    assert await roles.entries(attempt) == []
    assert await roles.books(nothing_stuck=True) == []


async def test_a_credit_that_the_database_does_not_make_is_an_error_and_no_endless_loop(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    with connect(roles.database.migration_url) as owner:
        owner.execute(
            "CREATE POLICY hidden ON payment_attempts AS RESTRICTIVE FOR UPDATE TO settle_settlement USING (false)"
        )
    with pytest.raises(BookkeepingError, match="is PENDING_UNVERIFIED"):
        await roles.credit(attempt)


async def test_a_credit_within_a_transaction_is_lost_with_it(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    with pytest.raises(RuntimeError):  # noqa: PT012 - it fails after the credit
        async with roles.settlement.transaction(attempt.owner_user_id) as connection:
            assert (
                await payments.credit_buyer(connection, attempt.id, transfer_for(attempt), revenue_share=SHARE)
            ).changed
            raise RuntimeError
    assert await _read(roles, attempt) == attempt
    assert (await roles.credit(attempt)).changed


@pytest.mark.parametrize("purpose", Purpose)
async def test_many_credits_of_one_attempt_at_once_are_one(roles: RolePair, purpose: Purpose) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1, purpose=purpose)
    endings, errors = await _at_once(lambda: roles.credit(attempt))
    assert errors == Counter()
    assert Counter(ending.changed for ending in endings) == {True: 1, False: AT_ONCE - 1}
    assert len(await roles.entries(attempt)) == 1
    assert await _trail(roles, attempt) == ["intent_created", "submitted", "credited"]
    assert await roles.books(pending_bonus_ok=True) == []


async def test_a_bonus_minted_twice_is_minted_once(roles: RolePair) -> None:
    attempt = await roles.settle(await roles.open_account(1), 1)
    again = await roles.mint(attempt)
    assert again is not None
    assert (again.amount_credits, again.posted) == (BONUS, False)
    assert await roles.books() == []


async def test_many_bonuses_of_one_attempt_at_once_are_one(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await roles.credit(attempt)
    entries, errors = await _at_once(lambda: roles.mint(attempt))
    # A transaction that checked before the first one committed is refused with a retry; there is no other error.
    assert set(errors) <= {PostedMeanwhile.__name__}
    assert Counter(entry.posted for entry in entries if entry)[True] == 1
    again = await roles.mint(attempt)
    assert again is not None
    assert again.posted is False
    assert await roles.books() == []


async def test_a_bonus_follows_a_credited_purchase_only(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    pending, rejected = await roles.create_submitted(payer, 1), await roles.create_submitted(payer, 2)
    await roles.refuse(rejected)
    for attempt in (pending, rejected, await roles.create(payer)):
        with pytest.raises(BookkeepingError, match="credited purchase only"):
            await roles.mint(attempt)
    assert await roles.balance(SYSTEM_TENANT_ACCOUNT_ID) == 0


async def test_a_share_of_nothing_writes_no_row(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    for number, share in enumerate((Decimal(0), Decimal("0.0000000009")), start=1):
        attempt = await roles.create_submitted(payer, number)
        await roles.credit(attempt, share=share)
        assert await roles.mint(attempt) is None
    assert await roles.books(expected_share=Decimal(0)) == []
    attempt = await roles.create_submitted(payer, 3)
    await roles.credit(attempt, share=Decimal("0.000000001"))
    minted = await roles.mint(attempt)
    assert minted is not None
    assert minted.amount_credits == 1


async def test_the_bonus_has_the_share_of_the_moment_of_the_buyers_credit(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    await roles.credit(attempt, share=Decimal("0.5"))
    again = await roles.credit(attempt, share=Decimal(1))
    assert (again.changed, again.attempt.revenue_share) == (False, Decimal("0.5"))
    minted = await roles.mint(attempt)
    assert minted is not None
    assert minted.amount_credits == CREDITS // 2
    assert await roles.books(expected_share=Decimal("0.5")) == []


# -- one transfer, one attempt


@pytest.mark.parametrize("purpose", Purpose)
async def test_a_transfer_that_paid_another_payers_attempt_is_refused_without_a_trace(
    roles: RolePair, purpose: Purpose
) -> None:
    first = await roles.create_submitted(await roles.open_account(1), 1)
    second = await roles.create_submitted(await roles.open_account(2), 1, purpose=purpose)
    await roles.credit(first)
    with pytest.raises(TransferAlreadySettled):
        await roles.credit(second)
    assert await _read(roles, second) == second
    assert await roles.entries(second) == []
    assert (await roles.credit(second, transfer_for(second, log_index=1))).changed
    assert await roles.books(pending_bonus_ok=True) == []


async def test_two_attempts_that_race_for_one_transfer_do_not_both_get_it(roles: RolePair) -> None:
    racers = [await roles.create_submitted(await roles.open_account(number), 1) for number in range(AT_ONCE)]
    queue = iter(racers)
    endings, errors = await _at_once(lambda: roles.credit(next(queue)))
    assert [ending.changed for ending in endings] == [True]
    assert errors == {"TransferAlreadySettled": AT_ONCE - 1}
    statuses = Counter([(await _read(roles, attempt)).status for attempt in racers])
    assert statuses == {AttemptStatus.CREDITED: 1, AttemptStatus.PENDING_UNVERIFIED: AT_ONCE - 1}


async def test_a_hash_given_up_for_another_does_not_pay_when_an_own_attempt_holds_it_now(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    first = await roles.create_submitted(payer, 1)
    await roles.submit(first, tx_hash(2))
    second = await roles.create_submitted(payer, 1)
    with pytest.raises(TransferAlreadySettled, match="held by another attempt"):
        await roles.credit(first, transfer_for(first))
    assert (await roles.credit(second)).changed


async def test_a_replaced_hash_still_pays_when_no_attempt_holds_it(roles: RolePair) -> None:
    first = await roles.create_submitted(await roles.open_account(1), 1)
    await roles.submit(first, tx_hash(2))
    await roles.credit(first, transfer_for(first))
    assert (await _read(roles, first)).tx_hash == tx_hash(1)
    assert await roles.books(pending_bonus_ok=True) == []


async def test_what_a_poll_needs_names_the_logs_that_paid_other_attempts(roles: RolePair) -> None:
    first = await roles.create_submitted(await roles.open_account(1), 1)
    second = await roles.create_submitted(await roles.open_account(2), 1)
    await roles.credit(first, transfer_for(first, log_index=3))
    async with roles.service.transaction() as connection:
        waiting = await attempts.find_under_verification(connection, second.id)
        paid = await attempts.find_under_verification(connection, first.id)
        assert await attempts.find_under_verification(connection, uuid4()) is None
    assert waiting is not None
    assert (waiting.tx_hash, waiting.submitted_at) == (tx_hash(1), NOW)
    assert waiting.settled_log_indexes == {3}
    assert paid is not None
    assert paid.settled_log_indexes == frozenset()


# -- refusals


@pytest.mark.parametrize("refused", [WRONG_PAYMENT, REVERTED], ids=["rejected", "failed"])
async def test_a_refusal_ends_the_attempt_with_its_code(roles: RolePair, refused: object) -> None:
    verdict = WRONG_PAYMENT if refused is WRONG_PAYMENT else REVERTED
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    ending = await roles.refuse(attempt, verdict)
    assert ending.changed
    assert (ending.attempt.status, ending.attempt.error_code) == (verdict.status, verdict.error_code)
    assert await _trail(roles, attempt) == ["intent_created", "submitted", verdict.status.value.lower()]
    assert await roles.books(nothing_stuck=True) == []


async def test_a_refusal_of_a_hash_that_was_replaced_concurrently_ends_nothing(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    waiting = (await roles.submit(attempt, tx_hash(2))).attempt
    late = await roles.refuse(attempt, WRONG_PAYMENT.model_copy(update={"tx_hash": tx_hash(1)}))
    assert (late.changed, late.attempt) == (False, waiting)
    current = await roles.refuse(attempt, WRONG_PAYMENT.model_copy(update={"tx_hash": tx_hash(2)}))
    assert (current.changed, current.attempt.status) == (True, AttemptStatus.REJECTED)


async def test_many_refusals_at_once_are_one(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    endings, errors = await _at_once(lambda: roles.refuse(attempt))
    assert errors == Counter()
    assert Counter(ending.changed for ending in endings) == {True: 1, False: AT_ONCE - 1}
    assert await roles.books() == []


async def test_what_has_ended_one_way_does_not_end_the_other(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    credited, rejected = await roles.create_submitted(payer, 1), await roles.create_submitted(payer, 2)
    await roles.credit(credited)
    await roles.refuse(rejected)
    assert (await roles.refuse(credited)).attempt.status is AttemptStatus.CREDITED
    late = await roles.credit(rejected)
    assert (late.changed, late.attempt.status) == (False, AttemptStatus.REJECTED)
    assert await roles.submit(credited, tx_hash(3)) == await roles.refuse(credited)
    assert await roles.books(pending_bonus_ok=True) == []


async def test_a_credit_and_a_refusal_at_once_end_the_attempt_one_way(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    for number in range(5):
        attempt = await roles.create_submitted(payer, number)
        endings = await asyncio.gather(roles.credit(attempt), roles.refuse(attempt), roles.credit(attempt))
        assert sum(ending.changed for ending in endings) == 1
        assert len({ending.attempt.status for ending in endings}) == 1
    assert await roles.books(pending_bonus_ok=True, nothing_stuck=True) == []


# -- the ledger's own queries


async def test_a_posting_with_another_amount_contradicts_the_books(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    posting = Posting(
        billing_account_id=payer.billing_account_id, amount_credits=5, reason=Reason.CREDITS_PURCHASE, reference="x"
    )
    async with roles.service.transaction() as connection:
        assert (await ledger.post(connection, posting, {})).posted is True
    async with roles.service.transaction() as connection:
        assert (await ledger.post(connection, posting, {})).posted is False
        with pytest.raises(BookkeepingError, match="5 credits, not with 6"):
            await ledger.post(connection, posting.model_copy(update={"amount_credits": 6}), {})


async def test_the_trial_balance_adds_up_and_names_every_account_that_was_used(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    await roles.open_account(2)
    await roles.settle(payer, 1)
    await roles.settle(payer, 2, purpose=Purpose.SYSTEM)
    async with roles.service.transaction() as connection:
        lines = await ledger.trial_balance(connection)
    assert {line.account_code: (line.debits, line.credits) for line in lines} == {
        "cash:usdc": (2 * CREDITS, 0),
        "cash:usdc:deposits": (0, 0),
        "expense:platform_revenue_share": (BONUS, 0),
        "expense:absorbed": (0, 0),
        "expense:providers": (0, 0),
        "payable:providers": (0, 0),
        "revenue:usage": (0, 0),
        f"credits:{payer.billing_account_id}": (0, CREDITS),
        f"credits:{SYSTEM_TENANT_ACCOUNT_ID}": (0, CREDITS + BONUS),
    }
    assert ledger.totals(lines) == {Side.DEBIT: 2 * CREDITS + BONUS, Side.CREDIT: 2 * CREDITS + BONUS}


async def test_a_tenant_reads_its_own_entries_and_balance_only(
    two_tenants: TwoTenants, tenants_roles: RolePair
) -> None:
    async with tenants_roles.app.transaction(two_tenants.alice.user_id) as connection:
        assert await accounts.balances(connection) == {two_tenants.alice.account: CREDITS}
        rows = await ledger.list_entries(connection)
    assert [(row.billing_account_id, row.amount, row.balance_after) for row in rows] == [
        (two_tenants.alice.account, CREDITS, CREDITS)
    ]


# -- a database that is not there


async def test_no_server_is_a_domain_error() -> None:
    database = TenantDatabase("postgresql://settle_app:x@127.0.0.1:1/settle")
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction("nobody"):
            raise AssertionError("there is nothing to connect to")
    await database.dispose()


async def test_a_connection_that_breaks_is_a_domain_error_and_the_next_call_goes_through(roles: RolePair) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    with pytest.raises(DatabaseUnavailable):  # noqa: PT012 - the break is in the middle
        async with roles.settlement.transaction(attempt.owner_user_id) as connection:
            await payments.credit_buyer(connection, attempt.id, transfer_for(attempt), revenue_share=SHARE)
            await _terminate_backends(roles)
            await attempts.find_attempt(connection, attempt.id)
    assert await _read(roles, attempt) == attempt
    with suppress(DatabaseUnavailable):
        # The connections for single statements have ended with the others: one that was idle fails once.
        await roles.credit(attempt)
    assert (await roles.credit(attempt)).attempt.status is AttemptStatus.CREDITED
    assert await roles.books(pending_bonus_ok=True) == []


async def _terminate_backends(roles: RolePair) -> None:
    async with await psycopg.AsyncConnection.connect(roles.database.superuser_url, autocommit=True) as superuser:
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_a_mistake_in_a_statement_is_not_taken_for_a_missing_server(roles: RolePair) -> None:
    with pytest.raises(Exception, match="no_such_table") as caught:
        async with roles.service.transaction() as connection:
            await connection.connection.exec_driver_sql("SELECT * FROM no_such_table")
    assert not isinstance(caught.value, DatabaseUnavailable)


async def test_a_pool_without_a_free_connection_is_a_domain_error(roles: RolePair) -> None:
    small = TenantDatabase(roles.database.app_url, pool_size=1)
    small.engine.pool._timeout = 0.01  # type: ignore[attr-defined]  # not the seconds that the product waits
    try:
        async with small.transaction("nobody"):
            with pytest.raises(DatabaseUnavailable):
                async with small.transaction("nobody"):
                    raise AssertionError("there is no second connection")
    finally:
        await small.dispose()
