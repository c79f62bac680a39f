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
from domain.chain import DepositLane, Transfer, TransferScope
from domain.operations.reconciliation.matching import (
    Application,
    KnownFinding,
    Observed,
    Transaction,
)
from domain.operations.reconciliation.totals import Totals

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

# The parts are functions (`db/functions/reconciliation.sql`); here they are put together, transaction by transaction.
_TRANSACTIONS: Final = text(
    """
    WITH transactions AS MATERIALIZED (
        SELECT tx_hash FROM transactions_between(:chain_id, :from_time, :to_time)
    ), payments AS MATERIALIZED (
        SELECT p.* FROM transactions t
          JOIN settled_payments(:grace) p ON p.chain_id = :chain_id AND p.tx_hash = t.tx_hash
    ), credits AS MATERIALIZED (
        SELECT c.* FROM transactions t
          JOIN operator_credits() c ON c.chain_id = :chain_id AND c.tx_hash = t.tx_hash
    ), entries AS MATERIALIZED (
        SELECT e.reference,
               jsonb_agg(jsonb_build_object(
                   'reason', e.reason, 'billing_account_id', e.billing_account_id, 'amount_credits', e.amount_credits,
                   'cash_debit_credits', coalesce(e.cash_debit_credits, 0),
                   'cash_credit_credits', coalesce(e.cash_credit_credits, 0),
                   'in_period', e.created_at >= :from_time AND e.created_at < :to_time)) AS entries
          FROM ledger_entries_with_cash() e
         WHERE e.reference IN (SELECT reference FROM payments UNION ALL SELECT reference FROM credits)
           AND is_reason_of_payment(e.reason)
         GROUP BY e.reference
    ), posted_credits AS MATERIALIZED (
        SELECT c.*, jsonb_build_object(
                   'finding_id', c.finding_id, 'billing_account_id', c.billing_account_id, 'value_raw', c.value_raw,
                   'bonus_credits', c.bonus_credits, 'reference', c.reference,
                   'entries', coalesce(e.entries, '[]')) AS credit
          FROM credits c LEFT JOIN entries e ON e.reference = c.reference
    ), applications AS (
        SELECT p.tx_hash,
               jsonb_build_object(
                   'log_index', p.log_index, 'block_number', p.block_number, 'from_address', p.from_address,
                   'value_raw', p.value_raw, 'attempt_id', p.attempt_id, 'status', p.status, 'purpose', p.purpose,
                   'billing_account_id', p.billing_account_id, 'amount_raw', p.amount_raw,
                   'bonus_credits', p.bonus_credits, 'outcome', p.outcome, 'is_covered', p.is_covered,
                   'was_orphaned', p.was_orphaned, 'entries', coalesce(e.entries, '[]'), 'surplus_raw', p.surplus_raw,
                   'surplus_finding', p.surplus_finding, 'alarm_finding', p.alarm_finding,
                   'disagreement_finding', p.disagreement_finding, 'credit', c.credit) AS application
          FROM payments p
          LEFT JOIN entries e ON e.reference = p.reference
          LEFT JOIN posted_credits c ON c.reference = p.surplus_reference
         UNION ALL
        SELECT c.tx_hash,
               jsonb_build_object(
                   'log_index', c.log_index, 'block_number', c.block_number, 'from_address', c.from_address,
                   'value_raw', c.value_raw, 'billing_account_id', c.billing_account_id, 'is_covered', c.is_covered,
                   'alarm_finding', c.alarm_finding, 'disagreement_finding', c.disagreement_finding,
                   'credit', c.credit)
          FROM posted_credits c WHERE c.part = 'whole'
    ), applied AS (
        SELECT tx_hash, jsonb_agg(application) AS applications FROM applications GROUP BY tx_hash
    ), received AS (
        SELECT o.tx_hash,
               jsonb_agg(jsonb_build_object(
                   'log_index', o.log_index, 'block_number', o.block_number, 'block_time', o.block_time,
                   'from_address', o.from_address, 'value_raw', o.value_raw,
                   'in_period', o.block_time >= :from_time AND o.block_time < :to_time,
                   'is_past_grace_period', o.undecided_since <= now() - CAST(:grace AS interval),
                   'is_income', o.is_income, 'is_too_old', o.is_too_old, 'finding', o.finding)
                   ORDER BY o.log_index) AS transfers
          FROM transactions t
          JOIN received_transfers() o ON o.chain_id = :chain_id AND o.tx_hash = t.tx_hash
         GROUP BY o.tx_hash
    )
    SELECT t.tx_hash, r.transfers, a.applications
      FROM transactions t
      LEFT JOIN received r ON r.tx_hash = t.tx_hash
      LEFT JOIN applied a ON a.tx_hash = t.tx_hash
    """
)

_UNEXPLAINED: Final = text(
    """
    SELECT coalesce(e.reference, e.entry_id::text) AS reference, min(e.billing_account_id) AS billing_account_id,
           string_agg(e.reason || ' of ' || e.amount_credits, ', ' ORDER BY e.entry_seq) AS entries,
           min(a.id::text) AS attempt_id,
           coalesce(sum(e.cash_debit_credits), 0) AS debits, coalesce(sum(e.cash_credit_credits), 0) AS credits,
           f.finding
      FROM unexplained_entries() e
      LEFT JOIN payment_attempts a ON a.id = e.attempt_id
      LEFT JOIN known_findings() f ON f.key = 'ledger_without_transfer:' || coalesce(e.reference, e.entry_id::text)
     WHERE e.created_at >= :from_time AND e.created_at < :to_time
     GROUP BY coalesce(e.reference, e.entry_id::text), f.finding
     ORDER BY 1 LIMIT :limit
    """
)

_WITHOUT_TRANSFER: Final = text(
    """
    SELECT a.id, a.status, a.billing_account_id, f.finding
      FROM payment_attempts a
      LEFT JOIN settled_transfers s ON s.attempt_id = a.id
      LEFT JOIN known_findings() f ON f.key = 'ledger_without_transfer:' || a.id
     WHERE a.chain_id = :chain_id AND a.updated_at >= :from_time AND a.updated_at < :to_time
       AND a.status IN ('CREDITED', 'REVERSED') AND s.attempt_id IS NULL
     ORDER BY a.id LIMIT :limit
    """
)

# Entries of another chain's transfers are left out; those without a transfer count here.
_JOURNAL: Final = text(
    """
    SELECT coalesce(sum(l.amount) FILTER (WHERE l.side = 'debit'), 0) AS debits,
           coalesce(sum(l.amount) FILTER (WHERE l.side = 'credit'), 0) AS credits
      FROM credit_ledger e
      JOIN journal_lines l ON l.entry_id = e.id AND l.account_code IN ('cash:usdc', 'cash:usdc:deposits')
      LEFT JOIN settled_transfers s ON s.attempt_id = attempt_of_reference(e.reference)
      LEFT JOIN transfer_credits c ON c.reference = e.reference
     WHERE e.created_at >= :from_time AND e.created_at < :to_time
       AND coalesce(s.chain_id, c.chain_id, :chain_id) = :chain_id
    """
)

_WATCHED: Final = text(
    """
    SELECT c.first_block, c.block_number, c.head_number, c.updated_at, n.now
      FROM (SELECT now() AS now) n
      LEFT JOIN LATERAL (
           SELECT * FROM chain_cursors
            -- The quiet lane of deposit addresses is behind by design; what is in use is in the busy one. The coin's
            -- lane reads none of the token that is compared.
            WHERE chain_id = :chain_id AND retired_at IS NULL AND to_address <> ALL (CAST(:others AS text[]))
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


_RECEIVED: Final = TypeAdapter(tuple[Observed, ...])
_APPLICATIONS: Final = TypeAdapter(tuple[Application, ...])
_FINDING: Final = TypeAdapter(KnownFinding | None)


async def prepare(connection: ServiceConnection) -> None:
    """Set this transaction's limits and planner settings for statements that read a whole period."""
    for statement in _PREPARE:
        values = {"timeout": STATEMENT_TIMEOUT} if "timeout" in statement.compile().params else {}
        await connection.connection.execute(statement, values)


async def stream_transactions(connection: ServiceConnection, span: Span) -> AsyncIterator[Transaction]:
    """Every transaction of the period with its transfers and what was credited for them; a batch is in memory."""
    values = span.values | {"grace": GRACE}
    result = await connection.connection.stream(_TRANSACTIONS, values, execution_options={"yield_per": FETCHED_AT_ONCE})
    async for row in result:
        yield Transaction(
            span.chain_id,
            row.tx_hash,
            _RECEIVED.validate_python(row.transfers or ()),
            _APPLICATIONS.validate_python(row.applications or ()),
        )


async def list_unexplained(connection: ServiceConnection, span: Span, *, limit: int) -> list[Unexplained]:
    """Entries of the period that no transfer explains, and attempts credited in it that no transfer paid."""
    values = span.values | {"limit": limit}
    found: dict[str, Unexplained] = {}
    for row in await connection.connection.execute(_UNEXPLAINED, values):
        attempt_id = UUID(row.attempt_id) if row.attempt_id else None
        found[row.reference] = Unexplained(
            row.reference,
            attempt_id,
            row.billing_account_id,
            f"{row.entries} on {row.billing_account_id}, reference {row.reference}: no transfer is known for it",
            int(row.debits),
            int(row.credits),
            _FINDING.validate_python(row.finding),
        )
    for row in await connection.connection.execute(_WITHOUT_TRANSFER, values):
        found.setdefault(
            str(row.id),
            Unexplained(
                str(row.id),
                row.id,
                row.billing_account_id,
                f"attempt {row.id} is {row.status}, and no transfer is known that paid it",
                0,
                0,
                _FINDING.validate_python(row.finding),
            ),
        )
    return list(found.values())


async def read_journal(connection: ServiceConnection, span: Span) -> Totals:
    """What was posted to the treasury's account in the period: `ledger_debit_credits` and `ledger_credit_credits`."""
    row = (await connection.connection.execute(_JOURNAL, span.values)).one()
    return Totals(ledger_debit_credits=int(row.debits), ledger_credit_credits=int(row.credits))


async def find_watched(connection: ServiceConnection, chain_id: int) -> Watched:
    """How far the chain has been followed, by the cursor that lags most."""
    values = {"chain_id": chain_id, "others": [DepositLane.QUIET.value, DepositLane.COIN.value]}
    row = (await connection.connection.execute(_WATCHED, values)).one()
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
