"""Durable execution of an operator's decision, and its result."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError

from domain.errors import RemedyRefused, TemporalUnavailable
from domain.operations.resolutions import RemedyRequest, TakenRemedy, describe
from starter.temporal import refused_with, to_temporal_unavailable
from workflows.naming import resolve_workflow_id, task_queue
from workflows.resolve_finding import ResolveFinding

ANSWER_TIMEOUT: Final = timedelta(seconds=30)
"""How long the command waits for a worker before it reports that none has answered."""

NOT_EXECUTED_YET: Final = (
    "no worker has answered yet; the remedy is executed when one does: repeat the command to see the result"
)


async def start_remedy(temporal: Client, request: RemedyRequest) -> WorkflowHandle[ResolveFinding, TakenRemedy]:
    """Start a remedy on its chain's queue, or join the run of the same remedy.

    A run that has ended is followed by another, which completes in the database what is missing. Raises
    `TemporalUnavailable`.
    """
    try:
        return await temporal.start_workflow(
            ResolveFinding.run,
            request,
            id=resolve_workflow_id(request.finding_id, request.remedy),
            task_queue=task_queue(request.chain_id),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            static_summary=f"{request.remedy.value} of finding {request.finding_id}, by {request.operator}",
        )
    except (RPCError, RuntimeError) as error:
        raise to_temporal_unavailable(error) from error


async def execute(temporal: Client, request: RemedyRequest) -> TakenRemedy:
    """Execute a remedy, and wait for the result. Safe to repeat: the same answer.

    Raises `FindingNotFound`, `RemedyRefused`, and `TemporalUnavailable`, also where no worker answers in time: the
    remedy is then recorded, and executed when a worker runs.
    """
    handle = await start_remedy(temporal, request)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT.total_seconds()):
            taken = await handle.result()
    except WorkflowFailureError as error:
        raise refused_with(error) from error
    except TimeoutError:
        raise TemporalUnavailable(NOT_EXECUTED_YET) from None
    except (RPCError, RuntimeError) as error:
        raise to_temporal_unavailable(error) from error
    if request.billing_account_id not in {None, taken.billing_account_id} or request.refund_tx_hash not in {
        None,
        taken.refund_tx_hash,
    }:
        # Joined another operator's run, with another decision.
        raise RemedyRefused(f"finding {request.finding_id} is already resolved: {describe(taken)}")
    return taken
