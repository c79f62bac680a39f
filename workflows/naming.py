"""Every Temporal name in one place, with functions both ways."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from temporalio.common import SearchAttributeKey

TASK_QUEUE: Final = "settlement"
VERIFY_AND_SETTLE: Final = "VerifyAndSettle"
SUBMIT_UPDATE: Final = "submit"

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


def submit_update_id(submission_count: int, tx_hash: str, *, after: str | None = None) -> str:
    """Id of the update that submits `tx_hash` after `submission_count` recorded submissions.

    The count is part of it because a stored answer is given again for the same id: a payer who goes back to
    an earlier hash makes a new submission, a client that repeats its call does not. `after` names a run that is
    over or a refusal that is not true any more: what was answered then is of no use.
    """
    return f"submit-{submission_count}-{tx_hash}" + (f"-after-{after}" if after else "")
