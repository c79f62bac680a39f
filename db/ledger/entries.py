"""Queries on the ledger. Posting is one call of a SECURITY DEFINER function: see `db/functions/ledger.sql`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import func, select, text

from db.engine import AnyConnection, ServiceConnection, ServiceStatements, fetch_one
from db.errors import POSTED_ONCE
from db.tables.ledger import CreditLedgerEntry
from domain.errors import BookkeepingError
from domain.ledger.entries import Posting, Side


@dataclass(frozen=True, slots=True)
class PostedEntry:
    """A ledger entry; `posted` is False where it existed already."""

    entry_id: UUID
    amount_credits: int
    balance_after_credits: int
    posted: bool


class PostedMeanwhile(Exception):
    """The same entry was posted concurrently, after this transaction had checked for it: retry."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of `credit_ledger`, for display."""

    id: UUID
    billing_account_id: str
    amount: int
    balance_after: int
    reason: str
    reference: str | None
    created_at: datetime
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrialBalanceLine:
    """Sum of one ledger account's journal lines."""

    account_code: str
    name: str
    type: str
    debits: int
    credits: int


# Posting goes straight to the driver: SQLAlchemy would take as long for it as the driver does, and nothing is called as
# often. Amounts are cast because the driver types an integer by its size, and each type is a statement.
POST_ENTRY: Final[LiteralString] = (
    "SELECT entry_id, amount, balance_after, posted FROM post_entry("
    "%(billing_account_id)s, %(amount)s::bigint, %(reason)s, %(reference)s, %(contra_account)s, %(metadata)s)"
)

# The attempt's row is locked first, so that a purchase that is being reversed gets no bonus.
_POST_BONUS: Final[LiteralString] = (
    "SELECT p.entry_id, p.amount, p.balance_after, p.posted"
    "  FROM (SELECT FROM payment_attempts WHERE id = %(attempt_id)s AND status = 'CREDITED' FOR SHARE) purchase,"
    "       LATERAL post_entry(%(billing_account_id)s, %(amount)s::bigint, %(reason)s, %(reference)s,"
    " %(contra_account)s, %(metadata)s) p"
)

_TRIAL_BALANCE = text(
    """
    SELECT a.code, a.name, a.type,
           coalesce(sum(l.amount) FILTER (WHERE l.side = 'debit'), 0) AS debits,
           coalesce(sum(l.amount) FILTER (WHERE l.side = 'credit'), 0) AS credits
      FROM ledger_accounts a LEFT JOIN journal_lines l ON l.account_code = a.code
     GROUP BY a.code, a.name, a.type
    HAVING count(l.id) > 0 OR a.billing_account_id IS NULL
     ORDER BY a.type, a.code
    """
)


async def _post(
    connection: ServiceConnection | ServiceStatements, statement: LiteralString, values: dict[str, Any], amount: int
) -> PostedEntry:
    try:
        row = await fetch_one(connection, statement, values)
    except psycopg.IntegrityError as error:
        refuse_repeated_posting(error)
        raise
    if row is None:
        raise BookkeepingError(f"attempt {values['attempt_id']} is not CREDITED any more")
    return posted_entry(row, amount)


def posted_entry(row: Sequence[Any], amount_credits: int) -> PostedEntry:
    """From a row of `post_entry`. Raises `BookkeepingError` where it was posted before, with another amount."""
    entry = PostedEntry(*row)
    if entry.amount_credits != amount_credits:
        raise BookkeepingError(
            f"entry {entry.entry_id} is posted with {entry.amount_credits} credits, not with {amount_credits}"
        )
    return entry


def refuse_repeated_posting(error: psycopg.IntegrityError) -> None:
    """Raise `PostedMeanwhile` where the same entry was posted concurrently."""
    if error.diag.constraint_name in POSTED_ONCE:
        raise PostedMeanwhile from error


async def post(connection: ServiceConnection, posting: Posting, details: dict[str, Any]) -> PostedEntry:
    """Post an entry to any account, once per account, reason and reference.

    Raises `PostedMeanwhile` (the transaction is lost, retry) and `BookkeepingError` where the same reference is already
    posted with another amount.
    """
    return await _post(connection, POST_ENTRY, _values(posting, details), posting.amount_credits)


async def post_bonus(
    connection: ServiceConnection | ServiceStatements, attempt_id: UUID, posting: Posting, details: dict[str, Any]
) -> PostedEntry:
    """Post the bonus of a purchase, in one statement that keeps the purchase CREDITED until it is posted.

    Raises as `post` does, and `BookkeepingError` where the purchase is not CREDITED any more.
    """
    values = {**_values(posting, details), "attempt_id": attempt_id}
    return await _post(connection, _POST_BONUS, values, posting.amount_credits)


def _values(posting: Posting, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "billing_account_id": posting.billing_account_id,
        "amount": posting.amount_credits,
        "reason": posting.reason.value,
        "reference": posting.reference,
        "contra_account": posting.contra_account,
        "metadata": Jsonb(details),
    }


async def list_entries(connection: AnyConnection, reference: str | None = None) -> list[LedgerRow]:
    """Ledger rows in the order they were posted, all that the connection sees or those of one reference."""
    query = select(CreditLedgerEntry).order_by(CreditLedgerEntry.entry_seq)
    if reference is not None:
        query = query.where(CreditLedgerEntry.reference == reference)
    return [_to_row(row) for row in await connection.connection.execute(query)]


async def page_entries(
    connection: AnyConnection, billing_account_id: str, *, limit: int, before: UUID | None = None
) -> list[LedgerRow]:
    """An account's ledger rows, newest first, at most `limit`; older than the entry `before`."""
    query = (
        select(CreditLedgerEntry)
        .where(CreditLedgerEntry.billing_account_id == billing_account_id)
        .order_by(CreditLedgerEntry.entry_seq.desc())
        .limit(limit)
    )
    if before is not None:
        # An entry of another account, or an unknown one, ends the list: no rows are older than it here.
        at = select(CreditLedgerEntry.entry_seq).where(
            CreditLedgerEntry.id == before, CreditLedgerEntry.billing_account_id == billing_account_id
        )
        query = query.where(CreditLedgerEntry.entry_seq < at.scalar_subquery())
    return [_to_row(row) for row in await connection.connection.execute(query)]


def _to_row(row: Any) -> LedgerRow:
    return LedgerRow(
        row.id,
        row.billing_account_id,
        row.amount,
        row.balance_after,
        row.reason,
        row.reference,
        row.created_at,
        row._mapping["metadata"],
    )


async def count_entries(connection: ServiceConnection) -> int:
    """Number of entries in the whole ledger."""
    return (await connection.connection.execute(select(func.count()).select_from(CreditLedgerEntry))).scalar_one()


async def trial_balance(connection: ServiceConnection) -> list[TrialBalanceLine]:
    """Debits and credits of every ledger account that was used; the two columns have the same sum."""
    return [
        TrialBalanceLine(row.code, row.name, row.type, int(row.debits), int(row.credits))
        for row in await connection.connection.execute(_TRIAL_BALANCE)
    ]


def totals(lines: list[TrialBalanceLine]) -> dict[Side, int]:
    """The sums of the two columns of a trial balance, in credits."""
    return {Side.DEBIT: sum(line.debits for line in lines), Side.CREDIT: sum(line.credits for line in lines)}
