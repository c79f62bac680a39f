"""Reconciliation of what providers say they billed with receipts, ledger and holds, by UTC day."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from workflows.publish import publish
from workflows.scheduled_run import this_scheduled_run

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.billing.signatures import DaysToReconcile, ProviderReconciliationSignatures, ProvidersReconciled
    from activities.messages import Message
    from domain.operations.events import PROVIDERS_RECONCILED, PlatformEvent
    from workflows.naming import RECONCILE_PROVIDERS
    from workflows.policies import BATCHES_RETRY, PROVIDERS_START_TO_CLOSE


class ReconcileProvidersInput(Message):
    """How far back."""

    days: int = Field(default=3, ge=1, le=28)
    """Completed UTC days before the scheduled time."""


@workflow.defn(name=RECONCILE_PROVIDERS)
class ReconcileProviders:
    """One reconciliation, and the event about it."""

    @workflow.run
    async def run(self, wanted: ReconcileProvidersInput) -> ProvidersReconciled:
        """Lifecycle of a reconciliation. Fails where a provider's bill could not be read, after all others."""
        scheduled_run = this_scheduled_run()
        done = await workflow.execute_activity_method(
            ProviderReconciliationSignatures.reconcile_providers,
            DaysToReconcile(days=wanted.days, until=scheduled_run.scheduled_at),
            start_to_close_timeout=PROVIDERS_START_TO_CLOSE,
            retry_policy=BATCHES_RETRY,
            summary=f"compare the last {wanted.days} days with providers' bills",
        )
        event = PlatformEvent(
            id=f"{PROVIDERS_RECONCILED}:{scheduled_run.key}",
            type=PROVIDERS_RECONCILED,
            subject="providers",
            time=scheduled_run.scheduled_at,
            data={"compared": done.compared, "differences": list(done.differences), "unread": done.unread},
        )
        if done.compared or done.unread:
            await publish(event, summary="publish the reconciliation", what="the reconciliation with providers")
        self._set_status(done)
        if done.unread:
            words = "; ".join(f"{name}: {why}" for name, why in done.unread.items())
            raise ApplicationError(words, type="PROVIDERS_NOT_READ")
        return done

    def _set_status(self, done: ProvidersReconciled) -> None:
        days = ", ".join(f"{count} days of {name}" for name, count in done.compared.items())
        workflow.set_current_details("; ".join([days or "no provider's bill is configured", *done.differences]))
