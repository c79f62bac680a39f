"""Queries on grants: which account may have its calls billed to another (`X-Bill-To`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ServiceConnection

_COLUMNS: Final = "id, payer_account_id, grantee_account_id, created_at, revoked_at"

# Two at once make one: the second waits for the first, and finds it.
_CREATE: Final = text(
    f"""
    INSERT INTO billing_grants (payer_account_id, grantee_account_id) VALUES (:payer, :grantee)
    ON CONFLICT (payer_account_id, grantee_account_id) WHERE revoked_at IS NULL
    DO UPDATE SET revoked_at = NULL
    RETURNING {_COLUMNS}
    """  # noqa: S608
)
_REVOKE: Final = text(
    f"UPDATE billing_grants SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id RETURNING {_COLUMNS}"  # noqa: S608
)
_LIST: Final = text(
    f"""
    SELECT {_COLUMNS} FROM billing_grants
     WHERE (CAST(:account AS text) IS NULL OR :account IN (payer_account_id, grantee_account_id))
       AND (:with_revoked OR revoked_at IS NULL)
     ORDER BY created_at DESC, id DESC LIMIT :limit
    """  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class Grant:
    """An account's permission for another account's keys to bill it."""

    id: UUID
    payer_account_id: str
    grantee_account_id: str
    created_at: datetime
    revoked_at: datetime | None


async def create_grant(connection: ServiceConnection, *, payer_account_id: str, grantee_account_id: str) -> Grant:
    """The grant between two accounts that exist; where one is in force already, that one."""
    values = {"payer": payer_account_id, "grantee": grantee_account_id}
    return Grant(*(await connection.connection.execute(_CREATE, values)).one())


async def revoke_grant(connection: ServiceConnection, grant_id: UUID) -> Grant | None:
    """End a grant from the next call on, in every process; safe to repeat. None where there is no such grant."""
    row = (await connection.connection.execute(_REVOKE, {"id": grant_id})).one_or_none()
    return Grant(*row) if row else None


async def list_grants(
    connection: ServiceConnection, *, account_id: str | None, with_revoked: bool, limit: int
) -> list[Grant]:
    """The grants by or to an account (None: all), the newest first, at most `limit`."""
    values = {"account": account_id, "with_revoked": with_revoked, "limit": limit}
    return [Grant(*row) for row in await connection.connection.execute(_LIST, values)]
