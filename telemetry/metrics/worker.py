"""Metrics of the worker, besides the SDK's own. Names follow Prometheus' conventions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from domain.payments.attempt import PaymentAttempt

POLLS: Final = Counter(
    "settle_chain_looks",
    "Polls for one payment, by result and by what answered: a chain node, or the chain watcher's rows",
    ["outcome", "answered_by"],
)
OUTCOMES: Final = Counter("settle_attempts_ended", "Payment attempts ended", ["purpose", "status", "error_code"])
FINALITY_POLLS: Final = Counter(
    "settle_finality_looks", "Polls of the chain for one credited payment, by result", ["outcome"]
)
REVERSED_BONUS_CREDITS: Final = Counter("settle_reversed_bonus_credits", "Bonus credits reversed")
BONUS_CREDITS: Final = Counter("settle_bonus_credits", "Credits minted for the system tenant on purchases")
REMEDIES_TAKEN: Final = Counter("settle_remedies", "Remedies executed by operators", ["kind", "remedy"])
RECONCILIATION_DIFFERENCES: Final = Counter(
    "settle_reconciliation_differences", "Differences found by reconciliations", ["kind"]
)
RECONCILIATION_SECONDS: Final = Histogram(
    "settle_reconciliation_seconds", "Seconds that a reconciliation took", buckets=(1, 5, 15, 60, 300, 900)
)
SUBMIT_TO_END: Final = Histogram(
    "settle_submit_to_end_seconds",
    "Seconds from the submission of a hash to the attempt's end",
    ["purpose", "status"],
    buckets=(1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 900, 3600, 14_400, 86_400),
)
INTENTS_EXPIRED: Final = Counter("settle_intents_expired", "Unpaid intents ended by housekeeping")
ROWS_PRUNED: Final = Counter("settle_rows_pruned", "Expired rows deleted by housekeeping", ["table"])
WORKFLOWS_RESTARTED: Final = Counter(
    "settle_workflows_restarted", "Payments without a workflow, restarted by housekeeping", ["status"]
)
HOLDS_RESOLVED: Final = Counter(
    "settle_holds_resolved", "Holds of gateways that died, by what was done with them", ["outcome", "basis"]
)
WEBHOOK_TRIES: Final = Counter(
    "settle_webhook_tries",
    "Webhooks sent, by what came of it: accepted, refused by the receiver's status, or no answer",
    ["outcome"],
)
CONFIRMED_TO_CREDITED: Final = Histogram(
    "settle_confirmed_to_credited_seconds",
    "Seconds from the block that confirmed a submitted payment to its credit",
    ["purpose"],
    buckets=(1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 900, 3600),
)
BOOKS_VIOLATIONS: Final = Gauge("settle_books_violations", "Violated ledger invariants", ["check"])
BOOKS_LAST_CHECK: Final = Gauge(
    "settle_books_last_check_timestamp_seconds", "When a scheduled integrity scan last finished"
)
BOOKS_CHECK_SECONDS: Final = Histogram(
    "settle_books_check_seconds",
    "Duration of an integrity scan in seconds",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
BOOKS_ENTRIES_CHECKED: Final = Counter("settle_books_entries_checked", "New ledger entries checked by integrity scans")
PRECONDITIONS_MET: Final = Gauge(
    "settle_preconditions_met",
    "1 if the chain's nodes confirm the preconditions of crediting, else 0",
    ["chain"],
)
WATCHER_BLOCK: Final = Gauge("settle_watcher_block", "Last block whose transfers are recorded", ["chain"])
WATCHER_LAG: Final = Gauge("settle_watcher_lag_blocks", "Blocks that the chain watcher is behind the head", ["chain"])
OBSERVED_TRANSFERS: Final = Counter("settle_observed_transfers", "Transfers to the treasury seen on the chain")
REORGANISATIONS: Final = Counter("settle_watcher_reorganisations", "Reorganisations seen by the chain watcher")
WATCHER_SUBMISSIONS: Final = Counter("settle_watcher_submissions", "Payments submitted by the chain watcher")
FINDINGS_OPENED: Final = Counter("settle_findings_opened", "Transfers left to an operator", ["kind"])
DUST_TRANSFERS: Final = Counter("settle_dust_transfers", "Transfers too small for a finding, which pay nothing")
DUST_RAW: Final = Counter("settle_dust_raw", "Token units of transfers too small for a finding")
RPC_REQUESTS: Final = Counter("settle_chain_rpc_requests", "HTTP requests to chain nodes", ["endpoint", "outcome"])
RPC_SECONDS: Final = Histogram("settle_chain_rpc_seconds", "Seconds that a chain node took to answer", ["endpoint"])


def observe_outcome(attempt: PaymentAttempt, *, now: datetime, confirmed_at: datetime | None = None) -> None:
    """Count an attempt that has ended `now`, by the database's clock.

    `confirmed_at` is when the chain had confirmed it, where known.
    """
    OUTCOMES.labels(attempt.purpose.value, attempt.status.value, attempt.error_code or "").inc()
    if attempt.submitted_at is not None:
        seconds = (now - attempt.submitted_at).total_seconds()
        SUBMIT_TO_END.labels(attempt.purpose.value, attempt.status.value).observe(seconds)
    if attempt.submitted_at is not None and confirmed_at is not None:
        # A late submission was confirmed before it was known here.
        seconds = (now - max(confirmed_at, attempt.submitted_at)).total_seconds()
        CONFIRMED_TO_CREDITED.labels(attempt.purpose.value).observe(max(seconds, 0.0))


def observe_rpc_request(endpoint: str, outcome: str, seconds: float) -> None:
    """Count one HTTP request to a chain node."""
    RPC_REQUESTS.labels(endpoint, outcome).inc()
    RPC_SECONDS.labels(endpoint).observe(seconds)


def observe_books(violations: Mapping[str, int], checked_at: datetime | None) -> None:
    """Set the gauges of the ledger's integrity: recorded violations by check, and the last scheduled scan's end, if
    any.
    """
    for check, number in violations.items():
        BOOKS_VIOLATIONS.labels(check).set(number)
    if checked_at is not None:
        BOOKS_LAST_CHECK.set(checked_at.timestamp())
