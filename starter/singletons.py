"""Singleton workflows: started once, and again where one has ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError, RPCStatusCode

from starter.temporal import RPC_TIMEOUT, answered
from workflows.naming import task_queue


@dataclass(frozen=True, slots=True)
class SingletonWorkflow:
    """A workflow of which exactly one must run."""

    workflow_id: str
    workflow: str
    input: BaseModel
    summary: str
    chain_id: int | None = None
    """The chain whose workers run it; None is any."""


async def list_missing(client: Client, wanted: Iterable[SingletonWorkflow]) -> list[SingletonWorkflow]:
    """Those that do not run. Raises `TemporalUnavailable` and `StartupCheckFailed`."""
    return [standing for standing in wanted if not await _is_running(client, standing.workflow_id)]


async def start_missing(client: Client, wanted: Iterable[SingletonWorkflow]) -> list[str]:
    """Start those that do not run; returns their ids. Safe to repeat, and to run concurrently."""
    missing = await list_missing(client, wanted)
    with answered(client):
        for standing in missing:
            await client.start_workflow(
                standing.workflow,
                standing.input,
                id=standing.workflow_id,
                task_queue=task_queue(standing.chain_id),
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                static_summary=standing.summary,
                rpc_timeout=RPC_TIMEOUT,
            )
    return [standing.workflow_id for standing in missing]


async def _is_running(client: Client, workflow_id: str) -> bool:
    with answered(client):
        try:
            description = await client.get_workflow_handle(workflow_id).describe(rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
                return False
            raise
    return description.status == WorkflowExecutionStatus.RUNNING
