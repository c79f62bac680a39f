"""Sweeps, their signed transactions, and the transfers to a treasury that they or others caused."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class SweepRow(Base):
    """A plan whose transactions are signed."""

    __tablename__ = "sweeps"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    chain_id: Mapped[int]
    plan: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default=text("'sent'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class SweepTransactionRow(Base):
    """A signed transaction of a sweep; several with one nonce replace each other."""

    __tablename__ = "sweep_transactions"
    __table_args__ = (Index("sweep_transactions_by_sweep", "sweep_id", "nonce"),)

    chain_id: Mapped[int] = mapped_column(primary_key=True)
    tx_hash: Mapped[str] = mapped_column(primary_key=True)
    sweep_id: Mapped[UUID] = mapped_column(ForeignKey("sweeps.id"))
    sender: Mapped[str]
    nonce: Mapped[int]
    raw: Mapped[bytes]
    outcome: Mapped[str | None]
    block_number: Mapped[int | None]
    spent_wei: Mapped[Decimal | None]
    gas_used: Mapped[int | None]
    gas_price_wei: Mapped[Decimal | None]
    l1_fee_wei: Mapped[Decimal | None]
    stored_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SweptTransferRow(Base):
    """A transfer from a deposit address to a treasury, booked."""

    __tablename__ = "swept_transfers"
    __table_args__ = (
        Index("swept_transfers_by_address", "address_id"),
        Index("swept_transfers_by_entry", "entry_id", postgresql_where=text("entry_id IS NOT NULL")),
    )

    chain_id: Mapped[int] = mapped_column(primary_key=True)
    tx_hash: Mapped[str] = mapped_column(primary_key=True)
    log_index: Mapped[int] = mapped_column(primary_key=True)
    address_id: Mapped[UUID] = mapped_column(ForeignKey("deposit_addresses.id"))
    method_id: Mapped[str] = mapped_column(ForeignKey("payment_methods.id"))
    treasury: Mapped[str]
    value_raw: Mapped[Decimal]
    credits: Mapped[int]
    block_number: Mapped[int]
    block_hash: Mapped[str]
    entry_id: Mapped[UUID | None] = mapped_column(ForeignKey("general_entries.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SweepCursorRow(Base):
    """Up to which block transfers of a token to a treasury were read."""

    __tablename__ = "sweep_cursors"

    chain_id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(primary_key=True)
    treasury: Mapped[str] = mapped_column(primary_key=True)
    block_number: Mapped[int]
