"""Accounts that spend: what they have, rows changed behind the product, and charges that a proxy reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from devstack.processes import wait_until
from tests.support.postgres import Database
from tests.support.spending import CAPTURED, ServiceKey, call
from tests.support.sql import Connection, connect, query, waits_for_lock

BALANCE: Final = 1_000_000
"""What the accounts of `key` and `others_key` have."""

OF_THE_CALL: Final = (
    *("absorbed_cost_usd", "charge_reason", "provider", "upstream_id", "tokens", "estimated", "doubt", "doubt_detail"),
    "unit_prices",
)


def account(database: Database, key: ServiceKey) -> tuple[int, int]:
    """Balance and held credits of the key's account."""
    [row] = query(
        database.superuser_url,
        "SELECT balance_credits, held_credits FROM billing_accounts WHERE id = %s",
        key.billing_account_id,
    )
    return row[0], row[1]


def change(database: Database, statement: str, *values: Any) -> None:
    """Change rows as no role may."""
    with connect(database.superuser_url) as superuser:
        superuser.execute(statement.encode(), values)


def ingest(on: Database | Connection, key: ServiceKey, *, charged: int, **changes: Any) -> dict[str, Any]:
    """A charge of a call that an external proxy made for the key's account."""
    values = {
        "source_system": "proxy",
        "source_reference": "call-1",
        "body_hash": b"1",
        "request_id": "req-1",
        "billing_account_id": key.billing_account_id,
        "user_cost_usd": Decimal(charged) / 10_000_000,
        "provider_cost_usd": Decimal(charged) / 20_000_000,
        "called_at": datetime(2026, 1, 1, tzinfo=UTC),
        **{name: CAPTURED[name] for name in OF_THE_CALL},
        "model": "gpt-4o-mini",
        "price_version": "test",
        **changes,
    }
    if not isinstance(on, Database):
        return call(on, "ingest_charge", charged=charged, **values)
    with connect(on.app_url) as app:
        return call(app, "ingest_charge", charged=charged, **values)


async def when_it_waits(database: Database, first: Connection, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a second call answers that waits for the first one's transaction, which commits then."""
    second = asyncio.create_task(asyncio.to_thread(call))

    async def waits_or_is_done() -> bool:
        return second.done() or await asyncio.to_thread(waits_for_lock, database.superuser_url)

    await wait_until(waits_or_is_done, timeout_seconds=30, what="a call that waits for another")
    first.commit()
    return await second
