"""Declarations of what is done about webhooks."""

from __future__ import annotations

from abc import abstractmethod

from temporalio import activity

from activities.messages import Message, WebhookDelivery
from activities.operations.signatures import Done
from activities.signatures import Signatures


class DeliveryEnd(Message):
    """What became of a delivery: `delivered`, `failed`, `stopped` or `deleted`."""

    state: str
    detail: str = ""


class DeliveriesToStart(Message):
    """Deliveries that are overdue by so much have lost their workflow, unless one runs."""

    overdue_seconds: int


class WebhooksToPrune(Message):
    """How long webhooks are kept after they ended, and the most rows of one transaction."""

    older_than_days: int
    batch_size: int


class WebhookDeliverySignatures(Signatures):
    """Implemented by `activities.webhooks.delivery`."""

    @activity.defn(name="deliver_webhook")
    @abstractmethod
    async def deliver_webhook(self, delivery: WebhookDelivery) -> DeliveryEnd:
        """Send a webhook once. Fails, and times its next retry, where the receiver does not accept it."""


class WebhookHousekeepingSignatures(Signatures):
    """Implemented by `activities.webhooks.housekeeping`."""

    @activity.defn(name="start_overdue_webhooks")
    @abstractmethod
    async def start_overdue_webhooks(self, wanted: DeliveriesToStart) -> Done:
        """Start a workflow for every delivery that should have one and has none."""

    @activity.defn(name="prune_webhooks")
    @abstractmethod
    async def prune_webhooks(self, wanted: WebhooksToPrune) -> Done:
        """Delete deliveries and events that ended long ago, and expired secrets."""
