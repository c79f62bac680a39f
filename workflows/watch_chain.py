"""One long-lived workflow for each chain: every transfer to the treasury is recorded, whoever submits it or nobody."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.messages import Followed, WatchedChain
    from activities.transfers.signatures import WatchingSignatures
    from workflows.naming import WATCH_CHAIN, task_queue
    from workflows.policies import FOLLOW_GRACE, FOLLOW_HEARTBEAT, FOLLOW_RETRY


@workflow.defn(name=WATCH_CHAIN)
class WatchChain:
    """Follows a chain for ever: an activity at a time, a run for each, so that no history grows long."""

    @workflow.run
    async def run(self, chain: WatchedChain) -> None:
        """Follow for a while, and begin anew."""
        before = f"; the run before came to {chain.last_words}" if chain.last_words else ""
        workflow.set_current_details(
            f"follows chain {chain.chain_id}: the pending activity's heartbeat says how far{before}"
        )
        followed = await self._follow(chain)
        workflow.continue_as_new(
            chain.model_copy(update={"last_words": followed.words}),
            # A run that began on the queue of all chains goes on on its own chain's.
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
