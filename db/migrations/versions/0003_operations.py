"""Nothing is left behind: finality, the chain watcher, findings and remedies, governance, the books' checkpoints."""

from __future__ import annotations

from alembic import op

from db.migrations import run_sql_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SQL_FILES = (
    "0003_finality.sql",
    "0003_watching.sql",
    "0003_governance.sql",
    "0003_books.sql",
    "0003_remedies.sql",
    "0003_rights.sql",
)


def upgrade() -> None:
    """Create the tables, their checks and rights."""
    for name in SQL_FILES:
        run_sql_file(op.get_bind(), name)


def downgrade() -> None:
    """Like the first revision: errors are fixed by restoring a backup, not by dropping tables."""
    raise NotImplementedError("revision 0003 cannot be undone; restore a backup instead")
