"""Outcome of a settling step, for the workflow and for the metrics."""

from __future__ import annotations

from datetime import datetime

from activities.messages import AttemptOutcomeMessage
from db.clock import estimated_now
from services.payments.lifecycle import AttemptOutcome
from telemetry.metrics.worker import observe_outcome


def report(ending: AttemptOutcome, *, confirmed_at: datetime | None = None) -> AttemptOutcomeMessage:
    """The outcome as a message; counted only by the step that caused it.

    `confirmed_at` is when the chain had confirmed the payment, where known.
    """
    if ending.changed:
        observe_outcome(ending.attempt, now=estimated_now(), confirmed_at=confirmed_at)
    return AttemptOutcomeMessage(
        status=ending.attempt.status,
        error_code=ending.attempt.error_code,
        tx_hash=ending.attempt.tx_hash,
        amount_credits=ending.credited_credits,
    )
