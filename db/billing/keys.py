"""Service keys: virtual keys with a secret, of which only the hash is stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ServiceConnection, TenantConnection
from domain.billing.keys import KeySecret, KeyTerms

ManagingConnection = TenantConnection | ServiceConnection
"""Who makes and revokes keys: a user of the own accounts, an operator of any."""

_CREATE: Final = text(
    "SELECT create_key(:id, :account, :label, :hash, :hint, CAST(:expires_at AS timestamptz), CAST(:day AS bigint),"
    " CAST(:month AS bigint), CAST(:models AS text[]), :may_attribute)"
)
_ROTATE: Final = text(
    "SELECT rotate_key(:old_id, :new_id, :hash, :hint, clock_timestamp() + CAST(:overlap AS interval))"
)
_REVOKE: Final = text("SELECT revoke_key(:id)")

# What was spent is what the limits are compared with: `room_of_key`.
_FIND: Final = """
    SELECT k.id, k.billing_account_id, k.label, k.key_hint, k.created_at, k.expires_at, k.revoked_at, k.last_used_at,
           k.limit_day_credits, k.limit_month_credits, k.models, k.may_attribute, k.rotated_to, k.created_by_user_id,
           coalesce(k.expires_at <= clock_timestamp(), false) AS is_expired,
           coalesce(spent.day, 0)::bigint AS spent_day, coalesce(spent.month, 0)::bigint AS spent_month
      FROM virtual_keys k, LATERAL (
           SELECT sum(u.charged_credits) AS month,
                  sum(u.charged_credits) FILTER (WHERE u.day = (now() AT TIME ZONE 'UTC')::date) AS day
             FROM usage_by_day u
            WHERE u.virtual_key_id = k.id AND u.day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date) spent
     WHERE k.key_hash IS NOT NULL
"""
_FIND_ONE: Final = text(f"{_FIND} AND k.id = :id")
_ORDER: Final = " ORDER BY k.created_at DESC, k.id DESC LIMIT :limit"
# A key of another account, or an unknown one, ends the list: no key is older than it here.
_BEFORE: Final = """
    AND (k.created_at, k.id) < (SELECT b.created_at, b.id FROM virtual_keys b
                                 WHERE b.id = :before AND b.billing_account_id = k.billing_account_id)
"""
_IN_FORCE: Final = " AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())"


class KeyState(StrEnum):
    """Whether a key is accepted, by the database's clock; `hold_credits` decides it again at each call."""

    ACTIVE = "active"
    ROTATED = "rotated"
    """Replaced by another, and accepted until it expires."""

    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A service key, without its secret. The two sums are what was spent with it this UTC day and month."""

    id: UUID
    billing_account_id: str
    hint: str
    terms: KeyTerms
    state: KeyState
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None
    rotated_to: UUID | None
    created_by_user_id: str | None
    spent_day_credits: int
    spent_month_credits: int


async def create_key(
    connection: ManagingConnection, key_id: UUID, billing_account_id: str, secret: KeySecret, terms: KeyTerms
) -> bool:
    """Store a new key. False where the account is unknown, or the caller may not manage it."""
    values = {
        "id": key_id,
        "account": billing_account_id,
        "label": terms.label,
        "hash": secret.key_hash,
        "hint": secret.key_hint,
        "expires_at": terms.expires_at,
        "day": terms.limit_day_credits,
        "month": terms.limit_month_credits,
        "models": None if terms.models is None else list(terms.models),
        "may_attribute": terms.may_attribute,
    }
    return bool((await connection.connection.execute(_CREATE, values)).scalar_one())


async def rotate_key(
    connection: ManagingConnection, old_id: UUID, new_id: UUID, secret: KeySecret, *, overlap: timedelta
) -> bool:
    """Replace a key by one on the same terms; both are accepted for `overlap`, or until the old one expires if sooner.

    False where there is no such key, or it is revoked or replaced already, or the caller may not manage it.
    """
    values = {
        "old_id": old_id,
        "new_id": new_id,
        "hash": secret.key_hash,
        "hint": secret.key_hint,
        "overlap": overlap,
    }
    return bool((await connection.connection.execute(_ROTATE, values)).scalar_one())


async def revoke_key(connection: ManagingConnection, key_id: UUID) -> bool:
    """Refuse a key from now on. False where there is no such key, or it is revoked, or the caller may not manage it."""
    return bool((await connection.connection.execute(_REVOKE, {"id": key_id})).scalar_one())


async def find_key(connection: ManagingConnection, key_id: UUID) -> ServiceKey | None:
    """A service key that the connection sees, in whatever state."""
    row = (await connection.connection.execute(_FIND_ONE, {"id": key_id})).one_or_none()
    return _to_key(row) if row else None


async def page_keys(
    connection: ManagingConnection,
    billing_account_id: str | None,
    *,
    limit: int,
    before: UUID | None = None,
    in_force: bool = False,
) -> list[ServiceKey]:
    """An account's service keys (None: those of all accounts that the connection sees), newest first, at most `limit`.

    Older than the key `before`; with `in_force` only those that are accepted.
    """
    query = _FIND
    values: dict[str, Any] = {"limit": limit}
    if billing_account_id is not None:
        query += " AND k.billing_account_id = :account"
        values["account"] = billing_account_id
    if before is not None:
        query += _BEFORE
        values["before"] = before
    query += _IN_FORCE if in_force else ""
    return [_to_key(row) for row in await connection.connection.execute(text(query + _ORDER), values)]


def _to_key(row: Any) -> ServiceKey:
    return ServiceKey(
        id=row.id,
        billing_account_id=row.billing_account_id,
        hint=row.key_hint,
        terms=KeyTerms(
            label=row.label,
            expires_at=row.expires_at,
            limit_day_credits=row.limit_day_credits,
            limit_month_credits=row.limit_month_credits,
            models=None if row.models is None else tuple(row.models),
            may_attribute=row.may_attribute,
        ),
        state=_state(row),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        rotated_to=row.rotated_to,
        created_by_user_id=row.created_by_user_id,
        spent_day_credits=row.spent_day,
        spent_month_credits=row.spent_month,
    )


def _state(row: Any) -> KeyState:
    if row.revoked_at is not None:
        return KeyState.REVOKED
    if row.is_expired:
        return KeyState.EXPIRED
    return KeyState.ROTATED if row.rotated_to is not None else KeyState.ACTIVE
