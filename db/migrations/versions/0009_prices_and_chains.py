"""Expand: prices of what is not a dollar, and chains that are no EVM chains.

Runs beside processes of revision 0008, which register and credit no such tokens: add the first method with a price when
all workers are of this revision (docs/decisions/rolling-deploys.md).
"""

from __future__ import annotations

from alembic import op

from db.migrations import create_functions, lock_tables, run_sql_file

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
compatible_from = "0008"

# One file for each part. None needs what another one makes.
SQL_FILES = ("0009_prices.sql", "0009_relay.sql", "0009_sweeps.sql", "0009_utxo.sql")

# Every table of before that one of the files changes, or names in a foreign key.
# The busiest first: nothing is held while it is waited for.
CHANGED_TABLES = (
    "payment_attempts",
    "payment_methods",
    "charges",
    "deposits",
    "transfer_credits",
    "sweep_transactions",
    "relay_nonces",
    "relayers",
    "observed_transfers",
)

# Those of triggers, and what these call: from this transaction on they run with the version before.
NEW_FUNCTIONS: tuple[str, ...] = ("note_operator_credit_of_deposit",)


def upgrade() -> None:
    """Add what is new; nothing that a process of the revision before relies on is removed."""
    lock_tables(op.get_bind(), CHANGED_TABLES)
    create_functions(op.get_bind(), NEW_FUNCTIONS)
    for name in SQL_FILES:
        run_sql_file(op.get_bind(), name)


def downgrade() -> None:
    """Like the first revision: what goes wrong is restored from a backup, not by dropping tables."""
    raise NotImplementedError("revision 0009 cannot be undone; restore a backup instead")
