"""Users, billing accounts, sign-in, sessions, rate limits, idempotency keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ForeignKey, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class User(Base):
    """A user who signs in with a wallet, or the platform's own principal (no wallet)."""

    __tablename__ = "users"
    __table_args__ = (Index("users_one_per_wallet", text("lower(wallet_address)"), unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    wallet_address: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BillingAccount(Base):
    """An account with credits. `balance_credits` caches the sum of its entries, `held_credits` that of open holds."""

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
    kind: Mapped[str] = mapped_column(server_default=text("'personal'"))
    tier: Mapped[str | None]
    name: Mapped[str | None]
    held_credits: Mapped[int] = mapped_column(server_default=text("0"))
    limit_day_credits: Mapped[int | None]
    limit_month_credits: Mapped[int | None]


class AccountMember(Base):
    """A user who belongs to an organization's account: its owner, an admin or a member."""

    __tablename__ = "account_members"
    __table_args__ = (Index("account_members_by_user", "user_id"),)

    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BillingGrant(Base):
    """An account's permission for another account's keys to bill it."""

    __tablename__ = "billing_grants"
    __table_args__ = (
        Index(
            "billing_grants_one_in_force",
            "payer_account_id",
            "grantee_account_id",
            unique=True,
            postgresql_where=text("revoked_at IS NULL"),
        ),
        Index("billing_grants_by_grantee", "grantee_account_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    payer_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    grantee_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class VirtualKey(Base):
    """A key of a billing account; each account has one default key. Those with a hash are service keys."""

    __tablename__ = "virtual_keys"
    __table_args__ = (
        Index(
            "virtual_keys_one_default",
            "billing_account_id",
            unique=True,
            postgresql_where=text("is_default"),
        ),
        Index("virtual_keys_one_per_hash", "key_hash", unique=True, postgresql_where=text("key_hash IS NOT NULL")),
        Index("virtual_keys_by_account", "billing_account_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"))
    label: Mapped[str] = mapped_column(server_default=text("'Default'"))
    is_default: Mapped[bool] = mapped_column(server_default=text("false"))
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    key_hash: Mapped[str | None]
    key_hint: Mapped[str | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    limit_day_credits: Mapped[int | None]
    limit_month_credits: Mapped[int | None]
    may_attribute: Mapped[bool] = mapped_column(server_default=text("false"))
    created_by_user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    rotated_to: Mapped[UUID | None] = mapped_column(ForeignKey("virtual_keys.id"))


class LoginChallenge(Base):
    """A message that a wallet was asked to sign; deleted when used."""

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
    """The stored answer to a request with this key; a repetition gets it again."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_by_age", "created_at"),)

    billing_account_id: Mapped[str] = mapped_column(ForeignKey("billing_accounts.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RateLimit(Base):
    """When a bucket will be full again. Unlogged: a crash of the server empties it."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index("rate_limits_by_age", "full_at"), {"prefixes": ["UNLOGGED"]})

    bucket: Mapped[str] = mapped_column(primary_key=True)
    full_at: Mapped[datetime]
