"""Contract: take away what only processes of revision 0003 needed."""

from __future__ import annotations

from alembic import op

from db.migrations import lock_tables, run_sql_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
compatible_from = "0004"


def upgrade() -> None:
    """Remove the rights that no process of revision 0004 uses."""
    lock_tables(op.get_bind(), ("payment_attempts", "settled_transfers", "payment_events"))
    run_sql_file(op.get_bind(), "0005_contract.sql")


def downgrade() -> None:
    """Like the first revision: what goes wrong is restored from a backup, not by granting again."""
    raise NotImplementedError("revision 0005 cannot be undone; restore a backup instead")
