"""Queries for payments that are not finished according to the database, and what is due to each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text

from db.engine import ServiceConnection
from domain.payments.attempt import AttemptStatus
from domain.payments.recovery import Due, UnfinishedPayment


@dataclass(frozen=True, slots=True)
class Window:
    """Since when a payment has to be unfinished to count, by the database's clock.

    Payments that wait count however long ago they were submitted. What is due after a credit or a reversal counts from
    `since` on: what is older is reconciliation's.
    """

    since: datetime
    before: datetime
    finality_before: datetime
    """The same as `before` for payments that lack nothing but finality."""


_IN_WINDOW: Final = " UNION ALL ".join(
    f"(SELECT attempt_id, due FROM unfinished_payments() WHERE chain_id = :chain_id AND due = '{due}'"  # noqa: S608 - ours
    f" {condition} ORDER BY random() LIMIT :limit)"
    for due, condition in {
        Due.VERIFICATION: "AND since <= :before",
        Due.BONUS: "AND since > :since AND since <= :before",
        Due.BONUS_REVERSAL: "AND since > :since AND since <= :before",
        Due.FINALITY: "AND since > :since AND since <= :finality_before",
    }.items()
)
_OF_THESE: Final = "SELECT attempt_id, due FROM unfinished_payments() WHERE attempt_id = ANY (CAST(:ids AS uuid[]))"
_WAITING: Final = """
    SELECT attempt_id, due FROM unfinished_payments()
     WHERE due = 'workflow_missing' AND chain_id = :chain_id AND since <= :before
       AND (CAST(:since AS timestamptz) IS NULL OR since > :since)
       AND (CAST(:after AS uuid) IS NULL OR attempt_id > :after) ORDER BY attempt_id LIMIT :limit
"""


def _payments(unfinished: str) -> Any:
    return text(
        f"""
        SELECT a.id, a.tx_hash, a.status, b.owner_user_id, array_agg(u.due) AS due
          FROM ({unfinished}) u JOIN payment_attempts a ON a.id = u.attempt_id
          JOIN billing_accounts b ON b.id = a.billing_account_id
         GROUP BY a.id, b.owner_user_id ORDER BY a.id
        """  # noqa: S608 - constants
    )


_LIST_IN_WINDOW: Final = _payments(_IN_WINDOW)
_LIST_OF_THESE: Final = _payments(_OF_THESE)
_PAGE_WAITING: Final = _payments(_WAITING)


async def list_unfinished(
    connection: ServiceConnection, chain_id: int, window: Window, *, limit: int
) -> list[UnfinishedPayment]:
    """Unfinished payments of a window; at most `limit` for each thing that is due, others at each call."""
    values = {
        "chain_id": chain_id,
        "since": window.since,
        "before": window.before,
        "finality_before": window.finality_before,
        "limit": limit,
    }
    return _unfinished(await connection.connection.execute(_LIST_IN_WINDOW, values))


async def list_unfinished_of(connection: ServiceConnection, ids: Collection[UUID]) -> list[UnfinishedPayment]:
    """Those of these attempts for which something is due now."""
    return _unfinished(await connection.connection.execute(_LIST_OF_THESE, {"ids": list(ids)}))


async def page_waiting(
    connection: ServiceConnection,
    chain_id: int,
    *,
    before: datetime,
    since: datetime | None = None,
    after: UUID | None,
    limit: int,
) -> list[UnfinishedPayment]:
    """Payments submitted `before` and after `since` that wait for the chain, in the order of their ids; those behind
    the id `after`.
    """
    values = {"chain_id": chain_id, "before": before, "since": since, "after": after, "limit": limit}
    return _unfinished(await connection.connection.execute(_PAGE_WAITING, values))


def _unfinished(rows: Iterable[Row[Any]]) -> list[UnfinishedPayment]:
    return [
        UnfinishedPayment(
            row.id,
            row.owner_user_id,
            row.tx_hash,
            AttemptStatus(row.status),
            tuple(due for due in Due if due.value in row.due),
        )
        for row in rows
    ]
