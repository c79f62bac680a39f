"""Queries on findings, opened by the chain watcher or a reconciliation for an operator."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import TEXT, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from db.engine import ReadAllConnection, ServiceConnection
from domain.errors import FindingNotFound
from domain.operations.findings import REOPENING_RESOLUTIONS, SETTLED, Finding, FindingKind
from domain.operations.resolutions import StoredFinding

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
        -- An open finding shows the present facts to decide on; a resolved one keeps those it was decided on.
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


class Sort(StrEnum):
    """Sort order of a list of findings."""

    VALUE = "value"
    """Unknown values first, then the largest: small amounts never hide money."""

    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class FindingFilter:
    """Filter for findings; None matches any. Values are in raw token units."""

    kinds: tuple[FindingKind, ...] | None = None
    with_resolved: bool = False
    sender: str | None = None
    billing_account_id: str | None = None
    min_value_raw: int | None = None
    below_raw: int | None = None
    opened_until: datetime | None = None

    def values(self) -> dict[str, Any]:
        """For the query."""
        return {
            "kinds": None if self.kinds is None else [kind.value for kind in self.kinds],
            "with_resolved": self.with_resolved,
            "sender": self.sender,
            "account": self.billing_account_id,
            "min_value_raw": None if self.min_value_raw is None else Decimal(self.min_value_raw),
            "below_raw": None if self.below_raw is None else Decimal(self.below_raw),
            "opened_until": self.opened_until,
        }


@dataclass(frozen=True, slots=True)
class FindingsPage:
    """Findings in order. `next` is the position of the next page; None where this is the last one."""

    findings: tuple[StoredFinding, ...]
    next: UUID | None


@dataclass(frozen=True, slots=True)
class FindingTotals:
    """The matching findings of one kind."""

    kind: FindingKind
    findings: int
    value_raw: int
    without_value: int
    """Number of findings whose value is unknown."""
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class WrittenFinding:
    """A finding after it was found (again)."""

    finding_id: UUID
    is_new: bool
    """Recorded for the first time, or reopened."""
    resolution: str | None


async def open_finding(connection: ServiceConnection, finding: Finding) -> bool:
    """Record a finding; True where it is new, or reopened.

    A known one stays as it is, resolved or not, except that one for which an operator chose a retry is reopened.
    """
    return (await write_finding(connection, finding)).is_new


async def write_finding(connection: ServiceConnection, finding: Finding) -> WrittenFinding:
    """Record a finding, and return its resulting state."""
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
_MATCHING: Final = """
    (:with_resolved OR f.resolved_at IS NULL)
       AND (CAST(:kinds AS text[]) IS NULL OR f.kind = ANY (CAST(:kinds AS text[])))
       AND (CAST(:sender AS text) IS NULL OR lower(f.metadata ->> 'sender') = lower(:sender))
       AND (CAST(:account AS text) IS NULL OR f.billing_account_id = :account)
       AND (CAST(:min_value_raw AS numeric) IS NULL OR f.value_raw >= :min_value_raw)
       AND (CAST(:below_raw AS numeric) IS NULL OR f.value_raw < :below_raw)
       AND (CAST(:opened_until AS timestamptz) IS NULL OR f.opened_at <= :opened_until)
"""
# Unknown values come first, so that they are not hidden behind known ones.
_ORDERS: Final = {
    Sort.VALUE: "f.value_raw DESC NULLS FIRST, f.created_at DESC, f.id DESC",
    Sort.NEWEST: "f.created_at DESC, f.id DESC",
    Sort.OLDEST: "f.created_at, f.id",
}
_BEHIND: Final = {
    Sort.VALUE: "(f.value_raw IS NOT NULL OR (f.created_at, f.id) < (:created_at, :id))",
    Sort.NEWEST: "(f.created_at, f.id) < (:created_at, :id)",
    Sort.OLDEST: "(f.created_at, f.id) > (:created_at, :id)",
}
_BEHIND_A_VALUE: Final = (
    "f.value_raw <= :value_raw AND (f.value_raw < :value_raw OR (f.created_at, f.id) < (:created_at, :id))"
)
_TOTALS: Final = text(
    f"""
    SELECT f.kind, count(*) AS findings, coalesce(sum(f.value_raw), 0) AS value_raw,
           count(*) FILTER (WHERE f.value_raw IS NULL) AS without_value, min(f.opened_at) AS oldest_at
      FROM findings f WHERE {_MATCHING} GROUP BY f.kind ORDER BY value_raw DESC, f.kind
    """  # noqa: S608 - constants
)
_NOW: Final = text("SELECT statement_timestamp() AS now")
_OF_ATTEMPT: Final = text(f"{_SELECT} WHERE f.attempt_id = :attempt_id ORDER BY f.created_at, f.id")
_TO_ANNOUNCE: Final = text(
    f"{_SELECT} WHERE f.announced_at IS NULL ORDER BY {_ORDERS[Sort.VALUE]} LIMIT :limit OFFSET :skip"
)
_ANNOUNCED: Final = text(
    """
    UPDATE findings f SET announced_at = now()
      FROM unnest(CAST(:ids AS uuid[]), CAST(:times_opened AS bigint[])) AS told (id, times_opened)
     WHERE f.id = told.id AND f.times_opened = told.times_opened AND f.announced_at IS NULL
    """
)
_RESOLVE: Final = text("UPDATE findings SET resolved_at = now(), resolution = :resolution WHERE id = :id")
# For example a late payment for whose transaction the payer made a new intent, which the transfer has paid.
_CLOSE_SETTLED: Final = text(
    """
    UPDATE findings f SET resolved_at = now(), resolution = :settled
     WHERE f.resolved_at IS NULL AND f.chain_id = :chain_id AND f.key LIKE 'transfer:%' AND EXISTS (
           SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
             LEFT JOIN transfer_finality t ON t.attempt_id = s.attempt_id
             JOIN observed_transfers o
               ON o.chain_id = f.chain_id AND o.tx_hash = f.tx_hash AND o.log_index = f.log_index
            WHERE s.chain_id = f.chain_id AND s.tx_hash = f.tx_hash AND a.status = 'CREDITED'
              AND coalesce(t.log_index, s.log_index) = f.log_index
              AND is_alike(s.from_address, s.value_raw, o.from_address, o.value_raw))
    """
)

# The watcher had lost the transfer, and has found it again.
_CLOSE_MENDED: Final = text(
    """
    UPDATE findings f SET resolved_at = now(), resolution = :settled
     WHERE f.resolved_at IS NULL AND f.chain_id = :chain_id AND f.kind = 'ledger_without_transfer'
       AND EXISTS (
           SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
            WHERE s.attempt_id = f.attempt_id AND a.status = 'CREDITED'
              -- That the treasury paid itself is seen, and is no transfer that pays.
              AND lower(s.from_address) <> lower(a.to_address)
              AND coalesce(non_payer_kind(s.from_address), '') NOT IN ('treasury', 'deposit_address')
              -- Twins are counted: as many are there as have paid.
              AND (SELECT count(*) FROM observed_transfers o
                    WHERE o.chain_id = s.chain_id AND o.tx_hash = s.tx_hash
                      AND lower(o.token) = lower(a.token) AND lower(o.to_address) = lower(a.to_address)
                      AND is_alike(o.from_address, o.value_raw, s.from_address, s.value_raw))
               >= (SELECT count(*) FROM paid_transfers_of(s.chain_id, s.tx_hash, a.token, a.to_address) p
                    WHERE p.in_scope AND is_alike(p.from_address, p.value_raw, s.from_address, s.value_raw)
                      AND p.status IS DISTINCT FROM 'REVERSED'))
    """
)
# A transfer was found before the submission of its hash was refused, which now explains it. Or another attempt of its
# sender, of that amount, has ended since with another hash.
_LOOK_AT_CLAIMS_AGAIN: Final = text(
    """
    UPDATE observed_transfers o SET handled_at = NULL, attempt_id = NULL
      FROM findings f
     WHERE f.resolved_at IS NULL AND f.chain_id = :chain_id AND f.key LIKE 'transfer:%'
       AND o.chain_id = f.chain_id AND o.tx_hash = f.tx_hash AND o.log_index = f.log_index AND o.handled_at IS NOT NULL
       AND EXISTS (SELECT 1 FROM payment_attempts a
                    WHERE a.tx_hash = f.tx_hash AND a.chain_id = f.chain_id AND a.status IN ('REJECTED', 'FAILED')
                      AND a.updated_at > f.last_seen_at
                    UNION ALL
                   SELECT 1 FROM payment_attempts a
                    WHERE lower(a.from_address) = lower(o.from_address) AND a.amount_raw = o.value_raw
                      AND a.chain_id = f.chain_id AND a.status IN ('REJECTED', 'FAILED')
                      AND a.error_code <> 'INTENT_EXPIRED' AND a.updated_at > f.last_seen_at)
    """
)

_CHAIN: Final = text("SELECT chain_id FROM findings WHERE id = :id")

PREFIX_LENGTH_MIN: Final = 4
"""Of an abbreviated id."""


async def find_finding(connection: ServiceConnection, finding_id: UUID) -> StoredFinding:
    """The finding. Raises `FindingNotFound`."""
    return _one(finding_id, (await connection.connection.execute(_FIND, {"id": finding_id})).one_or_none())


async def find_chain(connection: ReadAllConnection, finding_id: UUID) -> int | None:
    """The chain that a finding belongs to; None where it belongs to none, or does not exist."""
    found: int | None = (await connection.connection.execute(_CHAIN, {"id": finding_id})).scalar_one_or_none()
    return found


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


async def page_findings(
    connection: ReadAllConnection,
    wanted: FindingFilter,
    *,
    sort: Sort = Sort.VALUE,
    after: UUID | None = None,
    limit: int,
) -> FindingsPage:
    """At most `limit` findings that pass the filter, in this order; those after the finding `after`.

    Raises `FindingNotFound` where there is no such finding. The order uses current values: a finding resolved in the
    meantime is still a valid position.
    """
    values: dict[str, Any] = wanted.values() | {"limit": limit + 1}
    condition = _MATCHING
    if after is not None:
        row = (await connection.connection.execute(_FIND, {"id": after})).one_or_none()
        if row is None:
            raise FindingNotFound(after)
        is_behind_a_value = sort is Sort.VALUE and row.value_raw is not None
        condition += f" AND {_BEHIND_A_VALUE if is_behind_a_value else _BEHIND[sort]}"
        values |= {"created_at": row.created_at, "id": row.id}
        values |= {"value_raw": row.value_raw} if is_behind_a_value else {}
    query = text(f"{_SELECT} WHERE {condition} ORDER BY {_ORDERS[sort]} LIMIT :limit")
    rows = [_stored(row) for row in await connection.connection.execute(query, values)]
    shown = tuple(rows[:limit])
    return FindingsPage(shown, next=shown[-1].id if len(rows) > limit and shown else None)


async def total_findings(connection: ReadAllConnection, wanted: FindingFilter) -> list[FindingTotals]:
    """Number and value of the findings that pass the filter, by kind, largest value first."""
    rows = await connection.connection.execute(_TOTALS, wanted.values())
    return [
        FindingTotals(FindingKind(row.kind), row.findings, int(row.value_raw), row.without_value, row.oldest_at)
        for row in rows
    ]


async def read_clock(connection: ReadAllConnection) -> datetime:
    """The database's time now."""
    now: datetime = (await connection.connection.execute(_NOW)).scalar_one()
    return now


async def list_findings_of_attempt(connection: ReadAllConnection, attempt_id: UUID) -> list[StoredFinding]:
    """What was found about an attempt, oldest first."""
    return [_stored(row) for row in await connection.connection.execute(_OF_ATTEMPT, {"attempt_id": attempt_id})]


async def list_unpublished(connection: ReadAllConnection, *, limit: int, skip: int = 0) -> list[StoredFinding]:
    """Findings not published since they were opened (again), largest value first."""
    rows = await connection.connection.execute(_TO_ANNOUNCE, {"limit": limit, "skip": skip})
    return [_stored(row) for row in rows]


async def mark_published(connection: ServiceConnection, *told: StoredFinding) -> None:
    """Mark findings as published, except those reopened in the meantime."""
    values = {"ids": [finding.id for finding in told], "times_opened": [finding.times_opened for finding in told]}
    await connection.connection.execute(_ANNOUNCED, values)


async def resolve_finding(connection: ServiceConnection, finding_id: UUID, resolution: str) -> None:
    """Resolve the finding."""
    await connection.connection.execute(_RESOLVE, {"id": finding_id, "resolution": resolution})


_SETTLE: Final = text(
    "UPDATE findings SET resolved_at = now(), resolution = :settled WHERE key = :key AND"
    " (resolved_at IS NULL OR resolution = ANY (:reopening))"
).bindparams(bindparam("reopening", type_=ARRAY(TEXT)))


async def settle_finding(connection: ServiceConnection, key: str) -> None:
    """Resolve the finding of this key automatically; one that an operator has resolved stays as it is."""
    values = {"key": key, "settled": SETTLED, "reopening": list(REOPENING_RESOLUTIONS)}
    await connection.connection.execute(_SETTLE, values)


async def close_settled_findings(connection: ServiceConnection, chain_id: int) -> int:
    """Resolve findings whose transfer has paid an attempt, or is on the chain again; returns how many."""
    values = {"chain_id": chain_id, "settled": SETTLED}
    settled = await connection.connection.execute(_CLOSE_SETTLED, values)
    mended = await connection.connection.execute(_CLOSE_MENDED, values)
    return settled.rowcount + mended.rowcount


async def recheck_claims(connection: ServiceConnection, chain_id: int) -> int:
    """Have the watcher decide again about open findings whose transaction an attempt has ended with since; returns how
    many.
    """
    return (await connection.connection.execute(_LOOK_AT_CLAIMS_AGAIN, {"chain_id": chain_id})).rowcount


def _one(finding_id: UUID, row: Row[Any] | None) -> StoredFinding:
    if row is None:
        raise FindingNotFound(finding_id)
    return _stored(row)


def _stored(row: Row[Any]) -> StoredFinding:
    return StoredFinding.model_validate(row._mapping)
