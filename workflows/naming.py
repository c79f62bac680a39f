"""Every Temporal name in one place, with functions both ways."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from temporalio.common import SearchAttributeKey

from domain.findings import Remedy

TASK_QUEUE: Final = "settlement"
VERIFY_AND_SETTLE: Final = "VerifyAndSettle"
SUBMIT_UPDATE: Final = "submit"

GOVERNANCE_HEARTBEAT: Final = "GovernanceHeartbeat"
GOVERNANCE_REPORT: Final = "GovernanceReport"
HOUSEKEEPING: Final = "Housekeeping"
CHECK_BOOKS: Final = "CheckBooks"

RESOLVE_FINDING: Final = "ResolveFinding"
RECONCILE: Final = "Reconcile"

WATCH_CHAIN: Final = "WatchChain"
RESCAN_CHAIN: Final = "RescanChain"

SCHEDULED_START_TIME: Final = SearchAttributeKey.for_datetime("TemporalScheduledStartTime")
"""Temporal's own: when a schedule meant a workflow to start."""

SCHEDULE_MEMO: Final = "settle"
"""Memo field that marks a schedule as one of ours; nobody else's is ever changed or deleted."""

_SCHEDULE_ID_PREFIX: Final = "settle-"
_RESOLVE_ID_PREFIX: Final = "resolve-finding-"
_WATCH_ID_PREFIX: Final = "watch-chain-"
_WORKFLOW_ID_PREFIX: Final = "verify-and-settle-"

PAYMENT_PURPOSE: Final = SearchAttributeKey.for_keyword("PaymentPurpose")
PAYMENT_STATUS: Final = SearchAttributeKey.for_keyword("PaymentStatus")
BILLING_ACCOUNT_ID: Final = SearchAttributeKey.for_keyword("BillingAccountId")
CHAIN_ID: Final = SearchAttributeKey.for_int("ChainId")
TX_HASH: Final = SearchAttributeKey.for_keyword("TxHash")

SEARCH_ATTRIBUTES: Final = (PAYMENT_PURPOSE, PAYMENT_STATUS, BILLING_ACCOUNT_ID, CHAIN_ID, TX_HASH)


def workflow_id(attempt_id: UUID) -> str:
    """Id of the workflow that settles an attempt."""
    return f"{_WORKFLOW_ID_PREFIX}{attempt_id}"


def attempt_id_of(id_of_workflow: str) -> UUID:
    """The attempt that a workflow settles. Raises `ValueError` for any other workflow's id."""
    if not id_of_workflow.startswith(_WORKFLOW_ID_PREFIX):
        raise ValueError(f"{id_of_workflow} is not the id of a {VERIFY_AND_SETTLE} workflow")
    return UUID(id_of_workflow.removeprefix(_WORKFLOW_ID_PREFIX))


def watch_workflow_id(chain_id: int) -> str:
    """Id of the workflow that follows a chain."""
    return f"{_WATCH_ID_PREFIX}{chain_id}"


def watched_chain_of(id_of_workflow: str) -> int:
    """The chain that a workflow follows. Raises `ValueError` for any other workflow's id."""
    number = id_of_workflow.removeprefix(_WATCH_ID_PREFIX)
    if number == id_of_workflow or not (number.isascii() and number.isdigit()):
        raise ValueError(f"{id_of_workflow} is not the id of a {WATCH_CHAIN} workflow")
    return int(number)


def schedule_id(name: str) -> str:
    """Id of the schedule that the schedules' file calls `name`; its workflows' ids begin with it."""
    return f"{_SCHEDULE_ID_PREFIX}{name}"


def schedule_name_of(id_of_schedule: str) -> str:
    """What the schedules' file calls a schedule. Raises `ValueError` for one that has another kind of id."""
    if not id_of_schedule.startswith(_SCHEDULE_ID_PREFIX):
        raise ValueError(f"{id_of_schedule} is not the id of a schedule of ours")
    return id_of_schedule.removeprefix(_SCHEDULE_ID_PREFIX)


def resolve_workflow_id(finding_id: UUID, remedy: Remedy) -> str:
    """Id of the workflow that carries a remedy out. Each has its own: which of two comes first, the database says."""
    return f"{_RESOLVE_ID_PREFIX}{finding_id}-{remedy.value}"


def submit_update_id(submission_count: int, tx_hash: str, *, after: str | None = None) -> str:
    """Id of the update that submits `tx_hash` after `submission_count` recorded submissions.

    The count is part of it because a stored answer is given again for the same id: a payer who goes back to
    an earlier hash makes a new submission, a client that repeats its call does not. `after` names a run that is
    over or a refusal that is not true any more: what was answered then is of no use.
    """
    return f"submit-{submission_count}-{tx_hash}" + (f"-after-{after}" if after else "")
