"""An attempt's life: which steps there are, what a submission does, and the payer's words for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from db.accounts.wallets import Payer
from domain.errors import TooManyReplacements
from domain.payments.attempt import (
    FINAL_STATUSES,
    HOLDING_STATUSES,
    LEGAL_TRANSITIONS,
    MAX_SUBMISSIONS,
    OPEN_STATUSES,
    AttemptStatus,
    ClientStatus,
    ErrorCode,
    PaymentAttempt,
    SubmissionEffect,
    client_status,
    decide_submission,
)
from tests.support.oracle import LEGAL_STEPS
from tests.support.payments import INTENT_TTL, NOW, new_attempt, tx_hash, wallet

PAYER = Payer("user", "account", wallet(1))
MICROSECOND = timedelta(microseconds=1)


def _waiting(**changes: Any) -> PaymentAttempt:
    values: dict[str, Any] = {
        "status": AttemptStatus.PENDING_UNVERIFIED,
        "tx_hash": tx_hash(1),
        "expires_at": None,
        "submitted_at": NOW,
        "submission_count": 1,
    }
    return new_attempt(PAYER, **values | changes)


def test_the_first_two_states_are_open_and_all_others_final() -> None:
    assert {AttemptStatus.CREATED_INTENT, AttemptStatus.PENDING_UNVERIFIED} == OPEN_STATUSES
    assert {*AttemptStatus} - OPEN_STATUSES == FINAL_STATUSES
    assert set(LEGAL_TRANSITIONS) == set(AttemptStatus)


def test_the_steps_are_those_of_the_drawing() -> None:
    steps = {(before.value, after.value) for before, following in LEGAL_TRANSITIONS.items() for after in following}
    assert steps == {
        ("CREATED_INTENT", "PENDING_UNVERIFIED"),
        ("CREATED_INTENT", "FAILED"),
        ("PENDING_UNVERIFIED", "CREDITED"),
        ("PENDING_UNVERIFIED", "REJECTED"),
        ("PENDING_UNVERIFIED", "FAILED"),
        ("CREDITED", "REVERSED"),
        ("FAILED", "PENDING_UNVERIFIED"),
    }
    # The one in place is the claim of a signature.
    births_and_replacements = {
        (None, "CREATED_INTENT"),
        ("CREATED_INTENT", "CREATED_INTENT"),
        ("PENDING_UNVERIFIED", "PENDING_UNVERIFIED"),
    }
    assert steps | births_and_replacements == LEGAL_STEPS


def test_an_attempt_holds_its_hash_while_it_waits_and_when_it_is_paid() -> None:
    assert {AttemptStatus.PENDING_UNVERIFIED, AttemptStatus.CREDITED} == HOLDING_STATUSES


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        (AttemptStatus.CREATED_INTENT, ClientStatus.PENDING_VERIFICATION),
        (AttemptStatus.PENDING_UNVERIFIED, ClientStatus.PENDING_VERIFICATION),
        (AttemptStatus.CREDITED, ClientStatus.CONFIRMED),
        (AttemptStatus.REJECTED, ClientStatus.FAILED),
        (AttemptStatus.FAILED, ClientStatus.FAILED),
    ],
)
def test_the_payer_sees_three_words(status: AttemptStatus, seen: ClientStatus) -> None:
    attempt = new_attempt(PAYER, status=status)
    assert client_status(status) is seen
    assert attempt.client_status is seen
    assert attempt.is_final is (status in FINAL_STATUSES)


def test_the_error_codes_are_those_of_the_specification() -> None:
    assert {code.value for code in ErrorCode} == {
        "INTENT_EXPIRED",
        "TX_REVERTED",
        "TOKEN_TRANSFER_NOT_FOUND",
        "SENDER_MISMATCH",
        "RECIPIENT_MISMATCH",
        "INVALID_TOKEN",
        "INVALID_CHAIN",
        "INSUFFICIENT_AMOUNT",
        "RECEIPT_NOT_FOUND",
        "TX_ALREADY_SETTLED",
        "TRANSFER_TOO_OLD",
        "AUTHORIZATION_EXPIRED",
    }


# -- submission


@pytest.mark.parametrize(
    ("at", "effect"),
    [
        (NOW, SubmissionEffect.RECORD),
        (NOW + INTENT_TTL - MICROSECOND, SubmissionEffect.RECORD),
        (NOW + INTENT_TTL, SubmissionEffect.EXPIRE),
        (NOW + INTENT_TTL + MICROSECOND, SubmissionEffect.EXPIRE),
    ],
)
def test_an_intent_takes_a_hash_until_the_microsecond_it_expires(at: object, effect: SubmissionEffect) -> None:
    intent = new_attempt(PAYER)
    assert decide_submission(intent, tx_hash(1), submitted_at=at) is effect  # type: ignore[arg-type]


def test_an_expiry_counts_only_for_an_intent() -> None:
    waiting = _waiting(expires_at=NOW)
    assert decide_submission(waiting, tx_hash(2), submitted_at=NOW + INTENT_TTL) is SubmissionEffect.RECORD


def test_an_intent_without_an_expiry_does_not_expire() -> None:
    intent = new_attempt(PAYER, expires_at=None)
    assert decide_submission(intent, tx_hash(1), submitted_at=NOW + 9 * INTENT_TTL) is SubmissionEffect.RECORD


@pytest.mark.parametrize("count", [1, MAX_SUBMISSIONS, MAX_SUBMISSIONS + 1])
def test_the_same_hash_again_does_nothing_however_often(count: int) -> None:
    waiting = _waiting(submission_count=count)
    assert decide_submission(waiting, tx_hash(1), submitted_at=NOW) is SubmissionEffect.NOTHING


def test_another_hash_replaces_the_first_until_the_limit_is_reached() -> None:
    last = _waiting(submission_count=MAX_SUBMISSIONS - 1)
    assert decide_submission(last, tx_hash(2), submitted_at=NOW) is SubmissionEffect.RECORD
    full = _waiting(submission_count=MAX_SUBMISSIONS)
    with pytest.raises(TooManyReplacements, match=str(MAX_SUBMISSIONS)):
        decide_submission(full, tx_hash(2), submitted_at=NOW)


@pytest.mark.parametrize(
    ("at", "effect"),
    [
        (NOW - MICROSECOND, SubmissionEffect.NOTHING),
        (NOW, SubmissionEffect.RECORD),
        (NOW + MICROSECOND, SubmissionEffect.RECORD),
    ],
)
def test_an_earlier_submission_that_comes_late_replaces_nothing(at: Any, effect: SubmissionEffect) -> None:
    assert decide_submission(_waiting(submitted_at=NOW), tx_hash(2), submitted_at=at) is effect


@pytest.mark.parametrize("status", sorted(FINAL_STATUSES))
@pytest.mark.parametrize("number", [1, 2])
def test_a_finished_attempt_answers_with_its_end(status: AttemptStatus, number: int) -> None:
    ended = _waiting(status=status, submission_count=MAX_SUBMISSIONS)
    assert decide_submission(ended, tx_hash(number), submitted_at=NOW + 9 * INTENT_TTL) is SubmissionEffect.NOTHING


def test_an_attempt_is_a_value() -> None:
    with pytest.raises(ValueError, match="frozen"):
        new_attempt(PAYER).status = AttemptStatus.CREDITED  # type: ignore[misc]


@pytest.mark.parametrize(
    ("before_expiry", "effect"),
    [(MICROSECOND, SubmissionEffect.RECORD), (timedelta(0), SubmissionEffect.NOTHING)],
)
def test_a_submission_in_time_counts_though_the_intent_was_ended_before_it_was_recorded(
    before_expiry: timedelta, effect: SubmissionEffect
) -> None:
    ended = new_attempt(PAYER, status=AttemptStatus.FAILED, error_code=ErrorCode.INTENT_EXPIRED)
    at = NOW + INTENT_TTL - before_expiry
    assert decide_submission(ended, tx_hash(1), submitted_at=at) is effect


def test_a_payment_that_failed_otherwise_stays_failed() -> None:
    failed = new_attempt(PAYER, status=AttemptStatus.FAILED, error_code=ErrorCode.RECEIPT_NOT_FOUND, expires_at=None)
    assert decide_submission(failed, tx_hash(1), submitted_at=NOW) is SubmissionEffect.NOTHING
