"""Every Temporal name in one place, with functions both ways."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from temporalio.common import SearchAttributeKey

from domain.operations.findings import Remedy

PLATFORM_TASK_QUEUE: Final = "settlement"
"""Queue of work that belongs to no chain: the platform's own jobs. Every worker polls it.

Up to schema revision 0003 it was the only queue, of every chain: runs from then are still on it and end there, because
each activity checks its payment's chain, whichever queue it came from.
"""

WEBHOOK_TASK_QUEUE: Final = "settlement-webhooks"
"""Queue of deliveries of webhooks, which wait for receivers: they delay no other work. Every worker polls it."""

VERIFY_AND_SETTLE: Final = "VerifyAndSettle"
SUBMIT_UPDATE: Final = "submit"
"""Of starters up to schema revision 0006, which left the recording of a hash to the run."""

HASH_REPLACED_SIGNAL: Final = "hash_replaced"

REVERSE_PAYMENT: Final = "ReversePayment"

GOVERNANCE_HEARTBEAT: Final = "GovernanceHeartbeat"
GOVERNANCE_REPORT: Final = "GovernanceReport"
GOVERNANCE_LOOP: Final = "GovernanceLoop"
HOUSEKEEPING: Final = "Housekeeping"
CHECK_BOOKS: Final = "CheckBooks"

RESOLVE_FINDING: Final = "ResolveFinding"
RESOLVE_HOLD: Final = "ResolveHold"
BILLING_HOUSEKEEPING: Final = "BillingHousekeeping"
RECONCILE_PROVIDERS: Final = "ReconcileProviders"
RECONCILE: Final = "Reconcile"
DELIVER_WEBHOOK: Final = "DeliverWebhook"
TRY_AT_ONCE_SIGNAL: Final = "try_at_once"
WEBHOOK_HOUSEKEEPING: Final = "WebhookHousekeeping"

VERIFY_ADDRESSES: Final = "VerifyAddresses"
SWEEP: Final = "Sweep"
BOOK_SWEEPS: Final = "BookSweeps"
CHECK_DEPOSITS: Final = "CheckDeposits"

WATCH_CHAIN: Final = "WatchChain"
RESCAN_CHAIN: Final = "RescanChain"

SCHEDULED_START_TIME: Final = SearchAttributeKey.for_datetime("TemporalScheduledStartTime")
"""Temporal's own attribute: when a schedule meant a workflow to start."""

SCHEDULE_MEMO: Final = "settle"
"""Memo field that marks a schedule as ours; no other schedule is ever changed or deleted."""

SCHEDULE_CHAIN_MEMO: Final = "settleChainId"
"""Memo field with the chain of a schedule that belongs to one. Another chain's `apply` does not touch it."""

_TASK_QUEUE_PREFIX: Final = "settlement-"
_SCHEDULE_ID_PREFIX: Final = "settle-"
_RESOLVE_ID_PREFIX: Final = "resolve-finding-"
_RESOLVE_HOLD_ID_PREFIX: Final = "resolve-hold-"
_DELIVERY_ID_PREFIX: Final = "deliver-webhook-"
_WATCH_ID_PREFIX: Final = "watch-chain-"
_WORKFLOW_ID_PREFIX: Final = "verify-and-settle-"
_REVERSAL_ID_PREFIX: Final = "reverse-payment-"
_SWEEP_ID_PREFIX: Final = "sweep-"

PAYMENT_PURPOSE: Final = SearchAttributeKey.for_keyword("PaymentPurpose")
PAYMENT_STATUS: Final = SearchAttributeKey.for_keyword("PaymentStatus")
BILLING_ACCOUNT_ID: Final = SearchAttributeKey.for_keyword("BillingAccountId")
CHAIN_ID: Final = SearchAttributeKey.for_int("ChainId")
TX_HASH: Final = SearchAttributeKey.for_keyword("TxHash")

SEARCH_ATTRIBUTES: Final = (PAYMENT_PURPOSE, PAYMENT_STATUS, BILLING_ACCOUNT_ID, CHAIN_ID, TX_HASH)


def task_queue(chain_id: int | None) -> str:
    """The queue of a chain, which only workers of that chain poll; with None, that of work without a chain."""
    return PLATFORM_TASK_QUEUE if chain_id is None else f"{_TASK_QUEUE_PREFIX}{chain_id}"


def chain_of_task_queue(queue: str) -> int:
    """The chain of a queue. Raises `ValueError` for any other queue."""
    return _chain_id_in(queue, _TASK_QUEUE_PREFIX, f"{queue} is not the task queue of a chain")


def workflow_id(attempt_id: UUID) -> str:
    """Id of the workflow that settles an attempt."""
    return f"{_WORKFLOW_ID_PREFIX}{attempt_id}"


def attempt_id_of(id_of_workflow: str) -> UUID:
    """The attempt that a workflow settles. Raises `ValueError` for any other workflow's id."""
    if not id_of_workflow.startswith(_WORKFLOW_ID_PREFIX):
        raise ValueError(f"{id_of_workflow} is not the id of a {VERIFY_AND_SETTLE} workflow")
    return UUID(id_of_workflow.removeprefix(_WORKFLOW_ID_PREFIX))


def reversal_workflow_id(attempt_id: UUID) -> str:
    """Id of the workflow that decides whether a credited payment is reversed."""
    return f"{_REVERSAL_ID_PREFIX}{attempt_id}"


def watch_workflow_id(chain_id: int) -> str:
    """Id of the workflow that follows a chain."""
    return f"{_WATCH_ID_PREFIX}{chain_id}"


def watched_chain_of(id_of_workflow: str) -> int:
    """The chain that a workflow follows. Raises `ValueError` for any other workflow's id."""
    return _chain_id_in(id_of_workflow, _WATCH_ID_PREFIX, f"{id_of_workflow} is not the id of a {WATCH_CHAIN} workflow")


def schedule_id(name: str, chain_id: int | None = None) -> str:
    """Id of the schedule that the schedules file calls `name`; the ids of its workflows begin with it.

    One that belongs to a chain has the chain in its id, so that two chains in one namespace have a schedule each.
    """
    return f"{_SCHEDULE_ID_PREFIX}{name}" + ("" if chain_id is None else f"-{chain_id}")


def schedule_name_of(id_of_schedule: str, chain_id: int | None = None) -> str:
    """A schedule's name in the schedules file. Raises `ValueError` for another kind of id."""
    suffix = "" if chain_id is None else f"-{chain_id}"
    if not (id_of_schedule.startswith(_SCHEDULE_ID_PREFIX) and id_of_schedule.endswith(suffix)):
        raise ValueError(f"{id_of_schedule} is not the id of a schedule of ours")
    return id_of_schedule.removeprefix(_SCHEDULE_ID_PREFIX).removesuffix(suffix)


def resolve_workflow_id(finding_id: UUID, remedy: Remedy) -> str:
    """Id of the workflow that executes a remedy. Each remedy has its own: the database decides which of two comes
    first.
    """
    return f"{_RESOLVE_ID_PREFIX}{finding_id}-{remedy.value}"


def resolve_hold_workflow_id(hold_id: UUID) -> str:
    """Id of the workflow that resolves a lapsed hold."""
    return f"{_RESOLVE_HOLD_ID_PREFIX}{hold_id}"


def sweep_workflow_id(sweep_id: UUID) -> str:
    """Id of the workflow that sends a sweep's transactions."""
    return f"{_SWEEP_ID_PREFIX}{sweep_id}"


def webhook_delivery_workflow_id(event_id: UUID, endpoint_id: UUID) -> str:
    """Id of the workflow that delivers an event to an endpoint."""
    return f"{_DELIVERY_ID_PREFIX}{event_id}-{endpoint_id}"


def submit_update_id(submission_count: int, tx_hash: str, *, after: str | None = None) -> str:
    """Id of the update that submits `tx_hash` after `submission_count` recorded submissions.

    The count is part of it because the same id gets the stored answer: a payer who returns to an earlier hash makes a
    new submission, a client that repeats its call does not. `after` names an ended run or an outdated refusal, whose
    stored answer must not be reused.
    """
    return f"submit-{submission_count}-{tx_hash}" + (f"-after-{after}" if after else "")


def _chain_id_in(name: str, prefix: str, otherwise: str) -> int:
    number = name.removeprefix(prefix)
    if number == name or not (number.isascii() and number.isdigit()):
        raise ValueError(otherwise)
    return int(number)
