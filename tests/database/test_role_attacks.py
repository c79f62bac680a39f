"""What each role's password is worth in SQL: every step of an attempt, every lie in the audit trail, every way up."""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import product
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege, RestrictViolation

from domain.payments.attempt import LEGAL_TRANSITIONS, AttemptStatus, ErrorCode
from tests.database.conftest import TwoTenants
from tests.support.payments import CHAIN_ID, SHARE, tx_hash, wallet
from tests.support.sql import Connection, connect, query, refused, scalar

STEP_OF_ROLE = "payment_attempts_step_of_role"
PAID = tx_hash(777)

TENANT_ROLES = ("settle_app", "settle_settlement")
ROLES = (*TENANT_ROLES, "settle_service", "settle_operator")

TRANSFER = (
    "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,"
    f" value_raw, surplus_raw) VALUES ({CHAIN_ID}, %s, 0, %s, 7, '{tx_hash(7)}', '{wallet(1)}', 100000000, 0)"
)
POST = "SELECT * FROM post_own_purchase(%s, 1000000000, 'cash:usdc', '{}')"
SUBMIT = (
    "UPDATE payment_attempts SET status = 'PENDING_UNVERIFIED', tx_hash = %s, submitted_at = now(),"
    " submission_count = submission_count + 1, expires_at = NULL WHERE id = %s"
)


def _as(two_tenants: TwoTenants, role: str, user_id: str | None = None) -> AbstractContextManager[Connection]:
    return connect(two_tenants.database.url_as(role), user_id=user_id or two_tenants.alice.user_id)


# -- the API's password


def _forge(app: Connection, two_tenants: TwoTenants, *steps: str) -> None:
    """The attack step by step: an own intent, submitted with a hash that no chain has seen, credited by hand."""
    attempt = two_tenants.alice.intent.id
    taken = {
        "submit": lambda: app.execute(SUBMIT, (PAID, attempt)),
        "transfer": lambda: app.execute(TRANSFER, (PAID, attempt)),
        "post": lambda: app.execute(POST, (attempt,)),
        "credit": lambda: app.execute("UPDATE payment_attempts SET status = 'CREDITED' WHERE id = %s", (attempt,)),
    }
    for step in steps:
        taken[step]()


@pytest.mark.parametrize("step", ["transfer", "post", "credit"])
def test_the_apis_password_takes_no_step_of_a_credit(two_tenants: TwoTenants, step: str) -> None:
    with _as(two_tenants, "settle_app") as app:
        _forge(app, two_tenants, "submit")
        with refused(InsufficientPrivilege):
            _forge(app, two_tenants, step)
        app.rollback()


def test_the_same_steps_credit_where_a_worker_takes_them(two_tenants: TwoTenants) -> None:
    """The attack above is refused for its role, and for nothing else."""
    attempt = two_tenants.alice.intent.id
    with _as(two_tenants, "settle_settlement") as worker:
        _forge(worker, two_tenants, "submit", "transfer", "post")
        worker.execute(
            "UPDATE payment_attempts SET status = 'CREDITED', revenue_share = %s WHERE id = %s", (SHARE, attempt)
        )
    assert (
        scalar(two_tenants.database.service_url, "SELECT status FROM payment_attempts WHERE id = %s", attempt)
        == "CREDITED"
    )


CREDIT = (
    "SELECT posted FROM credit_own_purchase(%(user_id)s, %(attempt_id)s, %(status)s, 0.75, %(chain_id)s, %(tx_hash)s,"
    " 0, 7, %(block_hash)s, %(payer)s, 100000000, 0, 0, %(amount)s, %(contra)s, '{}', '{}')"
)


def _credit(two_tenants: TwoTenants, role: str, **lies: object) -> list[tuple[object, ...]]:
    """The whole credit of alice's submitted intent by one call, with something else in it than is true."""
    alice = two_tenants.alice
    with connect(two_tenants.database.app_url, user_id=alice.user_id) as app:
        app.execute(SUBMIT, (PAID, alice.intent.id))
    truth = {
        "user_id": alice.user_id, "attempt_id": alice.intent.id, "status": "PENDING_UNVERIFIED", "chain_id": CHAIN_ID,
        "tx_hash": PAID, "block_hash": tx_hash(7), "payer": wallet(1), "amount": 1_000_000_000, "contra": "cash:usdc",
    }  # fmt: skip
    with connect(two_tenants.database.url_as(role)) as connection:
        return connection.execute(CREDIT, truth | lies).fetchall()


def test_a_worker_credits_by_one_call(two_tenants: TwoTenants) -> None:
    assert _credit(two_tenants, "settle_settlement") == [(True,)]


@pytest.mark.parametrize(
    ("role", "lies", "error"),
    [
        ("settle_app", {}, InsufficientPrivilege),
        ("settle_operator", {}, InsufficientPrivilege),
        # It has no right to the function, and none to a payer's credit.
        ("settle_service", {}, InsufficientPrivilege),
        ("settle_settlement", {"amount": 1_000_000_001}, InsufficientPrivilege),
        ("settle_settlement", {"amount": -1_000_000_000}, InsufficientPrivilege),
        ("settle_settlement", {"contra": "expense:platform_revenue_share"}, InsufficientPrivilege),
        ("settle_settlement", {"payer": wallet(2)}, CheckViolation),
        ("settle_settlement", {"chain_id": CHAIN_ID + 1}, CheckViolation),
    ],
)
def test_the_call_that_credits_does_nothing_else(
    two_tenants: TwoTenants, role: str, lies: dict[str, object], error: type[psycopg.Error]
) -> None:
    with refused(error):
        _credit(two_tenants, role, **lies)


@pytest.mark.parametrize("status", ["CREATED_INTENT", "CREDITED", "FAILED"])
def test_a_call_that_credits_by_another_status_does_nothing(two_tenants: TwoTenants, status: str) -> None:
    assert _credit(two_tenants, "settle_settlement", status=status) == []


def test_a_call_that_credits_in_another_tenants_scope_does_nothing(two_tenants: TwoTenants) -> None:
    assert _credit(two_tenants, "settle_settlement", user_id=two_tenants.bob.user_id) == []
    status = "SELECT status FROM payment_attempts WHERE id = %s"
    assert scalar(two_tenants.database.service_url, status, two_tenants.alice.intent.id) == "PENDING_UNVERIFIED"


# -- every step of an attempt, by every role

BY_APP = {
    ("CREATED_INTENT", "PENDING_UNVERIFIED"),
    ("PENDING_UNVERIFIED", "PENDING_UNVERIFIED"),
    ("FAILED", "PENDING_UNVERIFIED"),
    ("CREATED_INTENT", "FAILED"),
}
BY_ROLE = {
    "settle_app": BY_APP,
    "settle_settlement": BY_APP
    | {
        ("PENDING_UNVERIFIED", "CREDITED"),
        ("PENDING_UNVERIFIED", "REJECTED"),
        ("PENDING_UNVERIFIED", "FAILED"),
    },
}

LEGAL = {(old.value, new.value) for old, news in LEGAL_TRANSITIONS.items() for new in news}


def _set_status(old: str, new: str) -> str:
    values = {"status": f"'{new}'"}
    if new == "PENDING_UNVERIFIED":
        values |= {
            "tx_hash": f"'{PAID}'",
            "submitted_at": "now()",
            "submission_count": "submission_count + 1",
            "expires_at": "NULL",
            "error_code": "NULL",
        }
    if new in {"REJECTED", "FAILED"}:
        values["error_code"] = "'INTENT_EXPIRED'" if old == "CREATED_INTENT" else "'TX_REVERTED'"
    return ", ".join(f"{column} = {value}" for column, value in values.items())


def _of_status(two_tenants: TwoTenants, status: str) -> UUID:
    """Alice's attempt of a status; one that expired is made where none is there."""
    alice = two_tenants.alice
    there = {
        "CREATED_INTENT": alice.intent.id,
        "PENDING_UNVERIFIED": alice.pending.id,
        "CREDITED": alice.credited.id,
        "REJECTED": alice.rejected.id,
    }
    if status in there:
        return there[status]
    changed, code = (alice.intent.id, "INTENT_EXPIRED") if status == "FAILED" else (alice.credited.id, None)
    with connect(two_tenants.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "UPDATE payment_attempts SET status = %s, error_code = %s WHERE id = %s", (status, code, changed)
        )
    return changed


@pytest.mark.parametrize(("old", "new"), sorted(product([status.value for status in AttemptStatus], repeat=2)))
@pytest.mark.parametrize("role", TENANT_ROLES)
def test_a_role_takes_the_steps_that_are_its_own_and_no_other(
    two_tenants: TwoTenants, role: str, old: str, new: str
) -> None:
    attempt = _of_status(two_tenants, old)
    statement = f"UPDATE payment_attempts SET {_set_status(old, new)} WHERE id = %s"
    with _as(two_tenants, role) as connection:
        try:
            assert connection.execute(statement, (attempt,)).rowcount == 1
        except psycopg.errors.CheckViolation:
            # A step that the role may take, which requires more than a status: the share that a credit is given with.
            is_taken = True
        except (InsufficientPrivilege, RestrictViolation):
            is_taken = False
        else:
            is_taken = True
        connection.rollback()
    unchanged = old == new and old in {"CREATED_INTENT", "PENDING_UNVERIFIED"}
    assert is_taken is ((old, new) in BY_ROLE[role] or unchanged)


def test_the_steps_above_are_all_that_are_legal() -> None:
    beyond = LEGAL - BY_ROLE["settle_settlement"]
    assert beyond == {("CREDITED", "REVERSED")}


def test_the_service_credits_donations_and_no_purchase(two_tenants: TwoTenants) -> None:
    credit = "UPDATE payment_attempts SET status = 'CREDITED', revenue_share = %s WHERE id = %s"
    with _as(two_tenants, "settle_service") as service:
        with refused(InsufficientPrivilege, STEP_OF_ROLE):
            service.execute(credit, (SHARE, two_tenants.alice.pending.id))
        service.rollback()
        assert service.execute(credit, (None, two_tenants.alice.pending_donation.id)).rowcount == 1
        service.rollback()


def test_a_worker_credits_purchases_and_no_donation(two_tenants: TwoTenants) -> None:
    with _as(two_tenants, "settle_settlement") as worker, refused(InsufficientPrivilege, STEP_OF_ROLE):
        worker.execute(
            "UPDATE payment_attempts SET status = 'CREDITED' WHERE id = %s", (two_tenants.alice.pending_donation.id,)
        )


@pytest.mark.parametrize("code", [code.value for code in ErrorCode if code is not ErrorCode.INTENT_EXPIRED])
def test_an_intent_ends_through_the_api_as_expired_only(two_tenants: TwoTenants, code: str) -> None:
    with _as(two_tenants, "settle_app") as app, refused(InsufficientPrivilege, STEP_OF_ROLE):
        app.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = %s WHERE id = %s",
            (code, two_tenants.alice.intent.id),
        )


def test_an_intent_does_not_end_through_the_api_before_its_time(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "UPDATE payment_attempts SET expires_at = now() + interval '1 minute' WHERE id = %s",
            (two_tenants.alice.intent.id,),
        )
    with _as(two_tenants, "settle_app") as app, refused(InsufficientPrivilege, STEP_OF_ROLE):
        app.execute(
            "UPDATE payment_attempts SET status = 'FAILED', error_code = 'INTENT_EXPIRED' WHERE id = %s",
            (two_tenants.alice.intent.id,),
        )


# -- what a submission writes

LIES_ABOUT_A_SUBMISSION = {
    "an expiry put off": ("intent", "expires_at = now() + interval '1 year'"),
    "a count set back": ("pending", "submission_count = 0"),
    "another time of submission": ("pending", "submitted_at = now() + interval '1 year'"),
    "another hash, not counted": ("pending", f"tx_hash = '{PAID}'"),
    "another hash, counted twice": ("pending", f"tx_hash = '{PAID}', submission_count = submission_count + 2"),
}


@pytest.mark.parametrize("lie", LIES_ABOUT_A_SUBMISSION)
@pytest.mark.parametrize("role", TENANT_ROLES)
def test_what_was_submitted_changes_with_a_submission_only(two_tenants: TwoTenants, role: str, lie: str) -> None:
    state, change = LIES_ABOUT_A_SUBMISSION[lie]
    with _as(two_tenants, role) as connection, refused(InsufficientPrivilege, STEP_OF_ROLE):
        connection.execute(
            f"UPDATE payment_attempts SET {change} WHERE id = %s", (getattr(two_tenants.alice, state).id,)
        )


@pytest.mark.parametrize("role", TENANT_ROLES)
def test_a_submission_of_tomorrow_counts_from_now(two_tenants: TwoTenants, role: str) -> None:
    """Otherwise a payment could wait for its transaction without limit."""
    with _as(two_tenants, role) as connection:
        [(is_now,)] = connection.execute(
            "UPDATE payment_attempts SET status = 'PENDING_UNVERIFIED', tx_hash = %s, expires_at = NULL,"
            " submitted_at = now() + interval '1 year', submission_count = submission_count + 1 WHERE id = %s"
            " RETURNING submitted_at BETWEEN now() AND clock_timestamp()",
            (PAID, two_tenants.alice.intent.id),
        ).fetchall()
        connection.rollback()
    assert is_now is True


# -- what the audit trail says

EVENT = (
    "INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, error_code, metadata)"
    " VALUES (%s, %s, %s, %s, %s, jsonb_build_object('txHash', %s::text))"
)


@pytest.mark.parametrize(
    ("state", "event_type", "from_status", "to_status", "error_code"),
    [
        ("pending", "credited", "PENDING_UNVERIFIED", "CREDITED", None),
        ("credited", "credited", "PENDING_UNVERIFIED", "CREDITED", None),
        ("credited", "reversed", "CREDITED", "REVERSED", None),
        ("rejected", "rejected", "PENDING_UNVERIFIED", "REJECTED", "INSUFFICIENT_AMOUNT"),
        ("pending", "failed", "PENDING_UNVERIFIED", "FAILED", "TX_REVERTED"),
        ("intent", "failed", "CREATED_INTENT", "FAILED", "INTENT_EXPIRED"),
        ("intent", "submitted", "CREATED_INTENT", "PENDING_UNVERIFIED", None),
        ("pending", "submitted", "CREATED_INTENT", "PENDING_UNVERIFIED", None),
        ("intent", "note", None, "CREATED_INTENT", None),
    ],
)
def test_the_api_writes_no_event_that_did_not_happen_through_it(
    two_tenants: TwoTenants,
    state: str,
    event_type: str,
    from_status: str | None,
    to_status: str,
    error_code: str | None,
) -> None:
    """The hash is none that was submitted."""
    attempt = getattr(two_tenants.alice, state).id
    with _as(two_tenants, "settle_app") as app, refused(InsufficientPrivilege, match="row-level security"):
        app.execute(EVENT, (attempt, event_type, from_status, to_status, error_code, PAID))


def test_a_worker_writes_no_event_of_a_step_that_was_not_taken(two_tenants: TwoTenants) -> None:
    with _as(two_tenants, "settle_settlement") as worker, refused(InsufficientPrivilege, match="row-level security"):
        worker.execute(EVENT, (two_tenants.alice.pending.id, "credited", "PENDING_UNVERIFIED", "CREDITED", None, PAID))


@pytest.mark.parametrize("column", ["created_at", "id"])
@pytest.mark.parametrize("table", ["payment_events", "settled_transfers", "idempotency_keys"])
@pytest.mark.parametrize("role", TENANT_ROLES)
def test_no_tenants_role_numbers_or_dates_a_row(two_tenants: TwoTenants, role: str, table: str, column: str) -> None:
    """The integrity scan goes by row numbers: a row below its watermark would never be checked."""
    if (table, column) == ("idempotency_keys", "id"):
        pytest.skip("it has none")
    value = "now() - interval '1 year'" if column == "created_at" else "1"
    with _as(two_tenants, role) as connection, refused(InsufficientPrivilege):
        connection.execute(f"INSERT INTO {table} ({column}) OVERRIDING SYSTEM VALUE VALUES ({value})")


# -- the settlement role is bounded, too


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,"
        " amount_usd_cents) VALUES ('x', 'x', 1, 'x', 'x', 1, 1)",
        "SELECT * FROM provision_wallet('0x0000000000000000000000000000000000000009')",
        "SELECT * FROM open_session('0123456789abcdef', '\\x00', now(), NULL)",
        "SELECT * FROM post_entry('cogni_system', 1, 'gift', 'x', 'cash:usdc', '{}')",
        "SELECT * FROM prune_expired(1, '1 hour')",
        "INSERT INTO transfer_finality (attempt_id) VALUES (gen_random_uuid())",
        "INSERT INTO observed_transfers (chain_id) VALUES (1)",
        "INSERT INTO idempotency_keys (key) VALUES ('x')",
        "SELECT 1 FROM findings",
        "SELECT 1 FROM sessions",
    ],
)
def test_a_workers_tenant_role_opens_makes_and_posts_nothing_else(two_tenants: TwoTenants, statement: str) -> None:
    with _as(two_tenants, "settle_settlement") as worker, refused(InsufficientPrivilege):
        worker.execute(statement)


@pytest.mark.parametrize("table", ["users", "billing_accounts", "virtual_keys", "credit_ledger", "payment_attempts",
                                   "payment_events", "settled_transfers"])  # fmt: skip
def test_a_workers_tenant_role_sees_its_scope_and_without_one_nothing(two_tenants: TwoTenants, table: str) -> None:
    count = f"SELECT count(*) FROM {table}"
    seen = scalar(two_tenants.database.settlement_url, count, user_id=two_tenants.alice.user_id)
    assert seen == scalar(two_tenants.database.app_url, count, user_id=two_tenants.alice.user_id) > 0
    assert scalar(two_tenants.database.settlement_url, count) == 0


# -- no role becomes another


@pytest.mark.parametrize(("role", "other"), [(one, other) for one, other in product(ROLES, (*ROLES, "settle_owner"))
                                             if one != other])  # fmt: skip
def test_no_role_becomes_another(two_tenants: TwoTenants, role: str, other: str) -> None:
    for statement in (f"SET ROLE {other}", f"SET SESSION AUTHORIZATION {other}", f"GRANT {other} TO {role}"):
        with connect(two_tenants.database.url_as(role)) as connection, refused(InsufficientPrivilege):
            connection.execute(statement)


@pytest.mark.parametrize("role", TENANT_ROLES)
def test_what_a_role_puts_in_its_temporary_schema_deceives_no_check(two_tenants: TwoTenants, role: str) -> None:
    """The guard runs with the caller's rights: it must not resolve names where the caller puts them."""
    with _as(two_tenants, role) as connection:
        for table in ("payment_attempts", "settled_transfers", "billing_accounts", "pg_class", "credit_ledger"):
            connection.execute(f"CREATE TEMP TABLE {table} (LIKE pg_catalog.{table})" if table.startswith("pg_")
                               else f"CREATE TEMP TABLE {table} AS SELECT * FROM public.{table}")  # fmt: skip
        connection.execute(
            "CREATE FUNCTION pg_temp.pg_has_role(name, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        )
        connection.execute("SET search_path = pg_temp, public, pg_catalog")
        with refused(InsufficientPrivilege):
            connection.execute(
                "UPDATE public.payment_attempts SET status = 'CREDITED' WHERE id = %s",
                (two_tenants.alice.pending_donation.id,),
            )


def test_a_role_that_is_not_known_gets_the_least(two_tenants: TwoTenants) -> None:
    """A member of settle_app is no worker, whatever it is called."""
    with connect(two_tenants.database.superuser_url) as superuser:
        superuser.execute("CREATE ROLE settle_member LOGIN IN ROLE settle_app")
        try:
            superuser.execute("SET SESSION AUTHORIZATION settle_member")
            superuser.execute("SELECT set_config('settle.user_id', %s, true)", (two_tenants.alice.user_id,))
            with refused(InsufficientPrivilege, STEP_OF_ROLE):
                superuser.execute(
                    "UPDATE payment_attempts SET status = 'REJECTED', error_code = 'SENDER_MISMATCH' WHERE id = %s",
                    (two_tenants.alice.pending.id,),
                )
        finally:
            superuser.rollback()
    assert query(two_tenants.database.superuser_url, "SELECT 1 FROM pg_roles WHERE rolname = 'settle_member'") == []
