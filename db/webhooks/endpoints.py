"""Endpoints of webhooks: made and changed by functions, which decide whose they are; read in the caller's scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ServiceConnection, TenantConnection

ManagingConnection = TenantConnection | ServiceConnection
"""Who makes and changes endpoints: a user of the own accounts, an operator of any."""

_CREATE: Final = text(
    "SELECT create_webhook_endpoint(:id, :account, :url, CAST(:events AS text[]), :secret, CAST(:limit AS integer))"
)
_ROTATE: Final = text("SELECT rotate_webhook_secret(:id, :secret, CAST(:overlap AS interval))")
_DELETE: Final = text("SELECT delete_webhook_endpoint(:id)")
_ENABLE: Final = text("SELECT enable_webhook_endpoint(:id)")
_FIND: Final = """
    SELECT e.id, e.billing_account_id, e.url, e.events, e.created_at, e.disabled_at, e.disabled_reason,
           d.pending, d.failed
      FROM webhook_endpoints e, LATERAL (
           SELECT count(*) FILTER (WHERE d.state = 'pending') AS pending,
                  count(*) FILTER (WHERE d.state = 'failed') AS failed
             FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.state IN ('pending', 'failed')) d
     WHERE e.disabled_reason IS DISTINCT FROM 'deleted'
"""
_OF_ACCOUNT: Final = "(CAST(:account AS text) IS NULL OR e.billing_account_id = :account)"
_FIND_ONE: Final = text(f"{_FIND} AND e.id = :id AND {_OF_ACCOUNT}")
_LIST: Final = text(f"{_FIND} AND {_OF_ACCOUNT} ORDER BY e.created_at, e.id LIMIT :limit")


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """An endpoint, without its secrets, and how many of its deliveries are waiting or were given up."""

    id: UUID
    billing_account_id: str
    url: str
    events: tuple[str, ...] | None
    """None takes all."""
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    pending: int
    failed: int


async def create_endpoint(
    connection: ManagingConnection,
    endpoint_id: UUID,
    billing_account_id: str,
    *,
    url: str,
    events: Sequence[str] | None,
    secret: bytes,
    limit: int,
) -> str:
    """Store a new endpoint with its first secret: `created`, `not_managed`, or `too_many` where there are `limit`."""
    values = {
        "id": endpoint_id,
        "account": billing_account_id,
        "url": url,
        "events": None if events is None else list(events),
        "secret": secret,
        "limit": limit,
    }
    outcome: str = (await connection.connection.execute(_CREATE, values)).scalar_one()
    return outcome


async def rotate_secret(
    connection: ManagingConnection, endpoint_id: UUID, secret: bytes, *, overlap: timedelta
) -> bool:
    """Sign with `secret`, and for `overlap` with the old ones, too. False where the caller manages no such endpoint."""
    values = {"id": endpoint_id, "secret": secret, "overlap": overlap}
    return bool((await connection.connection.execute(_ROTATE, values)).scalar_one())


async def delete_endpoint(connection: ManagingConnection, endpoint_id: UUID) -> bool:
    """Send nothing more to an endpoint. False where the caller manages no such endpoint."""
    return bool((await connection.connection.execute(_DELETE, {"id": endpoint_id})).scalar_one())


async def enable_endpoint(connection: ManagingConnection, endpoint_id: UUID) -> bool:
    """Send to an endpoint again that its receiver had stopped. False where the caller manages no such endpoint."""
    return bool((await connection.connection.execute(_ENABLE, {"id": endpoint_id})).scalar_one())


async def find_endpoint(
    connection: ManagingConnection, endpoint_id: UUID, billing_account_id: str | None = None
) -> WebhookEndpoint | None:
    """An endpoint that the connection sees, of that account where one is named; None where it was deleted."""
    values = {"id": endpoint_id, "account": billing_account_id}
    row = (await connection.connection.execute(_FIND_ONE, values)).one_or_none()
    return None if row is None else _to_endpoint(row)


async def list_endpoints(
    connection: ManagingConnection, billing_account_id: str | None, *, limit: int
) -> list[WebhookEndpoint]:
    """An account's endpoints (None: of all accounts that the connection sees), the oldest first."""
    rows = await connection.connection.execute(_LIST, {"account": billing_account_id, "limit": limit})
    return [_to_endpoint(row) for row in rows]


def _to_endpoint(row: Any) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=row.id,
        billing_account_id=row.billing_account_id,
        url=row.url,
        events=None if row.events is None else tuple(row.events),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        pending=row.pending,
        failed=row.failed,
    )
