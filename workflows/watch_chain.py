"""Singleton workflow per chain: records every transfer to the treasury, submitted or not."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.messages import Followed, WatchedChain
    from activities.transfers.signatures import WatchingSignatures
    from workflows.naming import WATCH_CHAIN, task_queue
    from workflows.policies import FOLLOW_GRACE, FOLLOW_HEARTBEAT, FOLLOW_RETRY


@workflow.defn(name=WATCH_CHAIN)
class WatchChain:
    """Follows a chain indefinitely, one activity and one run at a time, so that no history grows long."""

    @workflow.run
    async def run(self, chain: WatchedChain) -> None:
        """Follow for a while, then continue as new."""
        before = f"; the previous run reached {chain.last_words}" if chain.last_words else ""
        workflow.set_current_details(
            f"follows chain {chain.chain_id}: the pending activity's heartbeat says how far{before}"
        )
        followed = await self._follow(chain)
        workflow.continue_as_new(
            chain.model_copy(update={"last_words": followed.words}),
            # A run that began on the queue of all chains continues on its own chain's.
            task_queue=task_queue(chain.chain_id),
        )

    async def _follow(self, chain: WatchedChain) -> Followed:
        return await workflow.execute_activity_method(
            WatchingSignatures.follow_chain,
            chain,
            start_to_close_timeout=FOLLOW_GRACE + chain.follow_time,
            heartbeat_timeout=FOLLOW_HEARTBEAT,
            retry_policy=FOLLOW_RETRY,
            summary=f"follow chain {chain.chain_id}",
        )
