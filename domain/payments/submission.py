"""What a submission of a hash comes to, by what the database knows: decided before any workflow hears of it.

`domain.payments.attempt.decide_submission` decides the same where the submission is recorded, under the row's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from domain.errors import HashInUse, TooManyReplacements, WrongChain
from domain.payments.attempt import MAX_SUBMISSIONS, AttemptStatus, PaymentAttempt


class Way(StrEnum):
    """Where a submission goes."""

    ANSWER = "answer"
    """Nowhere: the attempt has ended, and its end is the answer."""

    EXPIRE = "expire"
    """The intent's time is up. Recorded as such, unless a run has a submission that was in time."""

    SUBMIT = "submit"
    """To the attempt's workflow, which is started or joined."""


@dataclass(frozen=True, slots=True)
class SubmissionPlan:
    """Where it goes, and with which times. `mined_at` is set where the payment was mined before the intent expired."""

    way: Way
    submitted_at: datetime
    mined_at: datetime | None = None


def submission_time(attempt: PaymentAttempt, now: datetime) -> datetime:
    """When this submission is: after the one that it has seen, also where the database's clock was set back between."""
    return now if attempt.submitted_at is None else max(now, attempt.submitted_at + timedelta(microseconds=1))


def needs_time_of_payment(attempt: PaymentAttempt, now: datetime) -> bool:
    """Whether it matters when the transfer was mined: the intent is over, and may have been paid in time."""
    is_late = attempt.is_final or _is_past_expiry(attempt, submission_time(attempt, now))
    return is_late and attempt.may_have_been_paid_in_time


def plan_submission(
    attempt: PaymentAttempt, *, now: datetime, mined_at: datetime | None, chain_id: int
) -> SubmissionPlan:
    """Where a submission at `now` goes; `chain_id` is what this process settles. Raises `WrongChain`."""
    submitted_at = submission_time(attempt, now)
    # An intent that somebody's fast clock has ended before its time is not over.
    in_time = is_in_time(attempt, submitted_at, mined_at)
    if attempt.is_final and not in_time:
        return SubmissionPlan(Way.ANSWER, submitted_at)
    if attempt.chain_id != chain_id:
        raise WrongChain(attempt.chain_id, chain_id)
    is_unpaid = attempt.status is AttemptStatus.CREATED_INTENT
    if is_unpaid and _is_past_expiry(attempt, submitted_at) and not in_time:
        return SubmissionPlan(Way.EXPIRE, submitted_at)
    return SubmissionPlan(Way.SUBMIT, submitted_at, mined_at if attempt.was_paid_in_time(mined_at) else None)


def is_in_time(attempt: PaymentAttempt, submitted_at: datetime, mined_at: datetime | None) -> bool:
    """Whether an attempt that has ended, or an intent whose time is up, takes the submission all the same."""
    return attempt.was_paid_in_time(mined_at) or attempt.was_submitted_in_time(submitted_at)


def refuse_early(attempt: PaymentAttempt, tx_hash: str, *, is_held: bool) -> None:
    """Raise `TooManyReplacements`, or `HashInUse` where another attempt of the payer's holds the hash.

    Before Temporal hears of it: a refused update would leave a started workflow behind.
    """
    if attempt.tx_hash == tx_hash:
        return
    if attempt.submission_count >= MAX_SUBMISSIONS:
        raise TooManyReplacements(MAX_SUBMISSIONS)
    if is_held:
        raise HashInUse(tx_hash)


def _is_past_expiry(attempt: PaymentAttempt, now: datetime) -> bool:
    return attempt.expires_at is not None and now >= attempt.expires_at
