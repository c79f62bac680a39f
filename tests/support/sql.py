"""Attacks in plain SQL: a connection as any role, and a block that must be refused for one named reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]


@contextmanager
def connect(url: str, *, user_id: str | None = None, triggers: bool = True) -> Iterator[Connection]:
    """One transaction, committed at the end of the block; `user_id` is the tenant's scope.

    `triggers=False` (superuser only) also silences foreign keys: the way to plant what cannot happen.
    """
    # psycopg's own block does not close when the commit at its end is refused.
    with closing(psycopg.connect(url)) as connection, connection:
        if user_id is not None:
            connection.execute("SELECT set_config('settle.user_id', %s, true)", (user_id,))
        if not triggers:
            connection.execute("SET session_replication_role = replica")
        yield connection


def query(url: str, statement: str, *values: Any, user_id: str | None = None) -> list[TupleRow]:
    """The rows of one statement, in a transaction of its own."""
    with connect(url, user_id=user_id) as connection:
        return connection.execute(statement, values or None).fetchall()


def scalar(url: str, statement: str, *values: Any, user_id: str | None = None) -> Any:
    """The one value of one statement."""
    [(value,)] = query(url, statement, *values, user_id=user_id)
    return value


@contextmanager
def refused(
    error_type: type[psycopg.Error], constraint: str | None = None, *, match: str | None = None
) -> Iterator[None]:
    """The block fails with this error and, where one is named, by this constraint and no other."""
    with pytest.raises(error_type, match=match) as caught:
        yield
    if constraint is not None:
        assert caught.value.diag.constraint_name == constraint
