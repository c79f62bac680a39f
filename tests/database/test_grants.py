"""What the roles may do at all: what db/rights.py lists, as the server sees it, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from db import functions, rights
from db.migrate import migrate
from db.rights import APP_ROLE, EVERYBODY, OPERATOR_ROLE, RELAY_ROLE, SERVICE_ROLE, SETTLEMENT_ROLE
from db.tables import Base
from tests.database.conftest import TwoTenants
from tests.support.postgres import Cluster, Database, migrate_database
from tests.support.sql import connect, query, refused, scalar

ROLES = (APP_ROLE, SETTLEMENT_ROLE, SERVICE_ROLE)

MAY_TABLES = """
    SELECT c.relname || ' ' || p FROM pg_class c,
           unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
       AND has_table_privilege(%(role)s, c.oid, p)
     UNION ALL
    SELECT c.relname || '.' || a.attname || ' ' || p FROM pg_class c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,
           unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) p
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
       AND has_column_privilege(%(role)s, c.oid, a.attnum, p) AND NOT has_table_privilege(%(role)s, c.oid, p)
"""
MAY_CALL = """
    SELECT proname || '()' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
       AND has_function_privilege(%(role)s, oid, 'EXECUTE')
"""


def listed(role: str, *kinds: str) -> set[str]:
    """What db/rights.py gives a role, directly or through PUBLIC."""
    return {str(right) for right in rights.GRANTED if right.role in (role, EVERYBODY) and right.kind in kinds}


def allowed(database: Database, role: str, query_text: str) -> set[str]:
    """What the server lets a role do, however it came to that."""
    with psycopg.connect(database.superuser_url) as superuser:
        return {right for (right,) in superuser.execute(query_text.encode(), {"role": role}).fetchall()}


OF_A_CREDIT = {
    "payment_attempts UPDATE": {
        *("error_code", "expires_at", "revenue_share", "status", "submission_count", "submitted_at", "tx_hash"),
    },
    "payment_events INSERT": {"attempt_id", "error_code", "event_type", "from_status", "metadata", "to_status"},
    "settled_transfers INSERT": {
        *("attempt_id", "block_hash", "block_number", "chain_id", "from_address", "log_index", "surplus_raw"),
        *("tx_hash", "unapplied_raw", "value_raw"),
    },
}
CALLS_OF_A_CREDIT = {
    *(
        "credit_own_purchase()",
        "observed_payment_time()",
        "observed_payments()",
        "own_attempt()",
        "post_own_purchase()",
        "prove_writes()",
    ),
    *("record_own_submission()", "schema_compatible_from()", "system_tenant_is_flagged()"),
}


def test_the_role_that_credits_writes_a_payments_rows_and_nothing_else() -> None:
    """Written down a second time: what gives it more has to say so here."""
    columns = {
        f"{table}.{column} {privilege}"
        for (table, privilege), names in ((key.split(), names) for key, names in OF_A_CREDIT.items())
        for column in names
    }
    assert rights.written(SETTLEMENT_ROLE) == columns | CALLS_OF_A_CREDIT


WRITTEN = {
    APP_ROLE: {
        "INSERT": """
            charges deposit_addresses idempotency_keys payment_attempts payment_authorizations payment_events
            price_quotes
        """,
        "UPDATE": "deposit_addresses payment_attempts",
    },
    SETTLEMENT_ROLE: {
        "INSERT": "payment_events settled_transfers",
        "UPDATE": "payment_attempts",
    },
    SERVICE_ROLE: {
        "INSERT": """
            account_members address_rings balance_assertions billing_grants books_violations chain_cursors chain_gaps
            charges deposit_addresses deposits finality_progress findings governance_calls governance_heartbeats
            model_prices observed_transfers operator_actions orphaned_transfers payment_attempts payment_destinations
            payment_events payment_methods price_quotes price_sources price_versions settled_transfers sweep_cursors
            sweep_transactions sweeps transfer_credits transfer_finality transfers_awaiting_finality watched_blocks
            webhook_tries
        """,
        "UPDATE": """
            account_members billing_accounts billing_alerts billing_cursors billing_grants books_checkpoints
            books_checks books_violations chain_cursors chain_gaps deposit_addresses deposits finality_progress findings
            governance_heartbeats observed_transfers payment_attempts payment_methods sweep_cursors sweep_transactions
            sweeps watched_blocks webhook_deliveries webhook_endpoints
        """,
        "DELETE": "account_members chain_cursors deposits observed_transfers watched_blocks",
    },
    OPERATOR_ROLE: {},
    RELAY_ROLE: {},
}
READ = {
    APP_ROLE: """
        account_members address_rings alembic_version billing_accounts billing_alerts billing_grants charge_receipts
        charges credit_holds credit_ledger deposit_addresses deposits finality_progress idempotency_keys model_prices
        payment_attempts payment_authorizations payment_events payment_methods price_quotes price_sources price_versions
        settled_transfers transfers_awaiting_finality usage_by_day users virtual_keys webhook_deliveries
        webhook_endpoints webhook_events webhook_tries
    """,
    OPERATOR_ROLE: """
        alembic_version billing_accounts chain_cursors credit_ledger finality_progress journal_lines ledger_accounts
        observed_transfers payment_attempts payment_events settled_transfers transfer_finality
        transfers_awaiting_finality users
    """,
    SETTLEMENT_ROLE: """
        account_members alembic_version billing_accounts credit_ledger payment_attempts payment_events settled_transfers
        users virtual_keys
    """,
    RELAY_ROLE: "alembic_version",
}
UPDATED_BY_THE_API = {
    "deposit_addresses.active_at",
    *(
        f"payment_attempts.{name}"
        for name in ("error_code", "expires_at", "status", "submission_count", "submitted_at", "tx_hash")
    ),
}
CALLED_BY_THE_API = """
    allocate_index capture_hold charge_authorizations_of claim_authorization claim_call claim_charge_authorization
    create_key create_webhook_endpoint delete_webhook_endpoint enable_webhook_endpoint end_session find_key
    find_login_challenge find_session finish_call hold_credits ingest_charge is_relay_there may_manage_account
    members_of_account move_hold non_payer_kind observed_payment_time observed_payments open_login_challenge
    open_session own_attempt owner_of_charge prove_writes provision_wallet received_for_charge record_own_submission
    redeliver_webhook relayed_hash renew_hold revoke_key rotate_key rotate_webhook_secret schema_compatible_from
    system_tenant_is_flagged take_from_rate_limits unpaid_at_the_end usage_of_request void_hold watched_head
"""


def written(role: str, privilege: str) -> set[str]:
    """The tables and columns that db/rights.py lets a role write like this."""
    return {
        right.name
        for right in rights.GRANTED
        if right.role == role and right.privilege == privilege and right.kind != "FUNCTION"
    }


@pytest.mark.parametrize("role", rights.ROLES)
def test_a_role_writes_these_tables_and_no_other(role: str) -> None:
    """Written down a second time, as below: what gives a role more has to say so here."""
    tables = {
        privilege: {name.partition(".")[0] for name in written(role, privilege)}
        for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    }
    assert {name: found for name, found in tables.items() if found} == {
        name: set(listed_.split()) for name, listed_ in WRITTEN[role].items()
    }


@pytest.mark.parametrize("role", READ)
def test_a_role_reads_these_tables_and_no_other(role: str) -> None:
    assert {right.name for right in rights.GRANTED if right.role == role and right.privilege == "SELECT"} == set(
        READ[role].split()
    )


def test_no_role_reads_sessions_and_only_workers_read_the_secrets_of_webhooks() -> None:
    tables = ("sessions", "login_challenges", "webhook_secrets")
    readers = {right.role for right in rights.GRANTED if right.name.startswith(tables) and right.kind != "FUNCTION"}
    assert readers == {SERVICE_ROLE}
    assert not {right for right in rights.GRANTED if right.name.startswith(tables[:2])}


def test_processes_that_people_reach_change_these_columns_and_call_these_functions() -> None:
    assert written(APP_ROLE, "UPDATE") == UPDATED_BY_THE_API
    assert {str(right) for right in rights.GRANTED if right.role == APP_ROLE and right.kind == "FUNCTION"} == {
        f"{name}()" for name in CALLED_BY_THE_API.split()
    }


@pytest.mark.parametrize("role", rights.ROLES)
def test_each_role_has_the_rights_on_tables_and_columns_that_are_listed_and_no_other(
    database: Database, role: str
) -> None:
    assert allowed(database, role, MAY_TABLES) == listed(role, "TABLE", "COLUMN") != set()


@pytest.mark.parametrize("role", rights.ROLES)
def test_each_role_may_call_the_functions_that_are_listed_and_no_other(database: Database, role: str) -> None:
    assert allowed(database, role, MAY_CALL) == listed(role, "FUNCTION") != set()


def test_every_table_is_listed() -> None:
    assert set(rights.TABLES) == {*Base.metadata.tables, "alembic_version"}


def test_what_is_listed_is_there(database: Database) -> None:
    assert set(rights.FUNCTIONS) <= set(functions.load())
    columns = query(
        database.superuser_url,
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'",
    )
    named = {right.name for right in rights.GRANTED | rights.BEFORE_CONTRACT if right.kind == "COLUMN"}
    assert named <= {name for (name,) in columns}


# -- settle migrate makes it so

EXCESS = [
    "GRANT INSERT ON credit_ledger TO settle_service",
    "GRANT UPDATE (balance_credits) ON billing_accounts TO settle_app",
    "GRANT SELECT ON sessions TO settle_operator",
    "GRANT SELECT (token_hash) ON sessions TO settle_operator",
    "GRANT SELECT ON users TO PUBLIC",
    "GRANT UPDATE ON payment_attempts TO settle_app",
    "GRANT EXECUTE ON FUNCTION post_entry TO settle_app",
    "GRANT EXECUTE ON FUNCTION post_entry TO PUBLIC",
    "GRANT EXECUTE ON FUNCTION guard_attempt TO PUBLIC",
    "GRANT CREATE ON SCHEMA public TO settle_service",
    "GRANT CREATE ON SCHEMA public TO PUBLIC",
]
MISSING = [
    "REVOKE INSERT ON payment_events FROM settle_service",
    "REVOKE UPDATE (status) ON payment_attempts FROM settle_app",
    "REVOKE UPDATE ON payment_attempts FROM settle_app",
    "REVOKE ALL ON payment_attempts FROM settle_settlement",
    "REVOKE EXECUTE ON FUNCTION open_session FROM settle_app",
    "REVOKE USAGE ON SCHEMA public FROM settle_app",
    "REVOKE EXECUTE ON FUNCTION current_tenant FROM PUBLIC",
]
ACLS = """
    SELECT relname::text, relacl::text[] FROM pg_class WHERE relnamespace = 'public'::regnamespace
     UNION ALL SELECT attrelid::regclass || '.' || attname, attacl::text[] FROM pg_attribute WHERE attacl IS NOT NULL
     UNION ALL SELECT proname, coalesce(proacl, acldefault('f', proowner))::text[] FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace
     UNION ALL SELECT nspname, nspacl::text[] FROM pg_namespace WHERE nspname = 'public'
"""


def acls(database: Database) -> dict[str, Any]:
    """All rights as the server stores them, and in the same order."""
    return {name: sorted(acl) for name, acl in query(database.superuser_url, ACLS) if acl}


@pytest.mark.slow(but=("all",))
@pytest.mark.parametrize(
    "changes",
    [pytest.param(MISSING + EXCESS, id="all"), *(pytest.param([change], id=change) for change in EXCESS + MISSING)],
)
async def test_a_migration_grants_what_is_missing_and_revokes_what_is_too_much(
    database: Database, changes: list[str]
) -> None:
    before = changed = acls(database)
    for change in changes:
        with connect(database.superuser_url) as superuser:
            superuser.execute(change.encode())
        assert acls(database) != changed
        changed = acls(database)
    await migrate_database(database)
    assert acls(database) == before


async def test_grants_on_foreign_tables_stay(database: Database) -> None:
    with connect(database.superuser_url) as superuser:
        superuser.execute("CREATE TABLE of_another_version (id int)")
        superuser.execute("GRANT SELECT ON of_another_version TO settle_service")
    await migrate_database(database)
    assert scalar(database.service_url, "SELECT count(*) FROM of_another_version") == 0


async def test_whether_public_may_use_the_schema_is_not_decided_here(database: Database) -> None:
    """PostgreSQL's default, which other programs of the database may use; a revoked one stays revoked."""
    found = (
        "SELECT EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0) FROM pg_namespace WHERE nspname = 'public'"
    )
    assert scalar(database.superuser_url, found) is True
    with connect(database.superuser_url) as superuser:
        superuser.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    await migrate_database(database)
    assert scalar(database.superuser_url, found) is False


async def migrate_without_operators(database: Database, **options: Any) -> None:
    """As `settle migrate` does where operators have no address."""
    await asyncio.to_thread(
        migrate,
        database.migration_url,
        app_url=database.app_url,
        settlement_url=database.settlement_url,
        service_url=database.service_url,
        **options,
    )


async def test_rights_of_the_operators_role_are_left_alone_without_its_address(database: Database) -> None:
    with connect(database.superuser_url) as superuser:
        superuser.execute("GRANT SELECT ON sessions TO settle_operator")
    await migrate_without_operators(database)
    assert scalar(database.superuser_url, "SELECT has_table_privilege('settle_operator', 'sessions', 'SELECT')")


async def test_between_the_halves_of_an_upgrade_each_role_keeps_what_the_version_before_uses(cluster: Cluster) -> None:
    async with cluster.temporary() as database:
        await migrate_without_operators(database, expand_only=True)
        for role in ROLES:
            besides = {str(right) for right in rights.BEFORE_CONTRACT if right.role == role}
            wider = {right for right in listed(role, "COLUMN") if _table_of(right) in besides}
            may = allowed(database, role, MAY_TABLES) | allowed(database, role, MAY_CALL)
            assert may == listed(role, "TABLE", "COLUMN", "FUNCTION") - wider | besides
        await migrate_without_operators(database)
        for role in ROLES:
            may = allowed(database, role, MAY_TABLES) | allowed(database, role, MAY_CALL)
            assert may == listed(role, "TABLE", "COLUMN", "FUNCTION")


def _table_of(right: str) -> str:
    """The right to the whole table that makes one to its column no difference."""
    name, _, privilege = right.partition(" ")
    return f"{name.partition('.')[0]} {privilege}"


# -- the tables' own limits


def test_functions_with_the_owners_rights_resolve_no_name_in_the_callers_schemas(two_tenants: TwoTenants) -> None:
    loose = query(
        two_tenants.database.superuser_url,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef"
        " AND proconfig IS DISTINCT FROM ARRAY['search_path=public, pg_temp']",
    )
    assert loose == []


@pytest.mark.parametrize(
    ("role", "bypass"), [("settle_app", False), ("settle_settlement", False), ("settle_service", True)]
)
def test_the_roles_are_no_more_than_they_should_be(two_tenants: TwoTenants, role: str, bypass: bool) -> None:
    [attributes] = query(
        two_tenants.database.superuser_url,
        "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
        " FROM pg_roles WHERE rolname = %s",
        role,
    )
    assert attributes == (True, False, False, False, False, bypass)
    assert (
        scalar(
            two_tenants.database.superuser_url,
            "SELECT count(*) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = %s",
            role,
        )
        == 0
    )


FORBIDDEN = [
    "UPDATE billing_accounts SET balance_credits = 1",
    "UPDATE billing_accounts SET is_system_tenant = true",
    "UPDATE billing_accounts SET owner_user_id = 'cogni_system_principal'",
    "INSERT INTO billing_accounts (id, owner_user_id, balance_credits) VALUES ('x', 'cogni_system_principal', 1)",
    "DELETE FROM billing_accounts",
    "UPDATE users SET wallet_address = NULL",
    "INSERT INTO users (id) VALUES ('x')",
    "DELETE FROM users",
    "UPDATE virtual_keys SET active = false",
    "INSERT INTO virtual_keys (billing_account_id) VALUES ('cogni_system')",
    "INSERT INTO credit_ledger (billing_account_id, amount, balance_after, reason)"
    " VALUES ('cogni_system', 1, 1, 'gift')",
    "UPDATE credit_ledger SET amount = 1",
    "DELETE FROM credit_ledger",
    "TRUNCATE credit_ledger CASCADE",
    "INSERT INTO journal_lines (entry_id, account_code, side, amount)"
    " VALUES (gen_random_uuid(), 'cash:usdc', 'debit', 1)",
    "UPDATE journal_lines SET amount = 1",
    "DELETE FROM journal_lines",
    "TRUNCATE journal_lines",
    "INSERT INTO ledger_accounts (code, name, type, normal_side) VALUES ('x', 'x', 'asset', 'debit')",
    "UPDATE ledger_accounts SET name = 'x'",
    "DELETE FROM ledger_accounts",
    "UPDATE payment_events SET to_status = 'CREDITED'",
    "DELETE FROM payment_events",
    "TRUNCATE payment_events",
    "UPDATE settled_transfers SET log_index = 9",
    "DELETE FROM settled_transfers",
    "TRUNCATE settled_transfers",
    "DELETE FROM payment_attempts",
    "TRUNCATE payment_attempts CASCADE",
    "UPDATE payment_attempts SET purpose = 'system'",
    "UPDATE payment_attempts SET amount_raw = 1",
    "UPDATE payment_attempts SET billing_account_id = 'cogni_system'",
    "UPDATE payment_attempts SET from_address = to_address",
    "UPDATE alembic_version SET version_num = 'x'",
    "CREATE TABLE mine (id int)",
    "ALTER TABLE credit_ledger DISABLE TRIGGER ALL",
    "ALTER TABLE credit_ledger NO FORCE ROW LEVEL SECURITY",
    "DROP TABLE journal_lines",
    "SET session_replication_role = replica",
    "SET ROLE settle_owner",
    "SET SESSION AUTHORIZATION settle_owner",
    "GRANT settle_service TO CURRENT_USER",
    "ALTER ROLE CURRENT_USER BYPASSRLS",
    "CREATE ROLE mine",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE payment_attempts DISABLE TRIGGER USER",
    "DROP TRIGGER payment_attempts_guard_by_role ON payment_attempts",
    "CREATE TRIGGER mine BEFORE UPDATE ON payment_attempts FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE POLICY mine ON payment_attempts USING (true)",
    "CREATE RULE mine AS ON UPDATE TO payment_attempts DO INSTEAD NOTHING",
    "ALTER FUNCTION guard_attempt_by_role() OWNER TO CURRENT_USER",
    "INSERT INTO payment_events (id, attempt_id, event_type, to_status) OVERRIDING SYSTEM VALUE"
    " VALUES (1, gen_random_uuid(), 'x', 'x')",
]

NOT_OF_THE_SERVICE = [statement for statement in FORBIDDEN if statement.startswith("INSERT INTO payment_events")]


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("statement", FORBIDDEN)
@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_bypass_the_security_definer_functions(two_tenants: TwoTenants, role: str, statement: str) -> None:
    if role == "settle_service" and statement in NOT_OF_THE_SERVICE:
        pytest.skip("settle_service writes whole events")
    alice = two_tenants.alice.user_id
    with connect(two_tenants.database.url_as(role), user_id=alice) as connection, refused(InsufficientPrivilege):
        connection.execute(statement)


def test_provisioning_gives_the_service_what_it_gives_the_app(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.service_url) as service:
        [(user_id, account, created)] = service.execute(
            "SELECT user_id, billing_account_id, created FROM provision_wallet(%s)",
            (two_tenants.alice.payer.wallet_address,),
        ).fetchall()
    assert (user_id, account, created) == (two_tenants.alice.user_id, two_tenants.alice.account, False)


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize(
    "function",
    [
        "refuse_change", "check_entry_balanced", "check_running_balance", "check_account_balance",
        "open_liability_account", "guard_attempt", "check_credited_attempt", "check_settled_transfer",
        "guard_attempt_by_role",
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_attach_a_check_to_a_table_of_its_own(two_tenants: TwoTenants, role: str, function: str) -> None:
    """A check's error says what its owner sees: another account's balance, for one."""
    with connect(two_tenants.database.url_as(role)) as connection, refused(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TEMP TABLE bait (LIKE credit_ledger)")
        connection.execute(f"CREATE TRIGGER bait AFTER INSERT ON bait FOR EACH ROW EXECUTE FUNCTION {function}()")
