"""Starting the workflow of a credited payment that may be reorged out, or is half reversed."""

from __future__ import annotations

from temporalio.client import Client
from temporalio.common import (
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.messages import TrackedPayment
from domain.errors import BookkeepingError
from domain.money import format_usd
from domain.payments.attempt import PaymentAttempt
from domain.payments.verification import terms_of
from starter.payment_attributes import search_attributes
from starter.temporal import RPC_TIMEOUT, answered
from workflows.naming import (
    reversal_workflow_id,
    task_queue,
)
from workflows.reverse_payment import ReversePayment


async def start_reversal(client: Client, attempt: PaymentAttempt, *, again: bool) -> bool:
    """Start or join the run of a credited or reversed attempt; after a completed one only `again`.

    False where a run has completed and none was started. Raises `TemporalUnavailable`, and `BookkeepingError` for an
    attempt without a hash.
    """
    if attempt.tx_hash is None:
        raise BookkeepingError(f"attempt {attempt.id} is {attempt.status} without a submitted hash")
    policy = WorkflowIDReusePolicy.ALLOW_DUPLICATE if again else WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    with answered(client):
        try:
            await client.start_workflow(
                ReversePayment.run,
                _tracked(attempt, attempt.tx_hash),
                id=reversal_workflow_id(attempt.id),
                task_queue=task_queue(attempt.chain_id),
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=policy,
                search_attributes=search_attributes(attempt, attempt.tx_hash, attempt.status),
                static_summary=_summary(attempt),
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            return False
    return True


def _tracked(attempt: PaymentAttempt, tx_hash: str) -> TrackedPayment:
    return TrackedPayment(
        attempt_id=attempt.id,
        owner_user_id=attempt.owner_user_id,
        billing_account_id=attempt.billing_account_id,
        chain_id=attempt.chain_id,
        tx_hash=tx_hash,
        purpose=attempt.purpose,
        amount_usd_cents=attempt.amount_usd_cents,
        terms=terms_of(attempt),
    )


def _summary(attempt: PaymentAttempt) -> str:
    payment = f"{format_usd(attempt.amount_usd_cents)} USD by {attempt.from_address}"
    return f"payment of {payment}: reverse it, unless it is on the chain for good"
