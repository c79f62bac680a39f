"""Routing of a submitted hash by the database's state, before any workflow is called.

`domain.payments.attempt.decide_submission` decides the same where the submission is recorded, under the row's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from domain.errors import HashInUse, TooManyReplacements, WrongChain
from domain.payments.attempt import MAX_SUBMISSIONS, AttemptStatus, PaymentAttempt


class Way(StrEnum):
    """Route of a submission."""

    ANSWER = "answer"
    """The attempt has ended, and its result is the answer."""

    EXPIRE = "expire"
    """The intent has expired. Recorded as such, unless a run has a submission that was in time."""

    SUBMIT = "submit"
    """To the attempt's workflow, which is started or joined."""


@dataclass(frozen=True, slots=True)
class SubmissionPlan:
    """The route and its times. `mined_at` is set where the payment was mined before the intent expired."""

    way: Way
    submitted_at: datetime
    mined_at: datetime | None = None


def submission_time(attempt: PaymentAttempt, now: datetime) -> datetime:
    """The submission's time: after the submission that it has seen, also if the database's clock was set back in
    between.
    """
    return now if attempt.submitted_at is None else max(now, attempt.submitted_at + timedelta(microseconds=1))


def needs_time_of_payment(attempt: PaymentAttempt, now: datetime) -> bool:
    """Whether the transfer's mining time matters: the intent has expired, and may have been paid in time."""
    is_late = attempt.is_final or _is_past_expiry(attempt, submission_time(attempt, now))
    return is_late and attempt.may_have_been_paid_in_time


def plan_submission(
    attempt: PaymentAttempt, *, now: datetime, mined_at: datetime | None, chain_id: int
) -> SubmissionPlan:
    """The route of a submission at `now`; `chain_id` is that of this process. Raises `WrongChain`."""
    submitted_at = submission_time(attempt, now)
    # An intent that a fast clock has ended too early is still open.
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
    """Whether an ended attempt, or an expired intent, still accepts the submission."""
    return attempt.was_paid_in_time(mined_at) or attempt.was_submitted_in_time(submitted_at)


def refuse_early(attempt: PaymentAttempt, tx_hash: str, *, is_held: bool) -> None:
    """Raise `TooManyReplacements`, or `HashInUse` where another attempt of the payer holds the hash.

    Before Temporal is called: a refused update would leave a started workflow behind.
    """
    if attempt.tx_hash == tx_hash:
        return
    if attempt.submission_count >= MAX_SUBMISSIONS:
        raise TooManyReplacements(MAX_SUBMISSIONS)
    if is_held:
        raise HashInUse(tx_hash)


def _is_past_expiry(attempt: PaymentAttempt, now: datetime) -> bool:
    return attempt.expires_at is not None and now >= attempt.expires_at
