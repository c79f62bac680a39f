"""A payment attempt in SQL: what was agreed is write-once, a status takes the legal steps, CREDITED is earned."""

from __future__ import annotations

from contextlib import nullcontext
from uuid import UUID, uuid4

import pytest
from psycopg import sql
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    NotNullViolation,
    RestrictViolation,
    UniqueViolation,
)

from domain.payments.attempt import LEGAL_TRANSITIONS, OPEN_STATUSES, AttemptStatus
from tests.database.conftest import TwoTenants
from tests.support.payments import CHAIN_ID, NOW, TOKEN, TREASURY, tx_hash, wallet
from tests.support.sql import Connection, connect, refused

COLUMNS_IN_STATUS = {
    AttemptStatus.CREATED_INTENT: "tx_hash = NULL, submitted_at = NULL, error_code = NULL, expires_at = now()",
    AttemptStatus.PENDING_UNVERIFIED: (
        f"tx_hash = '{tx_hash(777)}', submitted_at = now(), error_code = NULL, expires_at = NULL"
    ),
    AttemptStatus.CREDITED: (
        f"tx_hash = '{tx_hash(777)}', submitted_at = now(), error_code = NULL, expires_at = NULL, revenue_share = 0.75"
    ),
    AttemptStatus.REJECTED: "error_code = 'INSUFFICIENT_AMOUNT', revenue_share = NULL",
    # The one failure that may turn out to be none.
    AttemptStatus.FAILED: "error_code = 'INTENT_EXPIRED', revenue_share = NULL",
    AttemptStatus.REVERSED: "error_code = NULL",
}
"""What a row must look like in each status, so that only the step itself can be refused."""


def _insert(connection: Connection, account: str, **changes: object) -> UUID:
    values: dict[str, object] = {
        "id": uuid4(),
        "billing_account_id": account,
        "from_address": wallet(1),
        "chain_id": CHAIN_ID,
        "token": TOKEN,
        "to_address": TREASURY,
        "amount_raw": 1_000_000,
        "amount_usd_cents": 100,
        "expires_at": NOW,
    } | changes
    statement = sql.SQL("INSERT INTO payment_attempts ({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(sql.Placeholder() * len(values))
    )
    connection.execute(statement, list(values.values()))
    attempt_id = values["id"]
    assert isinstance(attempt_id, UUID)
    return attempt_id


def _set(connection: Connection, attempt_id: UUID, assignments: str) -> None:
    connection.execute(sql.SQL("UPDATE payment_attempts SET " + assignments + " WHERE id = %s"), (attempt_id,))


def _step(connection: Connection, attempt_id: UUID, status: AttemptStatus) -> None:
    _set(connection, attempt_id, f"status = '{status}', {COLUMNS_IN_STATUS[status]}")


def _attempt_in(connection: Connection, account: str, status: AttemptStatus) -> UUID:
    attempt_id = _insert(connection, account)
    if status in (AttemptStatus.CREDITED, AttemptStatus.REJECTED, AttemptStatus.REVERSED):
        _step(connection, attempt_id, AttemptStatus.PENDING_UNVERIFIED)
    if status is AttemptStatus.REVERSED:
        _step(connection, attempt_id, AttemptStatus.CREDITED)
    if status is not AttemptStatus.CREATED_INTENT:
        _step(connection, attempt_id, status)
    return attempt_id


@pytest.mark.parametrize("after", AttemptStatus)
@pytest.mark.parametrize("before", AttemptStatus)
def test_the_database_allows_the_steps_that_the_domain_allows(
    two_tenants: TwoTenants, before: AttemptStatus, after: AttemptStatus
) -> None:
    # Never committed: whether CREDITED was earned is checked by other tests.
    with connect(two_tenants.database.migration_url) as owner:
        attempt_id = _attempt_in(owner, two_tenants.alice.account, before)
        stays = before is after and before in OPEN_STATUSES
        if stays or after in LEGAL_TRANSITIONS[before]:
            _step(owner, attempt_id, after)
        else:
            with refused(RestrictViolation, "payment_attempts_legal_transition"):
                _step(owner, attempt_id, after)
        owner.rollback()


@pytest.mark.parametrize("status", list(AttemptStatus)[1:])
def test_an_attempt_begins_as_an_intent(two_tenants: TwoTenants, status: AttemptStatus) -> None:
    with refused(CheckViolation, "payment_attempts_first_status"), connect(two_tenants.database.migration_url) as owner:
        _insert(owner, two_tenants.alice.account, status=status.value)


WRITE_ONCE = {
    "id": "gen_random_uuid()",
    "billing_account_id": "'cogni_system'",
    "from_address": f"'{wallet(9)}'",
    "chain_id": "1",
    "token": f"'{wallet(9)}'",
    "to_address": f"'{wallet(9)}'",
    "amount_raw": "1000000, amount_usd_cents = 100",
    "amount_usd_cents": "100, amount_raw = 1000000",
    "purpose": "'system'",
    "created_at": "now()",
}


@pytest.mark.parametrize("status", ["intent", "pending"])
@pytest.mark.parametrize("column", WRITE_ONCE)
def test_what_was_agreed_is_write_once(two_tenants: TwoTenants, column: str, status: str) -> None:
    attempt = two_tenants.alice.intent if status == "intent" else two_tenants.alice.pending
    with (
        refused(RestrictViolation, "payment_attempts_write_once"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _set(owner, attempt.id, f"{column} = {WRITE_ONCE[column]}")


def test_each_column_alone_is_write_once_where_no_other_rule_binds_it(two_tenants: TwoTenants) -> None:
    """amount_raw and amount_usd_cents go together; without their rule each of them is still write-once."""
    for column in ("amount_raw", "amount_usd_cents"):
        with connect(two_tenants.database.migration_url) as owner:
            owner.execute("ALTER TABLE payment_attempts DROP CONSTRAINT payment_attempts_amounts_agree")
            with refused(RestrictViolation, "payment_attempts_write_once"):
                _set(owner, two_tenants.alice.pending.id, f"{column} = {column} + 1")
            owner.rollback()


def test_what_was_agreed_may_be_written_again_as_it_is(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        _set(owner, two_tenants.alice.pending.id, "purpose = purpose, amount_raw = amount_raw, token = token")


@pytest.mark.parametrize("state", ["credited", "rejected"])
@pytest.mark.parametrize("assignment", [f"tx_hash = '{tx_hash(778)}'", "submission_count = 9", "error_code = 'X'"])
def test_an_ended_attempt_changes_no_more(two_tenants: TwoTenants, state: str, assignment: str) -> None:
    attempt = two_tenants.alice.credited if state == "credited" else two_tenants.alice.rejected
    with (
        refused(RestrictViolation, "payment_attempts_legal_transition"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _set(owner, attempt.id, assignment)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"amount_raw": 1_000_001}, "payment_attempts_amounts_agree"),
        ({"amount_raw": 0, "amount_usd_cents": 0}, "payment_attempts_amount_usd_cents_check"),
        ({"amount_raw": -1_000_000, "amount_usd_cents": -100}, "payment_attempts_amount_usd_cents_check"),
        ({"purpose": "gift"}, "payment_attempts_purpose_check"),
        ({"expires_at": None}, "payment_attempts_intent_has_expiry"),
        ({"tx_hash": tx_hash(1)}, "payment_attempts_intent_has_expiry"),
        ({"error_code": "TX_REVERTED"}, "payment_attempts_error_iff_refused"),
        ({"chain_id": 0}, "payment_attempts_chain_id_check"),
        ({"from_address": "0x12"}, "payment_attempts_from_address_check"),
        ({"token": "0x" + "g" * 40}, "payment_attempts_token_check"),
        ({"to_address": "0x" + "1" * 41}, "payment_attempts_to_address_check"),
    ],
)
def test_a_malformed_intent_is_refused(two_tenants: TwoTenants, changes: dict[str, object], constraint: str) -> None:
    with refused(CheckViolation, constraint), connect(two_tenants.database.migration_url) as owner:
        _insert(owner, two_tenants.alice.account, **changes)


def test_an_intent_for_no_account_is_refused(two_tenants: TwoTenants) -> None:
    with refused(ForeignKeyViolation), connect(two_tenants.database.migration_url) as owner:
        _insert(owner, "nobody")


def test_the_purpose_is_self_unless_it_is_said(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        attempt_id = _insert(owner, two_tenants.alice.account)
        found = owner.execute("SELECT purpose FROM payment_attempts WHERE id = %s", (attempt_id,)).fetchall()
    assert found == [("self",)]
    with refused(NotNullViolation), connect(two_tenants.database.migration_url) as owner:
        _insert(owner, two_tenants.alice.account, purpose=None)


PENDING = f"status = 'PENDING_UNVERIFIED', tx_hash = '{tx_hash(777)}', submitted_at = now(), expires_at = NULL"


@pytest.mark.parametrize(
    ("assignments", "constraint"),
    [
        (PENDING.replace(tx_hash(777), tx_hash(777)[:-1]), "payment_attempts_tx_hash_check"),
        (PENDING.replace(tx_hash(777), "0x" + "A" * 64), "payment_attempts_tx_hash_check"),
        (PENDING.replace(f"'{tx_hash(777)}'", "NULL"), "payment_attempts_submitted_has_hash"),
        (PENDING.replace("submitted_at = now()", "submitted_at = NULL"), "payment_attempts_submitted_has_hash"),
        (PENDING.replace("expires_at = NULL", "expires_at = now()"), "payment_attempts_submitted_has_hash"),
        (PENDING + ", error_code = 'TX_REVERTED'", "payment_attempts_error_iff_refused"),
        ("status = 'FAILED'", "payment_attempts_error_iff_refused"),
    ],
)
def test_a_step_with_the_wrong_facts_is_refused(two_tenants: TwoTenants, assignments: str, constraint: str) -> None:
    with refused(CheckViolation, constraint), connect(two_tenants.database.migration_url) as owner:
        _set(owner, two_tenants.alice.intent.id, assignments)
    with connect(two_tenants.database.migration_url) as owner:
        _set(owner, two_tenants.alice.intent.id, PENDING)


# -- CREDITED is earned

TRANSFER = (
    "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,"
    f" value_raw, surplus_raw) SELECT chain_id, %s, %s, id, 1, '{tx_hash(1)}', from_address, amount_raw, 0"
    " FROM payment_attempts WHERE id = %s"
)
"""Hash, log index and attempt: a transfer of just what was agreed."""


def _post_purchase(owner: Connection, account: str, attempt_id: UUID, amount: int = 1_000_000_000) -> None:
    owner.execute(
        "SELECT * FROM post_entry(%s, %s, 'credits_purchase', %s, 'cash:usdc', '{}')",
        (account, amount, str(attempt_id)),
    )


def _mark_credited(owner: Connection, attempt_id: UUID) -> None:
    _set(owner, attempt_id, "status = 'CREDITED', revenue_share = CASE purpose WHEN 'self' THEN 0.75 END")


def test_credited_with_a_transfer_and_its_entry_is_accepted_in_any_order(two_tenants: TwoTenants) -> None:
    for tenant, order in ((two_tenants.alice, (0, 1, 2)), (two_tenants.bob, (2, 1, 0))):
        attempt = tenant.pending
        with connect(two_tenants.database.migration_url) as owner:
            steps = (
                lambda owner=owner, attempt=attempt: owner.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id)),
                lambda owner=owner, attempt=attempt: _post_purchase(owner, attempt.billing_account_id, attempt.id),
                lambda owner=owner, attempt=attempt: _mark_credited(owner, attempt.id),
            )
            for number in order:
                steps[number]()


def test_credited_without_a_transfer_is_refused(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.pending
    with (
        refused(CheckViolation, "payment_attempts_credited_by_transfer"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _post_purchase(owner, two_tenants.alice.account, attempt.id)
        _mark_credited(owner, attempt.id)


def test_credited_without_an_entry_is_refused(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.pending
    with (
        refused(CheckViolation, "payment_attempts_credited_in_ledger"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id))
        _mark_credited(owner, attempt.id)


@pytest.mark.parametrize("amount", [999_999_999, 1_000_000_001])
def test_credited_with_an_entry_of_another_amount_is_refused(two_tenants: TwoTenants, amount: int) -> None:
    attempt = two_tenants.alice.pending
    with (
        refused(CheckViolation, "payment_attempts_credited_in_ledger"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id))
        _post_purchase(owner, two_tenants.alice.account, attempt.id, amount)
        _mark_credited(owner, attempt.id)


def test_credited_with_an_entry_on_another_account_is_refused(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.pending
    with (
        refused(CheckViolation, "payment_attempts_credited_in_ledger"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id))
        _post_purchase(owner, two_tenants.bob.account, attempt.id)
        _mark_credited(owner, attempt.id)


def test_a_donation_credited_to_the_donor_is_refused(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.pending_donation
    with (
        refused(CheckViolation, "payment_attempts_credited_in_ledger"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id))
        _post_purchase(owner, two_tenants.alice.account, attempt.id)
        _mark_credited(owner, attempt.id)


@pytest.mark.parametrize("purpose", ["self", "system"])
def test_credited_with_an_entry_for_another_reason_is_refused(two_tenants: TwoTenants, purpose: str) -> None:
    attempt = two_tenants.alice.pending if purpose == "self" else two_tenants.alice.pending_donation
    account = two_tenants.alice.account if purpose == "self" else "cogni_system"
    reason = "system_donation" if purpose == "self" else "credits_purchase"
    with (
        refused(CheckViolation, "payment_attempts_credited_in_ledger"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id))
        owner.execute(
            "SELECT * FROM post_entry(%s, 1000000000, %s, %s, 'cash:usdc', '{}')", (account, reason, str(attempt.id))
        )
        _mark_credited(owner, attempt.id)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("chain_id", "chain_id + 1"),
        ("tx_hash", f"'{tx_hash(999)}'"),
        ("from_address", f"'{wallet(99)}'"),
        ("value_raw", "amount_raw - 1"),
        ("value_raw", "amount_raw + 1"),
        ("surplus_raw", "1"),
    ],
)
def test_a_settled_transfer_is_what_was_agreed(two_tenants: TwoTenants, column: str, value: str) -> None:
    attempt = two_tenants.alice.pending
    facts = {"chain_id": "chain_id", "tx_hash": "tx_hash", "from_address": "from_address",
             "value_raw": "amount_raw", "surplus_raw": "0"} | {column: value}  # fmt: skip
    statement = (
        f"INSERT INTO settled_transfers ({', '.join(facts)}, log_index, attempt_id, block_number, block_hash)"
        f" SELECT {', '.join(facts.values())}, 0, id, 1, tx_hash FROM payment_attempts WHERE id = %s"
    )
    with (
        refused(CheckViolation, "settled_transfers_pays_what_was_agreed"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(statement, (attempt.id,))
        _post_purchase(owner, two_tenants.alice.account, attempt.id)
        _mark_credited(owner, attempt.id)


@pytest.mark.parametrize("share", ["NULL", "-0.01", "1.01"])
def test_a_credited_purchase_has_a_share_from_0_to_1(two_tenants: TwoTenants, share: str) -> None:
    with refused(CheckViolation), connect(two_tenants.database.migration_url) as owner:
        _set(owner, two_tenants.alice.pending.id, f"status = 'CREDITED', revenue_share = {share}")


def test_a_donation_has_no_share(two_tenants: TwoTenants) -> None:
    with (
        refused(CheckViolation, "payment_attempts_purchase_has_share"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _set(owner, two_tenants.alice.pending_donation.id, "status = 'CREDITED', revenue_share = 0.75")


@pytest.mark.parametrize("state", ["pending", "intent", "rejected"])
def test_a_settled_transfer_of_an_attempt_that_is_not_credited_is_refused(two_tenants: TwoTenants, state: str) -> None:
    attempt = {
        "pending": two_tenants.alice.pending,
        "intent": two_tenants.alice.intent,
        "rejected": two_tenants.alice.rejected,
    }[state]
    with (
        refused(CheckViolation, "settled_transfers_pays_credited_attempt"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(TRANSFER, (tx_hash(5), 0, attempt.id))


def test_a_worker_cannot_keep_the_credits_of_a_purchase_that_did_not_end(two_tenants: TwoTenants) -> None:
    attempt = two_tenants.alice.pending
    with (
        refused(CheckViolation, "settled_transfers_pays_credited_attempt"),
        connect(two_tenants.database.settlement_url, user_id=two_tenants.alice.user_id) as worker,
    ):
        worker.execute(TRANSFER, (attempt.tx_hash, 0, attempt.id))
        worker.execute("SELECT * FROM post_own_purchase(%s, 1000000000, 'cash:usdc', '{}')", (attempt.id,))


@pytest.mark.parametrize(
    ("triggers", "constraint"),
    [(True, "settled_transfers_not_credited_by_operator"), (False, "settled_transfers_one_attempt_per_transfer")],
)
def test_one_transfer_does_not_pay_two_attempts(two_tenants: TwoTenants, triggers: bool, constraint: str) -> None:
    """By the trigger, which knows the transfer in another block too, and without it by the key."""
    paid = two_tenants.alice.credited
    with (
        refused(UniqueViolation, constraint),
        connect(two_tenants.database.superuser_url, triggers=triggers) as owner,
    ):
        owner.execute(TRANSFER, (paid.tx_hash, 0, two_tenants.alice.pending.id))


def test_one_attempt_is_not_paid_by_two_transfers(two_tenants: TwoTenants) -> None:
    paid = two_tenants.alice.credited
    with (
        refused(UniqueViolation, "settled_transfers_one_transfer_per_attempt"),
        connect(two_tenants.database.superuser_url, triggers=False) as owner,
    ):
        owner.execute(TRANSFER, (paid.tx_hash, 1, paid.id))


# -- who holds a hash

HOLD = "status = 'PENDING_UNVERIFIED', tx_hash = '{}', submitted_at = now(), expires_at = NULL"


def test_a_payer_holds_a_hash_once_and_another_payer_may_name_it_too(two_tenants: TwoTenants) -> None:
    held = str(two_tenants.alice.pending.tx_hash)
    with (
        refused(UniqueViolation, "payment_attempts_hash_held_by_account"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _set(owner, two_tenants.alice.intent.id, HOLD.format(held))
    with connect(two_tenants.database.migration_url) as owner:
        _set(owner, two_tenants.bob.intent.id, HOLD.format(held))


def test_a_credited_attempt_holds_its_hash_and_a_rejected_one_let_go(two_tenants: TwoTenants) -> None:
    with (
        refused(UniqueViolation, "payment_attempts_hash_held_by_account"),
        connect(two_tenants.database.migration_url) as owner,
    ):
        _set(owner, two_tenants.alice.intent.id, HOLD.format(two_tenants.alice.credited.tx_hash))
    with connect(two_tenants.database.migration_url) as owner:
        _set(owner, two_tenants.alice.intent.id, HOLD.format(two_tenants.alice.rejected.tx_hash))


def test_the_same_hash_on_another_chain_is_another_transaction(two_tenants: TwoTenants) -> None:
    with connect(two_tenants.database.migration_url) as owner:
        elsewhere = _insert(owner, two_tenants.alice.account, chain_id=CHAIN_ID + 1)
        _set(owner, elsewhere, HOLD.format(two_tenants.alice.pending.tx_hash))


@pytest.mark.parametrize("role", ["settle_app", "settle_service", "settle_owner"])
def test_an_attempt_is_from_the_wallet_of_its_account(two_tenants: TwoTenants, role: str) -> None:
    """Otherwise an attempt could wait for a stranger's transfer."""
    with (
        refused(CheckViolation, "payment_attempts_from_own_wallet"),
        connect(two_tenants.database.url_as(role), user_id=two_tenants.alice.user_id) as connection,
    ):
        _insert(connection, two_tenants.alice.account, from_address=wallet(2))


DEPOSIT: dict[str, object] = {
    "kind": "deposit",
    "amount_credits": 10_000_000,
    "value_raw": 1_000_000,
    "cash_account": "cash:usdc:deposits",
    "purpose": "self",
}
"""A deposit's attempt, of what has come."""


def test_only_a_worker_says_that_a_deposit_has_come(two_tenants: TwoTenants) -> None:
    alice = two_tenants.alice
    with (
        refused(InsufficientPrivilege, "payment_attempts_deposit_by_worker"),
        connect(two_tenants.database.app_url, user_id=alice.user_id) as app,
    ):
        _insert(app, alice.account, **DEPOSIT)
    with connect(two_tenants.database.service_url) as service:
        _insert(service, alice.account, **DEPOSIT)


@pytest.mark.parametrize("surplus_raw", [0, 1])
def test_a_deposit_is_paid_by_exactly_what_came(two_tenants: TwoTenants, surplus_raw: int) -> None:
    account = two_tenants.alice.account
    with (
        refused(CheckViolation, "settled_transfers_pays_what_was_agreed") if surplus_raw else nullcontext(),
        connect(two_tenants.database.migration_url) as owner,
    ):
        owner.execute(
            "INSERT INTO ledger_accounts (code, name, type, normal_side)"
            " VALUES ('cash:usdc:deposits', 'at addresses', 'asset', 'debit') ON CONFLICT DO NOTHING"
        )
        attempt_id = _insert(owner, account, **DEPOSIT)
        _step(owner, attempt_id, AttemptStatus.PENDING_UNVERIFIED)
        owner.execute(
            "INSERT INTO settled_transfers (chain_id, tx_hash, from_address, value_raw, surplus_raw, log_index,"
            " attempt_id, block_number, block_hash) SELECT chain_id, tx_hash, from_address, value_raw + %s, %s, 0, id,"
            " 1, tx_hash FROM payment_attempts WHERE id = %s",
            (surplus_raw, surplus_raw, attempt_id),
        )
        owner.execute(
            "SELECT * FROM post_entry(%s, 10000000, 'credits_purchase', %s, 'cash:usdc:deposits', '{}')",
            (account, str(attempt_id)),
        )
        _step(owner, attempt_id, AttemptStatus.CREDITED)
