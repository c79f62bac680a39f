"""An embedded PostgreSQL for the whole session, and a fresh migrated database for each test that asks for one."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from db.migrate import migrate
from db.rights import APP_ROLE, OPERATOR_ROLE, RELAY_ROLE, SERVICE_ROLE, SETTLEMENT_ROLE
from devstack.postgres import SUPERUSER, EmbeddedPostgres

OWNER_ROLE: Final = "settle_owner"
ROLE_PASSWORD: Final = "only-for-tests"
MIGRATED_TEMPLATE: Final = "migrated_template"

# Nothing here outlives the session. A commit still waits for the write, so a killed server loses none.
# Passwords are no secrets here: a client that proves to know one hashes it once, not 4,096 times at each connection.
# Nothing gathers statistics or cleans up by itself: a database differs from its template by what its test did alone.
SERVER_SETTINGS: Final = {"fsync": "off", "full_page_writes": "off", "scram_iterations": "1", "autovacuum": "off"}

SERVER_FILES: Final = ("postgres", "postgres-superuser-password")
"""What makes a server in its state folder, without its port and its logs."""

FIRST_PORT: Final = 25_432
MAKING_PORT: Final = FIRST_PORT - 1

MEMORY_FOLDER: Final = Path("/dev/shm")
MEMORY_BYTES_MIN: Final = 2**31
FOLDER_PREFIX: Final = "settle-tests-"
LOCK_NAME: Final = "in-use"
LOCK_GRACE_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Database:
    """One database, and the addresses under which each role reaches it."""

    name: str
    host: str
    superuser_url: str

    @property
    def app_url(self) -> str:
        """Role settle_app: bound by row-level security."""
        return self.url_as(APP_ROLE)

    @property
    def settlement_url(self) -> str:
        """Role settle_settlement: for workers, bound by row-level security."""
        return self.url_as(SETTLEMENT_ROLE)

    @property
    def service_url(self) -> str:
        """Role settle_service: for workers."""
        return self.url_as(SERVICE_ROLE)

    @property
    def operator_url(self) -> str:
        """Role settle_operator: for the operators' pages."""
        return self.url_as(OPERATOR_ROLE)

    @property
    def relay_url(self) -> str:
        """Role settle_relay: for the relay."""
        return self.url_as(RELAY_ROLE)

    @property
    def migration_url(self) -> str:
        """Role settle_owner: owns every table."""
        return self.url_as(OWNER_ROLE)

    def url_as(self, role: str, password: str = ROLE_PASSWORD) -> str:
        """The address under which `role` reaches this database."""
        return f"postgresql://{role}:{password}@{self.host}/{self.name}"


class Cluster:
    """A running server that hands out databases."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    def database(self, name: str) -> Database:
        """The addresses of a database, whether it exists or not."""
        return Database(name, f"127.0.0.1:{self.server.port}", self.server.superuser_url(name))

    async def run(self, statement: sql.SQL | sql.Composed) -> None:
        """One statement of the superuser, outside a transaction."""
        async with await psycopg.AsyncConnection.connect(self.server.superuser_url(), autocommit=True) as connection:
            await connection.execute(statement)

    async def create(self, *, template: str | None = None, name: str | None = None) -> Database:
        """A new database owned by settle_owner: a copy of `template`, or an empty one."""
        name = name or f"test_{next(self._numbers)}"
        await self.run(
            # Twice as quick as through the write-ahead log, where nothing waits for a disk.
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(OWNER_ROLE), sql.Identifier(template or "template0")
            )
        )
        return self.database(name)

    async def drop(self, database: Database) -> None:
        """Remove a database, even with open connections."""
        await self.run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name)))

    async def kill(self) -> None:
        """SIGKILL to the server and all of its processes, as where the machine loses power; `server.start()` recovers.

        None of them does anything more: the others alone would notice that the server has died, and end statements.
        """
        async with await psycopg.AsyncConnection.connect(self.server.superuser_url(), autocommit=True) as connection:
            found = await connection.execute("SELECT pid FROM pg_stat_activity")
            pids = [pid for (pid,) in await found.fetchall()]
            os.kill(self.server.pid, signal.SIGKILL)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await self.server.kill()

    @asynccontextmanager
    async def temporary(self, *, template: str | None = None) -> AsyncIterator[Database]:
        """A database for the length of a block."""
        database = await self.create(template=template)
        try:
            yield database
        finally:
            await self.drop(database)


async def migrate_database(database: Database) -> None:
    """Bring a database to the code's revision, as `settle migrate` does where every role has an address."""
    await asyncio.to_thread(
        migrate,
        database.migration_url,
        app_url=database.app_url,
        settlement_url=database.settlement_url,
        service_url=database.service_url,
        operator_url=database.operator_url,
        relay_url=database.relay_url,
    )


@contextmanager
def state_folder(fallback: Path) -> Iterator[Path]:
    """A folder in memory where there is room: copying a database there takes a tenth of the time."""
    if not MEMORY_FOLDER.is_dir() or shutil.disk_usage(MEMORY_FOLDER).free < MEMORY_BYTES_MIN:
        yield fallback
        return
    _remove_folders_of_killed_runs()
    with TemporaryDirectory(prefix=FOLDER_PREFIX, dir=MEMORY_FOLDER) as name:
        folder = Path(name)
        # Held as long as this process lives, however it ends.
        with (folder / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def _remove_folders_of_killed_runs() -> None:
    """A run that was killed could not clean up, and what it left takes memory."""
    for folder in MEMORY_FOLDER.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            # A folder that was made a moment ago may not have its lock yet.
            if time.time() - folder.stat().st_mtime < LOCK_GRACE_SECONDS:
                continue
            with (folder / LOCK_NAME).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def running_cluster(
    state_dir: Path, *, worker_number: int = 0, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """A server of one's own with a migrated template database; each worker process of a test run has one."""
    server = EmbeddedPostgres(
        state_dir, port=FIRST_PORT + worker_number, settings={**SERVER_SETTINGS, **(settings or {})}
    )
    if _prepared is not None:
        await _copy_prepared(_prepared, state_dir, port=FIRST_PORT + worker_number)
    await server.start()
    try:
        cluster = Cluster(server)
        if _prepared is None:
            await _prepare(cluster)
        yield cluster
    finally:
        await server.stop()


_prepared: Path | None = None


@contextmanager
def prepared_once() -> Iterator[Callable[[], object]]:
    """Servers of this process and of those that it forks are copies of one, which the first of them makes.

    To make one and to migrate its template takes two seconds of the processor's, to copy it a tenth of one. What is
    yielded makes it, for a process that has nothing else to do.
    """
    global _prepared  # noqa: PLW0603 - a forked process has what its parent has set
    with TemporaryDirectory() as fallback, state_folder(Path(fallback)) as folder:
        _prepared = folder
        try:
            yield lambda: asyncio.run(_make_prepared(folder, port=MAKING_PORT))
        finally:
            _prepared = None


async def _make_prepared(prepared: Path, *, port: int) -> Path:
    """Its files, once it has been made."""
    files = prepared / "server"
    with (prepared / "being-made").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others would do the same, and wait for the processor
        if not files.exists():
            making = EmbeddedPostgres(prepared / "making", port=port, settings=SERVER_SETTINGS)
            await making.start()
            try:
                await _prepare(Cluster(making))
            finally:
                await making.stop()
            making.state_dir.rename(files)
    return files


async def _copy_prepared(prepared: Path, state_dir: Path, *, port: int) -> None:
    files = await _make_prepared(prepared, port=port)
    for name in SERVER_FILES:
        # Not `shutil`: the files have to stay those of the user that the server runs as.
        subprocess.run(["cp", "-a", files / name, state_dir / name], check=True)


async def _prepare(cluster: Cluster) -> None:
    await cluster.run(
        sql.SQL("CREATE ROLE {} LOGIN CREATEROLE BYPASSRLS PASSWORD {}").format(
            sql.Identifier(OWNER_ROLE), sql.Literal(ROLE_PASSWORD)
        )
    )
    superuser = conninfo_to_dict(cluster.server.superuser_url())
    await cluster.run(
        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(SUPERUSER), sql.Literal(superuser["password"]))
    )
    await migrate_database(await cluster.create(name=MIGRATED_TEMPLATE))
