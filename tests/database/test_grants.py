"""What the roles may do at all, as a table: everything that is not listed is refused."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from tests.database.conftest import TwoTenants
from tests.support.sql import connect, query, refused, scalar

INTENT = (
    "amount_raw amount_usd_cents billing_account_id chain_id created_at expires_at from_address id purpose status"
    " to_address token"
)
SUBMISSION = "error_code expires_at status submission_count submitted_at tx_hash"
CREDIT = "error_code expires_at revenue_share status submission_count submitted_at tx_hash"
EVENT = "attempt_id error_code event_type from_status metadata to_status"

READ_BY_TENANTS = {
    "alembic_version", "billing_accounts", "credit_ledger", "payment_attempts", "payment_events", "settled_transfers",
    "users", "virtual_keys",
}  # fmt: skip
READ_BY_SERVICE = READ_BY_TENANTS | {
    "books_checkpoints", "books_checks", "books_violations", "chain_cursors", "chain_gaps", "findings",
    "governance_heartbeats",
    "journal_lines", "ledger_accounts", "non_payers", "observed_transfers", "orphaned_transfers",
    "transfer_finality", "watched_blocks", "operator_actions", "transfer_credits", "balance_assertions",
    "payment_destinations",
}  # fmt: skip
READ = {
    "settle_app": READ_BY_TENANTS | {"idempotency_keys"},
    "settle_settlement": READ_BY_TENANTS,
    "settle_service": READ_BY_SERVICE,
}
WRITTEN: dict[str, dict[str, str]] = {
    "settle_app": {},
    "settle_settlement": {},
    "settle_service": {
        "books_checkpoints": "UPDATE",
        "books_checks": "UPDATE",
        "books_violations": "INSERT UPDATE",
        "chain_cursors": "INSERT UPDATE DELETE",
        "chain_gaps": "INSERT UPDATE",
        "findings": "INSERT UPDATE",
        "governance_heartbeats": "INSERT UPDATE",
        "observed_transfers": "INSERT UPDATE DELETE",
        "non_payers": "INSERT",
        "orphaned_transfers": "INSERT",
        "operator_actions": "INSERT",
        "payment_destinations": "INSERT UPDATE",
        "payment_events": "INSERT",
        "settled_transfers": "INSERT",
        "transfer_credits": "INSERT",
        "balance_assertions": "INSERT",
        "transfer_finality": "INSERT",
        "watched_blocks": "INSERT UPDATE DELETE",
    },
}
"""Whole tables."""

COLUMNS: dict[str, dict[tuple[str, str], str]] = {
    "settle_app": {
        ("payment_attempts", "INSERT"): INTENT,
        ("payment_attempts", "UPDATE"): SUBMISSION,
        ("payment_events", "INSERT"): EVENT,
        ("idempotency_keys", "INSERT"): "answer billing_account_id key request_hash",
    },
    "settle_settlement": {
        ("payment_attempts", "UPDATE"): CREDIT,
        ("payment_events", "INSERT"): EVENT,
        ("settled_transfers", "INSERT"): (
            "attempt_id block_hash block_number chain_id from_address log_index surplus_raw tx_hash unapplied_raw"
            " value_raw"
        ),
    },
    "settle_service": {("payment_attempts", "INSERT"): INTENT, ("payment_attempts", "UPDATE"): CREDIT},
}

FUNCTIONS = {
    "settle_app": [
        "end_session",
        "find_login_challenge",
        "find_session",
        "non_payer_kind",
        "observed_payment_time",
        "open_login_challenge",
        "open_session",
        "prove_writes",
        "provision_wallet",
        "schema_compatible_from",
        "system_tenant_is_flagged",
        "take_from_rate_limits",
    ],
    "settle_settlement": [
        "observed_payment_time",
        "post_own_purchase",
        "prove_writes",
        "schema_compatible_from",
        "system_tenant_is_flagged",
    ],
    "settle_service": [
        "end_sessions_of_wallet",
        "first_block_answered_for",
        "non_payer_kind",
        "post_entry",
        "prove_writes",
        "provision_wallet",
        "prune_expired",
        "schema_compatible_from",
        "system_tenant_is_flagged",
    ],
}

ROLES = tuple(FUNCTIONS)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_these_rights_on_tables_and_no_other(two_tenants: TwoTenants, role: str) -> None:
    granted = set(
        query(
            two_tenants.database.superuser_url,
            "SELECT table_name, privilege_type FROM information_schema.table_privileges WHERE grantee IN (%s, 'PUBLIC')"
            " AND table_schema = 'public'",
            role,
        )
    )
    assert granted == (
        {(table, "SELECT") for table in READ[role]}
        | {(table, right) for table, rights in WRITTEN[role].items() for right in rights.split()}
    )


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_these_rights_on_columns_and_no_other(two_tenants: TwoTenants, role: str) -> None:
    granted = query(
        two_tenants.database.superuser_url,
        "SELECT table_name::text, privilege_type::text, string_agg(column_name, ' ' ORDER BY column_name COLLATE \"C\")"
        "  FROM information_schema.column_privileges"
        " WHERE grantee IN (%s, 'PUBLIC') AND table_schema = 'public' AND privilege_type IN ('INSERT', 'UPDATE')"
        " GROUP BY 1, 2",
        role,
    )
    whole = {(table, right) for table, rights in WRITTEN[role].items() for right in rights.split()}
    assert {(table, right): columns for table, right, columns in granted if (table, right) not in whole} == COLUMNS[
        role
    ]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_call_these_functions_of_the_owner_and_no_other(two_tenants: TwoTenants, role: str) -> None:
    callable_ = query(
        two_tenants.database.superuser_url,
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef"
        " AND prorettype <> 'trigger'::regtype AND has_function_privilege(%s, oid, 'EXECUTE') ORDER BY proname",
        role,
    )
    assert [name for (name,) in callable_] == FUNCTIONS[role]


def test_functions_with_the_owners_rights_look_nothing_up_in_the_callers_schemas(two_tenants: TwoTenants) -> None:
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


@pytest.mark.parametrize("statement", FORBIDDEN)
@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_go_past_the_doors(two_tenants: TwoTenants, role: str, statement: str) -> None:
    if role == "settle_service" and statement in NOT_OF_THE_SERVICE:
        pytest.skip("settle_service writes whole events")
    with psycopg.connect(two_tenants.database.url_as(role)) as connection:
        connection.execute("SELECT set_config('settle.user_id', %s, true)", (two_tenants.alice.user_id,))
        with refused(InsufficientPrivilege):
            connection.execute(statement)


def test_provisioning_gives_the_service_what_it_gives_the_app(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.service_url) as service:
        [(user_id, account, created)] = service.execute(
            "SELECT user_id, billing_account_id, created FROM provision_wallet(%s)",
            (two_tenants.alice.payer.wallet_address,),
        ).fetchall()
    assert (user_id, account, created) == (two_tenants.alice.user_id, two_tenants.alice.account, False)


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
