"""One event for one endpoint, until it is accepted or given up."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.messages import WebhookDelivery
    from activities.webhooks.signatures import DeliveryEnd, WebhookDeliverySignatures
    from workflows.naming import DELIVER_WEBHOOK, TRY_AT_ONCE_SIGNAL
    from workflows.policies import WEBHOOK_RETRY, WEBHOOK_START_TO_CLOSE


@workflow.defn(name=DELIVER_WEBHOOK)
class DeliverWebhook:
    """Waits in one activity, whose failures time their own retries: three days leave the history of a second."""

    def __init__(self) -> None:
        self._is_asked_to_try = False

    @workflow.run
    async def run(self, delivery: WebhookDelivery) -> DeliveryEnd:
        """Lifecycle of a delivery."""
        while True:
            end = await self._try_until_it_ends(delivery)
            if end is not None:
                workflow.set_current_details(f"{end.state}: {end.detail}")
                return end

    @workflow.signal(name=TRY_AT_ONCE_SIGNAL)
    def try_at_once(self) -> None:
        """It was asked for again: the time until the next try is not waited for."""
        self._is_asked_to_try = True

    async def _try_until_it_ends(self, delivery: WebhookDelivery) -> DeliveryEnd | None:
        """None where it is to be tried at once."""
        self._is_asked_to_try = False
        tries = workflow.start_activity_method(
            WebhookDeliverySignatures.deliver_webhook,
            delivery,
            start_to_close_timeout=WEBHOOK_START_TO_CLOSE,
            retry_policy=WEBHOOK_RETRY,
            summary=f"send event {delivery.event_id}",
        )
        await workflow.wait_condition(lambda: tries.done() or self._is_asked_to_try)
        if not tries.done():
            tries.cancel()
        try:
            end = await tries
        except ActivityError:
            if self._is_asked_to_try:
                return None
            raise
        # Asked for as it ended: what it ended was the round before, and there is no other run for this one.
        return None if self._is_asked_to_try else end
