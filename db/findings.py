"""Queries on findings: what the chain watcher or a reconciliation leaves to an operator."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import TEXT, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from db.engine import ReadAllConnection, ServiceConnection
from domain.errors import FindingNotFound
from domain.findings import REOPENING_RESOLUTIONS, SETTLED, Finding, FindingKind
from domain.remedies import StoredFinding

_OPEN: Final = text(
    """
    INSERT INTO findings AS f (key, kind, chain_id, tx_hash, log_index, attempt_id, billing_account_id, value_raw,
                               detail, metadata, last_seen_at, opened_at)
    VALUES (:key, :kind, :chain_id, :tx_hash, :log_index, :attempt_id, :billing_account_id, :value_raw,
            :detail, :metadata, statement_timestamp(), statement_timestamp())
    ON CONFLICT (key) DO UPDATE SET
        last_seen_at = statement_timestamp(),
        opened_at = CASE WHEN f.resolution = ANY (:reopening) THEN statement_timestamp() ELSE f.opened_at END,
        times_opened = f.times_opened + CASE WHEN f.resolution = ANY (:reopening) THEN 1 ELSE 0 END,
        -- Whoever decides about it reads how it is now: what was resolved stays as it was then.
        (kind, detail, attempt_id, billing_account_id, value_raw, metadata) = (
            SELECT CASE WHEN open THEN excluded.kind ELSE f.kind END,
                   CASE WHEN open THEN excluded.detail ELSE f.detail END,
                   CASE WHEN open THEN excluded.attempt_id ELSE f.attempt_id END,
                   CASE WHEN open THEN excluded.billing_account_id ELSE f.billing_account_id END,
                   CASE WHEN open THEN excluded.value_raw ELSE f.value_raw END,
                   CASE WHEN open THEN excluded.metadata ELSE f.metadata END
              FROM (SELECT f.resolved_at IS NULL OR f.resolution = ANY (:reopening) AS open) is_it),
        announced_at = CASE WHEN f.resolution = ANY (:reopening) THEN NULL ELSE f.announced_at END,
        resolved_at = CASE WHEN f.resolution = ANY (:reopening) THEN NULL ELSE f.resolved_at END,
        resolution = CASE WHEN f.resolution = ANY (:reopening) THEN NULL ELSE f.resolution END
    RETURNING f.id, f.resolution, f.opened_at = f.last_seen_at AS is_new
    """
).bindparams(bindparam("metadata", type_=JSONB), bindparam("reopening", type_=ARRAY(TEXT)))


@dataclass(frozen=True, slots=True)
class WrittenFinding:
    """A finding as it stands after it was found (again)."""

    finding_id: UUID
    is_new: bool
    """Written down for the first time, or open again."""
    resolution: str | None


async def open_finding(connection: ServiceConnection, finding: Finding) -> bool:
    """Write a finding down; True where it is new, or open again.

    One that is known stays as it is, resolved or not; except that one which somebody wanted to be looked at anew is
    open again.
    """
    return (await write_finding(connection, finding)).is_new


async def write_finding(connection: ServiceConnection, finding: Finding) -> WrittenFinding:
    """The same; how the finding stands then."""
    metadata = dict(finding.details) | ({"sender": finding.sender} if finding.sender else {})
    row = (
        await connection.connection.execute(
            _OPEN,
            {
                "key": finding.key,
                "kind": finding.kind.value,
                "chain_id": finding.chain_id,
                "tx_hash": finding.tx_hash,
                "log_index": finding.log_index,
                "attempt_id": finding.attempt_id,
                "billing_account_id": finding.billing_account_id,
                "value_raw": None if finding.value_raw is None else Decimal(finding.value_raw),
                "detail": finding.detail,
                "metadata": metadata,
                "reopening": list(REOPENING_RESOLUTIONS),
            },
        )
    ).one()
    return WrittenFinding(row.id, bool(row.is_new), row.resolution)


_COLUMNS: Final = """
    f.id, f.key, f.kind, f.chain_id, f.tx_hash, f.log_index, f.attempt_id, f.billing_account_id, f.value_raw, f.detail,
    f.metadata AS details, f.created_at, f.last_seen_at, f.opened_at, f.times_opened, f.resolved_at, f.resolution
"""
_SELECT: Final = f"SELECT {_COLUMNS} FROM findings f"  # noqa: S608 - a constant
_FIND: Final = text(f"{_SELECT} WHERE f.id = :id")
_LOCK: Final = text(f"{_SELECT} WHERE f.id = :id FOR UPDATE")
_BEGINNING_WITH: Final = text(
    "SELECT f.id FROM findings f WHERE f.id BETWEEN CAST(:first AS uuid) AND CAST(:last AS uuid) LIMIT :limit"
)
_LIST: Final = text(
    f"""
    {_SELECT}
     WHERE (:with_resolved OR f.resolved_at IS NULL) AND (CAST(:kind AS text) IS NULL OR f.kind = :kind)
     ORDER BY f.created_at DESC, f.id DESC LIMIT :limit
    """
)
_OF_ATTEMPT: Final = text(f"{_SELECT} WHERE f.attempt_id = :attempt_id ORDER BY f.created_at, f.id")
_TO_ANNOUNCE: Final = text(f"{_SELECT} WHERE f.announced_at IS NULL ORDER BY f.created_at, f.id LIMIT :limit")
_ANNOUNCED: Final = text(
    "UPDATE findings SET announced_at = now() WHERE id = :id AND times_opened = :times_opened AND announced_at IS NULL"
)
_RESOLVE: Final = text("UPDATE findings SET resolved_at = now(), resolution = :resolution WHERE id = :id")
# A late payment, say, for whose transaction the payer made a new intent: the transfer has paid that one.
_CLOSE_SETTLED: Final = text(
    """
    UPDATE findings f SET resolved_at = now(), resolution = :settled
     WHERE f.resolved_at IS NULL AND f.chain_id = :chain_id AND f.key LIKE 'transfer:%' AND EXISTS (
           SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
             LEFT JOIN transfer_finality t ON t.attempt_id = s.attempt_id
             JOIN observed_transfers o
               ON o.chain_id = f.chain_id AND o.tx_hash = f.tx_hash AND o.log_index = f.log_index
            WHERE s.chain_id = f.chain_id AND s.tx_hash = f.tx_hash AND a.status = 'CREDITED'
              AND coalesce(t.log_index, s.log_index) = f.log_index AND s.value_raw = o.value_raw
              AND lower(s.from_address) = lower(o.from_address))
    """
)

# The watcher had lost sight of the transfer, and has it again.
_CLOSE_MENDED: Final = text(
    """
    UPDATE findings f SET resolved_at = now(), resolution = :settled
     WHERE f.resolved_at IS NULL AND f.chain_id = :chain_id AND f.kind = 'ledger_without_transfer'
       AND EXISTS (
           SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
             JOIN observed_transfers o ON o.chain_id = s.chain_id AND o.tx_hash = s.tx_hash
            WHERE s.attempt_id = f.attempt_id AND a.status = 'CREDITED' AND s.value_raw = o.value_raw
              AND lower(s.from_address) = lower(o.from_address))
    """
)
# A transfer was found before the submission of its hash was refused: now it is known what it was meant for.
_LOOK_AT_CLAIMS_AGAIN: Final = text(
    """
    UPDATE observed_transfers o SET handled_at = NULL, attempt_id = NULL
      FROM findings f
     WHERE f.resolved_at IS NULL AND f.chain_id = :chain_id AND f.key LIKE 'transfer:%'
       AND o.chain_id = f.chain_id AND o.tx_hash = f.tx_hash AND o.log_index = f.log_index AND o.handled_at IS NOT NULL
       AND EXISTS (SELECT 1 FROM payment_attempts a
                    WHERE a.tx_hash = f.tx_hash AND a.chain_id = f.chain_id AND a.status IN ('REJECTED', 'FAILED')
                      AND a.updated_at > f.last_seen_at)
    """
)

PREFIX_LENGTH_MIN: Final = 4
"""Of an abbreviated id."""


async def find_finding(connection: ServiceConnection, finding_id: UUID) -> StoredFinding:
    """The finding as it is. Raises `FindingNotFound`."""
    return _one(finding_id, (await connection.connection.execute(_FIND, {"id": finding_id})).one_or_none())


async def lock_finding(connection: ServiceConnection, finding_id: UUID) -> StoredFinding:
    """The finding, locked until the transaction ends. Raises `FindingNotFound`."""
    return _one(finding_id, (await connection.connection.execute(_LOCK, {"id": finding_id})).one_or_none())


async def find_id_beginning_with(connection: ServiceConnection, prefix: str) -> UUID:
    """The one finding whose id begins so. Raises `FindingNotFound` where none does, or several do."""
    digits = prefix.lower().replace("-", "")
    if not PREFIX_LENGTH_MIN <= len(digits) <= 32 or not set(digits) <= set("0123456789abcdef"):
        raise FindingNotFound(prefix)
    values = {"first": digits.ljust(32, "0"), "last": digits.ljust(32, "f"), "limit": 3}
    found = [row.id for row in await connection.connection.execute(_BEGINNING_WITH, values)]
    if len(found) != 1:
        raise FindingNotFound(prefix, len(found))
    finding_id: UUID = found[0]
    return finding_id


async def list_findings(
    connection: ServiceConnection, *, kind: FindingKind | None = None, with_resolved: bool = False, limit: int
) -> list[StoredFinding]:
    """Findings, newest first, at most `limit`: the open ones, or all."""
    values = {"kind": kind.value if kind else None, "with_resolved": with_resolved, "limit": limit}
    return [_stored(row) for row in await connection.connection.execute(_LIST, values)]


async def list_findings_of_attempt(connection: ReadAllConnection, attempt_id: UUID) -> list[StoredFinding]:
    """What was found about an attempt, oldest first."""
    return [_stored(row) for row in await connection.connection.execute(_OF_ATTEMPT, {"attempt_id": attempt_id})]


async def list_to_announce(connection: ReadAllConnection, *, limit: int) -> list[StoredFinding]:
    """Findings that the outside has not been told of since they were opened (again), oldest first."""
    return [_stored(row) for row in await connection.connection.execute(_TO_ANNOUNCE, {"limit": limit})]


async def mark_announced(connection: ServiceConnection, finding: StoredFinding) -> None:
    """The outside has been told, unless the finding was opened again meanwhile."""
    await connection.connection.execute(_ANNOUNCED, {"id": finding.id, "times_opened": finding.times_opened})


async def resolve_finding(connection: ServiceConnection, finding_id: UUID, resolution: str) -> None:
    """The finding does not wait any more."""
    await connection.connection.execute(_RESOLVE, {"id": finding_id, "resolution": resolution})


_SETTLE: Final = text(
    "UPDATE findings SET resolved_at = now(), resolution = :settled WHERE key = :key AND"
    " (resolved_at IS NULL OR resolution = ANY (:reopening))"
).bindparams(bindparam("reopening", type_=ARRAY(TEXT)))


async def settle_finding(connection: ServiceConnection, key: str) -> None:
    """What the finding of this key is about is over by itself; one that an operator has ended stays as it is."""
    values = {"key": key, "settled": SETTLED, "reopening": list(REOPENING_RESOLUTIONS)}
    await connection.connection.execute(_SETTLE, values)


async def close_settled_findings(connection: ServiceConnection, chain_id: int) -> int:
    """Close what needs no remedy any more: the transfer has paid an attempt, or is on the chain again; how many."""
    values = {"chain_id": chain_id, "settled": SETTLED}
    settled = await connection.connection.execute(_CLOSE_SETTLED, values)
    mended = await connection.connection.execute(_CLOSE_MENDED, values)
    return settled.rowcount + mended.rowcount


async def look_at_claims_again(connection: ServiceConnection, chain_id: int) -> int:
    """Have the watcher decide anew about open findings whose transaction an attempt has ended with since; how many."""
    return (await connection.connection.execute(_LOOK_AT_CLAIMS_AGAIN, {"chain_id": chain_id})).rowcount


def _one(finding_id: UUID, row: Row[Any] | None) -> StoredFinding:
    if row is None:
        raise FindingNotFound(finding_id)
    return _stored(row)


def _stored(row: Row[Any]) -> StoredFinding:
    return StoredFinding.model_validate(row._mapping)
