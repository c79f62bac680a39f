"""Alembic's entry: runs the migrations on the connection that `db.migrate` hands over."""

from __future__ import annotations

from alembic import context

from db.migrations import declare_compatibility
from db.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    transaction_per_migration=True,
    on_version_apply=declare_compatibility,
)
with context.begin_transaction():
    context.run_migrations()
