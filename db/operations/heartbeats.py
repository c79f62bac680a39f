"""Queries on the system tenant's account and the platform's heartbeats."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from db.engine import ServiceConnection, TenantConnection
from db.startup import find_misfit
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Reason
from domain.operations.governance import Heartbeat, Income


@dataclass(frozen=True, slots=True)
class SystemTenant:
    """The system tenant's account, as its own principal sees it. None where it sees none."""

    is_flagged: bool | None
    balance_credits: int | None
    last_revenue_share_at: datetime | None
    schema_revision: str | None
    schema_problem: str | None
    """Why this code must not run with the schema."""


_SYSTEM_TENANT: Final = text(
    """
    SELECT b.is_system_tenant, b.balance_credits,
           (SELECT e.created_at FROM credit_ledger e
             WHERE e.billing_account_id = :account AND e.reason = :reason
             ORDER BY e.entry_seq DESC LIMIT 1) AS share_at,
           (SELECT version_num FROM alembic_version) AS revision
      FROM (SELECT 1) one LEFT JOIN billing_accounts b ON b.id = :account
    """
)


async def read_system_tenant(connection: TenantConnection) -> SystemTenant:
    """The system tenant's account and when it last got a share of a purchase, in the scope of the connection."""
    values = {"account": SYSTEM_TENANT_ACCOUNT_ID, "reason": Reason.PLATFORM_REVENUE_SHARE.value}
    row = (await connection.connection.execute(_SYSTEM_TENANT, values)).one()
    problem = await find_misfit(connection.connection)
    return SystemTenant(row.is_system_tenant, row.balance_credits, row.share_at, row.revision, problem)


_INCOME: Final = text(
    """
    SELECT e.reason, sum(e.amount)::bigint AS amount
      FROM credit_ledger e
     WHERE e.billing_account_id = :account AND e.created_at >= :since AND e.created_at < :until
     GROUP BY e.reason ORDER BY e.reason
    """
)
_BALANCE: Final = text("SELECT balance_credits FROM billing_accounts WHERE id = :account")


async def read_income(connection: TenantConnection, since: datetime, until: datetime) -> Income | None:
    """Movements of the system tenant's account in `[since, until)`; None where the connection does not see it."""
    own = {"account": SYSTEM_TENANT_ACCOUNT_ID}
    balance = (await connection.connection.execute(_BALANCE, own)).scalar_one_or_none()
    if balance is None:
        return None
    rows = await connection.connection.execute(_INCOME, own | {"since": since, "until": until})
    return Income(since=since, until=until, balance_credits=balance, by_reason={row.reason: row.amount for row in rows})


_COLUMNS: Final = (
    "key, scheduled_at, status, account_present, is_flagged, balance_credits, threshold_credits, is_low, crossed,"
    " last_revenue_share_at, schema_revision, worker_version, chain_id, head_number, head_age_seconds, problems"
)
_FIND: Final = text(f"SELECT {_COLUMNS} FROM governance_heartbeats WHERE key = :key")  # noqa: S608 - constants
_LATEST: Final = text("SELECT id, is_low FROM governance_heartbeats ORDER BY id DESC LIMIT 1")
_INSERT: Final = text(
    f"INSERT INTO governance_heartbeats (previous_id, {_COLUMNS})"  # noqa: S608 - constants
    f" VALUES (:previous_id, {', '.join(f':{name.strip()}' for name in _COLUMNS.split(','))})"
    " ON CONFLICT DO NOTHING RETURNING id"
).bindparams(bindparam("problems", type_=JSONB))
_TO_ANNOUNCE: Final = text(
    f"SELECT {_COLUMNS} FROM governance_heartbeats"  # noqa: S608 - constants
    " WHERE crossed AND low_balance_announced_at IS NULL AND (key = :key OR created_at < now() - interval '2 minutes')"
    " ORDER BY id LIMIT :limit"
)
_ANNOUNCED: Final = text(
    "UPDATE governance_heartbeats SET low_balance_announced_at = now()"
    " WHERE key = :key AND low_balance_announced_at IS NULL"
)


@dataclass(frozen=True, slots=True)
class Latest:
    """The heartbeat that the next one follows."""

    id: int
    is_low: bool


def _to_heartbeat(row: Row[Any]) -> Heartbeat:
    return Heartbeat.model_validate(dict(row._mapping))


async def find_heartbeat(connection: ServiceConnection, key: str) -> Heartbeat | None:
    """The heartbeat of a workflow, or None before it is written."""
    row = (await connection.connection.execute(_FIND, {"key": key})).one_or_none()
    return _to_heartbeat(row) if row else None


async def find_latest(connection: ServiceConnection) -> Latest | None:
    """The newest heartbeat."""
    row = (await connection.connection.execute(_LATEST)).one_or_none()
    return Latest(row.id, row.is_low) if row else None


async def insert_heartbeat(connection: ServiceConnection, heartbeat: Heartbeat, *, after: Latest | None) -> bool:
    """Write a heartbeat that follows `after`; False where it exists already, or another one follows that."""
    values = heartbeat.model_dump() | {
        "status": heartbeat.status.value,
        "problems": list(heartbeat.problems),
        "previous_id": after.id if after else None,
    }
    return (await connection.connection.execute(_INSERT, values)).first() is not None


async def list_low_balances_to_announce(connection: ServiceConnection, key: str, *, limit: int) -> list[Heartbeat]:
    """Heartbeats that crossed the threshold and are not published: that of `key`, and earlier ones, oldest first."""
    rows = await connection.connection.execute(_TO_ANNOUNCE, {"key": key, "limit": limit})
    return [_to_heartbeat(row) for row in rows]


async def update_low_balance_announced(connection: ServiceConnection, key: str) -> None:
    """Mark the event of a crossing as published."""
    await connection.connection.execute(_ANNOUNCED, {"key": key})
