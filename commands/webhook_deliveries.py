"""`settle webhooks list|redeliver|enable|replay`: deliveries of webhooks, by operators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from commands.framework import parse_moment
from commands.output import print_json, progress, stdout, table
from composition import service_database
from db.webhooks import deliveries, endpoints
from domain.errors import InvalidInput, WebhookDeliveryNotFound, WebhookEndpointStopped
from services.webhooks.endpoints import DeliveryView, EndpointView, enable_endpoint, find_endpoint, redeliver
from settings import Settings

LISTED_MAX: Final = 1_000


async def list_endpoints(settings: Settings, *, account: str | None, as_json: bool) -> None:
    """Endpoints, the oldest first; a truncated list is reported on standard error."""
    async with service_database(settings) as database, database.snapshot() as connection:
        found = await endpoints.list_endpoints(connection, account, limit=LISTED_MAX + 1)
    if len(found) > LISTED_MAX:
        progress(f"only the oldest {LISTED_MAX} are listed; --account narrows the list")
    views = [EndpointView.of(endpoint) for endpoint in found[:LISTED_MAX]]
    if as_json:
        print_json(views)
    elif not views:
        stdout.print("no endpoints")
    else:
        rows = [
            (
                view.endpoint_id,
                view.billing_account_id,
                view.url,
                ", ".join(view.events) if view.events else "all",
                view.state,
                view.pending_deliveries,
                view.failed_deliveries,
            )
            for view in views
        ]
        columns = ("endpoint", "account", "url", "events", "state", "pending", "failed")
        stdout.print(table("", columns, rows, right=("pending", "failed")))


async def list_deliveries(settings: Settings, *, endpoint_id: UUID, as_json: bool) -> None:
    """Deliveries of an endpoint, the newest first. Raises `WebhookEndpointNotFound`."""
    async with service_database(settings) as database, database.snapshot() as connection:
        await find_endpoint(connection, endpoint_id)
        found = await deliveries.page_deliveries(connection, endpoint_id, limit=LISTED_MAX + 1)
    if len(found) > LISTED_MAX:
        progress(f"only the newest {LISTED_MAX} are listed")
    views = [DeliveryView.of(delivery) for delivery in found[:LISTED_MAX]]
    if as_json:
        print_json(views)
    elif not views:
        stdout.print("no deliveries")
    else:
        rows = [
            (
                view.delivery_id,
                view.type,
                view.state,
                f"{view.created_at:%Y-%m-%d %H:%M:%S}",
                view.tries_count,
                _last_try(view),
                view.next_try_at and f"{view.next_try_at:%Y-%m-%d %H:%M:%S}",
            )
            for view in views
        ]
        columns = ("delivery", "type", "state", "created", "tries", "last try", "next try")
        stdout.print(table("", columns, rows, right=("tries",)))


async def redeliver_one(settings: Settings, *, delivery_id: UUID, as_json: bool) -> None:
    """Have the webhook of a delivery sent again. Raises `WebhookDeliveryNotFound` and `WebhookEndpointStopped`."""
    async with service_database(settings) as database, database.transaction() as connection:
        endpoint_id = await deliveries.find_endpoint_of(connection, delivery_id)
        if endpoint_id is None:
            raise WebhookDeliveryNotFound(delivery_id)
        await redeliver(connection, delivery_id, endpoint_id=endpoint_id)
    if as_json:
        print_json({"deliveryId": str(delivery_id), "state": "pending"})
    else:
        stdout.print(f"delivery {delivery_id} is sent again", markup=False)


async def enable_one(settings: Settings, *, endpoint_id: UUID, as_json: bool) -> None:
    """Have events sent to a stopped endpoint again. Raises `WebhookEndpointNotFound`."""
    async with service_database(settings) as database, database.transaction() as connection:
        view = await enable_endpoint(connection, endpoint_id)
    if as_json:
        print_json(view)
    else:
        stdout.print(f"endpoint {endpoint_id} is {view.state}", markup=False)


async def replay_time(
    settings: Settings, *, endpoint_id: UUID, since: str, until: str | None, only_failed: bool, as_json: bool
) -> None:
    """Have an endpoint sent again the events of a time.

    Raises `InvalidInput`, `WebhookEndpointNotFound` and `WebhookEndpointStopped`.
    """
    first, last = parse_moment("--from", since), parse_moment("--to", until) or datetime.now(UTC)
    assert first is not None
    if last < first:
        raise InvalidInput("--to", f"expected a time after --from, got {last.isoformat()}")
    async with service_database(settings) as database, database.transaction() as connection:
        if (await find_endpoint(connection, endpoint_id)).disabled_at is not None:
            raise WebhookEndpointStopped(endpoint_id)
        count = await deliveries.replay(connection, endpoint_id, since=first, until=last, only_failed=only_failed)
    if as_json:
        print_json({"endpointId": str(endpoint_id), "events": count})
    else:
        stdout.print(f"{count} events are sent to endpoint {endpoint_id} again", markup=False)


def _last_try(view: DeliveryView) -> str:
    if not view.tries:
        return ""
    last = view.tries[0]
    return str(last.status_code) if last.error is None else last.error
