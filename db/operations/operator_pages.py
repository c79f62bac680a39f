"""Queries of the operators' pages over all tenants, whose duration does not grow with the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, literal, select, text, tuple_

from db.engine import OperatorConnection
from db.tables.accounts import BillingAccount
from db.tables.payments import PaymentAttemptRow
from domain.ledger.entries import Reason
from domain.payments.attempt import AttemptStatus, Purpose

SCANNED_MAX: Final = 5_000
"""Attempts that one page scans for a combination of filters that no index serves."""

COUNTED_MAX: Final = 1_000
"""Attempts of one status that are counted; beyond, "more than" is enough."""

POINTS_MAX: Final = 200

BALANCE_TIMEOUT_SECONDS: Final = 8
"""Time limit of the balance history, below that of the whole page."""


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """Filter for attempts; None matches any."""

    status: AttemptStatus | None = None
    purpose: Purpose | None = None
    billing_account_id: str | None = None
    tx_hash: str | None = None


@dataclass(frozen=True, slots=True)
class ListedAttempt:
    """An attempt in a list."""

    id: UUID
    created_at: datetime
    status: AttemptStatus
    error_code: str | None
    purpose: Purpose
    amount_usd_cents: int
    billing_account_id: str
    from_address: str
    chain_id: int
    tx_hash: str | None


@dataclass(frozen=True, slots=True)
class AttemptsPage:
    """Attempts, newest first. `older` and `newer` are the positions of the next pages.

    `was_cut` where `SCANNED_MAX` attempts were scanned before the page was full: there may be more.
    """

    attempts: list[ListedAttempt]
    older: UUID | None
    newer: UUID | None
    was_cut: bool


@dataclass(frozen=True, slots=True)
class BalanceStep:
    """Changes of an account's balance in one interval from `at` on, and the balance after it, in credits."""

    at: datetime
    bonus_credits: int
    donation_credits: int
    other_credits: int
    balance_credits: int


@dataclass(frozen=True, slots=True)
class BalanceHistory:
    """An account's balance from `start` to `end`, in credits; intervals without changes have no step."""

    start: datetime
    end: datetime
    opening_credits: int
    steps: list[BalanceStep]
    current_credits: int

    @property
    def bonus_credits(self) -> int:
        """Credits from bonuses."""
        return sum(step.bonus_credits for step in self.steps)

    @property
    def donation_credits(self) -> int:
        """Credits from donations."""
        return sum(step.donation_credits for step in self.steps)

    @property
    def other_credits(self) -> int:
        """All other changes."""
        return sum(step.other_credits for step in self.steps)


LISTED_COLUMNS: Final = tuple(field.name for field in fields(ListedAttempt))


async def page_attempts(
    connection: OperatorConnection,
    wanted: AttemptFilter,
    *,
    limit: int,
    before: UUID | None = None,
    after: UUID | None = None,
) -> AttemptsPage:
    """At most `limit` attempts that pass the filter: the newest, or the next ones older than the attempt `before`, or
    the next ones newer than `after`.
    """
    asked = {
        "tx_hash": wanted.tx_hash,
        "billing_account_id": wanted.billing_account_id,
        "status": wanted.status.value if wanted.status else None,
        "purpose": wanted.purpose.value if wanted.purpose else None,
    }
    rest = {column: value for column, value in asked.items() if value is not None}
    # The most selective of those that have an index, in the order of `asked`.
    indexed = next((column for column in rest if column != "purpose"), None)
    query = _in_order(indexed, rest.pop(indexed) if indexed else "", before=before, after=after)
    if rest:
        # No index serves every combination, and a rare one would read the whole table: a window of it is enough.
        window = query.limit(SCANNED_MAX).subquery()
        order = (window.c.created_at, window.c.id) if after else (window.c.created_at.desc(), window.c.id.desc())
        in_window = select(window).order_by(*order)
        last_in_window = in_window.offset(SCANNED_MAX - 1).limit(1)
        query = in_window.where(*(window.c[column] == value for column, value in rest.items()))
    # One row more than is shown indicates whether there is a next page.
    query = query.limit(limit + 1)
    rows = [_to_listed(row) for row in await connection.connection.execute(query)]
    reached = rows[limit - 1].id if len(rows) > limit else None
    was_cut = False
    if reached is None and rest:
        last = (await connection.connection.execute(last_in_window)).one_or_none()
        reached = last.id if last else None
        was_cut = last is not None
    shown = rows[:limit]
    if after is None:
        # The position for going back is the first row shown or, where a search found nothing, its start.
        newer = (shown[0].id if shown else before) if before else None
        return AttemptsPage(shown, older=reached, newer=newer, was_cut=was_cut)
    shown.reverse()
    return AttemptsPage(shown, older=shown[-1].id if shown else after, newer=reached, was_cut=was_cut)


def _in_order(column: str | None, value: str, *, before: UUID | None, after: UUID | None) -> Select[Any]:
    """Attempts in the order of time, newest first or, after one of them, oldest first; of one value of a column.

    Written as a range, and with the column in the order, because only the column's own index gives that. With an
    equality the planner may scan the index of time and filter: if the value is frequent but old, that reads all newer
    rows.
    """
    attempt = PaymentAttemptRow.__table__.c
    keys: list[ColumnElement[Any]] = [attempt.created_at, attempt.id]
    bounds: list[ColumnElement[Any]] = [attempt.created_at, attempt.id]
    query: Select[Any] = select(*(attempt[name] for name in LISTED_COLUMNS))
    if column is not None:
        query = query.where(attempt[column] >= value, attempt[column] <= value)
        keys.insert(0, attempt[column])
        # Not the other attempt's own value, which may have changed since it was listed.
        bounds.insert(0, literal(value))
    # As a subquery: with literal values the planner would expect few rows beyond them, and sort them all.
    position = select(*bounds).where(attempt.id == (after or before)).scalar_subquery()
    if after is not None:
        return query.where(tuple_(*keys) > position).order_by(*keys)
    if before is not None:
        query = query.where(tuple_(*keys) < position)
    return query.order_by(*(key.desc() for key in keys))


def _to_listed(row: Row[Any]) -> ListedAttempt:
    return ListedAttempt(
        id=row.id,
        created_at=row.created_at,
        status=AttemptStatus(row.status),
        error_code=row.error_code,
        purpose=Purpose(row.purpose),
        amount_usd_cents=row.amount_usd_cents,
        billing_account_id=row.billing_account_id,
        from_address=row.from_address,
        chain_id=row.chain_id,
        tx_hash=row.tx_hash,
    )


# A range and an order, as in `_in_order`: otherwise a rare or new status would be searched in the whole table.
_COUNTS = text(
    """
    SELECT s.status,
           (SELECT count(*) FROM (SELECT FROM payment_attempts a WHERE a.status >= s.status AND a.status <= s.status
                                   ORDER BY a.status, a.created_at LIMIT :most) few) AS number
      FROM unnest(CAST(:statuses AS text[])) AS s (status)
    """
)


async def count_by_status(connection: OperatorConnection) -> dict[AttemptStatus, int]:
    """Number of attempts per status; `COUNTED_MAX` plus one stands for more."""
    values = {"statuses": [status.value for status in AttemptStatus], "most": COUNTED_MAX + 1}
    rows: Sequence[Row[Any]] = (await connection.connection.execute(_COUNTS, values)).all()
    return {AttemptStatus(row.status): row.number for row in rows}


# The condition on time alone can use the index: a few kilobytes show where in the table a day begins.
_STEPS = text(
    """
    SELECT CASE WHEN created_at < :end THEN date_bin(:width, created_at, :start) END AS at,
           coalesce(sum(amount) FILTER (WHERE reason = :bonus), 0) AS bonus,
           coalesce(sum(amount) FILTER (WHERE reason = :donation), 0) AS donation,
           coalesce(sum(amount) FILTER (WHERE reason NOT IN (:bonus, :donation)), 0) AS other
      FROM credit_ledger
     WHERE billing_account_id = :account AND created_at >= :start
     GROUP BY 1 ORDER BY 1 NULLS LAST
    """
)
_TIMEOUT = text("SELECT set_config('statement_timeout', :milliseconds, true)")


async def balance_history(
    connection: OperatorConnection, billing_account_id: str, *, start: datetime, end: datetime, width: timedelta
) -> BalanceHistory:
    """The balance of one account over time, a step for each interval of `width` in which it changed.

    Raises `ValueError` for more than `POINTS_MAX` intervals, and `DatabaseUnavailable`, when the transaction ends,
    where the sum takes longer than `BALANCE_TIMEOUT_SECONDS`.
    """
    if not start < end or (end - start) / width > POINTS_MAX:
        raise ValueError(f"expected at most {POINTS_MAX} intervals, not those of {width} from {start} to {end}")
    await connection.connection.execute(_TIMEOUT, {"milliseconds": str(BALANCE_TIMEOUT_SECONDS * 1000)})
    found = select(BillingAccount.balance_credits).where(BillingAccount.id == billing_account_id)
    current = (await connection.connection.execute(found)).scalar_one()
    values = {
        "account": billing_account_id,
        "start": start,
        "end": end,
        "width": width,
        "bonus": Reason.PLATFORM_REVENUE_SHARE.value,
        "donation": Reason.SYSTEM_DONATION.value,
    }
    rows = (await connection.connection.execute(_STEPS, values)).all()
    # The transaction has one snapshot, so that the entries lead from the balance now back to the start.
    balance = opening = current - sum(int(row.bonus + row.donation + row.other) for row in rows)
    steps = []
    for row in rows:
        balance += int(row.bonus + row.donation + row.other)
        if row.at is not None:
            steps.append(BalanceStep(row.at, int(row.bonus), int(row.donation), int(row.other), balance))
    return BalanceHistory(start, end, opening, steps, current)
