"""Connection poolers (PgBouncer, Odyssey, …): detects one, and works through it.

In transaction mode a client gets another server connection for each transaction. Nothing that belongs to a session can
be relied upon then: no prepared statement, no `SET`, no session advisory lock, and no `options` of the start-up packet,
which poolers refuse or drop. Session settings are therefore set in each transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow

from domain.errors import ConfigurationError

_REFUSED_OPTIONS: Final = "unsupported startup parameter"


class Route:
    """How the connections of one engine reach the server; each new connection finds out."""

    def __init__(self, connection_type: type[psycopg.AsyncConnection[TupleRow]], own_options: str) -> None:
        """`own_options` are the address's: they cannot be kept through a pooler."""
        self._connection_type = connection_type
        self._own_options = own_options
        self._takes_options = True
        self.is_pooled = False

    async def connect(self, *args: Any, **parameters: Any) -> psycopg.AsyncConnection[TupleRow]:
        """A connection. Raises `psycopg.Error`, and `ConfigurationError` for options that a pooler drops."""
        connection = await self._connect(*args, **parameters)
        try:
            await connection.set_autocommit(True)
            if await _is_pooled(connection):
                self._note_pooler()
                connection.prepare_threshold = None
            await connection.set_autocommit(False)
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection

    async def _connect(self, *args: Any, **parameters: Any) -> psycopg.AsyncConnection[TupleRow]:
        without_options = {name: value for name, value in parameters.items() if name != "options"}
        if not self._takes_options:
            return await self._connection_type.connect(*args, **without_options)
        try:
            return await self._connection_type.connect(*args, **parameters)
        except psycopg.OperationalError as error:
            if _REFUSED_OPTIONS not in str(error):
                raise
        connection = await self._connection_type.connect(*args, **without_options)
        self._takes_options = False
        return connection

    def _note_pooler(self) -> None:
        if self._own_options:
            raise ConfigurationError(
                "a database address has options and leads through a connection pooler, which does not pass them on: "
                "expected an address without options (ALTER ROLE ... SET ... has the same effect), or a direct one"
            )
        self.is_pooled = True


async def _is_pooled(connection: psycopg.AsyncConnection[TupleRow]) -> bool:
    """A pooler cannot know which server process will work for the client: it invents a number."""
    [pid] = await (await connection.execute("SELECT pg_backend_pid()")).fetchone() or (0,)
    return bool(pid != connection.pgconn.backend_pid)


def refuse_pooler(connection: psycopg.Connection[Any], *, setting: str) -> None:
    """Refuse a pooler for work that needs a session of its own. Raises `ConfigurationError`."""
    [pid] = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    if pid != connection.pgconn.backend_pid:
        raise ConfigurationError(
            f"{setting}: got an address that leads through a connection pooler, expected the server's own: migrations "
            "hold locks for a session"
        )


def limits_sql(settings: Mapping[str, str]) -> bytes:
    """Statements that set `settings`, which are constants of ours, for the transaction.

    Not as a query: after one the transaction's isolation could not be chosen any more.
    """
    return "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in settings.items()).encode()
