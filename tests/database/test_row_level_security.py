"""What role settle_app sees and may write: its own tenant's rows, inside a scope, and nothing else."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege, InvalidTextRepresentation

from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID, SYSTEM_TENANT_USER_ID
from tests.database.conftest import Tenant, TwoTenants
from tests.support.payments import CHAIN_ID, NOW, TOKEN, TREASURY, tx_hash, wallet
from tests.support.sql import Connection, connect, query, refused, scalar

OWNER_COLUMN = {
    "users": "id = %(user)s",
    "billing_accounts": "id = %(account)s",
    "virtual_keys": "billing_account_id = %(account)s",
    "credit_ledger": "billing_account_id = %(account)s",
    "payment_attempts": "billing_account_id = %(account)s",
    "payment_events": "attempt_id IN (SELECT id FROM payment_attempts WHERE billing_account_id = %(account)s)",
    "settled_transfers": "attempt_id IN (SELECT id FROM payment_attempts WHERE billing_account_id = %(account)s)",
    "transfers_awaiting_finality": (
        "attempt_id IN (SELECT id FROM payment_attempts WHERE billing_account_id = %(account)s)"
    ),
}
"""Tables that a tenant may read, and how to determine whose a row is."""

HIDDEN_TABLES = ("ledger_accounts", "journal_lines")
ALL_TABLES = (*OWNER_COLUMN, *HIDDEN_TABLES)


def _count(connection: Connection, table: str, condition: str = "true", tenant: Tenant | None = None) -> int:
    values = {"user": tenant.user_id, "account": tenant.account} if tenant else None
    statement = sql.SQL("SELECT count(*) FROM {} WHERE " + condition).format(sql.Identifier(table))
    [(count,)] = connection.execute(statement, values).fetchall()
    return int(count)


@pytest.mark.parametrize("table", OWNER_COLUMN)
def test_without_a_scope_a_tenant_sees_nothing(two_tenants: TwoTenants, table: str) -> None:
    with connect(two_tenants.database.service_url) as service:
        assert _count(service, table) > 0
    with connect(two_tenants.database.app_url) as app:
        assert _count(app, table) == 0


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("scope", ["", "nobody", "%", "' OR true --", SYSTEM_TENANT_ACCOUNT_ID])
@pytest.mark.parametrize("table", OWNER_COLUMN)
def test_a_scope_that_is_no_user_sees_nothing(two_tenants: TwoTenants, table: str, scope: str) -> None:
    with connect(two_tenants.database.app_url, user_id=scope) as app:
        assert _count(app, table) == 0


@pytest.mark.parametrize("table", OWNER_COLUMN)
def test_a_tenant_sees_all_of_its_own_rows_and_no_others(two_tenants: TwoTenants, table: str) -> None:
    own = OWNER_COLUMN[table]
    with connect(two_tenants.database.service_url) as service:
        rows = _count(service, table, own, two_tenants.alice)
    with connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app:
        assert _count(app, table) == rows > 0
        assert _count(app, table, own, two_tenants.alice) == rows
        assert _count(app, table, own, two_tenants.bob) == 0


def test_a_scope_ends_with_its_transaction(two_tenants: TwoTenants) -> None:
    with psycopg.connect(two_tenants.database.app_url) as app:
        app.execute("SELECT set_config('settle.user_id', %s, true)", (two_tenants.alice.user_id,))
        assert _count(app, "users") == 1
        app.commit()
        assert _count(app, "users") == 0


@pytest.mark.parametrize("table", HIDDEN_TABLES)
def test_a_tenant_may_not_read_the_journal(two_tenants: TwoTenants, table: str) -> None:
    with (
        refused(InsufficientPrivilege),
        connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app,
    ):
        _count(app, table)


@pytest.mark.parametrize("table", ALL_TABLES)
def test_the_service_sees_every_row(two_tenants: TwoTenants, table: str) -> None:
    with connect(two_tenants.database.superuser_url) as superuser, connect(two_tenants.database.service_url) as service:
        assert _count(service, table) == _count(superuser, table) > 0


@pytest.mark.parametrize("table", ALL_TABLES)
def test_row_level_security_is_on_and_binds_the_owner_too(two_tenants: TwoTenants, table: str) -> None:
    [(enabled, forced)] = query(
        two_tenants.database.superuser_url,
        "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass",
        table,
    )
    assert (enabled, forced) == (True, True)


def test_no_table_is_left_without_row_level_security(two_tenants: TwoTenants) -> None:
    unprotected = query(
        two_tenants.database.superuser_url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') "
        "AND NOT relforcerowsecurity",
    )
    assert unprotected == [("alembic_version",)]


@pytest.mark.parametrize("table", ALL_TABLES)
def test_even_an_owner_without_bypass_needs_its_policy(two_tenants: TwoTenants, table: str) -> None:
    with psycopg.connect(two_tenants.database.superuser_url) as connection:
        # Undone by the rollback, so that no other test meets an owner who is bound.
        connection.execute("ALTER ROLE settle_owner NOBYPASSRLS")
        connection.execute(sql.SQL("DROP POLICY owner_sees_all ON {}").format(sql.Identifier(table)))
        connection.execute("SET LOCAL ROLE settle_owner")
        assert _count(connection, table) == 0
        connection.rollback()


# -- writing what belongs to others


def _insert_attempt(app: Connection, billing_account_id: str) -> None:
    app.execute(
        "INSERT INTO payment_attempts (id, billing_account_id, from_address, chain_id, token, to_address, amount_raw,"
        " amount_usd_cents, purpose, status, expires_at, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, 1000000, 100, 'self', 'CREATED_INTENT', %s, %s)",
        (uuid4(), billing_account_id, wallet(1), CHAIN_ID, TOKEN, TREASURY, NOW, NOW),
    )


def test_a_tenant_may_write_an_attempt_of_its_own(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app:
        before = _count(app, "payment_attempts")
        _insert_attempt(app, two_tenants.alice.account)
        assert _count(app, "payment_attempts") == before + 1


@pytest.mark.parametrize("whose", ["bob", "system"])
def test_a_tenant_may_not_write_an_attempt_of_another(two_tenants: TwoTenants, whose: str) -> None:
    account = two_tenants.bob.account if whose == "bob" else SYSTEM_TENANT_ACCOUNT_ID
    with (
        refused(InsufficientPrivilege, match="row-level security"),
        connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app,
    ):
        _insert_attempt(app, account)


def test_without_a_scope_no_attempt_may_be_written(two_tenants: TwoTenants) -> None:
    with refused(InsufficientPrivilege, match="row-level security"), connect(two_tenants.database.app_url) as app:
        _insert_attempt(app, two_tenants.alice.account)


FAIL = "UPDATE payment_attempts SET status = 'FAILED', error_code = 'INTENT_EXPIRED' WHERE id = %s"


def test_a_tenant_moves_its_own_attempt_and_not_anothers(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app:
        assert app.execute(FAIL, (two_tenants.bob.intent.id,)).rowcount == 0
        assert app.execute(FAIL, (two_tenants.alice.intent.id,)).rowcount == 1
    statuses = "SELECT status FROM payment_attempts WHERE id = %s"
    assert scalar(two_tenants.database.service_url, statuses, two_tenants.bob.intent.id) == "CREATED_INTENT"
    assert scalar(two_tenants.database.service_url, statuses, two_tenants.alice.intent.id) == "FAILED"


INSERT_EVENT = (
    "INSERT INTO payment_events (attempt_id, event_type, to_status) VALUES (%s, 'intent_created', 'CREATED_INTENT')"
)


def test_a_tenant_adds_to_its_own_trail_and_not_to_anothers(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app:
        assert app.execute(INSERT_EVENT, (two_tenants.alice.intent.id,)).rowcount == 1
    with (
        refused(InsufficientPrivilege, match="row-level security"),
        connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute(INSERT_EVENT, (two_tenants.bob.intent.id,))


INSERT_TRANSFER = (
    "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,"
    f" value_raw, surplus_raw) VALUES ({CHAIN_ID}, '{tx_hash(999)}', 0, %s, 1, '{tx_hash(1)}', '{wallet(1)}', 100, 0)"
)


def test_a_tenant_may_not_claim_a_transfer_for_anothers_attempt(two_tenants: TwoTenants) -> None:
    with (
        refused(InsufficientPrivilege, match="row-level security"),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute(INSERT_TRANSFER, (two_tenants.bob.pending.id,))


# -- the SECURITY DEFINER functions


def _post_own(app: Connection, attempt_id: object, amount: int = 1_000_000_000, contra: str = "cash:usdc") -> bool:
    [(posted,)] = app.execute(
        "SELECT posted FROM post_own_purchase(%s, %s, %s, '{}')", (attempt_id, amount, contra)
    ).fetchall()
    return bool(posted)


def test_post_own_purchase_credits_an_own_paid_purchase(two_tenants: TwoTenants) -> None:
    with psycopg.connect(two_tenants.database.settlement_url) as app:
        app.execute("SELECT set_config('settle.user_id', %s, true)", (two_tenants.alice.user_id,))
        app.execute(INSERT_TRANSFER, (two_tenants.alice.pending.id,))
        assert _post_own(app, two_tenants.alice.pending.id) is True
        assert _post_own(app, two_tenants.alice.pending.id) is False
        assert _post_own(app, two_tenants.alice.credited.id) is False
        app.rollback()


@pytest.mark.parametrize("amount", [999_999_999, 1_000_000_001, 0, -1_000_000_000, 2_000_000_000])
def test_post_own_purchase_refuses_another_amount(two_tenants: TwoTenants, amount: int) -> None:
    with (
        refused(InsufficientPrivilege),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute(INSERT_TRANSFER, (two_tenants.alice.pending.id,))
        _post_own(app, two_tenants.alice.pending.id, amount)


def test_post_own_purchase_refuses_another_contra_account(two_tenants: TwoTenants) -> None:
    with (
        refused(InsufficientPrivilege),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute(INSERT_TRANSFER, (two_tenants.alice.pending.id,))
        _post_own(app, two_tenants.alice.pending.id, contra="expense:platform_revenue_share")


def test_post_own_purchase_refuses_a_purchase_that_no_transfer_paid(two_tenants: TwoTenants) -> None:
    with (
        refused(InsufficientPrivilege),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        _post_own(app, two_tenants.alice.pending.id)


def test_post_own_purchase_refuses_a_donation(two_tenants: TwoTenants) -> None:
    with (
        refused(InsufficientPrivilege),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute(INSERT_TRANSFER, (two_tenants.alice.pending_donation.id,))
        _post_own(app, two_tenants.alice.pending_donation.id)


@pytest.mark.parametrize("state", ["intent", "rejected"])
def test_post_own_purchase_refuses_an_attempt_that_does_not_wait(two_tenants: TwoTenants, state: str) -> None:
    attempt = two_tenants.alice.intent if state == "intent" else two_tenants.alice.rejected
    with (
        refused(InsufficientPrivilege),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute(INSERT_TRANSFER, (attempt.id,))
        _post_own(app, attempt.id)


@pytest.mark.parametrize("scope", ["bob", "nobody", ""])
def test_post_own_purchase_refuses_anothers_attempt(two_tenants: TwoTenants, scope: str) -> None:
    user_id = two_tenants.bob.user_id if scope == "bob" else scope
    # Credited and paid, so that nothing but the scope stands in the way.
    with connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app:
        assert _post_own(app, two_tenants.alice.credited.id) is False
    with refused(InsufficientPrivilege), connect(two_tenants.database.settlement_url, user_id=user_id) as app:
        _post_own(app, two_tenants.alice.credited.id)


def test_a_tenant_may_not_post_to_accounts_of_its_choice(two_tenants: TwoTenants) -> None:
    with (
        refused(InsufficientPrivilege, match="post_entry"),
        connect(two_tenants.database.app_url, user_id=two_tenants.alice.user_id) as app,
    ):
        app.execute("SELECT * FROM post_entry(%s, 1, 'gift', 'x', 'cash:usdc', '{}')", (two_tenants.alice.account,))


def test_the_service_role_cannot_call_post_own_purchase(two_tenants: TwoTenants) -> None:
    with (
        refused(InsufficientPrivilege, match="post_own_purchase"),
        connect(two_tenants.database.service_url) as service,
    ):
        _post_own(service, two_tenants.alice.pending.id)


def test_posting_to_an_unknown_account_is_refused(two_tenants: TwoTenants) -> None:
    with refused(psycopg.errors.ForeignKeyViolation), connect(two_tenants.database.service_url) as service:
        service.execute("SELECT * FROM post_entry('nobody', 1, 'gift', 'x', 'cash:usdc', '{}')")


def test_the_system_tenants_user_has_no_wallet_to_sign_in_with(two_tenants: TwoTenants) -> None:
    owner = scalar(
        two_tenants.database.service_url, "SELECT wallet_address FROM users WHERE id = %s", SYSTEM_TENANT_USER_ID
    )
    assert owner is None
    with refused(psycopg.errors.CheckViolation), connect(two_tenants.database.app_url) as app:
        app.execute("SELECT * FROM provision_wallet('not a wallet')")
    with (
        refused(InvalidTextRepresentation),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as app,
    ):
        _post_own(app, "not an id")
