"""Reconciliation of chain, attempts, ledger and workflows since the last one."""

from __future__ import annotations

from temporalio import workflow

from workflows.publish import publish

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.messages import Message
    from activities.operations.signatures import PeriodToReconcile, ReconciliationSignatures
    from domain.operations.events import RECONCILED, PlatformEvent
    from domain.operations.reconciliation.report import Report
    from workflows.naming import RECONCILE
    from workflows.policies import (
        BATCHES_HEARTBEAT,
        RECONCILE_RETRY,
        RECONCILE_START_TO_CLOSE,
    )


class ReconcileInput(Message):
    """Period to reconcile."""

    hours: int = Field(default=24, ge=1, le=24 * 31, description="length of the period; longer where one was missed")
    chain_id: int | None = None
    """None is the chain of the worker that runs it."""


class Reconciled(Message):
    """Result of a reconciliation; the report is in the worker's log, the findings and the CSV."""

    assertion_id: int
    closes: bool
    alarms: int
    counts: dict[str, int]
    transfers: int
    csv: str | None = None


@workflow.defn(name=RECONCILE)
class Reconcile:
    """One reconciliation, and the event about it."""

    @workflow.run
    async def run(self, wanted: ReconcileInput) -> Reconciled:
        """Lifecycle of a reconciliation."""
        report = await self._reconcile(wanted)
        await self._announce(report)
        self._set_status(report)
        return Reconciled(
            assertion_id=report.assertion_id or 0,
            closes=report.closes,
            alarms=report.alarms,
            counts=report.counts,
            transfers=report.totals.transfers,
            csv=report.csv,
        )

    async def _reconcile(self, wanted: ReconcileInput) -> Report:
        return await workflow.execute_activity_method(
            ReconciliationSignatures.reconcile,
            PeriodToReconcile(hours=wanted.hours, chain_id=wanted.chain_id),
            start_to_close_timeout=RECONCILE_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=RECONCILE_RETRY,
            summary=f"reconcile the last {wanted.hours} hours",
        )

    async def _announce(self, report: Report) -> None:
        # In either case the assertion is stored, and findings are published separately.
        await publish(_event(report), summary="publish the reconciliation", what="the reconciliation")

    def _set_status(self, report: Report) -> None:
        words = "the totals balance" if report.closes else "THE TOTALS DO NOT BALANCE"
        counted = ", ".join(f"{count} {kind}" for kind, count in report.counts.items()) or "no differences"
        words = f"{report.totals.transfers} transfers, {words}, {report.alarms} alarms; {counted}"
        workflow.set_current_details(words)
        (workflow.logger.info if report.is_well else workflow.logger.error)(words)


def _event(report: Report) -> PlatformEvent:
    return PlatformEvent(
        id=f"{RECONCILED}:{report.chain_id}:{report.assertion_id}",
        type=RECONCILED,
        subject=f"chain {report.chain_id}",
        time=workflow.now(),
        data={
            "assertionId": report.assertion_id,
            "from": report.period.from_time.isoformat(),
            "to": report.period.to_time.isoformat(),
            "closes": report.closes,
            "alarms": report.alarms,
            "differences": report.counts,
            # Sums of token units do not fit a JSON number.
            "totals": {name: str(value) for name, value in report.totals.by_name().items()},
        },
    )
