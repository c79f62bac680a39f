"""What the worker counts, beside the SDK's own metrics. Names follow Prometheus' conventions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from prometheus_client import Counter, Histogram

from domain.attempt import PaymentAttempt

LOOKS: Final = Counter("settle_chain_looks", "Looks at the chain for one payment, by what they found", ["outcome"])
ENDINGS: Final = Counter("settle_attempts_ended", "Payment attempts ended", ["purpose", "status", "error_code"])
BONUS_CREDITS: Final = Counter("settle_bonus_credits", "Credits minted for the system tenant on purchases")
SUBMIT_TO_END: Final = Histogram(
    "settle_submit_to_end_seconds",
    "Seconds from the submission of a hash to the attempt's end",
    ["purpose", "status"],
    buckets=(1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 900, 3600, 14_400, 86_400),
)
RPC_REQUESTS: Final = Counter("settle_chain_rpc_requests", "HTTP requests to chain nodes", ["endpoint", "outcome"])
RPC_SECONDS: Final = Histogram("settle_chain_rpc_seconds", "Seconds that a chain node took to answer", ["endpoint"])


def observe_ending(attempt: PaymentAttempt) -> None:
    """Count an attempt that has just ended."""
    ENDINGS.labels(attempt.purpose.value, attempt.status.value, attempt.error_code or "").inc()
    if attempt.submitted_at is not None:
        seconds = (datetime.now(UTC) - attempt.submitted_at).total_seconds()
        SUBMIT_TO_END.labels(attempt.purpose.value, attempt.status.value).observe(seconds)


def observe_rpc_request(endpoint: str, outcome: str, seconds: float) -> None:
    """Count one HTTP request to a chain node."""
    RPC_REQUESTS.labels(endpoint, outcome).inc()
    RPC_SECONDS.labels(endpoint).observe(seconds)
