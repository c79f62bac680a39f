"""Delivery of webhooks: role settle_service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.messages import WebhookDelivery
from activities.webhooks.signatures import DeliveryEnd, WebhookDeliverySignatures
from db.engine import ServiceDatabase
from services.webhooks.delivery import Ended, try_once
from services.webhooks.sender import WebhookSender

NOT_ACCEPTED: Final = "WEBHOOK_NOT_ACCEPTED"
ACCOUNT_BUSY: Final = "WEBHOOK_ACCOUNT_BUSY"
"""Types of the failures that ask for another try."""

PER_ACCOUNT_MAX: Final = 8
"""Webhooks of one account that a process sends at a time: receivers that hang hold no more places than these."""

BUSY_DELAY: Final = timedelta(seconds=3)


class WebhookDeliveryActivities(WebhookDeliverySignatures):
    """Safe to run twice, and concurrently: a receiver recognizes a webhook by its id."""

    def __init__(self, database: ServiceDatabase, sender: WebhookSender) -> None:
        self._database = database
        self._sender = sender
        self._sending: Counter[str] = Counter()

    @activity.defn
    async def deliver_webhook(self, delivery: WebhookDelivery) -> DeliveryEnd:
        """Send a webhook once. Fails, and times its next retry, where the receiver does not accept it."""
        with self._place(delivery.billing_account_id):
            result = await try_once(self._database, self._sender, delivery.event_id, delivery.endpoint_id)
        if isinstance(result, Ended):
            return DeliveryEnd(state=result.state, detail=result.detail)
        raise ApplicationError(
            result.detail,
            type=NOT_ACCEPTED,
            next_retry_delay=result.delay,
            category=ApplicationErrorCategory.BENIGN,
        )

    @contextmanager
    def _place(self, billing_account_id: str) -> Iterator[None]:
        if self._sending[billing_account_id] >= PER_ACCOUNT_MAX:
            raise ApplicationError(
                f"{PER_ACCOUNT_MAX} webhooks of the account are being sent",
                type=ACCOUNT_BUSY,
                next_retry_delay=BUSY_DELAY,
                category=ApplicationErrorCategory.BENIGN,
            )
        self._sending[billing_account_id] += 1
        try:
            yield
        finally:
            self._sending[billing_account_id] -= 1
            if not self._sending[billing_account_id]:
                del self._sending[billing_account_id]
