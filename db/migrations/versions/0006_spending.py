"""Expand: spending credits. Service keys, holds, receipts, prices, entries that change no account's credits.

Runs beside processes of revision 0004, which neither hold nor charge. What they check of the ledger does not know
usage: start gateways when all workers are of this revision (docs/decisions/rolling-deploys.md).
"""

from __future__ import annotations

from alembic import op

from db.migrations import build_indexes, create_functions, lock_tables, run_sql_file

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
compatible_from = "0004"

SQL_FILES = ("0006_accounts.sql", "0006_ledger.sql", "0006_billing.sql", "0006_governance.sql")

# A settlement begins with payment_attempts, a bonus with credit_ledger, a sign-in with users: with these locked, in
# this order, nothing is in progress that holds one of the others.
CHANGED_TABLES = ("payment_attempts", "credit_ledger", "users", "billing_accounts", "virtual_keys", "journal_lines")

NEW_FUNCTIONS = ("guard_hold", "note_charge_reference", "open_receipt_months")

INDEXES = {"virtual_keys_by_account": "ON virtual_keys (billing_account_id)"}
UNIQUE_INDEXES = {"credit_ledger_one_usage_per_reference": "ON credit_ledger (reference) WHERE reason = 'llm_usage'"}


def upgrade() -> None:
    """Add what is new; nothing that a process of the revision before relies on is removed."""
    build_indexes(op.get_context(), INDEXES)
    build_indexes(op.get_context(), UNIQUE_INDEXES, unique=True)
    lock_tables(op.get_bind(), CHANGED_TABLES)
    create_functions(op.get_bind(), NEW_FUNCTIONS)
    for name in SQL_FILES:
        run_sql_file(op.get_bind(), name)


def downgrade() -> None:
    """Like the first revision: what goes wrong is restored from a backup, not by dropping tables."""
    raise NotImplementedError("revision 0006 cannot be undone; restore a backup instead")
