"""Expand: what faults that cost money or misled operators need. Runs beside processes of revision 0003."""

from __future__ import annotations

from alembic import op

from db.migrations import build_indexes, create_functions, lock_tables, run_sql_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
compatible_from = "0003"

SQL_FILES = (
    "0004_compatibility.sql",
    "0004_settlement_role.sql",
    "0004_chain_identity.sql",
    "0004_transfer_rules.sql",
    "0004_chain_operations.sql",
    "0004_findings.sql",
)

CHANGED_TABLES = (
    *("payment_attempts", "settled_transfers", "payment_events", "users", "billing_accounts", "virtual_keys"),
    *("credit_ledger", "transfer_credits", "observed_transfers", "chain_cursors"),
)

NEW_FUNCTIONS = (
    *(
        "schema_compatible_from",
        "prove_writes",
        "guard_attempt_by_role",
        "note_first_destination",
        "keep_payable_until",
    ),
    *("check_transfer_credit_finding", "check_observed_attempt"),
    *("treasuries", "non_payer_kind", "answered_blocks", "first_block_answered_for"),
    *("check_settled_income", "check_credited_income", "check_wallet_is_somebodys"),
)

# Unknown values first, then the largest: an index read backwards gives that order. The second is for findings that are
# not published yet.
INDEXES = {
    "findings_open_by_value": "ON findings (value_raw, created_at, id) WHERE resolved_at IS NULL",
    "findings_to_announce_by_value": "ON findings (value_raw, created_at, id) WHERE announced_at IS NULL",
}


def upgrade() -> None:
    """Add what is new; nothing that a process of the revision before relies on goes away."""
    build_indexes(op.get_context(), INDEXES)
    lock_tables(op.get_bind(), CHANGED_TABLES)
    create_functions(op.get_bind(), NEW_FUNCTIONS)
    for name in SQL_FILES:
        run_sql_file(op.get_bind(), name)


def downgrade() -> None:
    """Like the first revision: what goes wrong is restored from a backup, not by dropping tables."""
    raise NotImplementedError("revision 0004 cannot be undone; restore a backup instead")
