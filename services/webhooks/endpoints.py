"""An account's endpoints of webhooks: made, listed, given another secret, deleted; and their deliveries sent again.

The secret of an endpoint is in the answer that makes it, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID, uuid4

from pydantic import Field

from db.accounts import idempotency
from db.engine import TenantConnection
from db.webhooks import deliveries, endpoints
from db.webhooks.deliveries import ListedDelivery, Try
from db.webhooks.endpoints import ManagingConnection, WebhookEndpoint
from domain.errors import (
    BookkeepingError,
    TooManyWebhookEndpoints,
    WebhookDeliveryNotFound,
    WebhookEndpointNotFound,
    WebhookEndpointStopped,
)
from domain.webhooks.addresses import parse_url
from domain.webhooks.events import parse_filter
from domain.webhooks.signatures import make_secret, shown_secret
from services.answers import ResponseModel

ENDPOINTS_MAX: Final = 10
"""Of an account. Each event is written once, and delivered to each of them."""

OVERLAP_USUAL: Final = timedelta(hours=24)
OVERLAP_MAX: Final = timedelta(days=30)


class EndpointView(ResponseModel):
    """An endpoint, without its secret."""

    endpoint_id: UUID
    billing_account_id: str
    url: str
    events: list[str] | None = Field(default=None, description="types and groups that it takes; null is all")
    state: str = Field(description="`active`, or `stopped`: its receiver answered 410", examples=["active"])
    created_at: datetime
    stopped_at: datetime | None = None
    pending_deliveries: int = Field(description="not accepted yet")
    failed_deliveries: int = Field(description="given up after three days")

    @classmethod
    def of(cls, found: WebhookEndpoint, **more: Any) -> Self:
        """The answer about an endpoint."""
        return cls(
            endpoint_id=found.id,
            billing_account_id=found.billing_account_id,
            url=found.url,
            events=None if found.events is None else list(found.events),
            state="active" if found.disabled_at is None else "stopped",
            created_at=found.created_at,
            stopped_at=found.disabled_at,
            pending_deliveries=found.pending,
            failed_deliveries=found.failed,
            **more,
        )


class NewEndpoint(EndpointView):
    """An endpoint with a new secret."""

    secret: str | None = Field(
        description="signs what is sent, shown this once; null where the request was repeated: rotate it for another",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )


class TryView(ResponseModel):
    """One time that a webhook was sent."""

    sent_at: datetime
    duration_ms: int
    status_code: int | None = Field(default=None, description="null where there was no answer")
    response_head: str | None = Field(default=None, description="the beginning of the answer's body")
    error: str | None = Field(default=None, description="why there was no answer")

    @classmethod
    def of(cls, found: Try) -> Self:
        """The answer about a try."""
        return cls(
            sent_at=found.sent_at,
            duration_ms=found.duration_ms,
            status_code=found.status_code,
            response_head=found.response_head,
            error=found.error,
        )


class DeliveryView(ResponseModel):
    """An event for an endpoint, with its latest tries."""

    delivery_id: UUID
    event_id: UUID = Field(description="its `webhook-id`, the same at every try")
    type: str
    state: str = Field(description="`pending`, `delivered`, `failed` or `stopped`", examples=["delivered"])
    created_at: datetime
    next_try_at: datetime | None = None
    ended_at: datetime | None = None
    tries_count: int
    tries: list[TryView] = Field(description="the last one first, at most five")

    @classmethod
    def of(cls, found: ListedDelivery) -> Self:
        """The answer about a delivery."""
        return cls(
            delivery_id=found.id,
            event_id=found.event_id,
            type=found.event_type,
            state=found.state,
            created_at=found.created_at,
            next_try_at=found.due_at,
            ended_at=found.ended_at,
            tries_count=found.tries_count,
            tries=[TryView.of(sent) for sent in found.tries],
        )


async def create_endpoint(
    connection: TenantConnection,
    billing_account_id: str,
    url: str,
    events: Sequence[str] | None,
    *,
    allow_private: bool,
    idempotency_key: str | None = None,
) -> NewEndpoint:
    """Make an endpoint.

    A repeated `idempotency_key` makes no other one and answers with the first, without its secret. Raises
    `InvalidInput`, `TooManyWebhookEndpoints` and `IdempotencyKeyReused`.
    """
    url, taken = parse_url(url, allow_private=allow_private), parse_filter(events)
    endpoint_id, secret = uuid4(), make_secret()
    if idempotency_key is not None:
        request_hash = hashlib.sha256(json.dumps(["webhook-endpoint", url, taken]).encode()).digest()
        answer = {"endpointId": str(endpoint_id)}
        kept = await idempotency.keep_answer(connection, billing_account_id, idempotency_key, request_hash, answer)
        if kept:
            return NewEndpoint.of(await find_endpoint(connection, UUID(kept["endpointId"])), secret=None)
    outcome = await endpoints.create_endpoint(
        connection,
        endpoint_id,
        billing_account_id,
        url=url,
        events=taken,
        secret=secret,
        limit=ENDPOINTS_MAX,
    )
    if outcome == "too_many":
        raise TooManyWebhookEndpoints(ENDPOINTS_MAX)
    if outcome != "created":
        raise BookkeepingError(f"account {billing_account_id} is not one that the caller manages")
    return NewEndpoint.of(await find_endpoint(connection, endpoint_id), secret=shown_secret(secret))


async def find_endpoint(
    connection: ManagingConnection, endpoint_id: UUID, billing_account_id: str | None = None
) -> WebhookEndpoint:
    """An endpoint, of that account where one is named. Raises `WebhookEndpointNotFound`."""
    found = await endpoints.find_endpoint(connection, endpoint_id, billing_account_id)
    if found is None:
        raise WebhookEndpointNotFound(endpoint_id)
    return found


async def rotate_secret(
    connection: ManagingConnection,
    endpoint_id: UUID,
    billing_account_id: str,
    *,
    overlap: timedelta = OVERLAP_USUAL,
) -> NewEndpoint:
    """Sign with a new secret, and for `overlap` with the old one as well. Raises `WebhookEndpointNotFound`."""
    await find_endpoint(connection, endpoint_id, billing_account_id)
    secret = make_secret()
    if not await endpoints.rotate_secret(connection, endpoint_id, secret, overlap=overlap):
        raise WebhookEndpointNotFound(endpoint_id)
    return NewEndpoint.of(await find_endpoint(connection, endpoint_id), secret=shown_secret(secret))


async def delete_endpoint(connection: ManagingConnection, endpoint_id: UUID, billing_account_id: str) -> None:
    """Send nothing more to an endpoint. Raises `WebhookEndpointNotFound`."""
    await find_endpoint(connection, endpoint_id, billing_account_id)
    await endpoints.delete_endpoint(connection, endpoint_id)


async def enable_endpoint(
    connection: ManagingConnection, endpoint_id: UUID, billing_account_id: str | None = None
) -> EndpointView:
    """Send to an endpoint again that its receiver has stopped; one that is active stays so.

    What happened while it was stopped was not written for it, unless another endpoint took it. Raises
    `WebhookEndpointNotFound`.
    """
    await find_endpoint(connection, endpoint_id, billing_account_id)
    if not await endpoints.enable_endpoint(connection, endpoint_id):
        raise WebhookEndpointNotFound(endpoint_id)
    return EndpointView.of(await find_endpoint(connection, endpoint_id))


async def redeliver(
    connection: ManagingConnection, delivery_id: UUID, *, endpoint_id: UUID, billing_account_id: str | None = None
) -> None:
    """Have an event sent again, whatever became of it, with the same id.

    Raises `WebhookEndpointNotFound`, `WebhookDeliveryNotFound` and `WebhookEndpointStopped`.
    """
    await find_endpoint(connection, endpoint_id, billing_account_id)
    if await deliveries.find_endpoint_of(connection, delivery_id) != endpoint_id:
        raise WebhookDeliveryNotFound(delivery_id)
    if not await deliveries.redeliver(connection, delivery_id):
        raise WebhookEndpointStopped(endpoint_id)
