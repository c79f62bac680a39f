"""Deliveries of webhooks: what is due, what a try needs, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import UUID as SqlUuid
from sqlalchemy.types import Integer

from db.engine import ServiceConnection, TenantConnection

AnyConnection = TenantConnection | ServiceConnection

_TO_START: Final = text(
    """
    SELECT d.id, d.event_id, d.endpoint_id, d.billing_account_id, d.round, d.due_at FROM webhook_deliveries d
     WHERE d.state = 'pending' AND d.started_at IS NULL ORDER BY d.due_at LIMIT :limit
    """
)
# Of a later round it is not known: that one is started as well.
_STARTED: Final = text(
    """
    UPDATE webhook_deliveries d SET started_at = clock_timestamp()
      FROM unnest(:ids, :rounds) AS started (id, round)
     WHERE d.id = started.id AND d.round = started.round AND d.state = 'pending' AND d.started_at IS NULL
    """
).bindparams(bindparam("ids", type_=ARRAY(SqlUuid)), bindparam("rounds", type_=ARRAY(Integer)))
_OVERDUE: Final = text(
    """
    SELECT d.id, d.event_id, d.endpoint_id, d.billing_account_id, d.round, d.due_at FROM webhook_deliveries d
     WHERE d.state = 'pending' AND d.due_at < clock_timestamp() - CAST(:by AS interval)
       AND (CAST(:due_at AS timestamptz) IS NULL OR (d.due_at, d.id) > (:due_at, :id))
     ORDER BY d.due_at, d.id LIMIT :limit
    """
)
_FIND: Final = text(
    """
    SELECT d.id, d.event_id, d.endpoint_id, d.billing_account_id, d.state, d.round, d.failures, d.tried_since,
           v.type AS event_type, v.body, e.url, e.disabled_at IS NOT NULL AS is_disabled, clock_timestamp() AS now,
           ARRAY(SELECT s.secret FROM webhook_secrets s
                  WHERE s.endpoint_id = e.id AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())
                  ORDER BY s.id DESC) AS secrets
      FROM webhook_deliveries d
      JOIN webhook_events v ON v.id = d.event_id JOIN webhook_endpoints e ON e.id = d.endpoint_id
     WHERE d.event_id = :event_id AND d.endpoint_id = :endpoint_id
    """
)
_NOTE_TRY: Final = text(
    """
    INSERT INTO webhook_tries (delivery_id, billing_account_id, sent_at, duration_ms, status_code, response_head, error)
    VALUES (:delivery_id, :account, :sent_at, :duration_ms, :status_code, :response_head, :error)
    """
)
# What another round has begun in the meantime is not ended by this one.
_END: Final = text(
    """
    UPDATE webhook_deliveries d SET state = :state, failures = :failures, due_at = NULL, ended_at = clock_timestamp()
     WHERE d.id = :id AND d.round = :round AND d.state = 'pending'
    RETURNING d.id
    """
)
_POSTPONE: Final = text(
    """
    UPDATE webhook_deliveries d SET failures = :failures, due_at = clock_timestamp() + CAST(:delay AS interval)
     WHERE d.id = :id AND d.round = :round AND d.state = 'pending'
    """
)
_STOP_ENDPOINT: Final = text(
    """
    UPDATE webhook_endpoints e SET disabled_at = clock_timestamp(), disabled_reason = 'stopped_by_receiver'
     WHERE e.id = :id AND e.disabled_at IS NULL
    """
)
_STOP_OTHERS: Final = text(
    """
    UPDATE webhook_deliveries d SET state = 'stopped', due_at = NULL, ended_at = clock_timestamp()
     WHERE d.endpoint_id = :id AND d.state = 'pending'
    """
)
_REDELIVER: Final = text("SELECT redeliver_webhook(:id)")
_REPLAY: Final = text("SELECT replay_webhooks(:endpoint_id, :since, :until, :only_failed)")
_PRUNE: Final = text("SELECT pruned_from, pruned_rows FROM prune_webhooks(:limit, CAST(:older_than AS interval))")

_PAGE: Final = """
    SELECT d.id, d.event_id, d.endpoint_id, v.type, d.state, d.created_at, d.due_at, d.ended_at,
           (SELECT coalesce(json_agg(json_build_object(
                       'sent_at', t.sent_at, 'duration_ms', t.duration_ms, 'status_code', t.status_code,
                       'response_head', t.response_head, 'error', t.error) ORDER BY t.id DESC), '[]')
              FROM (SELECT * FROM webhook_tries w WHERE w.delivery_id = d.id ORDER BY w.id DESC LIMIT :tries) t
           ) AS tries,
           (SELECT count(*) FROM webhook_tries t WHERE t.delivery_id = d.id) AS tries_count
      FROM webhook_deliveries d JOIN webhook_events v ON v.id = d.event_id
     WHERE d.endpoint_id = :endpoint_id
"""
_BEFORE: Final = """
    AND (d.created_at, d.id) < (SELECT b.created_at, b.id FROM webhook_deliveries b
                                 WHERE b.id = :before AND b.endpoint_id = d.endpoint_id)
"""
_ORDER: Final = " ORDER BY d.created_at DESC, d.id DESC LIMIT :limit"
_FIND_ENDPOINT_OF: Final = text("SELECT d.endpoint_id FROM webhook_deliveries d WHERE d.id = :id")

TRIES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery that should have a workflow."""

    id: UUID
    event_id: UUID
    endpoint_id: UUID
    billing_account_id: str
    round: int
    due_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """All that a try needs. `secrets` are those in force, the newest first; none of a deleted endpoint."""

    id: UUID
    event_id: UUID
    endpoint_id: UUID
    billing_account_id: str
    state: str
    round: int
    failures: int
    tried_since: datetime
    event_type: str
    body: str
    url: str
    is_disabled: bool
    now: datetime
    """By the database's clock."""
    secrets: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"StoredDelivery({self.id})"  # a secret is in no log


@dataclass(frozen=True, slots=True)
class Try:
    """One time that a webhook was sent. Without a status there was no answer, and `error` says why."""

    sent_at: datetime
    duration_ms: int
    status_code: int | None
    response_head: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ListedDelivery:
    """A delivery with its latest tries, the last one first."""

    id: UUID
    event_id: UUID
    endpoint_id: UUID
    event_type: str
    state: str
    created_at: datetime
    due_at: datetime | None
    ended_at: datetime | None
    tries: tuple[Try, ...]
    tries_count: int


async def list_to_start(connection: ServiceConnection, *, limit: int) -> list[DueDelivery]:
    """Deliveries for which no workflow was started, the longest due first."""
    return [DueDelivery(*row) for row in await connection.connection.execute(_TO_START, {"limit": limit})]


async def note_started(connection: ServiceConnection, started: Sequence[DueDelivery]) -> None:
    """Record that these have a workflow."""
    values = {"ids": [delivery.id for delivery in started], "rounds": [delivery.round for delivery in started]}
    await connection.connection.execute(_STARTED, values)


async def page_overdue(
    connection: ServiceConnection, *, by: timedelta, after: DueDelivery | None, limit: int
) -> list[DueDelivery]:
    """Deliveries whose next try is overdue `by` that much, by pages: their workflow is lost, or waits for a place."""
    values: dict[str, Any] = {"by": by, "due_at": after and after.due_at, "id": after and after.id, "limit": limit}
    return [DueDelivery(*row) for row in await connection.connection.execute(_OVERDUE, values)]


async def find_delivery(connection: ServiceConnection, event_id: UUID, endpoint_id: UUID) -> StoredDelivery | None:
    """A delivery as it is now; None where it was deleted."""
    values = {"event_id": event_id, "endpoint_id": endpoint_id}
    row = (await connection.connection.execute(_FIND, values)).one_or_none()
    if row is None:
        return None
    return StoredDelivery(**{**row._mapping, "secrets": tuple(row.secrets)})


async def note_try(connection: ServiceConnection, delivery: StoredDelivery, sent: Try) -> None:
    """Add to the log of a delivery."""
    values = {
        "delivery_id": delivery.id,
        "account": delivery.billing_account_id,
        "sent_at": sent.sent_at,
        "duration_ms": sent.duration_ms,
        "status_code": sent.status_code,
        "response_head": sent.response_head,
        "error": sent.error,
    }
    await connection.connection.execute(_NOTE_TRY, values)


async def end_delivery(connection: ServiceConnection, delivery: StoredDelivery, state: str, *, failures: int) -> bool:
    """End a delivery as `delivered`, `failed` or `stopped`. False where another round of it has begun, or it ended."""
    values = {"id": delivery.id, "round": delivery.round, "state": state, "failures": failures}
    return (await connection.connection.execute(_END, values)).one_or_none() is not None


async def postpone(connection: ServiceConnection, delivery: StoredDelivery, *, failures: int, delay: timedelta) -> None:
    """Record a failure, and when the next try is due."""
    values = {"id": delivery.id, "round": delivery.round, "failures": failures, "delay": delay}
    await connection.connection.execute(_POSTPONE, values)


async def stop_endpoint(connection: ServiceConnection, endpoint_id: UUID) -> None:
    """Send nothing more to an endpoint, as its receiver asks."""
    await connection.connection.execute(_STOP_ENDPOINT, {"id": endpoint_id})
    await connection.connection.execute(_STOP_OTHERS, {"id": endpoint_id})


async def redeliver(connection: AnyConnection, delivery_id: UUID) -> bool:
    """Have an event sent again. False where the caller manages no such delivery, or its endpoint takes nothing."""
    return bool((await connection.connection.execute(_REDELIVER, {"id": delivery_id})).scalar_one())


async def replay(
    connection: ServiceConnection,
    endpoint_id: UUID,
    *,
    since: datetime,
    until: datetime,
    only_failed: bool = False,
) -> int:
    """Have an endpoint sent again what it takes of a time, or only what was given up of it; returns how many events."""
    values = {"endpoint_id": endpoint_id, "since": since, "until": until, "only_failed": only_failed}
    sent: int = (await connection.connection.execute(_REPLAY, values)).scalar_one()
    return sent


async def prune(connection: ServiceConnection, *, limit: int, older_than: timedelta) -> dict[str, int]:
    """Delete at most `limit` deliveries and events that are so old, and expired secrets; how many of each."""
    rows = await connection.connection.execute(_PRUNE, {"limit": limit, "older_than": older_than})
    return {table: count for table, count in rows if count}


async def find_endpoint_of(connection: AnyConnection, delivery_id: UUID) -> UUID | None:
    """The endpoint of a delivery that the connection sees."""
    found: UUID | None = (
        await connection.connection.execute(_FIND_ENDPOINT_OF, {"id": delivery_id})
    ).scalar_one_or_none()
    return found


async def page_deliveries(
    connection: AnyConnection, endpoint_id: UUID, *, limit: int, before: UUID | None = None
) -> list[ListedDelivery]:
    """An endpoint's deliveries, the newest first, at most `limit`, older than the delivery `before`."""
    query = _PAGE + (_BEFORE if before is not None else "") + _ORDER
    values: dict[str, Any] = {"endpoint_id": endpoint_id, "limit": limit, "tries": TRIES_SHOWN}
    if before is not None:
        values["before"] = before
    return [_to_listed(row) for row in await connection.connection.execute(text(query), values)]


def _to_listed(row: Any) -> ListedDelivery:
    return ListedDelivery(
        id=row.id,
        event_id=row.event_id,
        endpoint_id=row.endpoint_id,
        event_type=row.type,
        state=row.state,
        created_at=row.created_at,
        due_at=row.due_at,
        ended_at=row.ended_at,
        tries=tuple(
            Try(
                sent_at=datetime.fromisoformat(sent["sent_at"]),
                duration_ms=sent["duration_ms"],
                status_code=sent["status_code"],
                response_head=sent["response_head"],
                error=sent["error"],
            )
            for sent in row.tries
        ),
        tries_count=row.tries_count,
    )
