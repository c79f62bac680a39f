"""The schema's migrations. Statements are plain SQL files: what runs is what a DBA reads.

From revision 0004 on a numbered file defines no function: their current text is in `db/functions`, and a revision
creates new ones with `create_functions`. Revisions 0001 to 0008 have been released and stay as they are.

A new revision runs with processes of the previous one (docs/decisions/rolling-deploys.md). Its module says with
`compatible_from` which revision of the code may still run with the resulting schema.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script
from psycopg import sql
from sqlalchemy import Connection, text

from db import functions

FIRST_DECLARED: Final = "0004"
"""The first revision that records which code may run with it."""


def run_sql_file(connection: Connection, name: str) -> None:
    """Run `sql/<name>` in the connection's transaction, unchanged (a `%` is a `%`)."""
    _driver(connection).execute((Path(__file__).parent / "sql" / name).read_bytes())


def create_functions(connection: Connection, names: Sequence[str]) -> None:
    """Create the functions of `db/functions` that a revision's triggers, policies or rights name, where missing."""
    functions.create(_driver(connection), names)


def lock_tables(connection: Connection, names: Sequence[str]) -> None:
    """Lock tables for a revision: call it first, with every table that is there and that the revision changes.

    The busiest comes first: the wait for it is `lock_timeout`, with nothing held. For all others together it is half
    of the server's `deadlock_timeout`: settlements lock them in another order, and of two transactions that wait for
    each other PostgreSQL ends the one that has waited for that long. Raises `psycopg.errors.LockNotAvailable`.
    """
    driver = _driver(connection)
    first, *others = names
    driver.execute(_exclusively(first))
    lock_timeout, deadlock_ms = driver.execute(
        "SELECT current_setting('lock_timeout'), setting::integer FROM pg_settings WHERE name = 'deadlock_timeout'"
    ).fetchone() or ("0", 0)
    ends_at = time.monotonic() + deadlock_ms / 1000 / 2
    for name in others:
        milliseconds_left = max(1, int((ends_at - time.monotonic()) * 1000))
        driver.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(milliseconds_left)))
        driver.execute(_exclusively(name))
    driver.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(lock_timeout)))


def _exclusively(table: str) -> sql.Composed:
    return sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table))


def build_indexes(context: MigrationContext, indexes: Mapping[str, str], *, unique: bool = False) -> None:
    """Build indexes, given as `{name: "ON table (columns) ..."}`, while others read and write their tables.

    Outside of a transaction, each at once and for good: call it first in a revision, so that nothing else of it is
    committed half. An index that a killed run left invalid is built again, one that is there stays.
    """
    assert context.connection is not None
    with context.autocommit_block():
        driver = _driver(context.connection)
        [lock_timeout] = driver.execute("SHOW lock_timeout").fetchone() or ("0",)
        # It waits for transactions that began before it, and no other transaction waits for it.
        driver.execute("SET lock_timeout = 0")
        for name, definition in indexes.items():
            row = driver.execute(
                "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (f"public.{name}",)
            ).fetchone()
            if row is not None and not row[0]:
                driver.execute(sql.SQL("DROP INDEX CONCURRENTLY public.{}").format(sql.Identifier(name)))
            if row is None or not row[0]:
                kind = "UNIQUE INDEX" if unique else "INDEX"
                driver.execute(f"CREATE {kind} CONCURRENTLY {name} {definition}".encode())
        driver.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(lock_timeout)))


def declare_compatibility(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    """Record, in a migration's own transaction, which code may run with the schema after it."""
    revision, script = step.up_revision_id, step.up_revision
    if revision is None or revision < FIRST_DECLARED:
        return
    assert isinstance(script, Script)
    assert ctx.connection is not None
    ctx.connection.execute(
        text(
            "INSERT INTO schema_compatibility (revision, compatible_from) VALUES (:revision, :compatible_from)"
            " ON CONFLICT (revision) DO UPDATE SET compatible_from = excluded.compatible_from, applied_at = now()"
        ),
        {"revision": revision, "compatible_from": script.module.compatible_from},
    )


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
