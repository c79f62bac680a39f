"""What a settling step reports of the attempt, to the workflow and to the metrics."""

from __future__ import annotations

from datetime import datetime

from activities.messages import AttemptOutcomeMessage
from db.clock import estimated_now
from services.payments.lifecycle import AttemptOutcome
from telemetry.metrics.worker import observe_outcome


def report(ending: AttemptOutcome, *, confirmed_at: datetime | None = None) -> AttemptOutcomeMessage:
    """The ending as a message; counted where this step brought it about, and not where it found it done.

    `confirmed_at` is when the chain had confirmed the payment, where that is known.
    """
    if ending.changed:
        observe_outcome(ending.attempt, now=estimated_now(), confirmed_at=confirmed_at)
    return AttemptOutcomeMessage(
        status=ending.attempt.status,
        error_code=ending.attempt.error_code,
        tx_hash=ending.attempt.tx_hash,
        amount_credits=ending.credited_credits,
    )
