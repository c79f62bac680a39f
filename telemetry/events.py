"""Events to the outside: to the log, always."""

from __future__ import annotations

import structlog

from domain.events import PlatformEvent

log = structlog.get_logger(__name__)


class EventPublisher:
    """Publishes events; an async context manager."""

    async def publish(self, event: PlatformEvent) -> None:
        """Write the event to the log."""
        log.info(event.type, cloudevent=event.model_dump(mode="json"))
