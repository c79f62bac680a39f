"""What deposit addresses hold, each night, at one finalized block: a transfer that no lane has read is found."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.deposits.signatures import BalancesFound, BalanceSignatures, BalancesToCheck
    from workflows.naming import CHECK_DEPOSITS
    from workflows.policies import BATCHES_HEARTBEAT, BATCHES_RETRY, BATCHES_START_TO_CLOSE


@workflow.defn(name=CHECK_DEPOSITS)
class CheckDeposits:
    """One comparison of all addresses of a chain."""

    @workflow.run
    async def run(self, wanted: BalancesToCheck) -> BalancesFound:
        """Lifecycle of a comparison. What differs is in the findings; the run itself succeeds."""
        found = await workflow.execute_activity_method(
            BalanceSignatures.check_deposit_balances,
            wanted,
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="compare what deposit addresses hold with what came to them",
        )
        words = f"{found.addresses} addresses at block {found.block}, {found.found_transfers} transfers found"
        workflow.set_current_details("; ".join([words, *found.problems]))
        (workflow.logger.error if found.problems else workflow.logger.info)(words)
        return found
