"""Expand: other ways to pay. Payment methods, deposit addresses, charges, deposits, payment by signature.

Runs beside processes of revision 0007, which make and settle attempts of kind `wallet` only: start watchers of deposit
addresses when all workers are of this revision (docs/decisions/rolling-deploys.md).
"""

from __future__ import annotations

from alembic import op

from db.migrations import build_indexes, create_functions, lock_tables, run_sql_file

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
compatible_from = "0007"

SQL_FILES = ("0008_deposits.sql", "0008_authorizations.sql", "0008_sweeps.sql", "0008_webhooks.sql")

# New tables name accounts and users: a foreign key locks what it names.
CHANGED_TABLES = (
    "payment_attempts",
    "users",
    "billing_accounts",
    "general_entries",
    "billing_alerts",
    "transfer_credits",
)

# Those of triggers, and what these call: from this transaction on they run with the version before.
NEW_FUNCTIONS = (
    "refresh_charge_of_deposit",
    "refresh_charge_of_attempt",
    "refresh_charge",
    "received_for_charge",
    "open_cash_accounts",
    "takes_webhook",
    "is_webhook_taken",
    "record_webhook_event",
    "as_utc",
    "record_webhook_of_payment",
    "record_webhook_of_transfer",
    "record_webhook_of_charge",
    "record_webhook_of_alert",
)

# A constant default is no rewrite of the table.
KIND = "ALTER TABLE payment_attempts ADD COLUMN IF NOT EXISTS kind text NOT NULL DEFAULT 'wallet'"
NONCE = "ALTER TABLE payment_attempts ADD COLUMN IF NOT EXISTS authorization_nonce text"

UNIQUE_INDEXES = {
    "payment_attempts_one_per_authorization": "ON payment_attempts"
    " (chain_id, lower(token), lower(from_address), authorization_nonce) WHERE authorization_nonce IS NOT NULL",
    "payment_attempts_hash_held_by_wallet": "ON payment_attempts (billing_account_id, chain_id, tx_hash)"
    " WHERE status IN ('PENDING_UNVERIFIED', 'CREDITED') AND kind = 'wallet'",
}


def upgrade() -> None:
    """Add what is new; nothing that a process of the revision before relies on is removed."""
    # Committed first: the indexes, which are built while others write, name the columns.
    with op.get_context().autocommit_block():
        op.execute(KIND)
        op.execute(NONCE)
    build_indexes(op.get_context(), UNIQUE_INDEXES, unique=True)
    lock_tables(op.get_bind(), CHANGED_TABLES)
    create_functions(op.get_bind(), NEW_FUNCTIONS)
    for name in SQL_FILES:
        run_sql_file(op.get_bind(), name)


def downgrade() -> None:
    """Like the first revision: what goes wrong is restored from a backup, not by dropping tables."""
    raise NotImplementedError("revision 0008 cannot be undone; restore a backup instead")
