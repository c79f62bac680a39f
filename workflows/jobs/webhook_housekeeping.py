"""Housekeeping of webhooks: deliveries that have lost their workflow, and those that ended long ago."""

from __future__ import annotations

from temporalio import workflow

from workflows.steps import run_steps

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.messages import Message
    from activities.webhooks.signatures import DeliveriesToStart, WebhookHousekeepingSignatures, WebhooksToPrune
    from workflows.naming import WEBHOOK_HOUSEKEEPING
    from workflows.policies import BATCHES_HEARTBEAT, BATCHES_RETRY, BATCHES_START_TO_CLOSE


class WebhookHousekeepingInput(Message):
    """Parameters of the housekeeping of webhooks."""

    overdue_seconds: int = Field(default=300, ge=60)
    """How long after a try was due its workflow is searched for."""

    kept_days: int = Field(default=30, ge=4, le=3650)
    """How long a delivery is kept after its end, and can be sent again."""

    batch_size: int = Field(default=500, ge=1, le=10_000)
    """Most rows that one transaction deletes."""


class WebhookHousekeepingResult(Message):
    """Number of changes, by kind."""

    deliveries: dict[str, int] = Field(default_factory=dict)
    rows_pruned: dict[str, int] = Field(default_factory=dict)


@workflow.defn(name=WEBHOOK_HOUSEKEEPING)
class WebhookHousekeeping:
    """Two independent steps: a failing one does not stop the other."""

    @workflow.run
    async def run(self, wanted: WebhookHousekeepingInput) -> WebhookHousekeepingResult:
        """Lifecycle of one run."""
        steps = (self._start_overdue, self._prune)
        fields = await run_steps(steps, wanted, incomplete="WEBHOOK_HOUSEKEEPING_INCOMPLETE")
        return WebhookHousekeepingResult.model_validate(fields)

    async def _start_overdue(self, wanted: WebhookHousekeepingInput) -> dict[str, object]:
        started = await workflow.execute_activity_method(
            WebhookHousekeepingSignatures.start_overdue_webhooks,
            DeliveriesToStart(overdue_seconds=wanted.overdue_seconds),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="start deliveries without a workflow",
        )
        return {"deliveries": started.counts}

    async def _prune(self, wanted: WebhookHousekeepingInput) -> dict[str, object]:
        pruned = await workflow.execute_activity_method(
            WebhookHousekeepingSignatures.prune_webhooks,
            WebhooksToPrune(older_than_days=wanted.kept_days, batch_size=wanted.batch_size),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="delete deliveries and events that ended long ago",
        )
        return {"rows_pruned": pruned.counts}
