"""Endpoints of webhooks and what is written for them, in plain SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from db.accounts.wallets import Payer
from domain.webhooks.signatures import make_secret, shown_secret
from tests.support.postgres import Database
from tests.support.sql import query, scalar

EVENTS = "SELECT id, type, subject, sequence, body FROM webhook_events ORDER BY sequence"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint, with its first secret as a receiver configures it."""

    id: UUID
    payer: Payer
    secret: str


@dataclass(frozen=True, slots=True)
class WrittenEvent:
    """An event with its body, read."""

    id: UUID
    type: str
    subject: str
    sequence: int
    body: str

    @property
    def data(self) -> dict[str, Any]:
        """What it is about."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data


def make_endpoint(
    database: Database, payer: Payer, *, url: str = "https://example.com/", events: Sequence[str] | None = None
) -> Endpoint:
    """An endpoint of a payer's account, made in the payer's own scope."""
    endpoint_id, secret = uuid4(), make_secret()
    outcome = scalar(
        database.app_url,
        "SELECT create_webhook_endpoint(%s, %s, %s, %s, %s, 10)",
        endpoint_id,
        payer.billing_account_id,
        url,
        None if events is None else list(events),
        secret,
        user_id=payer.user_id,
    )
    assert outcome == "created"
    return Endpoint(endpoint_id, payer, shown_secret(secret))


def written(database: Database) -> list[WrittenEvent]:
    """All events, in order."""
    return [WrittenEvent(*row) for row in query(database.service_url, EVENTS)]


def types_of(database: Database) -> list[str]:
    """The types of all events, in order."""
    return [event.type for event in written(database)]


def deliveries_of(database: Database, endpoint: Endpoint) -> list[tuple[str, str]]:
    """Type and state of an endpoint's deliveries, in the order of their events."""
    return [
        (str(kind), str(state))
        for kind, state in query(
            database.service_url,
            "SELECT v.type, d.state FROM webhook_deliveries d JOIN webhook_events v ON v.id = d.event_id"
            " WHERE d.endpoint_id = %s ORDER BY v.sequence",
            endpoint.id,
        )
    ]
