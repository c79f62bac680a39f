"""Endpoints of webhooks, the events that are sent to them, and what became of each delivery."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Identity, Index, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Integer

from db.tables.base import Base


class WebhookEndpoint(Base):
    """Where an account has events sent to; `events` is None where it takes all."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("webhook_endpoints_by_account", "billing_account_id", "created_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    url: Mapped[str]
    events: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created_by_user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]


class WebhookSecret(Base):
    """A secret that signs an endpoint's webhooks; one of them does not expire."""

    __tablename__ = "webhook_secrets"
    __table_args__ = (
        Index("webhook_secrets_one_newest", "endpoint_id", unique=True, postgresql_where=text("expires_at IS NULL")),
        Index("webhook_secrets_by_endpoint", "endpoint_id"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoints.id"))
    secret: Mapped[bytes] = mapped_column(BYTEA)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]


class WebhookEvent(Base):
    """An event, with the body that is sent."""

    __tablename__ = "webhook_events"
    __table_args__ = (
        Index("webhook_events_in_order", "subject", "sequence", unique=True),
        Index("webhook_events_by_account", "billing_account_id", "created_at"),
        Index("webhook_events_by_age", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    type: Mapped[str]
    subject: Mapped[str]
    sequence: Mapped[int]
    body: Mapped[str]
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """An event for an endpoint."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("event_id", "endpoint_id", name="webhook_deliveries_once"),
        Index("webhook_deliveries_by_endpoint", "endpoint_id", "created_at", "id"),
        Index(
            "webhook_deliveries_open_by_endpoint",
            "endpoint_id",
            postgresql_where=text("state IN ('pending', 'failed')"),
        ),
        Index(
            "webhook_deliveries_to_start",
            "due_at",
            postgresql_where=text("state = 'pending' AND started_at IS NULL"),
        ),
        Index("webhook_deliveries_due", "due_at", postgresql_where=text("state = 'pending'")),
        Index("webhook_deliveries_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    event_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_events.id"))
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoints.id"))
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    round: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    tried_since: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    due_at: Mapped[datetime | None] = mapped_column(server_default=func.clock_timestamp())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class WebhookTry(Base):
    """One time that an event was sent to an endpoint."""

    __tablename__ = "webhook_tries"
    __table_args__ = (Index("webhook_tries_by_delivery", "delivery_id", "id"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_deliveries.id"))
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    sent_at: Mapped[datetime]
    duration_ms: Mapped[int]
    status_code: Mapped[int | None] = mapped_column(Integer)
    response_head: Mapped[str | None]
    error: Mapped[str | None]
