"""Times of a submission, and the chain that it is for: each rule on both sides of its edge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from domain.errors import WrongChain
from domain.payments.attempt import (
    AttemptStatus,
    ErrorCode,
    PaymentAttempt,
    Purpose,
    SubmissionEffect,
    decide_submission,
)
from domain.payments.submission import SubmissionTimes, needs_time_of_payment, require_own_chain, time_submission

CHAIN = 8453
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
HASH = "0x" + "1" * 64
OTHER_HASH = "0x" + "2" * 64
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


def times(payment: PaymentAttempt, now: datetime, mined_at: datetime | None = None) -> SubmissionTimes:
    return time_submission(payment, now=now, mined_at=mined_at)


@pytest.mark.parametrize("late", [attempt(), attempt(**EXPIRED)], ids=["open", "ended"])
def test_what_was_mined_before_the_expiry_was_paid_in_time(late: PaymentAttempt) -> None:
    tomorrow = NOON + timedelta(days=1)
    assert times(late, tomorrow, NOON - MOMENT) == SubmissionTimes(tomorrow, NOON - MOMENT)
    assert times(late, tomorrow, NOON) == SubmissionTimes(tomorrow, None)


@pytest.mark.parametrize("status", [AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.REVERSED])
def test_what_has_ended_answers_with_its_end_also_on_another_chain(status: AttemptStatus) -> None:
    ended = attempt(status=status, tx_hash=HASH, submitted_at=NOON, expires_at=None, chain_id=CHAIN + 1)
    require_own_chain(ended, times(ended, NOON), CHAIN)


@pytest.mark.parametrize(
    "open_attempt",
    [attempt(chain_id=CHAIN + 1), attempt(**EXPIRED, chain_id=CHAIN + 1), attempt(**PENDING, chain_id=CHAIN + 1)],
    ids=["intent", "ended by a fast clock", "pending"],
)
def test_what_is_open_on_another_chain_is_refused(open_attempt: PaymentAttempt) -> None:
    with pytest.raises(WrongChain):
        require_own_chain(open_attempt, times(open_attempt, NOON - MOMENT), CHAIN)


@pytest.mark.parametrize(
    ("payment", "effect"),
    [
        (attempt(), SubmissionEffect.RECORD),
        # Nothing is signed for it, so that no transaction can pay it.
        (attempt(kind="authorization"), SubmissionEffect.NOTHING),
        (attempt(kind="authorization", **EXPIRED), SubmissionEffect.NOTHING),
        (attempt(kind="authorization", authorization_nonce=HASH), SubmissionEffect.RECORD),
        # A deposit is a transfer: no other hash is its own.
        (attempt(kind="deposit", **{**PENDING, "tx_hash": OTHER_HASH}), SubmissionEffect.NOTHING),
        (attempt(kind="deposit", expires_at=None), SubmissionEffect.RECORD),
    ],
)
def test_a_hash_is_recorded_only_where_it_can_be_the_payments(
    payment: PaymentAttempt, effect: SubmissionEffect
) -> None:
    assert decide_submission(payment, HASH, submitted_at=NOON - MOMENT) is effect


def test_a_submission_is_later_than_the_one_that_it_has_seen_whatever_the_clock_says() -> None:
    assert times(attempt(**PENDING), NOON - timedelta(hours=1)).submitted_at == NOON + MOMENT


def test_when_it_was_mined_matters_only_of_an_intent_that_is_over() -> None:
    assert not needs_time_of_payment(attempt(), NOON - MOMENT)
    assert needs_time_of_payment(attempt(), NOON)
    assert needs_time_of_payment(attempt(**EXPIRED), NOON - MOMENT)
    assert not needs_time_of_payment(attempt(**PENDING), NOON)
    assert not needs_time_of_payment(attempt(status=AttemptStatus.REJECTED, expires_at=None), NOON)
