"""Where a submission goes, by what the database knows: each rule on both sides of its edge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from domain.errors import HashInUse, TooManyReplacements, WrongChain
from domain.payments.attempt import MAX_SUBMISSIONS, AttemptStatus, ErrorCode, PaymentAttempt, Purpose
from domain.payments.submission import Way, needs_time_of_payment, plan_submission, refuse_early

CHAIN = 8453
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
HASH, OTHER = "0x" + "1" * 64, "0x" + "2" * 64
EXPIRED = {"status": AttemptStatus.FAILED, "error_code": ErrorCode.INTENT_EXPIRED}
PENDING = {"status": AttemptStatus.PENDING_UNVERIFIED, "tx_hash": HASH, "submitted_at": NOON, "expires_at": None}


def attempt(**changes: object) -> PaymentAttempt:
    facts: dict[str, object] = {
        "id": UUID(int=1),
        "billing_account_id": "account",
        "owner_user_id": "user",
        "from_address": "0x" + "a" * 40,
        "chain_id": CHAIN,
        "token": "0x" + "b" * 40,
        "to_address": "0x" + "c" * 40,
        "amount_raw": 1,
        "amount_usd_cents": 100,
        "purpose": Purpose.SELF,
        "status": AttemptStatus.CREATED_INTENT,
        "expires_at": NOON,
        "created_at": NOON - timedelta(hours=1),
    }
    return PaymentAttempt.model_validate(facts | changes)


def way(payment: PaymentAttempt, now: datetime, mined_at: datetime | None = None) -> Way:
    return plan_submission(payment, now=now, mined_at=mined_at, chain_id=CHAIN).way


def test_an_intent_is_submitted_until_its_last_moment_and_expires_with_it() -> None:
    assert way(attempt(), NOON - MOMENT) is Way.SUBMIT
    assert way(attempt(), NOON) is Way.EXPIRE
    assert way(attempt(expires_at=None), NOON) is Way.SUBMIT, "one without an end is never over"


@pytest.mark.parametrize("late", [attempt(), attempt(**EXPIRED)], ids=["open", "ended"])
def test_what_was_mined_before_the_expiry_was_paid_in_time(late: PaymentAttempt) -> None:
    plan = plan_submission(late, now=NOON + timedelta(days=1), mined_at=NOON - MOMENT, chain_id=CHAIN)
    assert (plan.way, plan.mined_at) == (Way.SUBMIT, NOON - MOMENT)
    assert way(late, NOON + timedelta(days=1), NOON) is not Way.SUBMIT


def test_an_intent_that_a_fast_clock_ended_takes_what_the_database_finds_in_time() -> None:
    assert way(attempt(**EXPIRED), NOON - MOMENT) is Way.SUBMIT
    assert way(attempt(**EXPIRED), NOON) is Way.ANSWER


@pytest.mark.parametrize("status", [AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.REVERSED])
def test_what_has_ended_answers_with_its_end_also_on_another_chain(status: AttemptStatus) -> None:
    ended = attempt(status=status, tx_hash=HASH, submitted_at=NOON, expires_at=None, chain_id=CHAIN + 1)
    assert way(ended, NOON) is Way.ANSWER


def test_what_is_open_on_another_chain_is_refused() -> None:
    with pytest.raises(WrongChain):
        way(attempt(chain_id=CHAIN + 1), NOON - MOMENT)


def test_a_submission_is_later_than_the_one_that_it_has_seen_whatever_the_clock_says() -> None:
    plan = plan_submission(attempt(**PENDING), now=NOON - timedelta(hours=1), mined_at=None, chain_id=CHAIN)
    assert (plan.way, plan.submitted_at) == (Way.SUBMIT, NOON + MOMENT)


def test_when_it_was_mined_matters_only_of_an_intent_that_is_over() -> None:
    assert not needs_time_of_payment(attempt(), NOON - MOMENT)
    assert needs_time_of_payment(attempt(), NOON)
    assert needs_time_of_payment(attempt(**EXPIRED), NOON - MOMENT)
    assert not needs_time_of_payment(attempt(**PENDING), NOON)
    assert not needs_time_of_payment(attempt(status=AttemptStatus.REJECTED, expires_at=None), NOON)


def test_a_hash_that_another_attempt_holds_is_refused_and_its_own_is_not() -> None:
    with pytest.raises(HashInUse):
        refuse_early(attempt(), HASH, is_held=True)
    refuse_early(attempt(), HASH, is_held=False)
    refuse_early(attempt(**PENDING), HASH, is_held=True)


def test_so_many_replacements_and_no_more() -> None:
    refuse_early(attempt(**PENDING, submission_count=MAX_SUBMISSIONS - 1), OTHER, is_held=False)
    refuse_early(attempt(**PENDING, submission_count=MAX_SUBMISSIONS), HASH, is_held=False)
    with pytest.raises(TooManyReplacements):
        refuse_early(attempt(**PENDING, submission_count=MAX_SUBMISSIONS), OTHER, is_held=False)
