"""What role settle_operator may do: read every tenant's payments, and nothing else whatever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db.engine import OperatorDatabase
from db.migrate import migrate
from db.rights import OPERATOR_ROLE
from domain.errors import DatabaseUnavailable
from tests.database.conftest import TwoTenants
from tests.database.test_grants import FORBIDDEN
from tests.support.postgres import Cluster, Database, migrate_database
from tests.support.sql import connect, query, refused, scalar

READABLE = (
    "alembic_version", "billing_accounts", "chain_cursors", "credit_ledger", "finality_progress", "journal_lines",
    "ledger_accounts", "observed_transfers", "payment_attempts", "payment_events", "settled_transfers",
    "transfer_finality", "transfers_awaiting_finality", "users",
)  # fmt: skip
SECRET = (
    "call_claims",
    "idempotency_keys",
    "login_challenges",
    "rate_limits",
    "sessions",
    "virtual_keys",
    "webhook_secrets",
)
NOT_SHOWN = (
    "books_checkpoints", "books_checks", "books_violations",
    "chain_gaps", "findings", "governance_calls", "governance_heartbeats",
    "orphaned_transfers",
    "watched_blocks", "operator_actions", "transfer_credits", "balance_assertions",
    "schema_compatibility", "write_probes", "payment_destinations",
    "account_members", "billing_grants", "general_entries", "price_versions", "model_prices", "credit_holds",
    "charge_receipts", "charge_receipts_other", "charge_references", "usage_by_day", "billing_alerts",
    "billing_cursors", "address_rings", "payment_methods", "deposit_addresses", "charges", "deposits",
    "payment_authorizations", "relayers", "relay_nonces", "relay_transactions", "charge_authorizations",
    "price_sources", "price_quotes",
    "sweeps", "sweep_transactions", "swept_transfers", "sweep_cursors",
    "webhook_endpoints", "webhook_events", "webhook_deliveries", "webhook_tries",
)  # fmt: skip
"""Closed as well, because no page shows them."""

POLICIES = "SELECT tablename::text, cmd, qual FROM pg_policies WHERE 'settle_operator' = ANY (roles) ORDER BY tablename"


def test_it_may_read_these_tables_and_has_no_other_right_on_any(two_tenants: TwoTenants) -> None:
    rights = query(
        two_tenants.database.superuser_url,
        "SELECT c.relname::text, p FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',"
        " 'REFERENCES', 'TRIGGER']) p"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')"
        "   AND CASE WHEN p IN ('DELETE', 'TRUNCATE', 'TRIGGER') THEN has_table_privilege('settle_operator', c.oid, p)"
        "            ELSE has_any_column_privilege('settle_operator', c.oid, p) END"
        " ORDER BY 1",
    )
    assert rights == [(table, "SELECT") for table in READABLE]


OF_THE_CHAIN: Final = """
    INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)
    SELECT n, 'x', 'x', 0, 0, 0 FROM generate_series(1, 2) n;
    INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,
                                    from_address, to_address, value_raw)
    SELECT 1, '0x' || repeat('ab', 32), n, 1, '0x' || repeat('ab', 32), now(), 'x', '0x' || repeat('a', 40),
           '0x' || repeat('b', 40), 1 FROM generate_series(1, 2) n;
    INSERT INTO finality_progress (chain_id, level, block_number) VALUES (1, 'safe', 1), (1, 'finalized', 1);
    INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)
    SELECT gen_random_uuid(), 'final', 1, 'x', 0, 1, '0x' || repeat('ab', 32), 'safe' FROM generate_series(1, 2)
"""


@pytest.mark.parametrize("table", [table for table in READABLE if table != "alembic_version"])
def test_it_sees_the_rows_of_all_tenants(two_tenants: TwoTenants, table: str) -> None:
    with connect(two_tenants.database.superuser_url, triggers=False) as superuser:
        superuser.execute(OF_THE_CHAIN)
    count = f"SELECT count(*) FROM {table}"
    everything = scalar(two_tenants.database.superuser_url, count)
    assert scalar(two_tenants.database.operator_url, count) == everything > 1
    # No scope makes it more or less.
    assert scalar(two_tenants.database.operator_url, count, user_id=two_tenants.alice.user_id) == everything


@pytest.mark.slow(but=6)
@pytest.mark.parametrize("table", SECRET + NOT_SHOWN)
def test_it_cannot_read_what_people_sign_in_with(two_tenants: TwoTenants, table: str) -> None:
    with refused(InsufficientPrivilege):
        query(two_tenants.database.operator_url, f"SELECT * FROM {table}")


def test_no_table_is_left_out_of_these_lists(two_tenants: TwoTenants) -> None:
    tables = query(
        two_tenants.database.superuser_url,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        " AND (NOT relispartition OR relname = 'charge_receipts_other')",
    )
    assert {table for (table,) in tables} == {*READABLE, *SECRET, *NOT_SHOWN}


def test_without_its_policies_it_sees_nothing(two_tenants: TwoTenants) -> None:
    """It is bound by row-level security: a table that is granted to it by mistake stays closed."""
    with psycopg.connect(two_tenants.database.superuser_url) as superuser:
        superuser.execute("GRANT SELECT ON sessions, virtual_keys TO settle_operator")
        superuser.execute("SET ROLE settle_operator")
        assert superuser.execute("SELECT count(*) FROM virtual_keys").fetchall() == [(0,)]
        superuser.rollback()


@pytest.mark.slow(but=12)
@pytest.mark.parametrize(
    "statement",
    [
        *FORBIDDEN,
        "INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,"
        " amount_usd_cents) SELECT id, '0x', 1, '0x', '0x', 10000, 1 FROM billing_accounts",
        "UPDATE payment_attempts SET status = 'CREDITED'",
        "SELECT * FROM payment_attempts FOR UPDATE",
        "SELECT * FROM billing_accounts FOR SHARE",
        "INSERT INTO payment_events (attempt_id, event_type, to_status) SELECT id, 'x', status FROM payment_attempts",
        "INSERT INTO settled_transfers (attempt_id) SELECT id FROM payment_attempts",
        "INSERT INTO sessions SELECT '', id, id, now() FROM users",
        "LOCK TABLE payment_attempts IN EXCLUSIVE MODE",
        "COPY payment_attempts TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/hostname')",
        "SET ROLE settle_service",
        "SET ROLE settle_app",
    ],
)
def test_it_cannot_change_anything(two_tenants: TwoTenants, statement: str) -> None:
    alice = two_tenants.alice.user_id
    with connect(two_tenants.database.operator_url, user_id=alice) as connection, refused(InsufficientPrivilege):
        connection.execute(statement)


CALLS = {
    "allocate_index": "allocate_index(gen_random_uuid())",
    "book_swept_transfer": "book_swept_transfer(1, '', 0, gen_random_uuid(), '', '', 1, 0, 1, '')",
    "skip_indices": "skip_indices(gen_random_uuid(), 1)",
    "unpaid_at_the_end": "unpaid_at_the_end(gen_random_uuid())",
    "owner_of_charge": "owner_of_charge(gen_random_uuid())",
    "refresh_charge": "refresh_charge(gen_random_uuid())",
    "post_entry": "post_entry('cogni_system', 1, 'gift', NULL, 'cash:usdc', '{}')",
    "post_own_purchase": "post_own_purchase(gen_random_uuid(), 1, 'cash:usdc', '{}')",
    "provision_wallet": "provision_wallet('0x' || repeat('1', 40))",
    "open_account": "open_account('x', 'cogni_system_principal', 'organization', NULL, NULL)",
    "open_login_challenge": "open_login_challenge('n', '0x', 'm', now())",
    "find_login_challenge": "find_login_challenge('n', NULL)",
    "observed_payments": "observed_payments(gen_random_uuid(), '0x')",
    "observed_payment_time": "observed_payment_time(gen_random_uuid(), '0x')",
    "open_session": "open_session('n', '', now(), '')",
    "find_session": "find_session('')",
    "end_session": "end_session('', true)",
    "end_sessions_of_wallet": "end_sessions_of_wallet('0x')",
    "prune_expired": "prune_expired(1, interval '1 day')",
    "take_from_rate_limits": "take_from_rate_limits(ARRAY['x'], ARRAY[1])",
    "prove_writes": "prove_writes()",
    "may_manage_account": "may_manage_account('x')",
    "create_key": "create_key(gen_random_uuid(), 'x', '', '', '', now(), 1, 1, NULL, false)",
    "rotate_key": "rotate_key(gen_random_uuid(), gen_random_uuid(), '', '', now())",
    "revoke_key": "revoke_key(gen_random_uuid())",
    "members_of_account": "members_of_account('x')",
    "find_key": "find_key('')",
    "hold_credits": "hold_credits(gen_random_uuid(), '', '', 1, NULL, '', '', '', false, NULL, NULL, '', 1, '', 1, 2,"
    " '', NULL, 1, 1)",
    "renew_hold": "renew_hold(gen_random_uuid(), '', 1, 1, NULL)",
    "void_hold": "void_hold(gen_random_uuid())",
    "capture_hold": "capture_hold(gen_random_uuid(), false, 1, 1, 1, 1, 0, '', '', NULL, NULL, false, NULL, NULL,"
    " NULL)",
    "claim_call": "claim_call('', 'k', '', 'r', gen_random_uuid(), 1)",
    "finish_call": "finish_call(gen_random_uuid(), 'k', 'r', 200, NULL, NULL)",
    "move_hold": "move_hold(gen_random_uuid(), '', '')",
    "usage_of_request": "usage_of_request('', '')",
    "ingest_charge": "ingest_charge('', '', '', '', '', 1, 1, 1, 0, '', '', '', NULL, NULL, false, NULL, NULL, NULL,"
    " NULL, now())",
    "room_of_key": "room_of_key(NULL)",
    "room_of_account": "room_of_account(NULL)",
    "post_charge": "post_charge(NULL, 1)",
    "note_crossings": "note_crossings(NULL, gen_random_uuid(), 1, '')",
    "open_receipt_months": "open_receipt_months(1)",
    "claim_authorization": "claim_authorization(gen_random_uuid(), '', '', 1, 1, '', false, 1, 1, 1)",
    "claim_by_transfer": "claim_by_transfer(1, '', '', '')",
    "relayed_hash": "relayed_hash(gen_random_uuid())",
    "relay_claims": "relay_claims(1, 1, 1, 1)",
    "relay_next_nonce": "relay_next_nonce(1, '0x', 0)",
    "relay_store": "relay_store(1, '0x', 0, gen_random_uuid(), 0, '0x', '', 1, 1, 1)",
    "relay_open_transactions": "relay_open_transactions(1, '0x')",
    "relay_sent": "relay_sent(1, '0x')",
    "relay_ended": "relay_ended(1, '0x', 0, 'lost', NULL, NULL)",
    "relay_spent_today": "relay_spent_today(1, '0x')",
    "charge_authorizations_of": "charge_authorizations_of(gen_random_uuid())",
    "claim_charge_authorization": "claim_charge_authorization(gen_random_uuid(), 1, '', '', '', 1, 1, 1, '', '', false,"
    " 1, 1, 1, 1, 1)",
    "end_charge_authorization": "end_charge_authorization(gen_random_uuid(), '')",
    "is_relay_there": "is_relay_there(1, 1)",
    "watched_head": "watched_head(1)",
    "relay_charge_claims": "relay_charge_claims(1, 1, 1, 1)",
    "relay_seen": "relay_seen(1, '0x', 0, 0)",
    "is_webhook_taken": "is_webhook_taken('x', 'x')",
    "record_webhook_event": "record_webhook_event('x', 'x', 'x', '{}')",
    "record_webhook_of_deposit": "record_webhook_of_deposit(NULL, 'x')",
    "create_webhook_endpoint": "create_webhook_endpoint(gen_random_uuid(), 'x', 'x', NULL, '', 1)",
    "rotate_webhook_secret": "rotate_webhook_secret(gen_random_uuid(), '', '1 hour')",
    "enable_webhook_endpoint": "enable_webhook_endpoint(gen_random_uuid())",
    "delete_webhook_endpoint": "delete_webhook_endpoint(gen_random_uuid())",
    "redeliver_webhook": "redeliver_webhook(gen_random_uuid())",
    "replay_webhooks": "replay_webhooks(gen_random_uuid(), now(), now(), false)",
    "prune_webhooks": "prune_webhooks(1, '30 days')",
}
READS = ("system_tenant_is_flagged", "schema_compatible_from", "non_payer_kind", "first_block_answered_for")
"""What it may call: every process asks it at its start, or the page that explains a payment."""


@pytest.mark.slow(but=6)
@pytest.mark.parametrize("function", CALLS)
def test_it_cannot_call_any_security_definer_function(two_tenants: TwoTenants, function: str) -> None:
    with refused(InsufficientPrivilege, match=f"permission denied for function {function}"):
        query(two_tenants.database.operator_url, f"SELECT * FROM {CALLS[function]}")


def test_no_security_definer_function_is_left_out_of_that_list(two_tenants: TwoTenants) -> None:
    functions = query(
        two_tenants.database.superuser_url,
        "SELECT proname::text, has_function_privilege('settle_operator', oid, 'EXECUTE') FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND prosecdef AND prorettype <> 'trigger'::regtype",
    )
    assert dict(functions) == dict.fromkeys(CALLS, False) | dict.fromkeys(READS, True)


async def test_its_transactions_refuse_to_write_whatever_its_rights_are(two_tenants: TwoTenants) -> None:
    """The second lock: even a role with more rights, given by mistake, changes nothing through this connection."""
    database = OperatorDatabase(two_tenants.database.superuser_url)
    try:
        with pytest.raises(DatabaseUnavailable) as caught:
            async with database.transaction() as connection:
                await connection.connection.execute(text("DELETE FROM payment_attempts"))
    finally:
        await database.dispose()
    assert isinstance(caught.value.__cause__, DBAPIError)
    assert isinstance(caught.value.__cause__.orig, ReadOnlySqlTransaction)


async def test_a_transaction_sees_one_moment(two_tenants: TwoTenants) -> None:
    count = text("SELECT count(*) FROM users")
    database = OperatorDatabase(two_tenants.database.operator_url)
    try:
        async with database.transaction() as connection:
            before = (await connection.connection.execute(count)).scalar_one()
            query(two_tenants.database.service_url, "SELECT * FROM provision_wallet('0x' || repeat('e', 40))")
            assert (await connection.connection.execute(count)).scalar_one() == before
        async with database.transaction() as connection:
            assert (await connection.connection.execute(count)).scalar_one() == before + 1
    finally:
        await database.dispose()


# -- migrations


@pytest.fixture
async def empty(cluster: Cluster) -> AsyncIterator[Database]:
    """A database without a schema."""
    async with cluster.temporary() as database:
        yield database


async def test_migrating_again_leaves_the_policies_as_they_are(database: Database) -> None:
    before = query(database.superuser_url, POLICIES)
    assert before == [(table, "SELECT", "true") for table in READABLE if table != "alembic_version"]
    await migrate_database(database)
    assert query(database.superuser_url, POLICIES) == before


async def test_a_database_is_closed_to_it_and_gets_its_policies_when_the_address_is_first_set(empty: Database) -> None:
    """Roles are the whole server's: another database's operators must not get in because theirs exist."""
    await asyncio.to_thread(
        migrate,
        empty.migration_url,
        app_url=empty.app_url,
        settlement_url=empty.settlement_url,
        service_url=empty.service_url,
    )
    assert scalar(empty.superuser_url, "SELECT count(*) FROM pg_roles WHERE rolname = %s", OPERATOR_ROLE) == 1
    assert query(empty.superuser_url, POLICIES) == []
    for table in READABLE:
        with refused(InsufficientPrivilege):
            query(empty.operator_url, f"SELECT * FROM {table}")
    await migrate_database(empty)
    assert len(query(empty.superuser_url, POLICIES)) == len(READABLE) - 1
    assert scalar(empty.operator_url, "SELECT count(*) FROM billing_accounts") == 1


def test_it_is_no_more_than_it_should_be(two_tenants: TwoTenants) -> None:
    [attributes] = query(
        two_tenants.database.superuser_url,
        "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls,"
        " (SELECT count(*) FROM pg_auth_members m WHERE m.member = r.oid)"
        " FROM pg_roles r WHERE rolname = 'settle_operator'",
    )
    assert attributes == (True, False, False, False, False, False, 0)
