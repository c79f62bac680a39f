"""Bodies about webhooks; the answers about one endpoint or delivery are in `services/webhooks/`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from api.models import StrictRequestModel
from domain.webhooks.addresses import URL_CHARS_MAX
from domain.webhooks.events import GROUPS, EventType
from services.answers import ResponseModel
from services.webhooks.endpoints import OVERLAP_MAX, OVERLAP_USUAL, DeliveryView, EndpointView

_FILTER = Annotated[str, Field(max_length=80)]


class NewEndpointRequest(StrictRequestModel):
    """An endpoint to make. The account is the caller's."""

    url: str = Field(
        min_length=1,
        max_length=URL_CHARS_MAX,
        description="a public https address, without credentials; redirects are not followed",
        examples=["https://example.com/webhooks"],
    )
    events: Annotated[list[_FILTER], Field(min_length=1, max_length=len(EventType) + len(GROUPS))] | None = Field(
        default=None,
        description="types such as `payment.credited`, and groups such as `payment.*`; null: all",
        examples=[["payment.credited", "deposit.*"]],
    )


class RotateSecretRequest(StrictRequestModel):
    """How to replace a secret."""

    overlap_seconds: int = Field(
        default=int(OVERLAP_USUAL.total_seconds()),
        ge=0,
        le=int(OVERLAP_MAX.total_seconds()),
        description="how long the old secret signs beside the new one",
    )


class EndpointList(ResponseModel):
    """Endpoints of the account, the oldest first."""

    endpoints: list[EndpointView]


class DeliveryPage(ResponseModel):
    """Deliveries of an endpoint, the newest first."""

    deliveries: list[DeliveryView]
    next_cursor: str | None = Field(default=None, description="`cursor` of the next page, older ones; null at the end")


class RedeliveryAnswer(ResponseModel):
    """The event is sent again."""

    delivery_id: UUID
    state: str = Field(examples=["pending"])
