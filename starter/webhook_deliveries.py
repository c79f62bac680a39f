"""Starting the delivery of an event to an endpoint."""

from __future__ import annotations

from temporalio.client import Client
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from activities.messages import WebhookDelivery
from db.webhooks.deliveries import DueDelivery
from starter.temporal import RPC_TIMEOUT, to_temporal_unavailable
from workflows.deliver_webhook import DeliverWebhook
from workflows.naming import (
    BILLING_ACCOUNT_ID,
    TRY_AT_ONCE_SIGNAL,
    WEBHOOK_TASK_QUEUE,
    webhook_delivery_workflow_id,
)


async def start_webhook_delivery(temporal: Client, delivery: DueDelivery, *, at_once: bool) -> bool:
    """Start delivering. Raises `TemporalUnavailable`.

    False where a run is at work on it, which `at_once` tries now instead of when its next try is due: then it is not
    known whether there was one. A run that has ended is followed by another: the event was asked for again.
    """
    # Of its first round there is no run that waits for its next try.
    signal = TRY_AT_ONCE_SIGNAL if at_once and delivery.round > 1 else None
    attributes = TypedSearchAttributes([SearchAttributePair(BILLING_ACCOUNT_ID, delivery.billing_account_id)])
    try:
        await temporal.start_workflow(
            DeliverWebhook.run,
            WebhookDelivery(
                event_id=delivery.event_id,
                endpoint_id=delivery.endpoint_id,
                billing_account_id=delivery.billing_account_id,
            ),
            id=webhook_delivery_workflow_id(delivery.event_id, delivery.endpoint_id),
            task_queue=WEBHOOK_TASK_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING if signal else WorkflowIDConflictPolicy.FAIL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=attributes,
            static_summary=f"event {delivery.event_id} for endpoint {delivery.endpoint_id}",
            rpc_timeout=RPC_TIMEOUT,
            start_signal=signal,
        )
    except WorkflowAlreadyStartedError:
        return False
    except (RPCError, RuntimeError) as error:
        raise to_temporal_unavailable(error) from error
    return True
