"""Record the history of every path of `DeliverWebhook`: `python -m tests.webhooks.record_histories`.

By hand, after a change that is meant to change histories; see `tests.workflow.record_histories`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.messages import WebhookDelivery
from activities.webhooks.delivery import NOT_ACCEPTED
from activities.webhooks.signatures import DeliveryEnd
from db.webhooks.deliveries import DueDelivery
from starter.webhook_deliveries import start_webhook_delivery
from tests.support.histories import RECORDER, Recorded
from workflows.deliver_webhook import DeliverWebhook
from workflows.naming import WEBHOOK_TASK_QUEUE, webhook_delivery_workflow_id

DELIVERY: Final = DueDelivery(
    id=UUID(int=1),
    event_id=UUID(int=2),
    endpoint_id=UUID(int=3),
    billing_account_id="account",
    round=1,
    due_at=datetime(2026, 1, 1, 12, tzinfo=UTC),
)
AGAIN: Final = DueDelivery(DELIVERY.id, DELIVERY.event_id, DELIVERY.endpoint_id, "account", 2, DELIVERY.due_at)

DELIVERED: Final = DeliveryEnd(state="delivered", detail="the receiver answered 204")

PATHS: Final[dict[str, tuple[DueDelivery, tuple[float, ...], DeliveryEnd]]] = {
    "accepted": (DELIVERY, (), DELIVERED),
    "accepted_later": (DELIVERY, (0.01, 0.01), DELIVERED),
    "asked_again_while_it_waits": (DELIVERY, (3600.0,), DELIVERED),
    "asked_again_after_its_end": (AGAIN, (), DELIVERED),
    "given_up": (DELIVERY, (), DeliveryEnd(state="failed", detail="given up after 76 tries")),
    "stopped": (DELIVERY, (), DeliveryEnd(state="stopped", detail="the receiver answered 410")),
}
"""Path, how it was asked for, how long the receiver's failures postpone the next try, and what becomes of it."""


def _activities(path: str, failed: asyncio.Event) -> list[Callable[..., Any]]:
    _, delays, end = PATHS[path]
    left = list(delays)

    @activity.defn(name="deliver_webhook")
    async def deliver_webhook(delivery: WebhookDelivery) -> DeliveryEnd:
        if left:
            failed.set()
            delay = timedelta(seconds=left.pop(0))
            raise ApplicationError("the receiver answered 500", type=NOT_ACCEPTED, next_retry_delay=delay)
        return end

    return [deliver_webhook]


async def walk(client: Client, path: str) -> WorkflowHandle[Any, Any]:
    """Walk one path to its end."""
    failed = asyncio.Event()
    async with Worker(
        client,
        task_queue=WEBHOOK_TASK_QUEUE,
        workflows=[DeliverWebhook],
        activities=_activities(path, failed),
        identity=RECORDER,
    ):
        await start_webhook_delivery(client, PATHS[path][0], at_once=True)
        handle = client.get_workflow_handle(webhook_delivery_workflow_id(DELIVERY.event_id, DELIVERY.endpoint_id))
        if path == "asked_again_while_it_waits":
            await failed.wait()
            await start_webhook_delivery(client, AGAIN, at_once=True)
        await handle.result()
    return handle


RECORDED: Final = Recorded(Path(__file__).parent / "histories", PATHS, walk, lambda _: DeliverWebhook)

if __name__ == "__main__":
    RECORDED.record(sys.argv[1:])
