"""An account's service keys: made, listed, rotated, revoked. The secret of a key is in one answer and nowhere else."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID, uuid4

from pydantic import Field

from db.accounts import idempotency
from db.billing import keys
from db.billing.keys import KeyState, ManagingConnection, ServiceKey
from db.engine import TenantConnection
from domain.billing.keys import KeyTerms, make_key
from domain.errors import BookkeepingError, KeyNotFound, KeyNotInForce
from services.answers import ResponseModel

OVERLAP_USUAL: Final = timedelta(hours=1)
OVERLAP_MAX: Final = timedelta(days=30)


class KeyView(ResponseModel):
    """A service key, without its secret."""

    key_id: UUID
    billing_account_id: str
    label: str
    hint: str = Field(description="what the key is recognized by", examples=["sk-settle-...Xy4Q"])
    state: KeyState = Field(description="`rotated`: replaced, and accepted until it expires")
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = Field(default=None, description="within a minute")
    rotated_to: UUID | None = Field(default=None, description="the key that replaces it")
    limit_day_credits: int | None = Field(default=None, description="per UTC day; null is no limit")
    limit_month_credits: int | None = Field(default=None, description="per UTC month; null is no limit")
    spent_day_credits: int = Field(description="this UTC day")
    spent_month_credits: int = Field(description="this UTC month")
    models: list[str] | None = Field(default=None, description="the only models it may call; null is all of them")
    may_attribute: bool = Field(description="whether its calls may name the account they are made for")

    @classmethod
    def of(cls, found: ServiceKey, **more: Any) -> Self:
        """The answer about a key."""
        terms = found.terms
        return cls(
            key_id=found.id,
            billing_account_id=found.billing_account_id,
            label=terms.label,
            hint=found.hint,
            state=found.state,
            created_at=found.created_at,
            expires_at=terms.expires_at,
            revoked_at=found.revoked_at,
            last_used_at=found.last_used_at,
            rotated_to=found.rotated_to,
            limit_day_credits=terms.limit_day_credits,
            limit_month_credits=terms.limit_month_credits,
            spent_day_credits=found.spent_day_credits,
            spent_month_credits=found.spent_month_credits,
            models=None if terms.models is None else list(terms.models),
            may_attribute=terms.may_attribute,
            **more,
        )


class NewKey(KeyView):
    """A new key with its secret."""

    key: str | None = Field(
        description="the secret, shown this once; null where the request was repeated: rotate the key for another",
        examples=["sk-settle-dGhpcyBpcyBub3QgYSBrZXksIGp1c3QgYSBsaW5l"],
    )


async def create_key(
    connection: ManagingConnection, billing_account_id: str, terms: KeyTerms, *, idempotency_key: str | None = None
) -> NewKey:
    """Make a key of the account on these terms.

    A repeated `idempotency_key` makes no other key and answers with the first one, without its secret, which is not
    stored. Raises `IdempotencyKeyReused`, and `BookkeepingError` where the account is unknown, or not the caller's.
    """
    key_id, secret = uuid4(), make_key()
    asked = ("create", billing_account_id, terms.label, *map(str, (terms.expires_at, terms.models)))
    limits = (terms.limit_day_credits, terms.limit_month_credits)
    made = await _made_before(connection, billing_account_id, idempotency_key, (*asked, *limits), key_id)
    if made is not None:
        return await _answer(connection, made, secret=None)
    if not await keys.create_key(connection, key_id, billing_account_id, secret, terms):
        raise BookkeepingError(f"account {billing_account_id} is not one that the caller manages")
    return await _answer(connection, key_id, secret=secret.key)


async def rotate_key(
    connection: ManagingConnection,
    billing_account_id: str,
    key_id: UUID,
    *,
    overlap: timedelta = OVERLAP_USUAL,
    idempotency_key: str | None = None,
) -> NewKey:
    """Replace a key by a new one on the same terms; the old one is accepted for `overlap` more.

    `billing_account_id` is the caller's own, under which a repetition is recognized, as in `create_key`. Raises
    `KeyNotFound`, `KeyNotInForce` and `IdempotencyKeyReused`.
    """
    new_id, secret = uuid4(), make_key()
    asked = ("rotate", str(key_id), overlap.total_seconds())
    made = await _made_before(connection, billing_account_id, idempotency_key, asked, new_id)
    if made is not None:
        return await _answer(connection, made, secret=None)
    found = await keys.find_key(connection, key_id)
    if found is None:
        raise KeyNotFound(key_id)
    if found.state is not KeyState.ACTIVE or not await keys.rotate_key(
        connection, key_id, new_id, secret, overlap=overlap
    ):
        raise KeyNotInForce(key_id, "rotated" if found.state is KeyState.ACTIVE else found.state)
    return await _answer(connection, new_id, secret=secret.key)


async def revoke_key(connection: ManagingConnection, key_id: UUID) -> None:
    """Refuse a key from now on, in every process. Safe to repeat. Raises `KeyNotFound`."""
    if not await keys.revoke_key(connection, key_id) and await keys.find_key(connection, key_id) is None:
        raise KeyNotFound(key_id)


async def _made_before(
    connection: ManagingConnection,
    billing_account_id: str,
    idempotency_key: str | None,
    asked: tuple[object, ...],
    key_id: UUID,
) -> UUID | None:
    """The key that the same request has made before; otherwise `key_id` is noted as its answer."""
    if idempotency_key is None:
        return None
    assert isinstance(connection, TenantConnection), "operators' commands have no idempotency keys"
    request_hash = hashlib.sha256(json.dumps(asked).encode()).digest()
    answer = {"keyId": str(key_id)}
    kept = await idempotency.keep_answer(connection, billing_account_id, idempotency_key, request_hash, answer)
    return UUID(kept["keyId"]) if kept else None


async def _answer(connection: ManagingConnection, key_id: UUID, *, secret: str | None) -> NewKey:
    found = await keys.find_key(connection, key_id)
    if found is None:
        raise KeyNotFound(key_id)
    return NewKey.of(found, key=secret)
