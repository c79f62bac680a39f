"""Starting the resolution of a hold whose gateway has died."""

from __future__ import annotations

from temporalio.client import Client
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from activities.messages import HoldRef
from db.billing.lapsed import LapsedHold
from starter.temporal import RPC_TIMEOUT, to_temporal_unavailable
from workflows.naming import BILLING_ACCOUNT_ID, resolve_hold_workflow_id, task_queue
from workflows.resolve_hold import ResolveHold


async def start_hold_resolution(temporal: Client, hold: LapsedHold) -> bool:
    """Start resolving a hold; False where a run is at work on it. Raises `TemporalUnavailable`.

    A run that has ended is followed by another: its hold's gateway was alive then, and is not now.
    """
    try:
        await temporal.start_workflow(
            ResolveHold.run,
            HoldRef(
                hold_id=hold.id,
                billing_account_id=hold.billing_account_id,
                model=hold.model,
                upstream=hold.upstream,
            ),
            id=resolve_hold_workflow_id(hold.id),
            task_queue=task_queue(None),
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=TypedSearchAttributes([SearchAttributePair(BILLING_ACCOUNT_ID, hold.billing_account_id)]),
            static_summary=f"a call to {hold.model} whose lease was over at {hold.lease_until:%Y-%m-%d %H:%M:%S}",
            rpc_timeout=RPC_TIMEOUT,
        )
    except WorkflowAlreadyStartedError:
        return False
    except (RPCError, RuntimeError) as error:
        raise to_temporal_unavailable(error) from error
    return True
