"""The double-entry ledger, and the state of its integrity scan."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base

LEDGER_REFERENCE_INDEXES: Final[dict[str, str]] = {
    "credits_purchase": "credit_ledger_one_purchase_per_reference",
    "platform_revenue_share": "credit_ledger_one_revenue_share_per_reference",
    "system_donation": "credit_ledger_one_donation_per_reference",
    "payment_reversal": "credit_ledger_one_reversal_per_reference",
}
"""Unique index per account, reference and reason, which guarantees "posted once"."""

ONE_OPERATOR_CREDIT: Final = "credit_ledger_one_operator_credit_per_reference"
"""The same for operators' credits, over all accounts: a transfer is credited to one."""

ONE_USAGE: Final = "credit_ledger_one_usage_per_reference"
"""The same for usage, over all accounts: a call is charged to one. Its reference is `<source>:<source's reference>`."""


class LedgerAccount(Base):
    """One account of the chart of accounts; a billing account's credits are a liability account of its own."""

    __tablename__ = "ledger_accounts"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    type: Mapped[str]
    normal_side: Mapped[str]
    billing_account_id: Mapped[str | None] = mapped_column(ForeignKey("billing_accounts.id"), index=True)


class CreditLedgerEntry(Base):
    """One change of one account's credits; the header of a balanced journal entry. Append-only."""

    __tablename__ = "credit_ledger"
    __table_args__ = (
        *(
            Index(
                name,
                "billing_account_id",
                "reference",
                unique=True,
                postgresql_where=text(f"reason = '{reason}'"),
            )
            for reason, name in LEDGER_REFERENCE_INDEXES.items()
        ),
        Index(ONE_OPERATOR_CREDIT, "reference", unique=True, postgresql_where=text("reason = 'operator_credit'")),
        Index(ONE_USAGE, "reference", unique=True, postgresql_where=text("reason = 'llm_usage'")),
        Index("credit_ledger_by_reference", "reference"),
        Index("credit_ledger_by_account", "billing_account_id", "entry_seq", unique=True),
        Index("credit_ledger_by_time", "created_at", postgresql_using="brin"),
        Index("credit_ledger_by_number", text("(entry_seq + 0)"), unique=True),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    entry_seq: Mapped[int] = mapped_column(Identity(always=True))
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    virtual_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("virtual_keys.id"))
    amount: Mapped[int]
    balance_after: Mapped[int]
    reason: Mapped[str]
    reference: Mapped[str | None]
    # "metadata" is taken on a declarative class
    details: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class GeneralEntry(Base):
    """The header of a journal entry that changes no account's credits, such as an absorbed cost. Append-only."""

    __tablename__ = "general_entries"
    __table_args__ = (
        UniqueConstraint("reason", "reference", name="general_entries_once_per_reference"),
        Index("general_entries_by_time", "created_at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    reason: Mapped[str]
    reference: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class JournalLine(Base):
    """One side of a journal entry. Append-only; debits equal credits when the transaction commits.

    `entry_id` names a row of `credit_ledger` or of `general_entries`; a trigger checks that it does.
    """

    __tablename__ = "journal_lines"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    entry_id: Mapped[UUID] = mapped_column(index=True)
    account_code: Mapped[str] = mapped_column(ForeignKey("ledger_accounts.code"))
    side: Mapped[str]
    amount: Mapped[int]


class BooksCheckpoint(Base):
    """Progress of the integrity scan in one table whose rows are numbered and never change."""

    __tablename__ = "books_checkpoints"

    stream: Mapped[str] = mapped_column(primary_key=True)
    checked_to: Mapped[int] = mapped_column(server_default=text("0"))
    safe_to: Mapped[int] = mapped_column(server_default=text("0"))
    mark: Mapped[int] = mapped_column(server_default=text("0"))


class BooksCheck(Base):
    """State of the integrity scan between its runs; one row."""

    __tablename__ = "books_checks"

    is_only: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    mark_xid: Mapped[int] = mapped_column(server_default=text("0"))
    debits: Mapped[Decimal] = mapped_column(server_default=text("0"))
    credits: Mapped[Decimal] = mapped_column(server_default=text("0"))
    lines_mended: Mapped[int] = mapped_column(server_default=text("0"))
    sums_of: Mapped[int] = mapped_column(server_default=text("0"))
    round: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    checked_at: Mapped[datetime | None]
    checked_in_full_at: Mapped[datetime | None]


class BooksViolation(Base):
    """A violated ledger invariant; open until it holds again."""

    __tablename__ = "books_violations"
    __table_args__ = (
        Index(
            "books_violations_open", "check_name", "subject", unique=True, postgresql_where=text("resolved_at IS NULL")
        ),
        Index(
            "books_violations_unannounced",
            "id",
            postgresql_where=text(
                "announced_at IS NULL OR (resolved_at IS NOT NULL AND resolution_announced_at IS NULL)"
            ),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    check_name: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str]
    first_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    resolved_at: Mapped[datetime | None]
    announced_at: Mapped[datetime | None]
    resolution_announced_at: Mapped[datetime | None]
