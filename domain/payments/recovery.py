"""What is due to a payment that was submitted, and not there: its workflow should be at work on it.

PostgreSQL has the same rule in `unfinished_payments()` (`db/functions/payments.sql`), by which unfinished payments are
found; `tests/database/test_recovery.py` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final, assert_never
from uuid import UUID

from domain.payments.attempt import AttemptStatus, Purpose

FINALITY_DUE_AFTER: Final = timedelta(hours=1)
"""A credited payment takes a third of that to become final. Until then nearly all of them are not, and are tracked."""


class Due(StrEnum):
    """What is due. The first is the most urgent one."""

    VERIFICATION = "workflow_missing"
    """The payment waits for the chain."""

    BONUS = "bonus_missing"
    """The system tenant's bonus on a credited purchase."""

    BONUS_REVERSAL = "bonus_reversal_missing"
    """The second half of a reversal: the bonus was posted, and is not reversed."""

    FINALITY = "finality_missing"
    """A credited payment has to be tracked until it is final, or reorged out."""


@dataclass(frozen=True, slots=True)
class UnfinishedPayment:
    """A submitted payment for which something is due."""

    attempt_id: UUID
    owner_user_id: str
    tx_hash: str
    status: AttemptStatus
    due: tuple[Due, ...]
    """The most urgent first; never empty."""


def find_due(
    status: AttemptStatus | None,
    *,
    purpose: Purpose | None,
    bonus_credits: int,
    has_bonus: bool,
    has_bonus_reversal: bool,
    has_outcome: bool,
) -> tuple[Due, ...]:
    """What is due to an attempt, the most urgent first.

    `bonus_credits` is what its share mints, `has_outcome` whether its finality is on record.
    """
    match status:
        case AttemptStatus.PENDING_UNVERIFIED:
            return (Due.VERIFICATION,)
        case AttemptStatus.CREDITED:
            lacks_bonus = purpose is Purpose.SELF and bonus_credits > 0 and not has_bonus
            return (*((Due.BONUS,) if lacks_bonus else ()), *(() if has_outcome else (Due.FINALITY,)))
        case AttemptStatus.REVERSED:
            return (Due.BONUS_REVERSAL,) if has_bonus and not has_bonus_reversal else ()
        case None | AttemptStatus.CREATED_INTENT | AttemptStatus.REJECTED | AttemptStatus.FAILED:
            return ()
        case _:
            assert_never(status)
