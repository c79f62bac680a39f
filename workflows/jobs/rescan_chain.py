"""Reads the chain's last blocks again, for logs that nodes left out when the blocks were new."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.messages import Rescan
    from activities.transfers.signatures import WatchingSignatures
    from domain.transfers.rescan import RescanReport
    from workflows.naming import RESCAN_CHAIN
    from workflows.policies import RESCAN_HEARTBEAT, RESCAN_RETRY, RESCAN_SCHEDULE_TO_CLOSE


@workflow.defn(name=RESCAN_CHAIN)
class RescanChain:
    """One overlapping re-scan; the chain's watcher acts on what it finds."""

    @workflow.run
    async def run(self, rescan: Rescan) -> RescanReport:
        """Read the last blocks again, with every endpoint."""
        report = await workflow.execute_activity_method(
            WatchingSignatures.rescan_chain,
            rescan,
            schedule_to_close_timeout=RESCAN_SCHEDULE_TO_CLOSE,
            heartbeat_timeout=RESCAN_HEARTBEAT,
            retry_policy=RESCAN_RETRY,
            summary=f"read the last {rescan.blocks} blocks again",
        )
        workflow.set_current_details(
            f"blocks {report.first} to {report.last}: {report.added} transfers had been missed, "
            f"{report.orphaned} were not on the chain; {len(report.endpoints)} endpoints answered"
        )
        return report
