"""Telling the outside what happened."""

from __future__ import annotations

from temporalio import activity

from activities.operations.signatures import EventSignatures
from domain.operations.events import PlatformEvent, Publish


class AnnouncementActivities(EventSignatures):
    """Safe to run twice: an event's id comes from facts, and whoever gets it twice can tell."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    @activity.defn
    async def announce(self, event: PlatformEvent) -> None:
        """Publish one event."""
        await self._publish(event)
