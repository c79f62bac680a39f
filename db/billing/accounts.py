"""Queries on billing accounts, their members and limits: for operators, and which ones a user manages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text

from db.engine import ServiceConnection, TenantConnection
from domain.billing.accounts import AccountKind, MemberRole, Tier

_OPEN: Final = text("SELECT open_account(:id, :owner, :kind, :tier, :name)")

# What was spent is what limits are compared with: `room_of_account`.
_FIND: Final = text(
    """
    SELECT b.id, b.kind, b.tier, b.name, b.owner_user_id, u.wallet_address, b.is_system_tenant, b.balance_credits,
           b.held_credits, b.limit_day_credits, b.limit_month_credits, b.created_at,
           coalesce(spent.day, 0)::bigint AS spent_day, coalesce(spent.month, 0)::bigint AS spent_month
      FROM billing_accounts b JOIN users u ON u.id = b.owner_user_id, LATERAL (
           SELECT sum(d.charged_credits) AS month,
                  sum(d.charged_credits) FILTER (WHERE d.day = (now() AT TIME ZONE 'UTC')::date) AS day
             FROM usage_by_day d
            WHERE d.billing_account_id = b.id AND d.day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date) spent
     WHERE b.id = :id
    """
)
_SET_LIMITS: Final = text(
    "UPDATE billing_accounts SET limit_day_credits = :day, limit_month_credits = :month WHERE id = :id RETURNING id"
)
_MEMBERS: Final = text("SELECT user_id, wallet_address, role, since FROM members_of_account(:id)")
_PUT_MEMBER: Final = text(
    """
    INSERT INTO account_members (billing_account_id, user_id, role) VALUES (:id, :user_id, :role)
    ON CONFLICT (billing_account_id, user_id) DO UPDATE SET role = excluded.role
    """
)
_REMOVE_MEMBER: Final = text(
    "DELETE FROM account_members WHERE billing_account_id = :id AND user_id = :user_id RETURNING user_id"
)
# A tenant sees the accounts that it manages, and no others.
_MANAGED: Final = text(
    """
    SELECT b.id, b.kind, b.name FROM billing_accounts b
     ORDER BY b.kind <> 'personal', b.name NULLS LAST, b.id LIMIT :limit
    """
)
_FIND_USER: Final = text("SELECT id FROM users WHERE lower(wallet_address) = lower(:wallet)")


@dataclass(frozen=True, slots=True)
class AccountState:
    """A billing account as it stands. The last two are what was spent this UTC day and month."""

    id: str
    kind: AccountKind
    tier: Tier | None
    name: str | None
    owner_user_id: str
    owner_wallet: str | None
    is_system_tenant: bool
    balance_credits: int
    held_credits: int
    limit_day_credits: int | None
    limit_month_credits: int | None
    created_at: datetime
    spent_day_credits: int
    spent_month_credits: int

    @property
    def available_credits(self) -> int:
        """What is not held; negative after charges beyond the balance."""
        return self.balance_credits - self.held_credits


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an organization's account."""

    user_id: str
    wallet_address: str | None
    role: MemberRole
    since: datetime


@dataclass(frozen=True, slots=True)
class ManagedAccount:
    """An account that a user manages: the own one, or that of an organization whose owner or admin the user is."""

    id: str
    kind: AccountKind
    name: str | None


async def list_managed(connection: TenantConnection, *, limit: int) -> list[ManagedAccount]:
    """The accounts that the connection's user manages, the personal one first, the others by name."""
    rows = await connection.connection.execute(_MANAGED, {"limit": limit})
    return [ManagedAccount(row.id, AccountKind(row.kind), row.name) for row in rows]


async def open_account(
    connection: ServiceConnection,
    account_id: str,
    *,
    owner_user_id: str,
    kind: AccountKind,
    tier: Tier | None,
    name: str | None,
) -> None:
    """Open an account with its default key; the owner's personal one is `db.accounts.wallets.provision_wallet`."""
    values = {"id": account_id, "owner": owner_user_id, "kind": kind.value, "tier": tier, "name": name}
    await connection.connection.execute(_OPEN, values)


async def find_account(connection: ServiceConnection, account_id: str) -> AccountState | None:
    """The account with this id."""
    row = (await connection.connection.execute(_FIND, {"id": account_id})).one_or_none()
    if row is None:
        return None
    return AccountState(
        id=row.id,
        kind=AccountKind(row.kind),
        tier=Tier(row.tier) if row.tier else None,
        name=row.name,
        owner_user_id=row.owner_user_id,
        owner_wallet=row.wallet_address,
        is_system_tenant=row.is_system_tenant,
        balance_credits=row.balance_credits,
        held_credits=row.held_credits,
        limit_day_credits=row.limit_day_credits,
        limit_month_credits=row.limit_month_credits,
        created_at=row.created_at,
        spent_day_credits=row.spent_day,
        spent_month_credits=row.spent_month,
    )


async def set_limits(
    connection: ServiceConnection, account_id: str, *, day_credits: int | None, month_credits: int | None
) -> bool:
    """Set both limits; None is no limit. False where there is no such account."""
    values = {"id": account_id, "day": day_credits, "month": month_credits}
    return (await connection.connection.execute(_SET_LIMITS, values)).first() is not None


async def list_members(connection: ServiceConnection, account_id: str) -> list[Member]:
    """The members of an account, the first one first."""
    rows = await connection.connection.execute(_MEMBERS, {"id": account_id})
    return [Member(row.user_id, row.wallet_address, MemberRole(row.role), row.since) for row in rows]


async def put_member(connection: ServiceConnection, account_id: str, user_id: str, role: MemberRole) -> None:
    """Make a user a member, or give a member another role."""
    await connection.connection.execute(_PUT_MEMBER, {"id": account_id, "user_id": user_id, "role": role.value})


async def remove_member(connection: ServiceConnection, account_id: str, user_id: str) -> bool:
    """End a membership. False where the user is no member."""
    removed = await connection.connection.execute(_REMOVE_MEMBER, {"id": account_id, "user_id": user_id})
    return removed.first() is not None


async def find_user_of_wallet(connection: ServiceConnection, wallet_address: str) -> str | None:
    """The user who signs in with a wallet; None where it never did."""
    return (await connection.connection.execute(_FIND_USER, {"wallet": wallet_address})).scalar_one_or_none()
