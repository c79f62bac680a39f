"""The tables as SQLAlchemy sees them. Migrations make them; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Numeric, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_REVISION: Final = "0005"
"""The newest migration of this code; `settle migrate` goes up to it."""

EXPANDED_REVISION: Final = "0004"
"""The oldest schema that this code runs with: everything that it uses is there. What comes after it up to
`SCHEMA_REVISION` only takes away what older code used."""

KNOWN_REVISIONS: Final = frozenset({"0001", "0002", "0003", "0004", SCHEMA_REVISION})
"""Every migration that this version has; any other was made by a newer one, which says whether this one may go on."""

TENANT_SETTING: Final = "settle.user_id"
"""Name of the transaction-local PostgreSQL setting that row-level security reads."""

LEDGER_REFERENCE_INDEXES: Final[dict[str, str]] = {
    "credits_purchase": "credit_ledger_one_purchase_per_reference",
    "platform_revenue_share": "credit_ledger_one_revenue_share_per_reference",
    "system_donation": "credit_ledger_one_donation_per_reference",
    "payment_reversal": "credit_ledger_one_reversal_per_reference",
}
"""Unique index per account, reference and reason; the last word on "posted once"."""

ONE_OPERATOR_CREDIT: Final = "credit_ledger_one_operator_credit_per_reference"
"""The same for operators' credits, over all accounts: a transfer is credited to one."""


class Base(DeclarativeBase):
    """Base of all tables; text, bigint and timestamptz are the defaults of the whole schema."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        str: Text,
        int: BigInteger,
        datetime: TIMESTAMP(timezone=True),
        Decimal: Numeric(78, 0),
        dict[str, Any]: JSONB,
    }


class User(Base):
    """Somebody who signs in with a wallet, or the platform's own principal (no wallet)."""

    __tablename__ = "users"
    __table_args__ = (Index("users_one_per_wallet", text("lower(wallet_address)"), unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    wallet_address: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BillingAccount(Base):
    """An account that holds credits. `balance_credits` is a cache of the ledger's sum."""

    __tablename__ = "billing_accounts"
    __table_args__ = (
        Index(
            "billing_accounts_one_system_tenant",
            "is_system_tenant",
            unique=True,
            postgresql_where=text("is_system_tenant"),
        ),
        Index("billing_accounts_owner", "owner_user_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    balance_credits: Mapped[int] = mapped_column(server_default=text("0"))
    is_system_tenant: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class VirtualKey(Base):
    """A key of a billing account; each account has one default key."""

    __tablename__ = "virtual_keys"
    __table_args__ = (
        Index(
            "virtual_keys_one_default",
            "billing_account_id",
            unique=True,
            postgresql_where=text("is_default"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    label: Mapped[str] = mapped_column(server_default=text("'Default'"))
    is_default: Mapped[bool] = mapped_column(server_default=text("false"))
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


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


class JournalLine(Base):
    """One side of a journal entry. Append-only; debits equal credits when the transaction commits."""

    __tablename__ = "journal_lines"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    entry_id: Mapped[UUID] = mapped_column(ForeignKey("credit_ledger.id"), index=True)
    account_code: Mapped[str] = mapped_column(ForeignKey("ledger_accounts.code"))
    side: Mapped[str]
    amount: Mapped[int]


class PaymentAttemptRow(Base):
    """One attempt to pay. What was agreed is write-once; only its progress changes."""

    __tablename__ = "payment_attempts"
    __table_args__ = (
        Index(
            "payment_attempts_hash_held_by_account",
            "billing_account_id",
            "chain_id",
            "tx_hash",
            unique=True,
            postgresql_where=text("status IN ('PENDING_UNVERIFIED', 'CREDITED')"),
        ),
        Index("payment_attempts_by_hash", "tx_hash", postgresql_where=text("tx_hash IS NOT NULL")),
        Index(
            "payment_attempts_open",
            "status",
            "created_at",
            postgresql_where=text("status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED')"),
        ),
        Index("payment_attempts_by_account", "billing_account_id", "created_at"),
        Index("payment_attempts_by_time", "created_at", "id"),
        Index("payment_attempts_by_status", "status", "created_at"),
        Index("payment_attempts_by_payer", text("lower(from_address)"), "amount_raw", "created_at"),
        Index("payment_attempts_by_expiry", "expires_at", postgresql_where=text("status = 'CREATED_INTENT'")),
        Index("payment_attempts_by_change", "updated_at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    from_address: Mapped[str]
    chain_id: Mapped[int]
    token: Mapped[str]
    to_address: Mapped[str]
    amount_raw: Mapped[int]
    amount_usd_cents: Mapped[int]
    purpose: Mapped[str] = mapped_column(server_default=text("'self'"))
    status: Mapped[str] = mapped_column(server_default=text("'CREATED_INTENT'"))
    tx_hash: Mapped[str | None]
    error_code: Mapped[str | None]
    expires_at: Mapped[datetime | None]
    submitted_at: Mapped[datetime | None]
    submission_count: Mapped[int] = mapped_column(server_default=text("0"))
    revenue_share: Mapped[Decimal | None] = mapped_column(Numeric)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # the first expires_at, which a submission clears; kept by a trigger
    payable_until: Mapped[datetime | None]


class PaymentEvent(Base):
    """The audit trail of an attempt. Append-only."""

    __tablename__ = "payment_events"
    __table_args__ = (Index("payment_events_by_attempt", "attempt_id", "id"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("payment_attempts.id"))
    event_type: Mapped[str]
    from_status: Mapped[str | None]
    to_status: Mapped[str]
    error_code: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SettledTransferRow(Base):
    """An on-chain transfer that paid an attempt: one transfer, one attempt. Append-only."""

    __tablename__ = "settled_transfers"
    __table_args__ = (
        UniqueConstraint("chain_id", "tx_hash", "log_index", name="settled_transfers_one_attempt_per_transfer"),
        UniqueConstraint("attempt_id", name="settled_transfers_one_transfer_per_attempt"),
        Index("settled_transfers_by_time", "created_at", postgresql_using="brin"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    chain_id: Mapped[int]
    tx_hash: Mapped[str]
    log_index: Mapped[int]
    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("payment_attempts.id"))
    block_number: Mapped[int]
    block_hash: Mapped[str]
    from_address: Mapped[str]
    # a uint256 on the chain: wider than a bigint
    value_raw: Mapped[Decimal]
    surplus_raw: Mapped[Decimal]
    unapplied_raw: Mapped[Decimal] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LoginChallenge(Base):
    """A message that a wallet was asked to sign; it is gone once it was used."""

    __tablename__ = "login_challenges"
    __table_args__ = (Index("login_challenges_by_expiry", "expires_at"),)

    nonce: Mapped[str] = mapped_column(primary_key=True)
    wallet_address: Mapped[str]
    message: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SessionRow(Base):
    """A signed-in browser or program, by the SHA-256 of its cookie's value."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_by_user", "user_id"), Index("sessions_by_expiry", "expires_at"))

    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKey(Base):
    """The answer that a request with this key got; the same request again gets it again."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_by_age", "created_at"),)

    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RateLimit(Base):
    """When a bucket will be full again. Unlogged: a crash of the server forgets it."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index("rate_limits_by_age", "full_at"), {"prefixes": ["UNLOGGED"]})

    bucket: Mapped[str] = mapped_column(primary_key=True)
    full_at: Mapped[datetime]


class TransferFinality(Base):
    """What became of a settled transfer: final in the block named here, or gone. Append-only."""

    __tablename__ = "transfer_finality"
    __table_args__ = (Index("transfer_finality_by_transfer", "chain_id", "tx_hash"),)

    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("payment_attempts.id"), primary_key=True)
    outcome: Mapped[str]
    chain_id: Mapped[int]
    tx_hash: Mapped[str]
    log_index: Mapped[int]
    block_number: Mapped[int]
    block_hash: Mapped[str]
    level: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


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
    """An observed transfer whose block a reorganisation took off the canonical chain. Append-only."""

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
    """The last block whose transfers are all recorded, and the chain's height when that was so."""

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
    """Blocks that no node showed: what was paid in them is not known until they are read after all."""

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


class NonPayerRow(Base):
    """An address that pays for nobody: the zero address, a token, a treasury of now or before. In lower case."""

    __tablename__ = "non_payers"

    address: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WatchedBlock(Base):
    """The hash of a block that the cursor has passed."""

    __tablename__ = "watched_blocks"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(primary_key=True)
    to_address: Mapped[str] = mapped_column(primary_key=True)
    block_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    block_hash: Mapped[str]


class FindingRow(Base):
    """What nobody but an operator may decide."""

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
    """A remedy that an operator took: the audit trail. Append-only."""

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
    """A transfer, or the surplus of one, that an operator credited to an account, or sent back. Append-only."""

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


class BalanceAssertion(Base):
    """What a reconciliation of a period found. Append-only."""

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
    """What one heartbeat of the platform found."""

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


class BooksCheckpoint(Base):
    """How far the books check has come in one table whose rows are numbered and never change."""

    __tablename__ = "books_checkpoints"

    stream: Mapped[str] = mapped_column(primary_key=True)
    checked_to: Mapped[int] = mapped_column(server_default=text("0"))
    safe_to: Mapped[int] = mapped_column(server_default=text("0"))
    mark: Mapped[int] = mapped_column(server_default=text("0"))


class BooksCheck(Base):
    """What the books check knows between its runs; one row."""

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
    """An invariant of the books that did not hold; open until it holds again."""

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


class SchemaCompatibility(Base):
    """Which code may run with a revision of the schema: its own, and what is not older than `compatible_from`."""

    __tablename__ = "schema_compatibility"

    revision: Mapped[str] = mapped_column(primary_key=True)
    compatible_from: Mapped[str]
    applied_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WriteProbe(Base):
    """When a role's process last proved that what it commits reaches the disk."""

    __tablename__ = "write_probes"

    role_name: Mapped[str] = mapped_column(primary_key=True)
    written_at: Mapped[datetime]


class PaymentDestinationRow(Base):
    """A token and treasury that payments may go to; addresses in lower case."""

    __tablename__ = "payment_destinations"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(primary_key=True)
    to_address: Mapped[str] = mapped_column(primary_key=True)
    noted_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
