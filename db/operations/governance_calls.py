"""Queries on the calls of the governance loop, and on the key that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from db.engine import ServiceConnection
from domain.operations.governance_call import GovernanceCall

_COLUMNS: Final = "key, scheduled_at, outcome, model, request_id, charged_credits, answer, limit_source, detail"
_FIND: Final = text(f"SELECT {_COLUMNS} FROM governance_calls WHERE key = :key")  # noqa: S608 - constants
_LATEST: Final = text(f"SELECT {_COLUMNS} FROM governance_calls ORDER BY id DESC LIMIT 1")  # noqa: S608 - constants
_INSERT: Final = text(
    f"INSERT INTO governance_calls ({_COLUMNS})"  # noqa: S608 - constants
    f" VALUES ({', '.join(f':{name.strip()}' for name in _COLUMNS.split(','))}) ON CONFLICT (key) DO NOTHING"
)
_KEY: Final = text("SELECT billing_account_id, limit_day_credits FROM virtual_keys WHERE key_hash = :key_hash")


@dataclass(frozen=True, slots=True)
class GovernanceKey:
    """Whose key it is, and what it may spend in a day."""

    billing_account_id: str
    limit_day_credits: int | None


async def find_call(connection: ServiceConnection, key: str) -> GovernanceCall | None:
    """The call of a run, or None before it is written."""
    row = (await connection.connection.execute(_FIND, {"key": key})).one_or_none()
    return GovernanceCall.model_validate(dict(row._mapping)) if row else None


async def find_latest(connection: ServiceConnection) -> GovernanceCall | None:
    """The newest call."""
    row = (await connection.connection.execute(_LATEST)).one_or_none()
    return GovernanceCall.model_validate(dict(row._mapping)) if row else None


async def insert_call(connection: ServiceConnection, call: GovernanceCall) -> None:
    """Write a call; the same run's call again is not written."""
    await connection.connection.execute(_INSERT, call.model_dump() | {"outcome": call.outcome.value})


async def find_key(connection: ServiceConnection, key_hash: str) -> GovernanceKey | None:
    """The service key with this hash."""
    row = (await connection.connection.execute(_KEY, {"key_hash": key_hash})).one_or_none()
    return GovernanceKey(row.billing_account_id, row.limit_day_credits) if row else None
