"""Lock acquisition of a migration: waits briefly, because every other transaction queues behind it, and retries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from db.engine import connection_arguments
from db.outages import sqlstate_of
from domain.errors import DatabaseBusy

APPLICATION_NAME: Final = "settle migrate"

LOCK_SECONDS_MAX: Final = 2
"""How long others queue behind a waiting migration: less than their own lock timeout of five seconds."""
TRIES_MAX: Final = 20
PAUSE_SECONDS: Final = 3.0
"""Time for the transactions that queued behind the last try, and for the holder to end."""
WATCH_SECONDS: Final = 0.25

_LOST: Final = frozenset({"55P03", "40P01"})

_HOLDERS: Final = """
    SELECT pid, usename, application_name, state, extract(epoch FROM clock_timestamp() - xact_start)::bigint
      FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids(%s)) ORDER BY xact_start LIMIT 3
"""


class LockWatch:
    """Observes from its own connection which sessions block another one, while the block runs."""

    def __init__(self, url: str, pid: int) -> None:
        self._arguments = connection_arguments(url, application_name=APPLICATION_NAME)
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lock watch", daemon=True)
        self._seen: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def take_holders(self) -> str:
        """The sessions that last held the lock, as text."""
        seen, self._seen = self._seen, None
        return seen or "a session that has ended since"

    def _watch(self) -> None:
        # Information only: without the permission, or if the server has no connection left, the migration continues
        # without.
        with suppress(psycopg.Error), psycopg.connect(**self._arguments, autocommit=True) as connection:
            while not self._ended.wait(WATCH_SECONDS):
                rows = connection.execute(_HOLDERS, (self._pid,)).fetchall()
                self._seen = "; ".join(_describe(*row) for row in rows) or self._seen


def _describe(pid: int, user: str | None, application: str | None, state: str | None, seconds: int | None) -> str:
    since = f", in a transaction for {seconds} s" if seconds is not None else ""
    return f"process {pid} of {user or 'the server'} ({application or 'unnamed'}, {state or 'unknown'}{since})"


def patiently(
    connection: Connection, step: Callable[[], None], *, watch: LockWatch, on_progress: Callable[[str], None]
) -> None:
    """Run a step of a migration, and retry it where it did not get a lock in time. Raises `DatabaseBusy` in the end.

    A step must not repeat what it has committed.
    """
    for number in range(1, TRIES_MAX + 1):
        try:
            step()
        except (DBAPIError, psycopg.Error) as error:
            if sqlstate_of(error.orig if isinstance(error, DBAPIError) else error) not in _LOST:
                raise
            connection.rollback()
            holders = watch.take_holders()
            if number == TRIES_MAX:
                raise DatabaseBusy(
                    f"a lock that the migration needs was not free in {TRIES_MAX} tries of {LOCK_SECONDS_MAX} s; held "
                    f"by {holders}. End that (SELECT pg_terminate_backend(PID)) and run `settle migrate` again: what "
                    "was done stays done"
                ) from error
            on_progress(f"a lock is held by {holders}; asking again in {PAUSE_SECONDS:g} s ({number} of {TRIES_MAX})")
            time.sleep(PAUSE_SECONDS)
        else:
            return
