"""Idempotency keys: a request's answer, stored in the transaction that executes it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from db.engine import TenantConnection
from db.tables.accounts import IdempotencyKey
from domain.errors import IdempotencyKeyReused

KEY_LENGTH_MAX: Final = 255

_INSERT: Final = insert(IdempotencyKey).on_conflict_do_nothing().returning(IdempotencyKey.key)


async def keep_answer(
    connection: TenantConnection, billing_account_id: str, key: str, request_hash: bytes, answer: dict[str, Any]
) -> dict[str, Any] | None:
    """Store `answer` under the key, to be committed with its effects.

    None where the key is new. Otherwise the stored answer: the caller rolls back and returns that one. A concurrent
    caller waits here until the first one has committed. Raises `IdempotencyKeyReused` where the key was used for
    another request.
    """
    values = {
        "billing_account_id": billing_account_id,
        "key": key,
        "request_hash": request_hash,
        "answer": answer,
    }
    if (await connection.connection.execute(_INSERT, values)).first() is not None:
        return None
    kept = (
        await connection.connection.execute(
            select(IdempotencyKey.request_hash, IdempotencyKey.answer).where(
                IdempotencyKey.billing_account_id == billing_account_id, IdempotencyKey.key == key
            )
        )
    ).one()
    if kept.request_hash != request_hash:
        raise IdempotencyKeyReused(key)
    answer_kept: dict[str, Any] = kept.answer
    return answer_kept
