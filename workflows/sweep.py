"""Collects what deposit addresses hold: sends signed transactions until the chain has decided each, then books."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.deposits.signatures import SweepEnded, SweepSignatures, SweptToBook
    from activities.messages import SweepRef
    from workflows.naming import SWEEP
    from workflows.policies import (
        BATCHES_HEARTBEAT,
        BATCHES_START_TO_CLOSE,
        SWEEP_RETRY,
        SWEEP_SCHEDULE_TO_CLOSE,
        SWEEP_START_TO_CLOSE,
    )


@workflow.defn(name=SWEEP)
class Sweep:
    """One file of signed transactions. They are stored before this starts."""

    @workflow.run
    async def run(self, sweep: SweepRef) -> SweepEnded:
        """Lifecycle of a sweep. Fails where a transaction was reverted or replaced, after everything is booked."""
        ended = await self._send(sweep)
        await self._book(sweep)
        workflow.set_current_details("; ".join([f"{ended.nonces} transactions decided", *ended.problems]))
        if ended.problems:
            raise ApplicationError("; ".join(ended.problems), type="SWEEP_FAILED", non_retryable=True)
        return ended

    async def _send(self, sweep: SweepRef) -> SweepEnded:
        return await workflow.execute_activity_method(
            SweepSignatures.advance_sweep,
            sweep,
            start_to_close_timeout=SWEEP_START_TO_CLOSE,
            schedule_to_close_timeout=SWEEP_SCHEDULE_TO_CLOSE,
            retry_policy=SWEEP_RETRY,
            summary="send the signed transactions until each is decided",
        )

    async def _book(self, sweep: SweepRef) -> None:
        await workflow.execute_activity_method(
            SweepSignatures.book_swept,
            SweptToBook(chain_id=sweep.chain_id),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=SWEEP_RETRY,
            summary="book what was moved",
        )
