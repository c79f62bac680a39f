"""`VerifyAndSettle` with one line that must not be in a workflow. A module of its own, which the sandbox imports."""

from __future__ import annotations

from datetime import UTC, datetime

from temporalio import workflow

from activities.messages import Settlement, SettlementResult
from workflows.naming import VERIFY_AND_SETTLE
from workflows.verify_and_settle import VerifyAndSettle


@workflow.defn(name=VERIFY_AND_SETTLE)
class ReadsTheClock(VerifyAndSettle):
    """The same steps, and the worker's clock."""

    @workflow.init
    def __init__(self, payment: Settlement) -> None:
        super().__init__(payment)

    @workflow.run
    async def run(self, payment: Settlement) -> SettlementResult:
        """Read the clock, then go on as before."""
        datetime.now(UTC)
        return await VerifyAndSettle.run(self, payment)
