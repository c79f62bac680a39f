"""Findings and operators' actions, reconciliations, heartbeats."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Identity, Index, Integer, Numeric, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class FindingRow(Base):
    """A case for an operator."""

    __tablename__ = "findings"
    __table_args__ = (
        Index("findings_open", "created_at", postgresql_where=text("resolved_at IS NULL")),
        Index("findings_to_announce", "created_at", postgresql_where=text("announced_at IS NULL")),
        Index("findings_open_by_value", "value_raw", "created_at", "id", postgresql_where=text("resolved_at IS NULL")),
        Index(
            "findings_to_announce_by_value",
            "value_raw",
            "created_at",
            "id",
            postgresql_where=text("announced_at IS NULL"),
        ),
        Index("findings_by_attempt", "attempt_id", postgresql_where=text("attempt_id IS NOT NULL")),
        Index("findings_by_kind", "kind", "created_at"),
        Index(
            "findings_by_transfer",
            "chain_id",
            "tx_hash",
            "log_index",
            postgresql_where=text("tx_hash IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    key: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    chain_id: Mapped[int | None]
    tx_hash: Mapped[str | None]
    log_index: Mapped[int | None]
    attempt_id: Mapped[UUID | None] = mapped_column(ForeignKey("payment_attempts.id"))
    billing_account_id: Mapped[str | None] = mapped_column(ForeignKey("billing_accounts.id"))
    value_raw: Mapped[Decimal | None]
    detail: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    announced_at: Mapped[datetime | None]
    resolved_at: Mapped[datetime | None]
    resolution: Mapped[str | None]
    times_opened: Mapped[int] = mapped_column(server_default=text("1"))
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OperatorAction(Base):
    """A remedy that an operator executed: the audit trail. Append-only."""

    __tablename__ = "operator_actions"
    __table_args__ = (
        UniqueConstraint("finding_id", "opening", name="operator_actions_one_per_opening"),
        Index("operator_actions_by_attempt", "attempt_id", postgresql_where=text("attempt_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    action: Mapped[str]
    operator: Mapped[str]
    reason: Mapped[str]
    finding_id: Mapped[UUID | None] = mapped_column(ForeignKey("findings.id"))
    opening: Mapped[int | None]
    attempt_id: Mapped[UUID | None] = mapped_column(ForeignKey("payment_attempts.id"))
    outcome: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TransferCredit(Base):
    """A transfer, or the overpayment of one, that an operator credited to an account, or sent back. Append-only."""

    __tablename__ = "transfer_credits"
    __table_args__ = (Index("transfer_credits_by_time", "created_at"),)

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tx_hash: Mapped[str] = mapped_column(primary_key=True)
    log_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    part: Mapped[str]
    block_number: Mapped[int]
    block_hash: Mapped[str]
    from_address: Mapped[str]
    finding_id: Mapped[UUID] = mapped_column(ForeignKey("findings.id"), unique=True)
    billing_account_id: Mapped[str | None] = mapped_column(ForeignKey("billing_accounts.id"))
    value_raw: Mapped[Decimal]
    amount_credits: Mapped[int]
    revenue_share: Mapped[Decimal] = mapped_column(Numeric())
    reference: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    token_decimals: Mapped[int] = mapped_column(Integer, server_default=text("6"))
    price_raw: Mapped[Decimal] = mapped_column(server_default=text("1"))
    price_decimals: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class BalanceAssertion(Base):
    """Result of a reconciliation of a period. Append-only."""

    __tablename__ = "balance_assertions"
    __table_args__ = (Index("balance_assertions_by_period", "chain_id", "period_to"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    chain_id: Mapped[int]
    period_from: Mapped[datetime]
    period_to: Mapped[datetime]
    transfers: Mapped[int]
    inflow_raw: Mapped[Decimal]
    purchases_credits: Mapped[Decimal]
    donations_credits: Mapped[Decimal]
    operator_credits: Mapped[Decimal]
    unapplied_raw: Mapped[Decimal]
    reversed_credits: Mapped[Decimal]
    ledger_debit_credits: Mapped[Decimal]
    ledger_credit_credits: Mapped[Decimal]
    differences: Mapped[dict[str, Any]]
    totals: Mapped[dict[str, Any]]
    closes: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class GovernanceHeartbeatRow(Base):
    """Result of one heartbeat of the platform."""

    __tablename__ = "governance_heartbeats"
    __table_args__ = (
        Index("governance_heartbeats_one_after_another", text("coalesce(previous_id, 0)"), unique=True),
        Index(
            "governance_heartbeats_to_announce",
            "id",
            postgresql_where=text("crossed AND low_balance_announced_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("governance_heartbeats.id"))
    scheduled_at: Mapped[datetime]
    status: Mapped[str]
    account_present: Mapped[bool]
    is_flagged: Mapped[bool]
    balance_credits: Mapped[int | None]
    threshold_credits: Mapped[int]
    is_low: Mapped[bool]
    crossed: Mapped[bool]
    last_revenue_share_at: Mapped[datetime | None]
    schema_revision: Mapped[str | None]
    worker_version: Mapped[str]
    chain_id: Mapped[int]
    head_number: Mapped[int | None]
    head_age_seconds: Mapped[int | None]
    problems: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    low_balance_announced_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class GovernanceCallRow(Base):
    """One call of the governance loop."""

    __tablename__ = "governance_calls"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    scheduled_at: Mapped[datetime]
    outcome: Mapped[str]
    model: Mapped[str]
    request_id: Mapped[str | None]
    charged_credits: Mapped[int]
    answer: Mapped[str | None]
    limit_source: Mapped[str | None]
    detail: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
