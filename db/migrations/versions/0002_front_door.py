"""The HTTP interface: sign-in challenges, sessions, idempotency keys, rate limits."""

from __future__ import annotations

from alembic import op

from db.migrations import run_sql_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables and their SECURITY DEFINER functions."""
    run_sql_file(op.get_bind(), "0002_front_door.sql")


def downgrade() -> None:
    """Like the first revision: errors are fixed by restoring a backup, not by dropping tables."""
    raise NotImplementedError("revision 0002 cannot be undone; restore a backup instead")
