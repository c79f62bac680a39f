"""Examples of the OpenAPI document about webhooks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from api.webhooks.models import DeliveryPage, EndpointList, RedeliveryAnswer
from services.webhooks.endpoints import DeliveryView, EndpointView, NewEndpoint, TryView

_ACCOUNT_ID: Final = "0b9d6f1c-2f5e-4b57-8a55-3f1f1f1d2c44"
_NOON: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)


def _wire(answer: BaseModel) -> dict[str, Any]:
    return answer.model_dump(mode="json", by_alias=True)


_ENDPOINT: Final[dict[str, Any]] = {
    "endpoint_id": UUID("0f0a4b0d-9d6c-4f3e-8a71-9a4f4c1d6c1e"),
    "billing_account_id": _ACCOUNT_ID,
    "url": "https://example.com/webhooks",
    "events": ["payment.credited", "deposit.*"],
    "state": "active",
    "created_at": _NOON,
    "pending_deliveries": 0,
    "failed_deliveries": 0,
}
_DELIVERY_ID: Final = UUID("7c1d6c1e-0f0a-4b0d-8d6c-8f3e5a719a4f")
WEBHOOK_ENDPOINT_REQUEST: Final = {"url": _ENDPOINT["url"], "events": _ENDPOINT["events"]}
_SECRET: Final = "whsec_bm90IGEgc2VjcmV0LCBqdXN0IGFuIGV4YW1wbGU="
NEW_WEBHOOK_ENDPOINT: Final = _wire(NewEndpoint(**_ENDPOINT, secret=_SECRET))
WEBHOOK_ENDPOINT: Final = _wire(EndpointView(**_ENDPOINT))
WEBHOOK_ENDPOINTS: Final = _wire(EndpointList(endpoints=[EndpointView(**_ENDPOINT)]))
WEBHOOK_DELIVERIES: Final = _wire(
    DeliveryPage(
        deliveries=[
            DeliveryView(
                delivery_id=_DELIVERY_ID,
                event_id=UUID("9d6c8f3e-5a71-4a4f-8c1d-6c1e0f0a4b0d"),
                type="payment.credited",
                state="delivered",
                created_at=_NOON,
                ended_at=_NOON + timedelta(seconds=1),
                tries_count=1,
                tries=[
                    TryView(
                        sent_at=_NOON + timedelta(seconds=1),
                        duration_ms=82,
                        status_code=200,
                        response_head="ok",
                        error=None,
                    )
                ],
            )
        ]
    )
)
REDELIVERY: Final = _wire(RedeliveryAnswer(delivery_id=_DELIVERY_ID, state="pending"))
ROTATE_REQUEST: Final = {"overlapSeconds": 0}
