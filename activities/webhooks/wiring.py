"""The activities about webhooks."""

from __future__ import annotations

from activities.signatures import Activity
from activities.webhooks.delivery import WebhookDeliveryActivities
from activities.webhooks.housekeeping import WebhookHousekeepingActivities
from activities.wiring import Dependencies
from services.webhooks.sender import WebhookSender


def activities(deps: Dependencies) -> list[Activity]:
    """All of the subject."""
    sender = WebhookSender(allow_private=deps.settings.webhook_allow_private)
    delivery = WebhookDeliveryActivities(deps.service, sender)
    housekeeping = WebhookHousekeepingActivities(deps.service, starter=deps.starter)
    return [*delivery.activities(), *housekeeping.activities()]
