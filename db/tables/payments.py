"""Payment attempts, their audit trail, the transfers that paid them, and the finality of these."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Identity, Index, Numeric, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class PaymentAttemptRow(Base):
    """One attempt to pay. Its terms are write-once; only its progress changes."""

    __tablename__ = "payment_attempts"
    __table_args__ = (
        Index(
            "payment_attempts_hash_held_by_account",
            "billing_account_id",
            "chain_id",
            "tx_hash",
            unique=True,
            postgresql_where=text("status IN ('PENDING_UNVERIFIED', 'CREDITED') AND kind = 'wallet'"),
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
        Index(
            "payment_attempts_one_per_authorization",
            "chain_id",
            text("lower(token)"),
            text("lower(from_address)"),
            "authorization_nonce",
            unique=True,
            postgresql_where=text("authorization_nonce IS NOT NULL"),
        ),
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
    kind: Mapped[str] = mapped_column(server_default=text("'wallet'"))
    amount_credits: Mapped[int | None]
    value_raw: Mapped[Decimal | None]
    cash_account: Mapped[str | None]
    authorization_nonce: Mapped[str | None]


class PaymentAuthorization(Base):
    """An attempt's own nonce, and the signed authorization that was claimed for it. Written once by a function."""

    __tablename__ = "payment_authorizations"
    __table_args__ = (
        Index("payment_authorizations_claimed", "claimed_at", postgresql_where=text("claimed_at IS NOT NULL")),
    )

    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("payment_attempts.id"), primary_key=True)
    own_nonce: Mapped[str] = mapped_column(unique=True)
    valid_after: Mapped[int | None]
    valid_before: Mapped[int | None]
    signature: Mapped[bytes | None]
    is_contract: Mapped[bool | None]
    from_block: Mapped[int | None]
    claimed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Relayer(Base):
    """An account of the relay, and its next nonce."""

    __tablename__ = "relayers"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    address: Mapped[str] = mapped_column(primary_key=True)
    next_nonce: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # its last completed pass, and what the account held then
    seen_at: Mapped[datetime | None]
    balance_wei: Mapped[Decimal | None]


class ChargeAuthorization(Base):
    """What a payer has signed to a charge's address, and what has become of it. Written by functions only."""

    __tablename__ = "charge_authorizations"
    __table_args__ = (
        Index(
            "charge_authorizations_once",
            "chain_id",
            text("lower(token)"),
            text("lower(payer)"),
            "nonce",
            unique=True,
        ),
        Index("charge_authorizations_by_charge", "charge_id", "claimed_at"),
        Index("charge_authorizations_open", "chain_id", "valid_before", postgresql_where=text("outcome IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    charge_id: Mapped[UUID] = mapped_column(ForeignKey("charges.id"))
    chain_id: Mapped[int]
    token: Mapped[str]
    payer: Mapped[str]
    to_address: Mapped[str]
    value_raw: Mapped[Decimal]
    valid_after: Mapped[int]
    valid_before: Mapped[int]
    nonce: Mapped[str]
    signature: Mapped[bytes]
    is_contract: Mapped[bool]
    from_block: Mapped[int]
    claimed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    outcome: Mapped[str | None]
    executed_by: Mapped[str | None]
    ended_at: Mapped[datetime | None]


class RelayNonce(Base):
    """A nonce of such an account, the attempt or the charge's payment that it is for, and what has become of it."""

    __tablename__ = "relay_nonces"
    __table_args__ = (
        ForeignKeyConstraint(["chain_id", "relayer"], ["relayers.chain_id", "relayers.address"]),
        Index("relay_nonces_by_attempt", "attempt_id"),
        Index("relay_nonces_by_time", "created_at"),
        Index("relay_nonces_one_open_per_attempt", "attempt_id", unique=True, postgresql_where=text("outcome IS NULL")),
        Index(
            "relay_nonces_by_charge_authorization",
            "charge_authorization_id",
            postgresql_where=text("charge_authorization_id IS NOT NULL"),
        ),
        Index(
            "relay_nonces_one_open_per_charge_authorization",
            "charge_authorization_id",
            unique=True,
            postgresql_where=text("outcome IS NULL AND charge_authorization_id IS NOT NULL"),
        ),
    )

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    relayer: Mapped[str] = mapped_column(primary_key=True)
    nonce: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_id: Mapped[UUID | None] = mapped_column(ForeignKey("payment_attempts.id"))
    charge_authorization_id: Mapped[UUID | None] = mapped_column(ForeignKey("charge_authorizations.id"))
    outcome: Mapped[str | None]
    mined_tx_hash: Mapped[str | None]
    spent_wei: Mapped[Decimal | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class RelayTransaction(Base):
    """What was signed for a nonce, with its bytes."""

    __tablename__ = "relay_transactions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["chain_id", "relayer", "nonce"],
            ["relay_nonces.chain_id", "relay_nonces.relayer", "relay_nonces.nonce"],
        ),
        Index("relay_transactions_by_nonce", "chain_id", "relayer", "nonce", "stored_at"),
    )

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tx_hash: Mapped[str] = mapped_column(primary_key=True)
    relayer: Mapped[str]
    nonce: Mapped[int]
    raw: Mapped[bytes]
    gas: Mapped[int]
    max_fee_wei: Mapped[Decimal]
    priority_fee_wei: Mapped[Decimal]
    stored_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]


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


class TransferFinality(Base):
    """Finality of a settled transfer: final in the block named here, or reorged out. Append-only."""

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


class TransferAwaitingFinality(Base):
    """A credited transfer without an outcome. A trigger writes the row at the credit and deletes it at the outcome."""

    __tablename__ = "transfers_awaiting_finality"
    __table_args__ = (Index("transfers_awaiting_finality_by_block", "chain_id", "block_number", "attempt_id"),)

    attempt_id: Mapped[UUID] = mapped_column(primary_key=True)
    chain_id: Mapped[int]
    block_number: Mapped[int]


class FinalityProgress(Base):
    """The last block of a chain that has reached a level of finality."""

    __tablename__ = "finality_progress"

    chain_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    level: Mapped[str] = mapped_column(primary_key=True)
    block_number: Mapped[int]
    moved_at: Mapped[datetime] = mapped_column(server_default=func.now())
