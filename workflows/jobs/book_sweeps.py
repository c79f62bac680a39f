"""What deposit addresses have sent to a treasury, in the ledger: by a sweep, or by a stranger's flush."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.deposits.signatures import SweepSignatures, SweptBooked, SweptToBook
    from workflows.naming import BOOK_SWEEPS
    from workflows.policies import BATCHES_HEARTBEAT, BATCHES_RETRY, BATCHES_START_TO_CLOSE


@workflow.defn(name=BOOK_SWEEPS)
class BookSweeps:
    """One pass over the blocks that have become deep enough."""

    @workflow.run
    async def run(self, wanted: SweptToBook) -> SweptBooked:
        """Lifecycle of a pass."""
        booked = await workflow.execute_activity_method(
            SweepSignatures.book_swept,
            wanted,
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="book transfers from deposit addresses to a treasury",
        )
        workflow.set_current_details(f"{booked.transfers} transfers booked")
        return booked
