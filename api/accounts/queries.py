"""Queries of an account's owner."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from uuid import UUID

from api.models import AttemptPage, CreditsSummary, LedgerEntry
from api.resources import Services
from db.accounts import wallets as accounts
from db.accounts.sessions import Session
from db.ledger import entries as ledger
from db.payments import attempts
from db.payments.finality import find_awaiting
from domain.errors import BookkeepingError
from domain.payments.attempt import AttemptStatus

PAGE_SIZE: int = 20
PAGE_SIZE_MAX: int = 100


async def read_summary(
    services: Services, session: Session, *, limit: int = PAGE_SIZE, cursor: UUID | None = None
) -> CreditsSummary:
    """Balance and `limit` ledger rows, older than the entry `cursor` where it is given."""
    async with services.database.transaction(session.user_id) as connection:
        funds = await accounts.find_funds(connection, session.billing_account_id)
        # One row more than is returned shows whether there is a next page.
        rows = await ledger.page_entries(connection, session.billing_account_id, limit=limit + 1, before=cursor)
    if funds is None:
        raise BookkeepingError(f"account {session.billing_account_id} of a session does not exist")
    entries = [
        LedgerEntry(
            id=row.id,
            amount=row.amount,
            balance_after=row.balance_after,
            reason=row.reason,
            reference=row.reference,
            tx_hash=row.details.get("txHash"),
            created_at=row.created_at,
        )
        for row in rows[:limit]
    ]
    return CreditsSummary(
        billing_account_id=session.billing_account_id,
        balance_credits=funds.balance_credits,
        held_credits=funds.held_credits,
        available_credits=funds.available_credits,
        ledger=entries,
        next_cursor=entries[-1].id if len(rows) > limit else None,
    )


async def read_attempts(
    services: Services,
    session: Session,
    *,
    statuses: Collection[AttemptStatus] | None = None,
    limit: int = PAGE_SIZE,
    cursor: UUID | None = None,
) -> AttemptPage:
    """`limit` payments with their progress, of any status or of some, older than the attempt `cursor` if given."""
    account = session.billing_account_id
    async with services.database.transaction(session.user_id) as connection:
        found = await attempts.page_attempts(connection, account, statuses=statuses, limit=limit + 1, before=cursor)
        awaiting = await find_awaiting(connection, [attempt.id for attempt in found])
    views = await asyncio.gather(
        *(services.payments.with_progress(attempt, awaiting_finality=awaiting) for attempt in found[:limit])
    )
    return AttemptPage(attempts=views, next_cursor=views[-1].attempt_id if len(found) > limit else None)
