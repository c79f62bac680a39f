"""Event publisher, as CloudEvents 1.0: always to the log, and to an HTTP sink where one is configured."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import UTC
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import structlog
from prometheus_client import Counter

from domain.errors import EventNotDelivered
from domain.operations.events import PlatformEvent

SPEC_VERSION: Final = "1.0"
CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
DEFAULT_SOURCE: Final = "urn:settle"

SINK_TIMEOUT_SECONDS: Final = 5.0
REMEMBERED_IDS_MAX: Final = 1_000
"""Ids of logged events: a repeated delivery is not logged again."""

EVENTS: Final = Counter("settle_events", "Events posted to the event sink", ["type", "outcome"])

log = structlog.get_logger(__name__)


def cloudevent(event: PlatformEvent, source: str) -> dict[str, Any]:
    """The event in the structured mode of CloudEvents' JSON format. `source` and `id` together are unique."""
    return {
        "specversion": SPEC_VERSION,
        "id": event.id,
        "source": source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": event.model_dump(mode="json")["data"],
    }


class EventPublisher:
    """Publishes events; an async context manager where it has a sink."""

    def __init__(
        self,
        sink_url: str | None = None,
        *,
        source: str = DEFAULT_SOURCE,
        timeout_seconds: float = SINK_TIMEOUT_SECONDS,
    ) -> None:
        """`sink_url` may hold a secret: only its host is ever shown."""
        self._sink_url = sink_url
        self._sink = (urlsplit(sink_url).hostname or "unknown host") if sink_url else ""
        self._source = source
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._logged: OrderedDict[str, None] = OrderedDict()

    async def __aenter__(self) -> Self:
        if self._sink_url is not None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def publish(self, event: PlatformEvent) -> None:
        """Log the event, and post it to the sink. Raises `EventNotDelivered` where that failed.

        A repeated call with the same event posts it again without logging it.
        """
        document = cloudevent(event, self._source)
        if event.id not in self._logged:
            log.info(event.type, cloudevent=document)
            self._logged[event.id] = None
            if len(self._logged) > REMEMBERED_IDS_MAX:
                self._logged.popitem(last=False)
        if self._sink_url is not None:
            await self._hand_over(event.type, document, self._sink_url)

    async def _hand_over(self, event_type: str, document: dict[str, Any], sink_url: str) -> None:
        if self._session is None:
            raise RuntimeError("EventPublisher is used outside of its `async with`")
        try:
            # A redirect is no acknowledgement, and would carry the event to an unknown host.
            async with self._session.post(
                sink_url,
                data=json.dumps(document).encode(),
                headers={"Content-Type": CONTENT_TYPE},
                allow_redirects=False,
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            EVENTS.labels(event_type, "unreachable").inc()
            # Neither the error's text nor the error as a cause: they may contain the address with its secret.
            raise EventNotDelivered(self._sink, f"did not answer ({type(error).__name__})") from None
        if not 200 <= status < 300:
            EVENTS.labels(event_type, "refused").inc()
            raise EventNotDelivered(self._sink, f"answered {status}")
        EVENTS.labels(event_type, "delivered").inc()
