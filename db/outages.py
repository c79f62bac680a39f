"""Classification of database errors: outages of PostgreSQL, and faults of ours.

By the class of the SQLSTATE, which the server gives to each of its errors. An error of the driver without one means
that the connection was lost, or never established.
"""

from __future__ import annotations

from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError

from domain.errors import DatabaseBusy, DatabaseUnavailable

UNAVAILABLE_CLASSES: Final = {
    "08": "the connection was lost",
    "25": "it does not accept such statements now",  # a standby, or default_transaction_read_only
    "53": "it lacks resources",  # disk, memory, connections, a limit of its configuration
    "57": "it ended the statement or the connection",  # shutdown, crash, time-out, an administrator
    "58": "its system failed",  # files, input and output
}
BUSY: Final = frozenset({"40001", "40003", "40P01", "55P03"})
"""Serialization failure, unknown outcome, deadlock, lock time-out: the server is healthy, a retry may succeed."""


def sqlstate_of(error: BaseException | None) -> str | None:
    """The server's error code; None where the error is not the server's."""
    found = getattr(error, "sqlstate", None)
    return found if isinstance(found, str) else None


def as_unavailable(error: DBAPIError | psycopg.Error) -> DatabaseUnavailable | None:
    """The error as an outage, or None where it is something else."""
    original = error.orig if isinstance(error, DBAPIError) else error
    sqlstate = sqlstate_of(original)
    line = next(iter(str(original).splitlines()), type(original).__name__)
    if sqlstate in BUSY:
        return DatabaseBusy(f"PostgreSQL is busy: {line}")
    if sqlstate is not None and sqlstate[:2] in UNAVAILABLE_CLASSES:
        return DatabaseUnavailable(f"PostgreSQL cannot be used now, {UNAVAILABLE_CLASSES[sqlstate[:2]]}: {line}")
    is_lost = isinstance(original, psycopg.OperationalError | psycopg.InterfaceError) and sqlstate is None
    if is_lost or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return DatabaseUnavailable(f"PostgreSQL does not answer: {line}")
    return None
