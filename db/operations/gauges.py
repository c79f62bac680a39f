"""Gauge queries: each uses an index, and its cost grows with what is open, not with history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text

from db.engine import ReadAllConnection

_OPEN_ATTEMPTS: Final = text(
    """
    SELECT status, purpose, count(*) AS attempts FROM payment_attempts
     WHERE status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED') GROUP BY status, purpose
    """
)

_PENDING: Final = text(
    """
    SELECT count(*) FILTER (WHERE age < interval '1 minute') AS under_1m,
           count(*) FILTER (WHERE age >= interval '1 minute' AND age < interval '10 minutes') AS under_10m,
           count(*) FILTER (WHERE age >= interval '10 minutes' AND age < interval '1 hour') AS under_1h,
           count(*) FILTER (WHERE age >= interval '1 hour') AS over_1h,
           coalesce(extract(epoch FROM greatest(max(age), interval '0')), 0)::float AS oldest_seconds
      FROM (SELECT now() - submitted_at AS age FROM payment_attempts WHERE status = 'PENDING_UNVERIFIED') pending
    """
)

_FINDINGS: Final = text(
    """
    SELECT kind, count(*) AS findings, coalesce(sum(value_raw), 0) AS value_raw,
           extract(epoch FROM now() - min(opened_at))::float AS oldest_seconds
      FROM findings WHERE resolved_at IS NULL GROUP BY kind
    """
)

_CURSORS: Final = text(
    """
    SELECT chain_id, max(head_number - block_number) AS lag_blocks,
           extract(epoch FROM now() - min(updated_at))::float AS age_seconds
      FROM chain_cursors WHERE retired_at IS NULL GROUP BY chain_id
    """
)

_GAPS: Final = text(
    """
    SELECT coalesce(sum(g.last_block - g.first_block + 1), 0)::bigint AS blocks FROM chain_gaps g
     WHERE g.read_at IS NULL AND g.chain_id = :chain_id
    """
)

_BALANCE: Final = text("SELECT balance_credits FROM billing_accounts WHERE is_system_tenant")

_HEARTBEAT: Final = text("SELECT created_at FROM governance_heartbeats ORDER BY id DESC LIMIT 1")

_RECONCILED: Final = text(
    "SELECT closes, created_at FROM balance_assertions WHERE chain_id = :chain_id"
    " ORDER BY period_to DESC, id DESC LIMIT 1"
)

_VIOLATIONS: Final = text(
    "SELECT check_name, count(*) AS violations FROM books_violations WHERE resolved_at IS NULL GROUP BY check_name"
)

_BOOKS_CHECKED: Final = text("SELECT checked_at FROM books_checks")


@dataclass(frozen=True, slots=True)
class OpenFindings:
    """Open findings of one kind."""

    findings: int
    value_raw: int
    """Token units in question, as far as known."""
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class CursorPosition:
    """Progress of the chain watcher, by the database."""

    lag_blocks: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Readings:
    """All values from one snapshot."""

    open_attempts: dict[tuple[str, str], int]
    """By status and purpose."""
    pending_by_age: dict[str, int]
    pending_oldest_seconds: float
    open_findings: dict[str, OpenFindings]
    cursors: dict[int, CursorPosition]
    unread_blocks: int
    """Blocks of this chain that no node has returned."""
    system_tenant_balance_credits: int | None
    last_heartbeat_at: datetime | None
    last_reconciled_at: datetime | None
    reconciliation_closes: bool | None
    books_violations: dict[str, int]
    books_checked_at: datetime | None


async def read_gauges(connection: ReadAllConnection, *, chain_id: int) -> Readings:
    """Read all of them; missing ones are absent, or None."""
    sql = connection.connection
    pending = (await sql.execute(_PENDING)).one()
    reconciled = (await sql.execute(_RECONCILED, {"chain_id": chain_id})).one_or_none()
    return Readings(
        open_attempts={(row.status, row.purpose): row.attempts for row in await sql.execute(_OPEN_ATTEMPTS)},
        pending_by_age={
            "under_1m": pending.under_1m,
            "under_10m": pending.under_10m,
            "under_1h": pending.under_1h,
            "over_1h": pending.over_1h,
        },
        pending_oldest_seconds=pending.oldest_seconds,
        open_findings={
            row.kind: OpenFindings(row.findings, int(row.value_raw), row.oldest_seconds)
            for row in await sql.execute(_FINDINGS)
        },
        cursors={row.chain_id: CursorPosition(row.lag_blocks, row.age_seconds) for row in await sql.execute(_CURSORS)},
        unread_blocks=(await sql.execute(_GAPS, {"chain_id": chain_id})).scalar_one(),
        system_tenant_balance_credits=(await sql.execute(_BALANCE)).scalar_one_or_none(),
        last_heartbeat_at=(await sql.execute(_HEARTBEAT)).scalar_one_or_none(),
        last_reconciled_at=reconciled.created_at if reconciled else None,
        reconciliation_closes=reconciled.closes if reconciled else None,
        books_violations={row.check_name: row.violations for row in await sql.execute(_VIOLATIONS)},
        books_checked_at=(await sql.execute(_BOOKS_CHECKED)).scalar_one_or_none(),
    )
