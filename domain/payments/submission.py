"""Times of a submission. `domain.payments.attempt.decide_submission` decides its effect."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from domain.errors import WrongChain
from domain.payments.attempt import PaymentAttempt


@dataclass(frozen=True, slots=True)
class SubmissionTimes:
    """`mined_at` is set where the payment was mined before the intent expired."""

    submitted_at: datetime
    mined_at: datetime | None


def submission_time(attempt: PaymentAttempt, now: datetime) -> datetime:
    """The submission's time: after the submission that it has seen, also if the database's clock was set back in
    between.
    """
    return now if attempt.submitted_at is None else max(now, attempt.submitted_at + timedelta(microseconds=1))


def needs_time_of_payment(attempt: PaymentAttempt, now: datetime) -> bool:
    """Whether the transfer's mining time matters: the intent has expired, and may have been paid in time."""
    submitted_at = submission_time(attempt, now)
    is_late = attempt.is_final or (attempt.expires_at is not None and submitted_at >= attempt.expires_at)
    return is_late and attempt.may_have_been_paid_in_time


def require_own_chain(attempt: PaymentAttempt, times: SubmissionTimes, chain_id: int) -> None:
    """Refuse what a process of chain `chain_id` cannot start. Raises `WrongChain`; what has ended is answered."""
    if attempt.chain_id != chain_id and not (attempt.is_final and not _is_in_time(attempt, times)):
        raise WrongChain(attempt.chain_id, chain_id)


def time_submission(attempt: PaymentAttempt, *, now: datetime, mined_at: datetime | None) -> SubmissionTimes:
    """The times of a submission at `now`, of a transfer mined at `mined_at` where that is known."""
    return SubmissionTimes(submission_time(attempt, now), mined_at if attempt.was_paid_in_time(mined_at) else None)


def _is_in_time(attempt: PaymentAttempt, times: SubmissionTimes) -> bool:
    """Whether an ended attempt, or an expired intent, still accepts the submission."""
    return attempt.was_paid_in_time(times.mined_at) or attempt.was_submitted_in_time(times.submitted_at)
