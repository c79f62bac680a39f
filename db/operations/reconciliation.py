"""Queries of a reconciliation: a period's transactions with all that was credited for them, streamed; and the sums of
the journal, which these transactions must explain.

All of them read one snapshot. Cost grows with what happened in the period, not with the ledger's age.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from db.engine import ServiceConnection
from domain.chain import Transfer, TransferScope
from domain.operations.findings import FindingKind
from domain.operations.reconciliation.matching import (
    Application,
    Entry,
    KnownFinding,
    Observed,
    OperatorCredit,
    Transaction,
)
from domain.operations.reconciliation.totals import Totals
from domain.payments.attempt import AttemptStatus, Purpose

STATEMENT_TIMEOUT: Final = "15min"
"""Longer than the connections' own limit: these statements read a whole period."""

FETCHED_AT_ONCE: Final = 2_000
"""Transactions held in memory at a time."""

GRACE: Final = timedelta(minutes=15)
"""How long the watcher may take to decide about a transfer."""

_PREPARE: Final = (
    text("SELECT set_config('statement_timeout', :timeout, true)"),
    text("SET LOCAL timezone = 'UTC'"),
    # A reconciliation reads and computes; a compiled expression does not pay for itself.
    text("SET LOCAL jit = off"),
    text("SET LOCAL work_mem = '16MB'"),
    text("SET LOCAL idle_in_transaction_session_timeout = '5min'"),
)

_PAYMENT_REASONS: Final = (
    "('credits_purchase', 'platform_revenue_share', 'system_donation', 'payment_reversal', 'operator_credit')"
)
_UUID: Final = "'^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'"

# Whatever touched the treasury in the period, on the chain or in the books. All transfers of a transaction lie in one
# block, so the rest of its row is complete.
_TRANSACTIONS: Final = f"""
    WITH posted AS MATERIALIZED (
        SELECT e.reference, CASE WHEN e.reference ~ {_UUID} THEN e.reference::uuid END AS attempt_id
          FROM credit_ledger e
         WHERE e.created_at >= :from_time AND e.created_at < :to_time AND e.reason IN {_PAYMENT_REASONS}
    ), transactions AS MATERIALIZED (
        SELECT tx_hash FROM observed_transfers
         WHERE chain_id = :chain_id AND block_time >= :from_time AND block_time < :to_time
         UNION
        SELECT tx_hash FROM settled_transfers
         WHERE chain_id = :chain_id AND created_at >= :from_time AND created_at < :to_time
         UNION
        SELECT s.tx_hash FROM posted p JOIN settled_transfers s ON s.attempt_id = p.attempt_id
         WHERE s.chain_id = :chain_id
         UNION
        SELECT c.tx_hash FROM posted p JOIN transfer_credits c ON c.reference = p.reference
         WHERE c.chain_id = :chain_id
    ), settled AS MATERIALIZED (
        SELECT s.tx_hash, coalesce(f.log_index, s.log_index) AS log_index, s.log_index AS settled_index,
               coalesce(f.block_number, s.block_number) AS block_number, s.from_address, s.value_raw, s.surplus_raw,
               a.id, a.id::text AS reference, a.status, a.purpose, a.billing_account_id, a.amount_raw,
               coalesce(bonus_of_credits(credits_of_cents(a.amount_usd_cents), a.revenue_share), 0) AS bonus_credits,
               f.outcome,
               EXISTS (SELECT FROM chain_cursors c
                        WHERE c.chain_id = s.chain_id AND lower(c.token) = lower(a.token)
                          AND lower(c.to_address) = lower(a.to_address)
                          -- A block that the watcher has read, or one that cannot hold a payment: below its first
                          -- block, though settled since; or above its cursor, though settled long ago.
                          AND CASE
                              WHEN coalesce(f.block_number, s.block_number) < c.first_block
                              THEN s.created_at >= c.created_at
                              WHEN coalesce(f.block_number, s.block_number) > c.block_number
                              THEN s.created_at < c.updated_at - CAST(:grace AS interval)
                                OR coalesce(f.block_number, s.block_number) > c.head_number + 1000
                              ELSE true END)
               AND NOT EXISTS (SELECT FROM chain_gaps g
                                WHERE g.read_at IS NULL AND g.chain_id = s.chain_id
                                  AND lower(g.token) = lower(a.token) AND lower(g.to_address) = lower(a.to_address)
                                  AND coalesce(f.block_number, s.block_number) BETWEEN g.first_block AND g.last_block)
                 AS is_covered
          FROM transactions t
          JOIN settled_transfers s ON s.chain_id = :chain_id AND s.tx_hash = t.tx_hash
          JOIN payment_attempts a ON a.id = s.attempt_id
          LEFT JOIN transfer_finality f ON f.attempt_id = s.attempt_id
    ), credited AS MATERIALIZED (
        SELECT c.*, bonus_of_credits(c.amount_credits, c.revenue_share) AS bonus_credits
          FROM transactions t
          JOIN transfer_credits c ON c.chain_id = :chain_id AND c.tx_hash = t.tx_hash AND c.part <> 'refund'
    ), wanted AS (
        SELECT reference FROM settled UNION ALL SELECT reference FROM credited
    ), posts AS MATERIALIZED (
        SELECT e.reference,
               jsonb_agg(jsonb_build_object(
                   'reason', e.reason, 'billing_account_id', e.billing_account_id, 'amount_credits', e.amount,
                   'cash_debit_credits', coalesce(l.debits, 0), 'cash_credit_credits', coalesce(l.credits, 0),
                   'in_period', e.created_at >= :from_time AND e.created_at < :to_time)) AS entries
          FROM credit_ledger e
          LEFT JOIN LATERAL (
               SELECT sum(l.amount) FILTER (WHERE l.side = 'debit') AS debits,
                      sum(l.amount) FILTER (WHERE l.side = 'credit') AS credits
                 FROM journal_lines l WHERE l.entry_id = e.id AND l.account_code = 'cash:usdc') l ON true
         WHERE e.reference IN (SELECT reference FROM wanted) AND e.reason IN {_PAYMENT_REASONS}
         GROUP BY e.reference
    ), answered AS MATERIALIZED (
        SELECT token, to_address, first_block_answered_for(chain_id, token, to_address) AS first_block
          FROM chain_cursors WHERE chain_id = :chain_id
    ), senders AS MATERIALIZED (
        SELECT s.from_address, non_payer_kind(s.from_address) IS NOT DISTINCT FROM 'treasury' AS is_treasury
          FROM (SELECT DISTINCT o.from_address FROM transactions t
                  JOIN observed_transfers o ON o.chain_id = :chain_id AND o.tx_hash = t.tx_hash) s
    ), observed AS (
        SELECT o.tx_hash,
               jsonb_agg(jsonb_build_object(
                   'log_index', o.log_index, 'block_number', o.block_number, 'block_time', o.block_time,
                   'from_address', o.from_address, 'value_raw', o.value_raw,
                   'in_period', o.block_time >= :from_time AND o.block_time < :to_time,
                   'is_past_grace_period',
                   greatest(o.observed_at, f.resolved_at) <= now() - CAST(:grace AS interval),
                   'is_income', NOT k.is_treasury AND lower(o.from_address) <> lower(o.to_address),
                   'is_too_old', o.block_number < coalesce(a.first_block, 0),
                   'finding', CASE WHEN f.id IS NOT NULL THEN jsonb_build_object(
                       'finding_id', f.id, 'kind', f.kind, 'resolution', f.resolution, 'detail', f.detail) END)
                   ORDER BY o.log_index) AS transfers
          FROM transactions t
          JOIN observed_transfers o ON o.chain_id = :chain_id AND o.tx_hash = t.tx_hash
          JOIN senders k ON k.from_address = o.from_address
          LEFT JOIN answered a ON a.token = o.token AND a.to_address = o.to_address
          LEFT JOIN findings f
            ON f.key = 'transfer:' || o.chain_id::text || ':' || o.tx_hash || ':' || o.log_index::text
         GROUP BY o.tx_hash
    ), paid AS (
        SELECT s.tx_hash,
               jsonb_agg(jsonb_build_object(
                   'log_index', s.log_index, 'block_number', s.block_number, 'from_address', s.from_address,
                   'value_raw', s.value_raw, 'surplus_raw', s.surplus_raw, 'attempt_id', s.id, 'status', s.status,
                   'purpose', s.purpose, 'billing_account_id', s.billing_account_id, 'amount_raw', s.amount_raw,
                   'bonus_credits', s.bonus_credits, 'outcome', s.outcome, 'is_covered', s.is_covered,
                   'entries', coalesce(p.entries, '[]'), 'was_orphaned', EXISTS (SELECT FROM orphaned_transfers g
                                        WHERE g.chain_id = :chain_id AND g.tx_hash = s.tx_hash
                                          AND is_alike(g.from_address, g.value_raw, s.from_address, s.value_raw)),
                   'findings', (SELECT jsonb_object_agg(f.kind, jsonb_build_object(
                       'finding_id', f.id, 'kind', f.kind, 'resolution', f.resolution, 'detail', f.detail))
                                  FROM findings f
                                 WHERE f.key IN ('surplus:' || s.reference, 'ledger_disagrees:' || s.reference,
                                                 'ledger_without_transfer:' || s.reference)),
                   'credit', CASE WHEN c.reference IS NOT NULL THEN jsonb_build_object(
                       'finding_id', c.finding_id, 'billing_account_id', c.billing_account_id, 'value_raw', c.value_raw,
                       'bonus_credits', c.bonus_credits, 'reference', c.reference,
                       'entries', coalesce(cp.entries, '[]')) END))
                 AS payments
          FROM settled s
          LEFT JOIN posts p ON p.reference = s.reference
          LEFT JOIN credited c ON c.tx_hash = s.tx_hash AND c.log_index = s.settled_index AND c.part = 'surplus'
          LEFT JOIN posts cp ON cp.reference = c.reference
         GROUP BY s.tx_hash
    ), by_operators AS (
        SELECT c.tx_hash,
               jsonb_agg(jsonb_build_object(
                   'log_index', c.log_index, 'block_number', c.block_number, 'from_address', c.from_address,
                   'value_raw', c.value_raw, 'billing_account_id', c.billing_account_id,
                   'is_covered', EXISTS (SELECT FROM chain_cursors k WHERE k.chain_id = :chain_id
                                         AND c.block_number BETWEEN k.first_block AND k.block_number),
                   'findings', (SELECT jsonb_object_agg(f.kind, jsonb_build_object(
                       'finding_id', f.id, 'kind', f.kind, 'resolution', f.resolution, 'detail', f.detail))
                                  FROM findings f
                                 WHERE f.key IN ('ledger_disagrees:' || c.reference,
                                                 'ledger_without_transfer:' || c.reference)),
                   'credit', jsonb_build_object(
                       'finding_id', c.finding_id, 'billing_account_id', c.billing_account_id, 'value_raw', c.value_raw,
                       'bonus_credits', c.bonus_credits, 'reference', c.reference,
                       'entries', coalesce(p.entries, '[]'))))
                 AS credits
          FROM credited c LEFT JOIN posts p ON p.reference = c.reference
         WHERE c.part = 'whole' GROUP BY c.tx_hash
    )
    SELECT t.tx_hash, o.transfers, p.payments, b.credits
      FROM transactions t
      LEFT JOIN observed o ON o.tx_hash = t.tx_hash
      LEFT JOIN paid p ON p.tx_hash = t.tx_hash
      LEFT JOIN by_operators b ON b.tx_hash = t.tx_hash
"""  # noqa: S608 - constants

# Entries of payments, and others that move the treasury's account: each has an attempt that was paid by a transfer, or
# a transfer that an operator credited.
_UNEXPLAINED: Final = f"""
    SELECT coalesce(e.reference, e.id::text) AS reference, min(e.billing_account_id) AS billing_account_id,
           string_agg(e.reason || ' of ' || e.amount, ', ' ORDER BY e.entry_seq) AS entries,
           min(a.id::text) AS attempt_id,
           coalesce(sum(l.debits), 0) AS debits, coalesce(sum(l.credits), 0) AS credits, f.id AS finding_id,
           f.resolution, f.detail
      FROM credit_ledger e
      LEFT JOIN settled_transfers s
        ON s.attempt_id = CASE WHEN e.reference ~ {_UUID} THEN e.reference::uuid END AND e.reason IN {_PAYMENT_REASONS}
      LEFT JOIN transfer_credits c ON c.reference = e.reference AND e.reason IN {_PAYMENT_REASONS}
      LEFT JOIN payment_attempts a ON a.id = CASE WHEN e.reference ~ {_UUID} THEN e.reference::uuid END
      LEFT JOIN LATERAL (
           SELECT sum(l.amount) FILTER (WHERE l.side = 'debit') AS debits,
                  sum(l.amount) FILTER (WHERE l.side = 'credit') AS credits
             FROM journal_lines l WHERE l.entry_id = e.id AND l.account_code = 'cash:usdc') l ON true
      LEFT JOIN findings f ON f.key = 'ledger_without_transfer:' || coalesce(e.reference, e.id::text)
     WHERE e.created_at >= :from_time AND e.created_at < :to_time
       AND s.attempt_id IS NULL AND c.reference IS NULL
       AND (e.reason IN {_PAYMENT_REASONS} OR l.debits IS NOT NULL OR l.credits IS NOT NULL)
     GROUP BY coalesce(e.reference, e.id::text), f.id, f.resolution, f.detail
     ORDER BY 1
"""  # noqa: S608 - constants

_WITHOUT_TRANSFER: Final = """
    SELECT a.id, a.status, a.billing_account_id, f.id AS finding_id, f.resolution, f.detail
      FROM payment_attempts a
      LEFT JOIN settled_transfers s ON s.attempt_id = a.id
      LEFT JOIN findings f ON f.key = 'ledger_without_transfer:' || a.id
     WHERE a.chain_id = :chain_id AND a.updated_at >= :from_time AND a.updated_at < :to_time
       AND a.status IN ('CREDITED', 'REVERSED') AND s.attempt_id IS NULL
     ORDER BY a.id
"""

# Entries of another chain's transfers are left out; those without a transfer count here.
_JOURNAL: Final = f"""
    SELECT coalesce(sum(l.amount) FILTER (WHERE l.side = 'debit'), 0) AS debits,
           coalesce(sum(l.amount) FILTER (WHERE l.side = 'credit'), 0) AS credits
      FROM credit_ledger e
      JOIN journal_lines l ON l.entry_id = e.id AND l.account_code = 'cash:usdc'
      LEFT JOIN settled_transfers s ON s.attempt_id = CASE WHEN e.reference ~ {_UUID} THEN e.reference::uuid END
      LEFT JOIN transfer_credits c ON c.reference = e.reference
     WHERE e.created_at >= :from_time AND e.created_at < :to_time
       AND coalesce(s.chain_id, c.chain_id, :chain_id) = :chain_id
"""  # noqa: S608 - constants

_WATCHED: Final = text(
    """
    SELECT c.first_block, c.block_number, c.head_number, c.updated_at, n.now
      FROM (SELECT now() AS now) n
      LEFT JOIN LATERAL (
           SELECT * FROM chain_cursors WHERE chain_id = :chain_id AND retired_at IS NULL
            ORDER BY greatest(head_number - block_number, 0) DESC, updated_at LIMIT 1) c ON true
    """
)
# The end of the periods without a gap: one that was reconciled out of order does not hide an earlier gap.
_LAST_ASSERTION: Final = text(
    """
    WITH ordered AS (
        SELECT period_from, period_to,
               max(period_to) OVER (ORDER BY period_from, period_to
                                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
          FROM balance_assertions WHERE chain_id = :chain_id
    )
    SELECT coalesce((SELECT min(before) FROM ordered WHERE before < period_from), max(period_to)) FROM ordered
    """
)
_TRANSFER: Final = text(
    """
    SELECT o.tx_hash, o.log_index, o.block_number, o.block_hash, o.block_time, o.from_address, o.value_raw, o.token,
           o.to_address, o.handled_at
      FROM observed_transfers o
     WHERE o.chain_id = :chain_id AND o.tx_hash = :tx_hash AND o.log_index = :log_index
    """
)
_UNPOSTED_BONUSES: Final = text(
    """
    SELECT u.finding_id, p.action, p.operator, p.reason, p.outcome
      FROM credits_without_bonus() u
      JOIN findings f ON f.id = u.finding_id
      JOIN operator_actions p ON p.finding_id = f.id AND p.opening = f.times_opened
     WHERE u.finding_id = ANY (CAST(:ids AS uuid[]))
    """
)
_INSERT_ASSERTION: Final = text(
    """
    INSERT INTO balance_assertions (chain_id, period_from, period_to, transfers, inflow_raw, purchases_credits,
        donations_credits, operator_credits, unapplied_raw, reversed_credits, ledger_debit_credits,
        ledger_credit_credits, differences, totals, closes)
    VALUES (:chain_id, :from_time, :to_time, :transfers, :inflow_raw, :purchases_credits, :donations_credits,
        :operator_credits, :unapplied_raw, :reversed_credits, :ledger_debit_credits, :ledger_credit_credits,
        :differences, :totals, :closes)
    RETURNING id
    """
).bindparams(bindparam("differences", type_=JSONB), bindparam("totals", type_=JSONB))


@dataclass(frozen=True, slots=True)
class Span:
    """What is reconciled: the transfers of a chain in blocks from `from_time` until before `to_time`."""

    chain_id: int
    from_time: datetime
    to_time: datetime

    @property
    def values(self) -> dict[str, Any]:
        """As parameters of the queries."""
        return {"chain_id": self.chain_id, "from_time": self.from_time, "to_time": self.to_time}


@dataclass(frozen=True, slots=True)
class Watched:
    """How far the chain has been followed, and the database's clock."""

    first_block: int | None
    block_number: int | None
    head_number: int | None
    updated_at: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Ledger entries of one reference that no transfer explains, or an attempt that no transfer paid."""

    reference: str
    attempt_id: UUID | None
    billing_account_id: str
    words: str
    debit_credits: int
    credit_credits: int
    finding: KnownFinding | None


@dataclass(frozen=True, slots=True)
class UnpostedBonus:
    """A credit of an operator whose bonus is due, with the decision that made it."""

    finding_id: UUID
    operator: str
    reason: str
    billing_account_id: str


@dataclass(frozen=True, slots=True)
class _Applied:
    """What a transfer was credited for, as the query names it: an attempt, or an operator's credit."""

    log_index: int
    block_number: int
    from_address: str
    value_raw: int
    billing_account_id: str
    is_covered: bool
    attempt_id: UUID | None = None
    status: AttemptStatus | None = None
    purpose: Purpose | None = None
    amount_raw: int = 0
    bonus_credits: int = 0
    outcome: str | None = None
    was_orphaned: bool = False
    entries: tuple[Entry, ...] = ()
    surplus_raw: int = 0
    findings: dict[FindingKind, KnownFinding] | None = None
    credit: OperatorCredit | None = None

    @property
    def application(self) -> Application:
        findings = self.findings or {}
        return Application(
            log_index=self.log_index,
            block_number=self.block_number,
            from_address=self.from_address,
            value_raw=self.value_raw,
            attempt_id=self.attempt_id,
            status=self.status,
            purpose=self.purpose,
            billing_account_id=self.billing_account_id,
            amount_raw=self.amount_raw,
            bonus_credits=self.bonus_credits,
            outcome=self.outcome,
            is_covered=self.is_covered,
            was_orphaned=self.was_orphaned,
            entries=self.entries,
            surplus_raw=self.surplus_raw,
            surplus_finding=findings.get(FindingKind.SURPLUS),
            alarm_finding=findings.get(FindingKind.LEDGER_WITHOUT_TRANSFER),
            disagreement_finding=findings.get(FindingKind.LEDGER_DISAGREES),
            credit=self.credit,
        )


_OBSERVED: Final = TypeAdapter(tuple[Observed, ...])
_APPLIED: Final = TypeAdapter(tuple[_Applied, ...])


async def prepare(connection: ServiceConnection) -> None:
    """Set this transaction's limits and planner settings for statements that read a whole period."""
    for statement in _PREPARE:
        values = {"timeout": STATEMENT_TIMEOUT} if "timeout" in statement.compile().params else {}
        await connection.connection.execute(statement, values)


async def stream_transactions(connection: ServiceConnection, span: Span) -> AsyncIterator[Transaction]:
    """Every transaction of the period with its transfers and what was credited for them; a batch is in memory."""
    values = span.values | {"grace": GRACE}
    result = await connection.connection.stream(
        text(_TRANSACTIONS), values, execution_options={"yield_per": FETCHED_AT_ONCE}
    )
    async for row in result:
        observed = _OBSERVED.validate_python(row.transfers or ())
        applied = _APPLIED.validate_python([*(row.payments or ()), *(row.credits or ())])
        yield Transaction(span.chain_id, row.tx_hash, observed, tuple(one.application for one in applied))


async def list_unexplained(connection: ServiceConnection, span: Span, *, limit: int) -> list[Unexplained]:
    """Entries of the period that no transfer explains, and attempts credited in it that no transfer paid."""
    values = span.values | {"limit": limit}
    found: dict[str, Unexplained] = {}
    for row in await connection.connection.execute(text(f"{_UNEXPLAINED} LIMIT :limit"), values):
        attempt_id = UUID(row.attempt_id) if row.attempt_id else None
        found[row.reference] = Unexplained(
            row.reference,
            attempt_id,
            row.billing_account_id,
            f"{row.entries} on {row.billing_account_id}, reference {row.reference}: no transfer is known for it",
            int(row.debits),
            int(row.credits),
            _alarm(row),
        )
    for row in await connection.connection.execute(text(f"{_WITHOUT_TRANSFER} LIMIT :limit"), values):
        found.setdefault(
            str(row.id),
            Unexplained(
                str(row.id),
                row.id,
                row.billing_account_id,
                f"attempt {row.id} is {row.status}, and no transfer is known that paid it",
                0,
                0,
                _alarm(row),
            ),
        )
    return list(found.values())


async def read_journal(connection: ServiceConnection, span: Span) -> Totals:
    """What was posted to the treasury's account in the period: `ledger_debit_credits` and `ledger_credit_credits`."""
    row = (await connection.connection.execute(text(_JOURNAL), span.values)).one()
    return Totals(ledger_debit_credits=int(row.debits), ledger_credit_credits=int(row.credits))


async def find_watched(connection: ServiceConnection, chain_id: int) -> Watched:
    """How far the chain has been followed, by the cursor that lags most."""
    row = (await connection.connection.execute(_WATCHED, {"chain_id": chain_id})).one()
    return Watched(row.first_block, row.block_number, row.head_number, row.updated_at, row.now)


async def find_last_end(connection: ServiceConnection, chain_id: int) -> datetime | None:
    """The end of the last period that was reconciled; None where none was."""
    end: datetime | None = (await connection.connection.execute(_LAST_ASSERTION, {"chain_id": chain_id})).scalar_one()
    return end


async def find_transfer(
    connection: ServiceConnection, chain_id: int, tx_hash: str, log_index: int
) -> tuple[TransferScope, Transfer, bool] | None:
    """An observed transfer with its scope, and whether it was decided about; None where it is not on the chain."""
    values = {"chain_id": chain_id, "tx_hash": tx_hash, "log_index": log_index}
    row = (await connection.connection.execute(_TRANSFER, values)).one_or_none()
    if row is None:
        return None
    scope = TransferScope(chain_id=chain_id, token=row.token, treasury=row.to_address)
    return scope, Transfer.model_validate(dict(row._mapping)), row.handled_at is not None


async def list_unposted_bonuses(connection: ServiceConnection, finding_ids: Collection[UUID]) -> list[UnpostedBonus]:
    """Credits of these findings whose bonus is due."""
    rows = await connection.connection.execute(_UNPOSTED_BONUSES, {"ids": list(finding_ids)})
    return [UnpostedBonus(row.finding_id, row.operator, row.reason, row.outcome["billingAccountId"]) for row in rows]


async def insert_assertion(
    connection: ServiceConnection, span: Span, totals: Totals, *, differences: Mapping[str, int], closes: bool
) -> int:
    """Store a balance assertion; returns its number."""
    sums = totals.by_name()
    columns = (
        "transfers", "inflow_raw", "purchases_credits", "donations_credits", "operator_credits", "unapplied_raw",
        "reversed_credits", "ledger_debit_credits", "ledger_credit_credits",
    )  # fmt: skip
    values = span.values | {name: Decimal(sums[name]) for name in columns}
    values |= {
        "transfers": totals.transfers,
        "differences": dict(differences),
        "totals": {name: str(value) for name, value in sums.items()},
        "closes": closes,
    }
    number: int = (await connection.connection.execute(_INSERT_ASSERTION, values)).scalar_one()
    return number


def _alarm(row: Any) -> KnownFinding | None:
    if row.finding_id is None:
        return None
    return KnownFinding(row.finding_id, FindingKind.LEDGER_WITHOUT_TRANSFER, row.resolution, row.detail)
