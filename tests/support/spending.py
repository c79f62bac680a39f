"""Calls as the database sees them: a service key, a hold, its capture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg.rows import dict_row

from tests.support.postgres import Database
from tests.support.sql import Connection, connect

GRACE: Final = 5_000_000

_HOLD: Final = """
    SELECT * FROM hold_credits(
        %(hold_id)s, %(key_hash)s, %(request_id)s, %(amount)s::bigint, %(amount_min)s::bigint, 'chat', %(model)s,
        'local', false, %(attribute_to)s, %(bill_to)s, %(owner)s, %(lease_seconds)s, 'chat', %(per_minute)s, 2, '1',
        '{}'::jsonb, 10, 100)
"""
_CAPTURE: Final = """
    SELECT * FROM capture_hold(
        %(hold_id)s, %(only_lapsed)s, %(charged)s::bigint, %(grace)s::bigint, %(user_cost)s::numeric, %(cost)s::numeric,
        %(absorbed)s::numeric, 'completed', 'local', 'gen-1', ARRAY[10, 2, 0, 5, 1]::bigint[], false, NULL, NULL,
        '{"markup_factor": "2", "lines": []}'::jsonb)
"""


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A service key by its hash, and its account."""

    id: UUID
    key_hash: str
    billing_account_id: str


def add_credits(database: Database, billing_account_id: str, amount: int) -> None:
    """Credit an account, balanced against cash."""
    with connect(database.service_url) as service:
        service.execute(
            "SELECT post_entry(%s, %s::bigint, 'gift', %s, 'cash:usdc', '{}')",
            (billing_account_id, amount, str(uuid4())),
        )


def create_key(database: Database, billing_account_id: str, **columns: Any) -> ServiceKey:
    """A key of an account, as an operator makes it; `columns` are set on its row."""
    key = ServiceKey(uuid4(), hashlib.sha256(uuid4().bytes).hexdigest(), billing_account_id)
    with connect(database.service_url) as service:
        [created] = service.execute(
            "SELECT create_key(%s, %s, 'test', %s, 'sk-settle-...abcd', NULL, NULL, NULL, NULL, false)",
            (key.id, billing_account_id, key.key_hash),
        ).fetchone() or (False,)
        assert created
    if columns:
        with connect(database.superuser_url) as superuser:
            for column, value in columns.items():
                superuser.execute(f"UPDATE virtual_keys SET {column} = %s WHERE id = %s".encode(), (value, key.id))
    return key


def hold(on: Database | Connection, key: ServiceKey, amount: int, **changes: Any) -> dict[str, Any]:
    """Take a hold with the gateway's role; the function's answer, and `hold_id`."""
    values = {
        "hold_id": uuid4(), "key_hash": key.key_hash, "request_id": f"req_{uuid4().hex}", "amount": amount,
        "amount_min": None, "model": "dev-small", "attribute_to": None, "bill_to": None, "owner": "test",
        "lease_seconds": 60, "per_minute": 100_000,
    } | changes  # fmt: skip
    return _ask(on, _HOLD, values) | {"hold_id": values["hold_id"]}


def capture(on: Database | Connection, hold_id: UUID, charged: int, **changes: Any) -> dict[str, Any]:
    """Capture a hold with the gateway's role, for twice what the provider takes."""
    user_cost = Decimal(charged) / 10_000_000
    values = {
        "hold_id": hold_id, "only_lapsed": False, "charged": charged, "grace": GRACE, "user_cost": user_cost,
        "cost": user_cost / 2, "absorbed": Decimal(0),
    } | changes  # fmt: skip
    return _ask(on, _CAPTURE, values)


def _ask(on: Database | Connection, statement: str, values: dict[str, Any]) -> dict[str, Any]:
    if isinstance(on, Database):
        with connect(on.app_url) as app:
            return _ask(app, statement, values)
    row = on.cursor(row_factory=dict_row).execute(statement.encode(), values).fetchone()
    assert row is not None
    return row
