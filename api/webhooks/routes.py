"""`/api/v1/webhook-endpoints`: where an account's events are sent to. By session or service key."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Query

from api.accounts.queries import PAGE_SIZE, PAGE_SIZE_MAX
from api.accounts.routes import POSTED
from api.http.bodies import JsonRoute
from api.http.dependencies import CALLERS_TURN, ApiServices, CallerOfAccount, RepeatKey, limit_by_caller
from api.http.openapi import answered, asked, followed_by
from api.http.problems import CROSS_SITE_REQUEST, INVALID_INPUT, documented
from api.webhooks import examples
from api.webhooks.models import (
    DeliveryPage,
    EndpointList,
    NewEndpointRequest,
    RedeliveryAnswer,
    RotateSecretRequest,
)
from db.webhooks.deliveries import page_deliveries
from db.webhooks.endpoints import list_endpoints as read_endpoints
from domain.errors import (
    DatabaseUnavailable,
    IdempotencyKeyReused,
    KeyRefused,
    NotSignedIn,
    RateLimited,
    TooManyWebhookEndpoints,
    WebhookDeliveryNotFound,
    WebhookEndpointNotFound,
    WebhookEndpointStopped,
)
from services.webhooks import endpoints
from services.webhooks.endpoints import ENDPOINTS_MAX, DeliveryView, EndpointView, NewEndpoint

router = APIRouter(prefix="/api/v1/webhook-endpoints", tags=["webhooks"], route_class=JsonRoute)

EndpointId = Annotated[UUID, Path(alias="id", description="the endpoint's id")]
DeliveryId = Annotated[UUID, Path(alias="deliveryId", description="the delivery's id")]

# What they cost is what changes of keys cost.
limit_changes = limit_by_caller(
    "webhooks",
    lambda services: services.settings.rate_limits.keys_per_account,
    lambda services: services.settings.rate_limits.keys_per_address,
)
_CHANGES = [Depends(limit_changes), CALLERS_TURN]
_REFUSED = (NotSignedIn, KeyRefused)
_NEW = {"endpoint": examples.NEW_WEBHOOK_ENDPOINT}
_LINKS = followed_by("rotateWebhookSecret", "deleteWebhookEndpoint", "listWebhookDeliveries", id_from="endpointId")


@router.get(
    "",
    operation_id="listWebhookEndpoints",
    dependencies=[CALLERS_TURN],
    summary="List the account's webhook endpoints",
    responses={
        200: answered("The endpoints.", {"endpoints": examples.WEBHOOK_ENDPOINTS}),
        **documented(*_REFUSED, DatabaseUnavailable),
    },
)
async def list_endpoints(caller: CallerOfAccount, services: ApiServices) -> EndpointList:
    """The oldest first, without their secrets. An account has ten at most."""
    async with services.database.transaction(caller.user_id) as connection:
        found = await read_endpoints(connection, caller.billing_account_id, limit=ENDPOINTS_MAX)
    return EndpointList(endpoints=[EndpointView.of(endpoint) for endpoint in found])


@router.post(
    "",
    operation_id="createWebhookEndpoint",
    summary="Make a webhook endpoint",
    status_code=201,
    responses={
        201: answered("The endpoint, with its secret.", _NEW, links=_LINKS),
        **documented(*POSTED, *_REFUSED, TooManyWebhookEndpoints, IdempotencyKeyReused, RateLimited),
    },
    dependencies=_CHANGES,
)
async def create_endpoint(
    body: Annotated[NewEndpointRequest, Body(openapi_examples=asked(some=examples.WEBHOOK_ENDPOINT_REQUEST))],
    caller: CallerOfAccount,
    services: ApiServices,
    idempotency_key: RepeatKey = None,
) -> NewEndpoint:
    """Events from now on are sent to it, signed as Standard Webhooks, each until it is accepted.

    The secret is in this answer and in no other. A repetition with the same `Idempotency-Key` makes no other endpoint;
    its answer has no secret.
    """
    async with services.database.transaction(caller.user_id) as connection:
        return await endpoints.create_endpoint(
            connection,
            caller.billing_account_id,
            body.url,
            body.events,
            allow_private=services.settings.webhook_allow_private,
            idempotency_key=idempotency_key,
        )


@router.post(
    "/{id}/rotate",
    operation_id="rotateWebhookSecret",
    summary="Replace a webhook endpoint's secret",
    status_code=201,
    responses={
        201: answered("The endpoint, with its new secret.", _NEW, links=_LINKS),
        **documented(*POSTED, *_REFUSED, WebhookEndpointNotFound, RateLimited),
    },
    dependencies=_CHANGES,
)
async def rotate_secret(
    endpoint_id: EndpointId,
    caller: CallerOfAccount,
    services: ApiServices,
    body: Annotated[RotateSecretRequest | None, Body(openapi_examples=asked(atOnce=examples.ROTATE_REQUEST))] = None,
) -> NewEndpoint:
    """The new secret signs at once, and the old one beside it for `overlapSeconds`, a day by default."""
    overlap = timedelta(seconds=(body or RotateSecretRequest()).overlap_seconds)
    async with services.database.transaction(caller.user_id) as connection:
        return await endpoints.rotate_secret(connection, endpoint_id, caller.billing_account_id, overlap=overlap)


@router.post(
    "/{id}/enable",
    operation_id="enableWebhookEndpoint",
    summary="Send to a stopped webhook endpoint again",
    responses={
        200: answered("The endpoint, which is active.", {"endpoint": examples.WEBHOOK_ENDPOINT}),
        **documented(*POSTED, *_REFUSED, WebhookEndpointNotFound, RateLimited),
    },
    dependencies=_CHANGES,
)
async def enable_endpoint(endpoint_id: EndpointId, caller: CallerOfAccount, services: ApiServices) -> EndpointView:
    """Of an endpoint whose receiver has answered 410: events from now on are sent to it again.

    What had not been accepted when it stopped is sent where `redeliver` asks for it.
    """
    async with services.database.transaction(caller.user_id) as connection:
        return await endpoints.enable_endpoint(connection, endpoint_id, caller.billing_account_id)


@router.delete(
    "/{id}",
    operation_id="deleteWebhookEndpoint",
    summary="Delete a webhook endpoint",
    status_code=204,
    response_description="Nothing more is sent to it.",
    responses=documented(
        CROSS_SITE_REQUEST, INVALID_INPUT, *_REFUSED, WebhookEndpointNotFound, RateLimited, DatabaseUnavailable
    ),
    dependencies=_CHANGES,
)
async def delete_endpoint(endpoint_id: EndpointId, caller: CallerOfAccount, services: ApiServices) -> None:
    """For good; what was not accepted yet is not sent any more."""
    async with services.database.transaction(caller.user_id) as connection:
        await endpoints.delete_endpoint(connection, endpoint_id, caller.billing_account_id)


@router.get(
    "/{id}/deliveries",
    operation_id="listWebhookDeliveries",
    dependencies=[CALLERS_TURN],
    summary="What was sent to a webhook endpoint",
    responses={
        200: answered("A page of deliveries.", {"page": examples.WEBHOOK_DELIVERIES}),
        **documented(INVALID_INPUT, *_REFUSED, WebhookEndpointNotFound, DatabaseUnavailable),
    },
)
async def list_deliveries(
    endpoint_id: EndpointId,
    caller: CallerOfAccount,
    services: ApiServices,
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX, description="rows per page")] = PAGE_SIZE,
    cursor: Annotated[UUID | None, Query(description="`nextCursor` of the previous page")] = None,
) -> DeliveryPage:
    """The newest first, page by page, each with its latest tries. They are kept for thirty days after their end."""
    async with services.database.transaction(caller.user_id) as connection:
        await endpoints.find_endpoint(connection, endpoint_id, caller.billing_account_id)
        found = await page_deliveries(connection, endpoint_id, limit=limit + 1, before=cursor)
    shown = found[:limit]
    return DeliveryPage(
        deliveries=[DeliveryView.of(delivery) for delivery in shown],
        next_cursor=str(shown[-1].id) if len(found) > limit else None,
    )


@router.post(
    "/{id}/deliveries/{deliveryId}/redeliver",
    operation_id="redeliverWebhook",
    summary="Send a webhook again",
    status_code=202,
    responses={
        202: answered("It is sent again.", {"pending": examples.REDELIVERY}),
        **documented(
            *POSTED, *_REFUSED, WebhookEndpointNotFound, WebhookDeliveryNotFound, WebhookEndpointStopped, RateLimited
        ),
    },
    dependencies=_CHANGES,
)
async def redeliver(
    endpoint_id: EndpointId, delivery_id: DeliveryId, caller: CallerOfAccount, services: ApiServices
) -> RedeliveryAnswer:
    """Whatever became of it, at once, and then with the usual tries. Its `webhook-id` and body are the same."""
    async with services.database.transaction(caller.user_id) as connection:
        await endpoints.redeliver(
            connection, delivery_id, endpoint_id=endpoint_id, billing_account_id=caller.billing_account_id
        )
    return RedeliveryAnswer(delivery_id=delivery_id, state="pending")
