"""Databases that are used again: after a test its rows are put back, and a changed schema costs the database.

A new database takes 35 ms of CPU time, and connections that have never used its tables and functions 90 ms more.
Putting the rows back takes five.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy.pool import QueuePool

from tests.support.payments import RolePair
from tests.support.postgres import Cluster
from tests.support.sql import KEPT, count_kept, forget, lent_again

CATALOGS: Final[dict[LiteralString, LiteralString]] = {
    "pg_class": "true", "pg_attribute": "attrelid >= 16384", "pg_attrdef": "true", "pg_index": "true",
    "pg_constraint": "true", "pg_trigger": "true", "pg_policy": "true", "pg_proc": "oid >= 16384", "pg_type": "true",
    "pg_rewrite": "true", "pg_namespace": "true", "pg_default_acl": "true", "pg_extension": "true",
    "pg_statistic": "true", "pg_sequence": "true",
    "pg_db_role_setting": "setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
}  # fmt: skip
"""All that changes of the schema, of rights, of settings and of statistics are written to; not roles, which databases
share. Objects with smaller ids are PostgreSQL's own."""

SCHEMA: Final[LiteralString] = " UNION ALL ".join(
    [f"SELECT count(*), sum(xmin::text::bigint) FROM {name} WHERE {own}" for name, own in CATALOGS.items()]
    + [
        "SELECT 1, hashtext((datdba, datacl, datallowconn, datconnlimit)::text) FROM pg_database"
        " WHERE datname = current_database()"
    ]
)
"""Differs after every committed change: each version of a row names its transaction. It is the same in each copy."""

END_OTHERS: Final = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> %s
"""
ENDED_SECONDS_MAX: Final = 5.0
ENDED_POLL_SECONDS: Final = 0.002
"""`pg_terminate_backend` itself, if it is to wait, polls each 0.1 s."""
NEXT_TRANSACTION: Final = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
OTHERS: Final = f"""
    SELECT count(*), count(*) FILTER (WHERE state <> 'idle'), count(*) FILTER (WHERE application_name <> %s),
           ({NEXT_TRANSACTION})
      FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
THIS_TRANSACTION: Final = "SELECT pg_current_xact_id()::text::bigint"
SEQUENCES: Final = "SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences"
TABLES: Final = """
    SELECT c.oid::regclass::text, string_agg(quote_ident(a.attname), ', ') FROM pg_class c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
     WHERE c.relkind = 'r' AND c.oid >= 16384 AND c.relpersistence <> 't' GROUP BY c.oid
"""
USED: Final = """
    SELECT oid::regclass::text FROM pg_class
     WHERE relkind = 'r' AND oid >= 16384 AND relpersistence <> 't' AND pg_relation_size(oid) > 0
"""
"""Tables that have rows, or had some."""

VERSIONS: Final = "SELECT '{table}', count(*), sum(xmin::text::bigint) FROM {table}"
"""Differs after every committed change of a table's rows, as `SCHEMA` does of the catalogues."""

SETTINGS: Final = ("SET session_replication_role = replica", "SET lock_timeout = '5s'")
ROWS: Final = "SELECT quote_literal(json_agg(t)::text) FROM {table} t"
INSERT: Final = (
    "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"
    " SELECT {columns} FROM json_populate_recordset(NULL::{table}, {rows}::json)"
)

Superuser = psycopg.AsyncConnection[TupleRow]


async def _all(superuser: Superuser, question: str, *values: object) -> list[TupleRow]:
    return await (await superuser.execute(question.encode(), values or None)).fetchall()


@dataclass(frozen=True, slots=True)
class Content:
    """What a database held when it was read, which can be put back."""

    _schema: list[TupleRow]
    _rows: dict[str, str]
    """Statements that put the rows back, of each table that had any."""
    _numbers: str
    """Puts the sequences back."""
    _versions: dict[str, TupleRow]
    """Of the rows of each table that had any. They are put back only where something was written to them."""
    _put_back_as: dict[int, dict[str, TupleRow]] = field(default_factory=dict)
    """The same after they were put back, by the connection of that number."""
    _next: dict[int, int] = field(default_factory=dict)
    """The server's next transaction, after the rows were put back by the connection of that number. While it is the
    next one still, no transaction of any database has written."""

    @classmethod
    async def read(cls, superuser: Superuser) -> Content:
        """From the database of the connection, which no test has changed yet."""
        rows = {}
        for table, columns in await _all(superuser, TABLES):
            [(content,)] = await _all(superuser, ROWS.format(table=table))
            if content is not None:
                rows[table] = INSERT.format(table=table, columns=columns, rows=content)
        numbers = []
        for (name,) in await _all(superuser, SEQUENCES):
            [(last, is_called)] = await _all(superuser, f"SELECT last_value, is_called FROM {name}")
            numbers.append(f"SELECT setval('{name}', {last}, {is_called})")
        versions = await _versions(superuser, list(rows))
        return cls(await _all(superuser, SCHEMA), rows, "; ".join(numbers), versions)

    async def restore(self, superuser: Superuser, *, kept: int | None = None) -> bool:
        """Whether the database holds that again; it does not if its schema was changed or a transaction is open.

        `kept` connections of pools must be there still, and all that the test opened are ended. With None all stay.
        """
        number = superuser.info.backend_pid
        try:
            [(others, busy, strange, unused)] = await _all(superuser, OTHERS, KEPT)
            if kept is not None and strange:
                await _all(superuser, END_OTHERS, KEPT)
                others, busy, unused = await _until_only(superuser, kept)
            if busy or kept not in {None, others}:
                return False
            if unused != self._next.get(number):
                if await _all(superuser, SCHEMA) != self._schema:
                    return False
                await self._put_back(superuser)
            # A row that was refused may have taken a number without a transaction of its own.
            self._next[number] = await _run(superuser, self._numbers, NEXT_TRANSACTION)
        except psycopg.Error:
            return False
        return True

    async def _put_back(self, superuser: Superuser) -> None:
        number = superuser.info.backend_pid
        before = self._put_back_as.get(number, self._versions)
        now = await _versions(superuser, list(self._rows))
        same = {table for table, versions in now.items() if versions == before[table]}
        used = [name for (name,) in await _all(superuser, USED) if name not in same]
        if not used:
            return
        await _run(superuser, *SETTINGS, *(f"DELETE FROM {table}" for table in used))
        # Or new rows would fill the gaps, and come in another order than in a new database (what is in TOAST has none).
        await _run(superuser, f"VACUUM (SKIP_DATABASE_STATS, PROCESS_TOAST FALSE) {', '.join(used)}")
        if changed := self._rows.keys() - same:
            rows = (statement for table, statement in self._rows.items() if table in changed)
            transaction = await _run(superuser, *rows, THIS_TRANSACTION)
            counts = {table: self._versions[table][0] for table in changed}
            self._put_back_as[number] = before | {
                table: (count, count * transaction) for table, count in counts.items()
            }


async def _versions(superuser: Superuser, tables: Sequence[str]) -> dict[str, TupleRow]:
    if not tables:
        return {}
    question = " UNION ALL ".join(VERSIONS.format(table=table) for table in tables)
    return {table: (count, versions) for table, count, versions in await _all(superuser, question)}


async def _until_only(superuser: Superuser, kept: int) -> tuple[int, int, int]:
    """Wait until as many connections are left; how many are, how many of them busy, and the next transaction."""
    deadline = time.monotonic() + ENDED_SECONDS_MAX
    while True:
        [(others, busy, _, unused)] = await _all(superuser, OTHERS, KEPT)
        if others <= kept or time.monotonic() >= deadline:
            return others, busy, unused
        await asyncio.sleep(ENDED_POLL_SECONDS)


async def _run(superuser: Superuser, *statements: str) -> Any:
    """All in one transaction, where it may be one; the value that the last of them gives, or None."""
    cursor = await superuser.execute("; ".join(statements).encode(), prepare=False)
    while cursor.nextset():
        pass
    row = await cursor.fetchone() if cursor.description else None
    return row[0] if row else None


class DatabasePool:
    """Copies of one template."""

    def __init__(self, cluster: Cluster, template: str) -> None:
        self._cluster = cluster
        self._template = template
        self._origin: Content | None = None
        self._free: list[tuple[RolePair, Superuser]] = []

    @asynccontextmanager
    async def database(self) -> AsyncIterator[RolePair]:
        """All roles on a copy that holds what the template does, for the length of a block."""
        roles, superuser = self._free.pop() if self._free else await self._copy()
        try:
            yield roles
        finally:
            assert self._origin is not None
            pools = [one.engine.pool for one in (roles.app, roles.settlement, roles.service, roles.relay)]
            kept = sum(pool.checkedin() for pool in pools if isinstance(pool, QueuePool))
            kept += sum(len(database._hot._idle) for database in (roles.settlement, roles.service))
            kept += count_kept(roles.database.name)
            if await self._origin.restore(superuser, kept=kept):
                self._free.append((roles, superuser))
            else:
                forget(roles.database.name)
                await roles.dispose()
                await superuser.close()
                await self._cluster.drop(roles.database)

    async def _copy(self) -> tuple[RolePair, Superuser]:
        database = await self._cluster.create(template=self._template)
        superuser = await psycopg.AsyncConnection.connect(
            database.superuser_url, autocommit=True, application_name=KEPT
        )
        self._origin = self._origin or await Content.read(superuser)
        lent_again(database.name)
        return RolePair(database, application_name=KEPT), superuser

    async def close(self) -> None:
        """End all connections; the databases end with their server."""
        for roles, superuser in self._free:
            forget(roles.database.name)
            await roles.dispose()
            await superuser.close()
