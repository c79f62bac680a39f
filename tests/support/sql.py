"""Attacks in plain SQL: a connection as any role, and a block that must be refused for one named reason.

A new connection costs the server 4 ms before its first row, and the client one. `query` keeps those of single
statements about rows, for as long as a `DatabasePool` lends the database again: `lent_again` says so, `count_kept` and
`forget` are for it.
"""

from __future__ import annotations

import re
import select
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]

KEPT: Final = "settle tests kept"
"""The name under which connections stay from test to test."""

OF_A_SESSION: Final = re.compile(r"pg_|set_config|current_setting|txid|nextval|setval|currval|lastval|advisory", re.I)
"""What a statement says that asks about sessions, or that might leave something in its own."""

ALONE: Final = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b[^;]*;?\s*\Z")
"""One statement that reads or writes rows, and leaves nothing else."""

_kept: Final[dict[str, dict[tuple[str, bool], list[Connection]]]] = {}
"""By database, address and whether they prepare statements, of databases that are lent again."""


def lent_again(database: str) -> None:
    """Keep connections to this database from now on."""
    _kept.setdefault(database, {})


def count_kept(database: str) -> int:
    """Of the connections that are kept, those that live."""
    counted = 0
    for connections in _kept.get(database, {}).values():
        connections[:] = [connection for connection in connections if _lives(connection)]
        counted += len(connections)
    return counted


def forget(database: str) -> None:
    """End all connections to a database that is lent no more."""
    for connections in _kept.pop(database, {}).values():
        for connection in connections:
            connection.close()


def _lives(connection: Connection) -> bool:
    """A server that has ended a session has said so: what is idle has nothing to read."""
    if not connection.closed and not select.select([connection.fileno()], [], [], 0)[0]:
        return True
    connection.close()
    return False


@contextmanager
def lent(url: str, *, prepares: bool = False) -> Iterator[Connection]:
    """A connection that commits each statement, kept for others where the database is lent again.

    For what leaves nothing in its session: single statements about rows, and calls of the product's functions. One that
    `prepares` is for statements that are executed with `prepare=True`, and never taken for anything else.
    """
    with _taken(url, prepares=prepares) as connection:
        yield connection


@contextmanager
def _taken(url: str, *, prepares: bool = False) -> Iterator[Connection]:
    database = str(conninfo_to_dict(url)["dbname"])
    idle = _kept[database].setdefault((url, prepares), []) if database in _kept else []
    while idle:
        connection = idle.pop()
        if _lives(connection):
            break
    else:
        threshold = sys.maxsize if prepares else None
        connection = psycopg.connect(url, application_name=KEPT, autocommit=True, prepare_threshold=threshold)
    try:
        yield connection
    finally:
        if database in _kept and connection.info.transaction_status is TransactionStatus.IDLE and connection.autocommit:
            idle.append(connection)
        else:
            connection.close()


@contextmanager
def connect(url: str, *, user_id: str | None = None, triggers: bool = True) -> Iterator[Connection]:
    """One transaction, committed at the end of the block; `user_id` is the tenant's scope.

    `triggers=False` (superuser only) also silences foreign keys: the way to plant what cannot happen. Its session may
    have been another test's, of which nothing is left; `new_session` has one of its own.
    """
    with _taken(url) as connection:
        connection.autocommit = False
        try:
            if user_id is not None:
                connection.execute("SELECT set_config('settle.user_id', %s, true)", (user_id,))
            if not triggers:
                connection.execute("SET session_replication_role = replica")
            yield connection
        except BaseException:
            if not connection.closed:
                connection.rollback()
            raise
        else:
            connection.commit()
        finally:
            _clean(connection)


def _clean(connection: Connection) -> None:
    """Leave nothing in its session; one that is broken is closed by `_taken`."""
    if connection.info.transaction_status is TransactionStatus.IDLE:
        connection.autocommit = True
        connection.execute("DISCARD ALL")


@contextmanager
def new_session(url: str) -> Iterator[Connection]:
    """The same as `connect`, in a session of its own: with what was set for new ones, and an end."""
    # psycopg's own block does not close when the commit at its end is refused.
    with closing(psycopg.connect(url)) as connection, connection:
        yield connection


def query(url: str, statement: str, *values: Any, user_id: str | None = None) -> list[TupleRow]:
    """The rows of one statement, in a transaction of its own."""
    if user_id is None and ALONE.match(statement) and not OF_A_SESSION.search(statement):
        with lent(url) as connection:
            return connection.execute(statement.encode(), values or None).fetchall()
    with connect(url, user_id=user_id) as connection:
        return connection.execute(statement, values or None).fetchall()


def scalar(url: str, statement: str, *values: Any, user_id: str | None = None) -> Any:
    """The one value of one statement."""
    [(value,)] = query(url, statement, *values, user_id=user_id)
    return value


WAITING: Final = (
    "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def waits_for_lock(superuser_url: str) -> bool:
    """Whether a statement in the database waits for what another transaction has locked."""
    return bool(scalar(superuser_url, WAITING))


@contextmanager
def no_write_is_proved(superuser_url: str) -> Iterator[None]:
    """As where the disk is full: the last proof of each role is a minute old, and no role can write another one."""
    with connect(superuser_url) as superuser:
        superuser.execute("UPDATE write_probes SET written_at = now() - interval '1 minute'")
    with connect(superuser_url) as superuser:
        superuser.execute("SELECT FROM write_probes FOR UPDATE")
        yield


@contextmanager
def refused(
    error_type: type[psycopg.Error], constraint: str | None = None, *, match: str | None = None
) -> Iterator[None]:
    """The block fails with this error and, where one is named, by this constraint and no other."""
    with pytest.raises(error_type, match=match) as caught:
        yield
    if constraint is not None:
        assert caught.value.diag.constraint_name == constraint
