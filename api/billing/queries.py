"""Service keys and usage of an account: each function is one transaction in the session's scope.

`account_id` is an account that the session's user manages; of any other one, nothing is seen.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from api.accounts.queries import PAGE_SIZE
from api.billing.models import CallPage, KeyPage
from api.resources import Services
from db.accounts.sessions import Session
from db.billing import keys as stored_keys
from db.billing import reports as stored_reports
from db.billing.accounts import ManagedAccount, list_managed
from db.clock import estimated_now
from domain.billing.reports import UsageBy, UsagePeriod, parse_period
from services.billing.keys import KeyView
from services.billing.reports import CallView, UsageReport, cursor_of, parse_cursor, read_report

ACCOUNTS_MAX: Final = 100
"""That one user manages, and can choose from."""


def asked_period(first: str | None, last: str | None) -> UsagePeriod:
    """The UTC days from `first` to `last`, by default the last thirty. Raises `InvalidInput`."""
    return parse_period(first, last, today=estimated_now().date())


async def managed_accounts(services: Services, session: Session) -> list[ManagedAccount]:
    """The accounts whose keys and usage the session's user may see, the own one first."""
    async with services.database.transaction(session.user_id) as connection:
        return await list_managed(connection, limit=ACCOUNTS_MAX)


async def read_keys(
    services: Services,
    session: Session,
    account_id: str,
    *,
    in_force: bool = False,
    limit: int = PAGE_SIZE,
    cursor: UUID | None = None,
) -> KeyPage:
    """`limit` service keys, newest first, older than the key `cursor` where it is given."""
    async with services.database.transaction(session.user_id) as connection:
        found = await stored_keys.page_keys(connection, account_id, limit=limit + 1, before=cursor, in_force=in_force)
    views = [KeyView.of(key) for key in found[:limit]]
    return KeyPage(keys=views, next_cursor=str(views[-1].key_id) if len(found) > limit else None)


async def read_usage(
    services: Services, session: Session, account_id: str, by: UsageBy, period: UsagePeriod
) -> UsageReport:
    """What the account spent in a period."""
    async with services.database.transaction(session.user_id) as connection:
        return await read_report(connection, by, period, billing_account_id=account_id)


async def read_calls(
    services: Services, session: Session, account_id: str, *, limit: int = PAGE_SIZE, cursor: str | None = None
) -> CallPage:
    """`limit` calls with their receipts, the last booked first, from `cursor` on. Raises `InvalidInput`."""
    before = parse_cursor(cursor) if cursor else None
    async with services.database.transaction(session.user_id) as connection:
        found = await stored_reports.page_calls(connection, account_id, limit=limit + 1, before=before)
    shown = found[:limit]
    return CallPage(
        calls=[CallView.of(call) for call in shown],
        next_cursor=cursor_of(shown[-1].position) if len(found) > limit else None,
    )
