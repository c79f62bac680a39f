"""Expand: finality in bulk. Which credited transfers are without an outcome, and how far each level of finality is.

Runs beside processes of revision 0006, which do not read the new tables: a trigger keeps them. Payments that were
credited before are tracked by their own workflows; those that have none are added by housekeeping.
"""

from __future__ import annotations

from alembic import op

from db.migrations import create_functions, lock_tables, run_sql_file

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
compatible_from = "0006"

CHANGED_TABLES = ("settled_transfers", "transfer_finality")

NEW_FUNCTIONS = ("await_finality_of_transfer", "end_wait_for_finality")


def upgrade() -> None:
    """Add what is new; nothing that a process of the revision before relies on is removed."""
    lock_tables(op.get_bind(), CHANGED_TABLES)
    create_functions(op.get_bind(), NEW_FUNCTIONS)
    run_sql_file(op.get_bind(), "0007_finality.sql")


def downgrade() -> None:
    """Like the first revision: what goes wrong is restored from a backup, not by dropping tables."""
    raise NotImplementedError("revision 0007 cannot be undone; restore a backup instead")
