"""Telling the outside what happened."""

from __future__ import annotations

from temporalio import activity

from domain.operations.events import PlatformEvent, Publish


class AnnouncementActivities:
    """Safe to run twice: an event's id comes from facts, and whoever gets it twice can tell."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    @activity.defn(name="announce")
    async def announce(self, event: PlatformEvent) -> None:
        """Publish one event."""
        await self._publish(event)
