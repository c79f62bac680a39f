"""Rights in the database, as data.

`settle migrate` grants missing rights from this table and revokes excessive ones; the start-up check (`db.startup`)
refuses a process that can write or call more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple

import psycopg
from psycopg import sql

APP_ROLE: Final = "settle_app"
SETTLEMENT_ROLE: Final = "settle_settlement"
SERVICE_ROLE: Final = "settle_service"
OPERATOR_ROLE: Final = "settle_operator"
RELAY_ROLE: Final = "settle_relay"
ROLES: Final = (APP_ROLE, SETTLEMENT_ROLE, SERVICE_ROLE, OPERATOR_ROLE, RELAY_ROLE)
OPTIONAL_ROLES: Final = frozenset({OPERATOR_ROLE, RELAY_ROLE})
"""Roles that exist only where they have an address."""
EVERYBODY: Final = "public"
"""The privilege's name in PostgreSQL."""

WHOLE: Final[tuple[str, ...]] = ()
"""In place of columns: the right is to the whole table, including future columns."""

_READ: Final = {"SELECT": WHOLE}
_APPEND: Final = {"SELECT": WHOLE, "INSERT": WHOLE}
_KEEP: Final = {"SELECT": WHOLE, "INSERT": WHOLE, "UPDATE": WHOLE}
_ALL_ROWS: Final = {"SELECT": WHOLE, "INSERT": WHOLE, "UPDATE": WHOLE, "DELETE": WHOLE}
_CORRECT: Final = {"SELECT": WHOLE, "UPDATE": WHOLE}

_READ_BY_WORKERS: Final = {role: _READ for role in (APP_ROLE, SETTLEMENT_ROLE, SERVICE_ROLE)}
# The relay reads no table: it calls functions.
_READ_BY_ALL: Final = {role: _READ for role in ROLES if role != RELAY_ROLE}

_INTENT: Final = (
    *("id", "billing_account_id", "from_address", "chain_id", "token", "to_address", "amount_raw", "amount_usd_cents"),
    *("purpose", "status", "expires_at", "created_at", "kind", "amount_credits", "value_raw"),
    "cash_account",
)
_METHOD: Final = {
    "SELECT": WHOLE,
    "INSERT": WHOLE,
    "UPDATE": ("enabled", "min_amount_raw", "confirmations", "updated_at"),
}
_RING: Final = {"SELECT": WHOLE, "INSERT": ("id", "curve", "path", "xpub", "fingerprint", "gap_limit")}
_DEPOSIT_ADDRESS: Final = (
    *("id", "chain_id", "address", "scheme", "ring_id", "index", "salt", "treasury", "billing_account_id"),
    "charge_id",
)
_CHARGE: Final = (
    *("id", "billing_account_id", "method_id", "amount_usd_cents", "quoted_amount_raw", "address_id"),
    *("price_expires_at", "metadata", "quote_id"),
)
_SUBMISSION: Final = ("status", "tx_hash", "error_code", "expires_at", "submitted_at", "submission_count")
_CREDIT: Final = (*_SUBMISSION, "revenue_share")
# Ids and times of rows are the database's own.
_EVENT: Final = ("attempt_id", "event_type", "from_status", "to_status", "error_code", "metadata")
_TRANSFER: Final = (
    *("chain_id", "tx_hash", "log_index", "attempt_id", "block_number", "block_hash", "from_address", "value_raw"),
    *("surplus_raw", "unapplied_raw"),
)

# Of a delivery: what came of it.
_DELIVERED: Final = ("state", "failures", "due_at", "started_at", "ended_at")
_TRY: Final = ("delivery_id", "billing_account_id", "sent_at", "duration_ms", "status_code", "response_head", "error")

_PRICE_VERSION: Final = {"SELECT": WHOLE, "INSERT": ("source", "counts_from", "created_by")}
_ACCOUNT: Final = {"SELECT": WHOLE, "UPDATE": ("name", "limit_day_credits", "limit_month_credits")}

TABLES: Final[Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]] = {
    # accounts
    "users": _READ_BY_ALL,
    "billing_accounts": {**_READ_BY_ALL, SERVICE_ROLE: _ACCOUNT},
    "virtual_keys": _READ_BY_WORKERS,
    "login_challenges": {},
    "sessions": {},
    "rate_limits": {},
    "idempotency_keys": {
        APP_ROLE: {"SELECT": WHOLE, "INSERT": ("billing_account_id", "key", "request_hash", "answer")}
    },
    "account_members": {APP_ROLE: _READ, SETTLEMENT_ROLE: _READ, SERVICE_ROLE: _ALL_ROWS},
    "billing_grants": {APP_ROLE: _READ, SERVICE_ROLE: _KEEP},
    # ledger
    "ledger_accounts": {SERVICE_ROLE: _READ, OPERATOR_ROLE: _READ},
    "credit_ledger": _READ_BY_ALL,
    "general_entries": {SERVICE_ROLE: _READ},
    "journal_lines": {SERVICE_ROLE: _READ, OPERATOR_ROLE: _READ},
    "books_checkpoints": {SERVICE_ROLE: _CORRECT},
    "books_checks": {SERVICE_ROLE: _CORRECT},
    "books_violations": {SERVICE_ROLE: _KEEP},
    # payments
    "payment_attempts": {
        APP_ROLE: {"SELECT": WHOLE, "INSERT": _INTENT, "UPDATE": _SUBMISSION},
        # It creates no intents and no accounts: it credits what was requested through another role.
        SETTLEMENT_ROLE: {"SELECT": WHOLE, "UPDATE": _CREDIT},
        SERVICE_ROLE: {"SELECT": WHOLE, "INSERT": _INTENT, "UPDATE": _CREDIT},
        OPERATOR_ROLE: _READ,
    },
    "payment_events": {
        APP_ROLE: {"SELECT": WHOLE, "INSERT": _EVENT},
        SETTLEMENT_ROLE: {"SELECT": WHOLE, "INSERT": _EVENT},
        SERVICE_ROLE: _APPEND,
        OPERATOR_ROLE: _READ,
    },
    "settled_transfers": {
        APP_ROLE: _READ,
        SETTLEMENT_ROLE: {"SELECT": WHOLE, "INSERT": _TRANSFER},
        SERVICE_ROLE: _APPEND,
        OPERATOR_ROLE: _READ,
    },
    "transfer_finality": {SERVICE_ROLE: _APPEND, OPERATOR_ROLE: _READ},
    # What was claimed, a function writes.
    "payment_authorizations": {
        APP_ROLE: {"SELECT": WHOLE, "INSERT": ("attempt_id", "own_nonce")},
        SERVICE_ROLE: _READ,
    },
    # What payers sign for charges, functions write.
    "charge_authorizations": {SERVICE_ROLE: _READ},
    "relayers": {SERVICE_ROLE: _READ},
    "relay_nonces": {SERVICE_ROLE: _READ},
    "relay_transactions": {SERVICE_ROLE: _READ},
    # A trigger keeps it: workers add what has lost its row, and delete none.
    "transfers_awaiting_finality": {APP_ROLE: _READ, SERVICE_ROLE: _APPEND, OPERATOR_ROLE: _READ},
    "finality_progress": {APP_ROLE: _READ, SERVICE_ROLE: _KEEP, OPERATOR_ROLE: _READ},
    # deposits
    "address_rings": {APP_ROLE: _READ, SERVICE_ROLE: _RING},
    "payment_methods": {APP_ROLE: _READ, SERVICE_ROLE: _METHOD},
    "deposit_addresses": {
        APP_ROLE: {"SELECT": WHOLE, "INSERT": _DEPOSIT_ADDRESS, "UPDATE": ("active_at",)},
        SERVICE_ROLE: {"SELECT": WHOLE, "INSERT": _DEPOSIT_ADDRESS, "UPDATE": ("active_at",)},
    },
    "charges": {
        APP_ROLE: {"SELECT": WHOLE, "INSERT": _CHARGE},
        SERVICE_ROLE: {"SELECT": WHOLE, "INSERT": _CHARGE},
    },
    "deposits": {APP_ROLE: _READ, SERVICE_ROLE: _ALL_ROWS},
    "price_sources": {APP_ROLE: _READ, SERVICE_ROLE: _APPEND},
    "price_quotes": {APP_ROLE: _APPEND, SERVICE_ROLE: _APPEND},
    "sweeps": {SERVICE_ROLE: {"SELECT": WHOLE, "INSERT": ("id", "chain_id", "plan"), "UPDATE": ("status", "ended_at")}},
    "sweep_transactions": {
        SERVICE_ROLE: {
            "SELECT": WHOLE,
            "INSERT": ("chain_id", "tx_hash", "sweep_id", "sender", "nonce", "raw"),
            "UPDATE": ("outcome", "block_number", "spent_wei", "gas_used", "gas_price_wei", "l1_fee_wei"),
        }
    },
    "swept_transfers": {SERVICE_ROLE: _READ},
    "sweep_cursors": {SERVICE_ROLE: _KEEP},
    # transfers
    "payment_destinations": {SERVICE_ROLE: _APPEND},
    "observed_transfers": {SERVICE_ROLE: _ALL_ROWS, OPERATOR_ROLE: _READ},
    "orphaned_transfers": {SERVICE_ROLE: _APPEND},
    "chain_cursors": {SERVICE_ROLE: _ALL_ROWS, OPERATOR_ROLE: _READ},
    "chain_gaps": {SERVICE_ROLE: _KEEP},
    "watched_blocks": {SERVICE_ROLE: _ALL_ROWS},
    # billing
    "price_versions": {APP_ROLE: _READ, SERVICE_ROLE: _PRICE_VERSION},
    "model_prices": {APP_ROLE: _READ, SERVICE_ROLE: _APPEND},
    "credit_holds": {APP_ROLE: _READ, SERVICE_ROLE: _READ},
    "charge_receipts": {APP_ROLE: _READ, SERVICE_ROLE: _READ},
    "charge_references": {SERVICE_ROLE: _READ},
    "usage_by_day": {APP_ROLE: _READ, SERVICE_ROLE: _READ},
    "billing_alerts": {
        APP_ROLE: _READ,
        SERVICE_ROLE: {"SELECT": WHOLE, "UPDATE": ("announced_at",)},
    },
    "call_claims": {},
    "billing_cursors": {SERVICE_ROLE: {"SELECT": WHOLE, "UPDATE": ("seen_to",)}},
    # webhooks: written by functions only. Who signs reads the secrets, and nothing that people reach does.
    "webhook_endpoints": {
        APP_ROLE: _READ,
        SERVICE_ROLE: {"SELECT": WHOLE, "UPDATE": ("disabled_at", "disabled_reason")},
    },
    "webhook_secrets": {SERVICE_ROLE: _READ},
    "webhook_events": {APP_ROLE: _READ, SERVICE_ROLE: _READ},
    "webhook_deliveries": {
        APP_ROLE: _READ,
        SERVICE_ROLE: {"SELECT": WHOLE, "UPDATE": _DELIVERED},
    },
    "webhook_tries": {APP_ROLE: _READ, SERVICE_ROLE: {"SELECT": WHOLE, "INSERT": _TRY}},
    # operations
    "findings": {SERVICE_ROLE: _KEEP},
    "operator_actions": {SERVICE_ROLE: _APPEND},
    "transfer_credits": {SERVICE_ROLE: _APPEND},
    "balance_assertions": {SERVICE_ROLE: _APPEND},
    "governance_heartbeats": {SERVICE_ROLE: _KEEP},
    "governance_calls": {SERVICE_ROLE: _APPEND},
    # schema
    "alembic_version": {role: _READ for role in ROLES},
    "schema_compatibility": {},
    "write_probes": {},
}
"""Table -> role -> privilege -> columns. Rights that are not here belong to the owner only."""

FUNCTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    # accounts; the scope is in every policy
    "current_tenant": (EVERYBODY,),
    "system_tenant_is_flagged": ROLES,
    "provision_wallet": (APP_ROLE, SERVICE_ROLE),
    "open_login_challenge": (APP_ROLE,),
    "find_login_challenge": (APP_ROLE,),
    "open_session": (APP_ROLE,),
    "find_session": (APP_ROLE,),
    "end_session": (APP_ROLE,),
    "end_sessions_of_wallet": (SERVICE_ROLE,),
    "take_from_rate_limits": (APP_ROLE,),
    "open_account": (SERVICE_ROLE,),
    "may_manage_account": (APP_ROLE, SERVICE_ROLE),
    "create_key": (APP_ROLE, SERVICE_ROLE),
    "rotate_key": (APP_ROLE, SERVICE_ROLE),
    "revoke_key": (APP_ROLE, SERVICE_ROLE),
    "members_of_account": (APP_ROLE, SERVICE_ROLE),
    "prune_expired": (SERVICE_ROLE,),
    # ledger
    "post_entry": (SERVICE_ROLE,),
    "post_own_purchase": (SETTLEMENT_ROLE,),
    "credits_of_cents": (SERVICE_ROLE,),
    "credits_of_attempt": (SERVICE_ROLE,),
    "bonus_of_credits": (SERVICE_ROLE,),
    "credits_of_usd": (SERVICE_ROLE,),
    # payments
    "unfinished_payments": (SERVICE_ROLE,),
    "observed_payments": (APP_ROLE, SETTLEMENT_ROLE),
    "observed_payment_time": (APP_ROLE, SETTLEMENT_ROLE),
    "own_attempt": (APP_ROLE, SETTLEMENT_ROLE),
    "record_own_submission": (APP_ROLE, SETTLEMENT_ROLE, SERVICE_ROLE),
    "credit_own_purchase": (SETTLEMENT_ROLE,),
    # deposits
    "received_for_charge": (APP_ROLE, SERVICE_ROLE),
    "refresh_charge": (SERVICE_ROLE,),
    "allocate_index": (APP_ROLE, SERVICE_ROLE),
    "unpaid_at_the_end": (APP_ROLE, SERVICE_ROLE),
    "skip_indices": (SERVICE_ROLE,),
    "owner_of_charge": (APP_ROLE,),
    # authorizations
    "claim_authorization": (APP_ROLE,),
    "claim_by_transfer": (SERVICE_ROLE,),
    "relayed_hash": (APP_ROLE,),
    "relay_claims": (RELAY_ROLE,),
    "relay_next_nonce": (RELAY_ROLE,),
    "relay_store": (RELAY_ROLE,),
    "relay_open_transactions": (RELAY_ROLE,),
    "relay_sent": (RELAY_ROLE,),
    "relay_ended": (RELAY_ROLE,),
    "relay_spent_today": (RELAY_ROLE,),
    "relay_seen": (RELAY_ROLE,),
    "is_relay_there": (APP_ROLE,),
    "claim_charge_authorization": (APP_ROLE,),
    "charge_authorizations_of": (APP_ROLE,),
    "relay_charge_claims": (RELAY_ROLE,),
    "end_charge_authorization": (SERVICE_ROLE,),
    "book_swept_transfer": (SERVICE_ROLE,),
    # transfers
    "non_payer_kind": (APP_ROLE, SERVICE_ROLE, OPERATOR_ROLE),
    "first_block_answered_for": (SERVICE_ROLE, OPERATOR_ROLE),
    "watched_head": (APP_ROLE,),
    "treasuries": (SERVICE_ROLE,),
    "answered_blocks": (SERVICE_ROLE,),
    "is_alike": (SERVICE_ROLE,),
    "is_scope_of": (SERVICE_ROLE,),
    "lock_transfers_of": (SERVICE_ROLE,),
    "paid_transfers_of": (SERVICE_ROLE,),
    # billing: the gateway is a process that people reach
    "find_key": (APP_ROLE,),
    "hold_credits": (APP_ROLE,),
    "renew_hold": (APP_ROLE,),
    "capture_hold": (APP_ROLE, SERVICE_ROLE),
    "void_hold": (APP_ROLE, SERVICE_ROLE),
    "ingest_charge": (APP_ROLE,),
    "open_receipt_months": (SERVICE_ROLE,),
    "claim_call": (APP_ROLE,),
    "finish_call": (APP_ROLE,),
    "move_hold": (APP_ROLE,),
    "usage_of_request": (APP_ROLE,),
    # webhooks
    "create_webhook_endpoint": (APP_ROLE, SERVICE_ROLE),
    "rotate_webhook_secret": (APP_ROLE, SERVICE_ROLE),
    "delete_webhook_endpoint": (APP_ROLE, SERVICE_ROLE),
    "enable_webhook_endpoint": (APP_ROLE, SERVICE_ROLE),
    "redeliver_webhook": (APP_ROLE, SERVICE_ROLE),
    "replay_webhooks": (SERVICE_ROLE,),
    "prune_webhooks": (SERVICE_ROLE,),
    # operations
    "credits_without_bonus": (SERVICE_ROLE,),
    "attempt_of_reference": (SERVICE_ROLE,),
    "is_reason_of_payment": (SERVICE_ROLE,),
    "ledger_entries_with_cash": (SERVICE_ROLE,),
    "unexplained_entries": (SERVICE_ROLE,),
    "known_findings": (SERVICE_ROLE,),
    "transactions_between": (SERVICE_ROLE,),
    "received_transfers": (SERVICE_ROLE,),
    "settled_payments": (SERVICE_ROLE,),
    "operator_credits": (SERVICE_ROLE,),
    # schema
    "schema_compatible_from": ROLES,
    "prove_writes": (APP_ROLE, SETTLEMENT_ROLE, SERVICE_ROLE),
}
"""The roles that may call a function. One that is not here, such as a trigger's, is called by its owner only: attached
to a foreign table, a check would reveal in its error what its owner sees.
"""


class Right(NamedTuple):
    """One thing that a role may do, to one table, column or function."""

    role: str
    kind: str
    """TABLE, COLUMN, FUNCTION or SCHEMA."""
    name: str
    """Of a column with its table's in front."""
    privilege: str

    def __str__(self) -> str:
        return f"{self.name}()" if self.kind == "FUNCTION" else f"{self.name} {self.privilege}"


def _of_table(table: str, role: str, privileges: Mapping[str, tuple[str, ...]]) -> Iterable[Right]:
    for privilege, columns in privileges.items():
        if columns is WHOLE:
            yield Right(role, "TABLE", table, privilege)
        for column in columns:
            yield Right(role, "COLUMN", f"{table}.{column}", privilege)


GRANTED: Final = frozenset(
    [
        *(r for table, roles in TABLES.items() for role, may in roles.items() for r in _of_table(table, role, may)),
        *(Right(role, "FUNCTION", name, "EXECUTE") for name, roles in FUNCTIONS.items() for role in roles),
        *(Right(role, "SCHEMA", "public", "USAGE") for role in ROLES),
    ]
)
"""The rights of the roles when everything is up to date."""

BEFORE_CONTRACT: Final[frozenset[Right]] = frozenset()
"""Additional rights of a role while processes of the previous version may run: until the contracting revision.

None now: revision 0009 has no contracting successor."""

_WRITING: Final = frozenset({"INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER"})

# Of the tables and functions that this version has.
_FOUND: Final = """
    WITH acl AS (
        SELECT 'TABLE' AS kind, c.relname::text AS name, a.* FROM pg_class c,
               aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
         WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s)
         UNION ALL
        SELECT 'COLUMN', c.relname || '.' || t.attname, a.* FROM pg_class c
          JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped, aclexplode(t.attacl) a
         WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s)
         UNION ALL
        SELECT 'FUNCTION', f.proname, a.* FROM pg_proc f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
         WHERE f.pronamespace = 'public'::regnamespace AND f.proname = ANY (%(functions)s)
         UNION ALL
        SELECT 'SCHEMA', n.nspname, a.* FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'public'
    )
    SELECT CASE acl.grantee WHEN 0 THEN 'public' ELSE acl.grantee::regrole::text END, acl.kind, acl.name,
           acl.privilege_type
      FROM acl WHERE acl.grantee = 0 OR acl.grantee::regrole::text = ANY (%(roles)s)
"""


def written(role: str) -> frozenset[str]:
    """What a role may write, and the functions that it may call, as the start-up check names them."""
    return frozenset(str(right) for right in GRANTED if right.role == role and _is_power(right))


def written_before_contract(role: str) -> frozenset[str]:
    """The same of what it has besides, until the contracting revision."""
    return frozenset(str(right) for right in BEFORE_CONTRACT if right.role == role)


def _is_power(right: Right) -> bool:
    return right.kind == "FUNCTION" or right.privilege in _WRITING


def bring_up_to_date(
    driver: psycopg.Connection[Any], *, functions: Collection[str], optional: Collection[str], is_contracted: bool
) -> None:
    """Grant what is missing and revoke what is too much. In the caller's transaction.

    Of the tables that are listed here and of `functions`; others are another version's. Rights of an optional role are
    included only where it is in `optional`: roles belong to the server, and another database of it may have them.
    """
    roles = [role for role in ROLES if role not in OPTIONAL_ROLES or role in optional]
    looked_at = {"tables": list(TABLES), "functions": list(functions), "roles": roles}
    wanted = {
        right
        for right in (GRANTED if is_contracted else GRANTED | BEFORE_CONTRACT)
        if right.role in roles or right.role == EVERYBODY
    }

    def find() -> set[Right]:
        return {Right(*row) for row in driver.execute(_FOUND, looked_at).fetchall()}

    excess = {right for right in find() - wanted if right != Right(EVERYBODY, "SCHEMA", "public", "USAGE")}
    for statement in _statements("REVOKE", excess):
        driver.execute(statement)
    # Not what was found above: a right to a table takes those to its columns along.
    for statement in _statements("GRANT", wanted - find()):
        driver.execute(statement)


def _statements(verb: Literal["GRANT", "REVOKE"], rights: Collection[Right]) -> Iterable[sql.Composed]:
    def of_statement(right: Right) -> tuple[str, str, str, str]:
        return right.role, right.kind, right.name.partition(".")[0], right.privilege

    for (role, kind, name, privilege), group in groupby(sorted(rights, key=of_statement), key=of_statement):
        columns = sql.SQL(", ").join([sql.Identifier(right.name.partition(".")[2]) for right in group])
        words: list[sql.Composable] = [
            # Privileges and kinds are the server's own keywords.
            sql.SQL(f"{verb} {privilege}"),
            *([sql.SQL("({})").format(columns)] if kind == "COLUMN" else []),
            sql.SQL(f"ON {'TABLE' if kind == 'COLUMN' else kind}"),
            sql.Identifier(name) if kind == "SCHEMA" else sql.Identifier("public", name),
            sql.SQL("TO" if verb == "GRANT" else "FROM"),
            sql.SQL("PUBLIC") if role == EVERYBODY else sql.Identifier(role),
        ]
        yield sql.SQL(" ").join(words)
