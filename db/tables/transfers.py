"""Observed transfers, cursors and gaps, and known addresses."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import ForeignKey, Identity, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class ObservedTransfer(Base):
    """A transfer of the token to the treasury that the chain watcher has seen on the canonical chain."""

    __tablename__ = "observed_transfers"
    __table_args__ = (
        Index("observed_transfers_by_block", "chain_id", "block_number"),
        Index("observed_transfers_by_time", "chain_id", "block_time"),
        Index("observed_transfers_unhandled", "chain_id", "block_number", postgresql_where=text("handled_at IS NULL")),
    )

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tx_hash: Mapped[str] = mapped_column(primary_key=True)
    log_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    block_number: Mapped[int]
    block_hash: Mapped[str]
    block_time: Mapped[datetime]
    token: Mapped[str]
    from_address: Mapped[str]
    to_address: Mapped[str]
    value_raw: Mapped[Decimal]
    observed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    handled_at: Mapped[datetime | None]
    attempt_id: Mapped[UUID | None] = mapped_column(ForeignKey("payment_attempts.id"))


class OrphanedTransfer(Base):
    """An observed transfer whose block was reorganised off the canonical chain. Append-only."""

    __tablename__ = "orphaned_transfers"
    __table_args__ = (Index("orphaned_transfers_by_transaction", "chain_id", "tx_hash"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    chain_id: Mapped[int]
    tx_hash: Mapped[str]
    log_index: Mapped[int]
    block_number: Mapped[int]
    block_hash: Mapped[str]
    from_address: Mapped[str]
    value_raw: Mapped[Decimal]
    observed_at: Mapped[datetime]
    orphaned_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ChainCursor(Base):
    """The last block whose transfers are all recorded, and the chain's height at that time."""

    __tablename__ = "chain_cursors"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(primary_key=True)
    to_address: Mapped[str] = mapped_column(primary_key=True)
    first_block: Mapped[int]
    block_number: Mapped[int]
    block_hash: Mapped[str | None]
    head_number: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    waits_for: Mapped[str | None]
    waits_since: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]
    answers_from: Mapped[int | None]


class ChainGap(Base):
    """Blocks that no node returned: payments in them are unknown until the blocks are read."""

    __tablename__ = "chain_gaps"
    __table_args__ = (
        Index(
            "chain_gaps_unread",
            "chain_id",
            "token",
            "to_address",
            "last_block",
            postgresql_where=text("read_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    chain_id: Mapped[int]
    token: Mapped[str]
    to_address: Mapped[str]
    first_block: Mapped[int]
    last_block: Mapped[int]
    reason: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    tried_at: Mapped[datetime] = mapped_column(server_default=func.now())
    read_at: Mapped[datetime | None]


class WatchedBlock(Base):
    """The hash of a block that the cursor has passed."""

    __tablename__ = "watched_blocks"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(primary_key=True)
    to_address: Mapped[str] = mapped_column(primary_key=True)
    block_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    block_hash: Mapped[str]


class PaymentDestinationRow(Base):
    """A payment destination, token and treasury, and how it became known; addresses in lower case."""

    __tablename__ = "payment_destinations"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(primary_key=True)
    to_address: Mapped[str] = mapped_column(primary_key=True)
    noted_by: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
