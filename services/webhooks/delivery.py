"""One try of a delivery: sent, logged, and decided whether it ends or is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from db.engine import ServiceConnection, ServiceDatabase
from db.operations.findings import open_finding
from db.webhooks import deliveries
from db.webhooks.deliveries import StoredDelivery, Try
from domain.operations.findings import Finding, FindingKind
from domain.webhooks.retries import GIVEN_UP_AFTER, next_delay
from domain.webhooks.signatures import signed_headers
from services.webhooks.sender import Answer, WebhookSender
from telemetry.metrics.worker import FINDINGS_OPENED, WEBHOOK_TRIES


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a delivery: `delivered`, `failed`, `stopped`, or `deleted` where it is not there any more."""

    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Postponed:
    """The receiver did not accept it: when it is tried again."""

    delay: timedelta
    detail: str


async def try_once(
    database: ServiceDatabase, sender: WebhookSender, event_id: UUID, endpoint_id: UUID
) -> Ended | Postponed:
    """Send a webhook once, unless its delivery has ended.

    Safe to repeat: a try whose worker died before it could record what came of it is made again, with the same id.
    """
    async with database.autocommit() as connection:
        delivery = await deliveries.find_delivery(connection, event_id, endpoint_id)
    if delivery is None:
        return Ended("deleted", "it was deleted")
    if delivery.state != "pending":
        return Ended(delivery.state, "nothing is due")
    if delivery.is_disabled or not delivery.secrets:
        async with database.transaction() as connection:
            await deliveries.end_delivery(connection, delivery, "stopped", failures=delivery.failures)
        return Ended("stopped", "its endpoint takes nothing any more")
    body = delivery.body.encode()
    headers = signed_headers(str(delivery.event_id), delivery.now, body, delivery.secrets)
    answer = await sender.send(delivery.url, body, headers)
    async with database.transaction() as connection:
        return await _record(connection, delivery, answer)


async def _record(connection: ServiceConnection, delivery: StoredDelivery, answer: Answer) -> Ended | Postponed:
    detail = answer.error or f"the receiver answered {answer.status_code}"
    sent = Try(delivery.now, answer.duration_ms, answer.status_code, answer.response_head, answer.error)
    await deliveries.note_try(connection, delivery, sent)
    WEBHOOK_TRIES.labels("accepted" if answer.is_accepted else "refused" if answer.status_code else "unreachable").inc()
    if answer.is_accepted:
        await deliveries.end_delivery(connection, delivery, "delivered", failures=delivery.failures)
        return Ended("delivered", detail)
    failures = delivery.failures + 1
    if answer.status_code == HTTPStatus.GONE:
        await deliveries.end_delivery(connection, delivery, "stopped", failures=failures)
        await deliveries.stop_endpoint(connection, delivery.endpoint_id)
        return Ended("stopped", "the receiver answered 410: its endpoint is stopped")
    tried_for = delivery.now - delivery.tried_since
    delay = next_delay(failures, tried_for, answer.retry_after)
    if delay is not None:
        await deliveries.postpone(connection, delivery, failures=failures, delay=delay)
        return Postponed(delay, detail)
    if await deliveries.end_delivery(connection, delivery, "failed", failures=failures) and await open_finding(
        connection, finding_of(delivery, failures, detail)
    ):
        FINDINGS_OPENED.labels(FindingKind.WEBHOOK_UNDELIVERED.value).inc()
    return Ended("failed", f"given up after {failures} tries: {detail}")


def finding_of(delivery: StoredDelivery, failures: int, detail: str) -> Finding:
    """The finding about what an endpoint was not sent on a day: one, however many webhooks it is."""
    day = delivery.now.astimezone(UTC).date()
    return Finding(
        kind=FindingKind.WEBHOOK_UNDELIVERED,
        detail=(
            f"webhooks to endpoint {delivery.endpoint_id} were given up on {day} after {GIVEN_UP_AFTER.days} days, "
            f"{delivery.event_type} {delivery.event_id} after {failures} tries: {detail}"
        )[:2_000],
        billing_account_id=delivery.billing_account_id,
        endpoint_day=f"{delivery.endpoint_id}:{day}",
        details={"endpointId": str(delivery.endpoint_id), "eventId": str(delivery.event_id)},
    )


async def redeliver_given_up(connection: ServiceConnection, details: Mapping[str, Any]) -> int:
    """Send again whatever the endpoint of a finding was not sent; returns how many webhooks."""
    return await deliveries.replay(
        connection,
        UUID(details["endpointId"]),
        since=datetime.min.replace(tzinfo=UTC),
        until=datetime.max.replace(tzinfo=UTC),
        only_failed=True,
    )
