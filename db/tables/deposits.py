"""What can be paid with, addresses of accounts and of charges, and the transfers that have come to them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Identity, Index, Integer, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class AddressRing(Base):
    """An extended public key, and the next index of its addresses."""

    __tablename__ = "address_rings"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    curve: Mapped[str] = mapped_column(server_default=text("'secp256k1'"))
    path: Mapped[str]
    xpub: Mapped[str] = mapped_column(unique=True)
    fingerprint: Mapped[str]
    next_index: Mapped[int] = mapped_column(server_default=text("0"))
    gap_limit: Mapped[int] = mapped_column(Integer, server_default=text("20"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PaymentMethodRow(Base):
    """A token on a chain, and how addresses for it are made. `token` is its symbol, `address` its contract."""

    __tablename__ = "payment_methods"
    __table_args__ = (Index("payment_methods_by_token", "chain_id", text("lower(address)")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    chain_id: Mapped[int]
    token: Mapped[str]
    address: Mapped[str | None]
    decimals: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str]
    scheme: Mapped[str]
    ring_id: Mapped[UUID | None] = mapped_column(ForeignKey("address_rings.id"))
    min_amount_raw: Mapped[Decimal] = mapped_column(server_default=text("1"))
    confirmations: Mapped[int | None] = mapped_column(Integer)
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PriceSourceRow(Base):
    """The feeds of a method's price. Append-only: the last row of a method counts."""

    __tablename__ = "price_sources"
    __table_args__ = (Index("price_sources_of_method", "method_id", "seq"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    method_id: Mapped[str] = mapped_column(ForeignKey("payment_methods.id"))
    chain_id: Mapped[int]
    feed: Mapped[str]
    description: Mapped[str]
    decimals: Mapped[int] = mapped_column(Integer)
    max_age_seconds: Mapped[int] = mapped_column(Integer)
    second_feed: Mapped[str | None]
    second_decimals: Mapped[int | None] = mapped_column(Integer)
    max_divergence_bps: Mapped[int] = mapped_column(Integer)
    sequencer_feed: Mapped[str | None]
    sequencer_grace_seconds: Mapped[int] = mapped_column(Integer)
    min_answer_raw: Mapped[Decimal] = mapped_column(server_default=text("1"))
    max_answer_raw: Mapped[Decimal | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PriceQuoteRow(Base):
    """A price at which a charge was made, or a deposit credited. Append-only."""

    __tablename__ = "price_quotes"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    source_id: Mapped[UUID] = mapped_column(ForeignKey("price_sources.id"))
    round_id: Mapped[Decimal]
    answer_raw: Mapped[Decimal]
    decimals: Mapped[int] = mapped_column(Integer)
    feed_updated_at: Mapped[datetime]
    block_number: Mapped[int | None]
    block_time: Mapped[datetime]
    second_round_id: Mapped[Decimal | None]
    second_answer_raw: Mapped[Decimal | None]
    second_decimals: Mapped[int | None] = mapped_column(Integer)
    second_updated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DepositAddressRow(Base):
    """An address of an account, its own or of one of its charges, with what it is derived from."""

    __tablename__ = "deposit_addresses"
    __table_args__ = (
        UniqueConstraint("chain_id", "address", name="deposit_addresses_once"),
        Index(
            "deposit_addresses_once_in_any_case",
            text("lower(address)"),
            "chain_id",
            unique=True,
        ),
        Index(
            "deposit_addresses_one_per_index",
            "chain_id",
            "ring_id",
            "index",
            unique=True,
            postgresql_where=text("ring_id IS NOT NULL"),
        ),
        Index(
            "deposit_addresses_one_own",
            "billing_account_id",
            "chain_id",
            "scheme",
            text("coalesce(ring_id::text, lower(treasury))"),
            unique=True,
            postgresql_where=text("charge_id IS NULL"),
        ),
        Index(
            "deposit_addresses_one_per_charge",
            "charge_id",
            unique=True,
            postgresql_where=text("charge_id IS NOT NULL"),
        ),
        Index("deposit_addresses_active", "chain_id", "active_at"),
        Index("deposit_addresses_by_ring", "ring_id", "index", postgresql_where=text("ring_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    chain_id: Mapped[int]
    address: Mapped[str]
    scheme: Mapped[str]
    ring_id: Mapped[UUID | None] = mapped_column(ForeignKey("address_rings.id"))
    index: Mapped[int | None]
    salt: Mapped[str | None]
    treasury: Mapped[str | None]
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    charge_id: Mapped[UUID | None] = mapped_column(
        ForeignKey(
            "charges.id", name="deposit_addresses_of_charge", deferrable=True, initially="DEFERRED", use_alter=True
        )
    )
    active_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ChargeRow(Base):
    """A quote and a page; what comes to its address is credited for what it is worth."""

    __tablename__ = "charges"
    __table_args__ = (
        Index("charges_one_per_address", "address_id", unique=True),
        Index("charges_by_account", "billing_account_id", "created_at"),
        Index("charges_unpaid", "price_expires_at", postgresql_where=text("status = 'new'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    method_id: Mapped[str] = mapped_column(ForeignKey("payment_methods.id"))
    amount_usd_cents: Mapped[int]
    quoted_amount_raw: Mapped[Decimal]
    address_id: Mapped[UUID] = mapped_column(ForeignKey("deposit_addresses.id"))
    status: Mapped[str] = mapped_column(server_default=text("'new'"))
    price_expires_at: Mapped[datetime]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    quote_id: Mapped[UUID | None] = mapped_column(ForeignKey("price_quotes.id"))


class DepositRow(Base):
    """A transfer to a deposit address: there when it is seen, with an attempt when it is confirmed."""

    __tablename__ = "deposits"
    __table_args__ = (
        UniqueConstraint(
            "chain_id", "tx_hash", "log_index", name="deposits_once", deferrable=True, initially="DEFERRED"
        ),
        Index("deposits_by_address", "address_id", "created_at"),
        Index("deposits_without_attempt", "chain_id", "block_number", postgresql_where=text("attempt_id IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    chain_id: Mapped[int]
    tx_hash: Mapped[str]
    log_index: Mapped[int]
    address_id: Mapped[UUID] = mapped_column(ForeignKey("deposit_addresses.id"))
    method_id: Mapped[str] = mapped_column(ForeignKey("payment_methods.id"))
    token: Mapped[str]
    from_address: Mapped[str]
    value_raw: Mapped[Decimal]
    credits: Mapped[int]
    block_number: Mapped[int]
    block_hash: Mapped[str]
    block_time: Mapped[datetime]
    attempt_id: Mapped[UUID | None] = mapped_column(ForeignKey("payment_attempts.id"), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    quote_id: Mapped[UUID | None] = mapped_column(ForeignKey("price_quotes.id"))
    operator_credits: Mapped[int | None]
