"""The settlement engine: accounts, ledger, payments, row-level security.

The roles settle_app and settle_service exist before this runs (`db.migrate` sees to it).
"""

from __future__ import annotations

from alembic import op

from db.migrations import run_sql_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL_FILES = ("0001_tables.sql", "0001_invariants.sql", "0001_doors.sql", "0001_row_level_security.sql")


def upgrade() -> None:
    """Create everything from empty; each file's first comment says what it holds."""
    connection = op.get_bind()
    for name in SQL_FILES:
        run_sql_file(connection, name)


def downgrade() -> None:
    """There is no way back from the first revision: an append-only ledger is not dropped by a command."""
    raise NotImplementedError("revision 0001 cannot be undone; restore a backup instead")
