"""Starting the workflow that sends a sweep's signed transactions."""

from __future__ import annotations

from uuid import UUID

from temporalio.client import Client
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from activities.messages import SweepRef
from starter.temporal import RPC_TIMEOUT, to_temporal_unavailable
from workflows.naming import CHAIN_ID, sweep_workflow_id, task_queue
from workflows.sweep import Sweep


async def start_sweep(temporal: Client, sweep_id: UUID, chain_id: int, *, summary: str) -> bool:
    """Start sending a stored sweep; False where a run is at work on it. Raises `TemporalUnavailable`.

    A run that has ended is followed by another: what is decided stays so, and what was signed again is sent.
    """
    try:
        await temporal.start_workflow(
            Sweep.run,
            SweepRef(sweep_id=sweep_id, chain_id=chain_id),
            id=sweep_workflow_id(sweep_id),
            task_queue=task_queue(chain_id),
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=TypedSearchAttributes([SearchAttributePair(CHAIN_ID, chain_id)]),
            static_summary=summary,
            rpc_timeout=RPC_TIMEOUT,
        )
    except WorkflowAlreadyStartedError:
        return False
    except (RPCError, RuntimeError) as error:
        raise to_temporal_unavailable(error) from error
    return True
