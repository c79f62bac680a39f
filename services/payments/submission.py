"""Recording a submitted hash: one transaction, which reads, decides and writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.clock import read_clock
from db.engine import TenantDatabase
from db.payments import attempts
from domain.payments.attempt import AttemptStatus, PaymentAttempt
from domain.payments.submission import needs_time_of_payment, require_own_chain, time_submission
from services.payments import lifecycle
from telemetry.metrics.payments import SUBMISSIONS


@dataclass(frozen=True, slots=True)
class RecordedHash:
    """The attempt after a submission."""

    attempt: PaymentAttempt
    is_replacement: bool
    """Whether this submission has put the hash in the place of another one, which a run may be polling for."""


async def record_hash(
    database: TenantDatabase,
    user_id: str,
    attempt_id: UUID,
    tx_hash: str,
    *,
    chain_id: int,
    mined_at: datetime | None = None,
) -> RecordedHash:
    """Record that `tx_hash` is to pay the attempt, which belongs to `chain_id`. Safe to repeat.

    `mined_at` is when its transfer was mined, where the caller knows; else the chain watcher's record is asked where it
    matters. An expired intent ends here; an attempt that has ended is returned as it is. Raises `AttemptNotFound`,
    `HashInUse`, `TooManyReplacements`, `WrongChain` and `DatabaseUnavailable`.
    """
    async with database.transaction(user_id) as connection:
        before = await lifecycle.lock(connection, attempt_id)
        now = await read_clock(connection.connection)
        if mined_at is None and needs_time_of_payment(before, now):
            mined_at = await attempts.find_observed_payment_time(connection, attempt_id, tx_hash)
        times = time_submission(before, now=now, mined_at=mined_at)
        require_own_chain(before, times, chain_id)
        outcome = await lifecycle.submit_locked(
            connection, before, tx_hash, submitted_at=times.submitted_at, mined_at=times.mined_at
        )
    waits = outcome.attempt.status is AttemptStatus.PENDING_UNVERIFIED
    if outcome.changed and waits:
        SUBMISSIONS.labels(outcome.attempt.purpose.value).inc()
    return RecordedHash(outcome.attempt, is_replacement=outcome.changed and waits and before.tx_hash is not None)
