"""Prices, holds, receipts, and the sums that limits and reports read."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Date, ForeignKey, Identity, Index, Numeric, PrimaryKeyConstraint, func, text
from sqlalchemy.dialects.postgresql import BYTEA, JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Integer

from db.tables.base import Base


class PriceVersion(Base):
    """A price book with the time from which it counts."""

    __tablename__ = "price_versions"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    source: Mapped[str]
    counts_from: Mapped[datetime]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ModelPrice(Base):
    """A model's price in one version: `domain.billing.price_book.ListedPrice`."""

    __tablename__ = "model_prices"

    version_id: Mapped[int] = mapped_column(ForeignKey("price_versions.id"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    provider: Mapped[str]
    rates: Mapped[dict[str, Any]]
    names: Mapped[dict[str, Any]]
    position: Mapped[int] = mapped_column(Integer)


class CreditHold(Base):
    """What a call may cost, set aside before it is made. A row, not an entry of the ledger."""

    __tablename__ = "credit_holds"
    __table_args__ = (
        Index("credit_holds_open_by_account", "billing_account_id", postgresql_where=text("state = 'held'")),
        Index("credit_holds_open_by_key", "virtual_key_id", postgresql_where=text("state = 'held'")),
        Index("credit_holds_lapsing", "lease_until", postgresql_where=text("state = 'held'")),
        Index("credit_holds_by_request", "request_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    virtual_key_id: Mapped[UUID] = mapped_column(ForeignKey("virtual_keys.id"))
    request_id: Mapped[str]
    amount_credits: Mapped[int]
    state: Mapped[str] = mapped_column(server_default=text("'held'"))
    dialect: Mapped[str]
    model: Mapped[str]
    upstream: Mapped[str]
    is_streamed: Mapped[bool]
    attributed_to: Mapped[str | None] = mapped_column(ForeignKey("billing_accounts.id"))
    owner: Mapped[str]
    lease_until: Mapped[datetime]
    markup_factor: Mapped[Decimal] = mapped_column(Numeric)
    price_version: Mapped[str | None]
    rates: Mapped[dict[str, Any] | None]
    input_tokens_estimate: Mapped[int]
    output_tokens_limit: Mapped[int | None]
    output_bytes: Mapped[int] = mapped_column(server_default=text("0"))
    upstream_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    resolved_at: Mapped[datetime | None]


class ChargeReceipt(Base):
    """What a call cost, and what that was computed from. Immutable; partitioned by month."""

    __tablename__ = "charge_receipts"
    __table_args__ = (
        PrimaryKeyConstraint("id", "created_at"),
        Index("charge_receipts_by_account", "billing_account_id", "created_at"),
        Index("charge_receipts_by_request", "request_id"),
        Index(
            "charge_receipts_doubtful",
            "created_at",
            postgresql_where=text("doubt IS NOT NULL OR uncollected_credits > 0"),
        ),
        {"postgresql_partition_by": "RANGE (created_at)"},
    )

    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    request_id: Mapped[str]
    hold_id: Mapped[UUID | None]
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    virtual_key_id: Mapped[UUID] = mapped_column(ForeignKey("virtual_keys.id"))
    charged_credits: Mapped[int]
    uncollected_credits: Mapped[int] = mapped_column(server_default=text("0"))
    provider_cost_usd: Mapped[Decimal] = mapped_column(Numeric)
    user_cost_usd: Mapped[Decimal] = mapped_column(Numeric)
    absorbed_cost_usd: Mapped[Decimal] = mapped_column(Numeric)
    source_system: Mapped[str]
    source_reference: Mapped[str]
    charge_reason: Mapped[str]
    model: Mapped[str]
    provider: Mapped[str]
    input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cached_input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cache_write_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    reasoning_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    estimated: Mapped[bool] = mapped_column(server_default=text("false"))
    doubt: Mapped[str | None]
    doubt_detail: Mapped[str | None]
    price_version: Mapped[str | None]
    unit_prices: Mapped[Any] = mapped_column(JSONB)
    attributed_to: Mapped[str | None] = mapped_column(ForeignKey("billing_accounts.id"))
    entry_id: Mapped[UUID | None]
    upstream_id: Mapped[str | None]
    body_hash: Mapped[bytes | None] = mapped_column(BYTEA)
    called_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ChargeReference(Base):
    """What a charge is identified by, once over all months."""

    __tablename__ = "charge_references"
    __table_args__ = (PrimaryKeyConstraint("source_system", "source_reference", name="charge_references_once"),)

    source_system: Mapped[str]
    source_reference: Mapped[str]
    receipt_id: Mapped[UUID]
    receipt_created_at: Mapped[datetime]


class UsageOfDay(Base):
    """Sums of an account's receipts of one UTC day, key, model and attributed account."""

    __tablename__ = "usage_by_day"
    __table_args__ = (
        PrimaryKeyConstraint("billing_account_id", "day", "virtual_key_id", "model", "attributed_to"),
        Index("usage_by_day_of_key", "virtual_key_id", "day"),
    )

    day: Mapped[date] = mapped_column(Date)
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    virtual_key_id: Mapped[UUID] = mapped_column(ForeignKey("virtual_keys.id"))
    model: Mapped[str]
    attributed_to: Mapped[str] = mapped_column(server_default=text("''"))
    calls: Mapped[int] = mapped_column(server_default=text("0"))
    charged_credits: Mapped[int] = mapped_column(server_default=text("0"))
    provider_cost_usd: Mapped[Decimal] = mapped_column(Numeric, server_default=text("0"))
    absorbed_cost_usd: Mapped[Decimal] = mapped_column(Numeric, server_default=text("0"))
    input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cached_input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(server_default=text("0"))


class BillingAlert(Base):
    """A threshold that a charge crossed: the end of the balance, or a share of a limit."""

    __tablename__ = "billing_alerts"
    __table_args__ = (
        Index(
            "billing_alerts_once",
            "billing_account_id",
            text("COALESCE(virtual_key_id, '00000000-0000-0000-0000-000000000000'::uuid)"),
            "period",
            "period_start",
            "threshold_percent",
            unique=True,
            postgresql_where=text("period IS NOT NULL"),
        ),
        Index("billing_alerts_to_announce", "id", postgresql_where=text("announced_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    kind: Mapped[str]
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    virtual_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("virtual_keys.id"))
    period: Mapped[str | None]
    period_start: Mapped[date | None] = mapped_column(Date)
    threshold_percent: Mapped[int | None] = mapped_column(Integer)
    balance_credits: Mapped[int]
    spent_credits: Mapped[int | None]
    limit_credits: Mapped[int | None]
    reference: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    announced_at: Mapped[datetime | None]


class BillingCursor(Base):
    """Up to when something has been checked."""

    __tablename__ = "billing_cursors"

    name: Mapped[str] = mapped_column(primary_key=True)
    seen_to: Mapped[datetime]


class CallClaim(Base):
    """A call with an Idempotency-Key: claimed before it is made, answered again with what was answered."""

    __tablename__ = "call_claims"
    __table_args__ = (Index("call_claims_by_age", "created_at"),)

    virtual_key_id: Mapped[UUID] = mapped_column(ForeignKey("virtual_keys.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes] = mapped_column(BYTEA)
    request_id: Mapped[str]
    hold_id: Mapped[UUID | None]
    status: Mapped[int | None] = mapped_column(Integer)
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[bytes | None] = mapped_column(BYTEA)
    lease_until: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
