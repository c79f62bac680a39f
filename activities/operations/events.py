"""Publishing of events."""

from __future__ import annotations

from temporalio import activity

from activities.operations.signatures import EventSignatures
from domain.operations.events import PlatformEvent, Publish


class AnnouncementActivities(EventSignatures):
    """Safe to run twice: an event's id is derived from facts, so that a receiver can detect a duplicate."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    @activity.defn
    async def announce(self, event: PlatformEvent) -> None:
        """Publish one event."""
        await self._publish(event)
