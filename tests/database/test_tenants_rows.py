"""Row-level security of each table that has an account's rows: its own are read and written, and no other's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import pytest
from psycopg.errors import InsufficientPrivilege

from db.accounts.wallets import Payer
from tests.database.signed_rows import Rows, as_api, hash_, planted
from tests.support.payments import RolePair
from tests.support.sql import connect, query

REQUIRED: Final = """
    SELECT column_name, data_type FROM information_schema.columns
     WHERE table_schema = 'public' AND table_name = %s AND is_nullable = 'NO' AND column_default IS NULL
       AND is_identity = 'NO'
"""
SPECIAL: Final[dict[str, Any]] = {
    "kind": "balance_exhausted",
    "role": "member",
    "request_hash": b"h" * 32,
    "block_hash": hash_(1),
    "due_at": datetime.now(UTC),
    "salt": hash_(1),
    "treasury": "0x" + "7" * 40,
    "scheme": "create2",
    "error": "unreachable",
}
ALSO: Final = {
    "webhook_deliveries": ("due_at",),
    "webhook_tries": ("error",),
    "deposit_addresses": ("salt", "treasury"),
}
OF_ACCOUNTS: Final = (
    *("account_members", "billing_alerts", "billing_grants", "charges", "credit_holds", "deposit_addresses"),
    *("deposits", "idempotency_keys", "payment_authorizations", "webhook_deliveries", "webhook_endpoints"),
    *("webhook_events", "webhook_tries"),
)


def plant(roles: RolePair, rows: Rows, table: str, owner: Payer) -> None:
    """A row of the owner's, with whatever else it must have."""
    if table == "payment_authorizations":
        rows.claim(owner.billing_account_id)
        return
    by_type: dict[str, Any] = {
        "uuid": uuid4(),
        "bigint": 1,
        "integer": 1,
        "numeric": 1,
        "boolean": False,
        "timestamp with time zone": datetime.now(UTC),
        "jsonb": "{}",
        "bytea": b"b",
    }
    required = query(roles.database.superuser_url, REQUIRED, table)
    values = {name: SPECIAL.get(name, by_type.get(kind, f"x{uuid4().hex}")) for name, kind in required}
    values |= {name: SPECIAL[name] for name in ALSO.get(table, ())}
    for name, value in (
        ("billing_account_id", owner.billing_account_id),
        ("payer_account_id", owner.billing_account_id),
        ("user_id", owner.user_id),
    ):
        values |= {name: value} if name in values else {}
    if "tx_hash" in values:
        values["tx_hash"] = f"0x{uuid4().hex * 2}"
    if table == "deposits":
        [(values["address_id"],)] = query(
            roles.database.superuser_url,
            "SELECT id FROM deposit_addresses WHERE billing_account_id = %s",
            owner.billing_account_id,
        )
    rows.add(table, **values)


@pytest.fixture
async def two(roles: RolePair) -> tuple[Payer, Payer]:
    """Two accounts with a row in each table."""
    alice, bob = await roles.open_account(1), await roles.open_account(2)
    with planted(roles.database) as rows:
        for table in OF_ACCOUNTS:
            for owner in (alice, bob):
                plant(roles, rows, table, owner)
    return alice, bob


def test_an_account_reads_its_own_rows_of_each_table(roles: RolePair, two: tuple[Payer, Payer]) -> None:
    counts = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in OF_ACCOUNTS)
    for user_id, count in ((two[0].user_id, 1), (two[1].user_id, 1), ("nobody", 0), ("", 0)):
        [found] = as_api(roles.database, counts, user_id=user_id)
        assert dict(zip(OF_ACCOUNTS, found, strict=True)) == dict.fromkeys(OF_ACCOUNTS, count)


def test_it_writes_no_row_of_another(roles: RolePair, two: tuple[Payer, Payer]) -> None:
    """Refused by the policy, before anything else that such a row lacks."""
    alice, bob = two
    own_attempt = "SELECT id FROM payment_attempts WHERE billing_account_id = %s"
    [(attempt_id,)] = query(roles.database.superuser_url, own_attempt, bob.billing_account_id)
    wrong = {"bob": bob.billing_account_id, "nonce": hash_(99), "attempt": attempt_id}
    for statement in (
        "INSERT INTO charges (billing_account_id) VALUES (%(bob)s)",
        "INSERT INTO deposit_addresses (billing_account_id) VALUES (%(bob)s)",
        "INSERT INTO idempotency_keys (billing_account_id) VALUES (%(bob)s)",
        "INSERT INTO payment_authorizations (attempt_id, own_nonce) VALUES (%(attempt)s, %(nonce)s)",
    ):
        with connect(roles.database.app_url, user_id=alice.user_id) as api:
            with pytest.raises(InsufficientPrivilege, match="row-level security"):
                api.execute(statement.encode(), wrong)
            api.rollback()


def test_nor_does_the_role_that_credits(roles: RolePair, two: tuple[Payer, Payer]) -> None:
    """Of an attempt in its scope, and of the status that it has."""
    alice, _ = two
    attempts = "SELECT id FROM payment_attempts WHERE billing_account_id = %s"
    event = "INSERT INTO payment_events (attempt_id, event_type, to_status) VALUES (%s, 'x', %s)"
    mine, theirs = (query(roles.database.superuser_url, attempts, one.billing_account_id)[0][0] for one in two)
    with connect(roles.database.settlement_url, user_id=alice.user_id) as worker:
        worker.execute(event, (mine, "CREATED_INTENT"))
        for attempt_id, status in ((theirs, "CREATED_INTENT"), (mine, "CREDITED")):
            with pytest.raises(InsufficientPrivilege, match="row-level security"), worker.transaction():
                worker.execute(event, (attempt_id, status))


async def test_an_authorization_is_of_an_attempt_that_is_paid_by_one(roles: RolePair) -> None:
    payer = await roles.open_account(1)
    attempt = await roles.create(payer)
    with connect(roles.database.app_url, user_id=payer.user_id) as api:
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            api.execute(
                "INSERT INTO payment_authorizations (attempt_id, own_nonce) VALUES (%s, %s)", (attempt.id, hash_(1))
            )
        api.rollback()
