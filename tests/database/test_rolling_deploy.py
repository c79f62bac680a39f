"""A new schema under old processes: who may go on, what a migration waits for, and that none of it stops a payment."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine

from db import functions, locks, migrations, rights
from db.engine import ADDRESS_IN_ARGUMENTS, OperatorDatabase, connection_arguments
from db.migrate import _alembic
from db.migrations import FIRST_DECLARED, build_indexes, run_sql_file
from db.schema import EXPANDED_REVISION, SCHEMA_REVISION
from db.startup import MORE_RIGHTS, check_operator_database, check_service_database, check_tenant_database
from devstack.processes import wait_until
from domain.errors import DatabaseBusy, StartupCheckFailed
from tests.support.oracle import check_books
from tests.support.payments import RolePair
from tests.support.postgres import Cluster, Database, migrate_database
from tests.support.sql import connect, query, scalar

LANDED: Final = "0005"
"""The schema that processes in production may have been written for."""

NEXT: Final = f"{int(SCHEMA_REVISION) + 1:04}"
AFTER_NEXT: Final = f"{int(SCHEMA_REVISION) + 2:04}"
SQL_FOLDER: Final = Path(migrations.__path__[0]) / "sql"
PATIENCE_SECONDS: Final = 30.0


@contextmanager
def engine_on(url: str) -> Iterator[Engine]:
    """An engine as migrations have."""
    engine = create_engine(
        ADDRESS_IN_ARGUMENTS, connect_args=connection_arguments(url, application_name="settle tests")
    )
    try:
        yield engine
    finally:
        engine.dispose()


def upgrade_to(database: Database, revision: str) -> None:
    """Bring a database to a revision, and seed it."""
    with engine_on(database.migration_url) as engine, engine.connect() as connection:
        command.upgrade(_alembic(connection), revision)
        connection.commit()
        with connection.begin():
            run_sql_file(connection, "seeds.sql")


@pytest.fixture(scope="module")
async def landed_template(cluster: Cluster) -> AsyncIterator[Database]:
    """The database that `landed` copies."""
    async with cluster.temporary() as database:
        await asyncio.to_thread(upgrade_to, database, LANDED)
        await asyncio.to_thread(grant_what_is_there, database)
        yield database


@pytest.fixture
async def landed(cluster: Cluster, landed_template: Database) -> AsyncIterator[Database]:
    """A database of the landed schema, with the rights that its version has."""
    async with cluster.temporary(template=landed_template.name) as database:
        yield database


NAMES: Final = """
    SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'
     UNION ALL
    SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'
     UNION ALL
    SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
     UNION ALL SELECT 'public'
"""


def grant_what_is_there(database: Database) -> None:
    """Of today's rights those to tables, columns and functions that the schema has."""
    there = {name for (name,) in query(database.superuser_url, NAMES)}
    granted = [right for right in rights.GRANTED if right.name in there and right.role != rights.OPERATOR_ROLE]
    with connect(database.migration_url) as owner:
        for statement in rights._statements("GRANT", granted):
            owner.execute(statement)


# -- who may run with which schema


def fabricate(database: Database, revision: str, compatible_from: str | None) -> None:
    """As a newer version's `settle migrate` leaves it."""
    with connect(database.superuser_url) as superuser:
        superuser.execute("UPDATE alembic_version SET version_num = %s", (revision,))
        if compatible_from is not None:
            superuser.execute(
                "INSERT INTO schema_compatibility (revision, compatible_from) VALUES (%s, %s)",
                (revision, compatible_from),
            )


async def check_all(roles: RolePair) -> None:
    """What every process asks at its start, and `/readyz` after it."""
    await check_tenant_database(roles.app)
    await check_service_database(roles.service)
    operators = OperatorDatabase(roles.database.operator_url)
    try:
        await check_operator_database(operators)
    finally:
        await operators.dispose()


@pytest.mark.parametrize("compatible_from", [LANDED, SCHEMA_REVISION])
async def test_a_newer_schema_that_says_so_is_run_with(roles: RolePair, compatible_from: str) -> None:
    fabricate(roles.database, NEXT, compatible_from)
    await check_all(roles)


NEWER: Final = """
    CREATE TABLE holds (id bigint PRIMARY KEY);
    ALTER TABLE holds ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    GRANT SELECT, INSERT, UPDATE ON holds TO settle_app, settle_service;
    ALTER TABLE payment_attempts ADD COLUMN note text;
    GRANT INSERT (note), UPDATE (note) ON payment_attempts TO settle_app, settle_service;
    CREATE FUNCTION sweep_cash() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""


async def test_what_a_newer_schema_has_added_is_no_right_too_much_of_this_version(roles: RolePair) -> None:
    with connect(roles.database.migration_url) as owner:
        owner.execute(NEWER.encode())
    with pytest.raises(StartupCheckFailed, match=MORE_RIGHTS):
        await check_all(roles)
    fabricate(roles.database, NEXT, SCHEMA_REVISION)
    await check_all(roles)


async def test_under_a_newer_schema_a_role_has_no_more_of_what_is_known(roles: RolePair) -> None:
    fabricate(roles.database, NEXT, SCHEMA_REVISION)
    for right in (
        "INSERT ON settled_transfers", "UPDATE (revenue_share) ON payment_attempts", "EXECUTE ON FUNCTION post_entry",
    ):  # fmt: skip
        with connect(roles.database.migration_url) as owner:
            owner.execute(f"GRANT {right} TO settle_app".encode())
        with pytest.raises(StartupCheckFailed, match=MORE_RIGHTS):
            await check_all(roles)
        with connect(roles.database.migration_url) as owner:
            owner.execute(f"REVOKE {right} FROM settle_app".encode())
    await check_all(roles)


@pytest.mark.parametrize(
    ("revision", "compatible_from"), [(NEXT, NEXT), (AFTER_NEXT, NEXT), (AFTER_NEXT, AFTER_NEXT), (NEXT, None)]
)
async def test_a_newer_schema_for_newer_code_is_not(
    roles: RolePair, revision: str, compatible_from: str | None
) -> None:
    fabricate(roles.database, revision, compatible_from)
    with pytest.raises(StartupCheckFailed, match=f"revision {revision}.*install"):
        await check_all(roles)


async def test_an_older_schema_is_not_run_with(landed: Database) -> None:
    operators = OperatorDatabase(landed.superuser_url)
    try:
        with pytest.raises(StartupCheckFailed, match=f"revision {LANDED}.*run: settle migrate$"):
            await check_operator_database(operators)
    finally:
        await operators.dispose()


def test_every_migration_says_which_code_may_go_on(database: Database) -> None:
    scripts = ScriptDirectory(migrations.__path__[0]).walk_revisions()
    said = {one.revision: one.module.compatible_from for one in scripts if one.revision >= FIRST_DECLARED}
    assert all(compatible_from < revision for revision, compatible_from in said.items()), "the version before goes on"
    assert EXPANDED_REVISION in said
    assert dict(query(database.superuser_url, "SELECT revision, compatible_from FROM schema_compatibility")) == said


HEAVY: Final = {
    "an index that is not built CONCURRENTLY": r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)\w+\s+ON (?:ONLY )?(\w+)",
    "a constraint that reads every row": r"ALTER TABLE (\w+)[^;]*ADD CONSTRAINT(?:(?!NOT VALID)[^;])*;",
    "a column that must not be empty": r"ALTER TABLE (\w+)[^;]*SET NOT NULL",
    "another type of a column": r"ALTER TABLE (\w+)[^;]*ALTER COLUMN \w+ (?:SET DATA )?TYPE",
}


EMPTY_AT_FIRST: Final = "CREATE UNIQUE INDEX virtual_keys_one_per_hash"
"""An index over rows that cannot be there when it is built: of a column that the same file adds."""


@pytest.mark.parametrize("what", HEAVY)
def test_no_migration_holds_a_table_that_has_rows_for_as_long_as_it_has_rows(what: str) -> None:
    files = [path.read_text() for path in sorted(SQL_FOLDER.glob("000[4-9]_*.sql"))]
    new = {table for text in files for table in re.findall(r"CREATE (?:UNLOGGED )?TABLE (\w+)", text)}
    files = [text.replace(EMPTY_AT_FIRST, "") for text in files]
    assert {table for text in files for table in re.findall(HEAVY[what], text)} <= new


# -- a loaded database under processes of the landed version


@dataclass
class OldProcess:
    """What a worker and an API of the landed version say to the database, in their words, as fast as they can."""

    database: Database
    number: int
    stopping: threading.Event
    credited: list[UUID] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Settle payments until asked to stop."""
        wallet = f"0x1{self.number:039d}"
        with (
            closing(
                psycopg.connect(self.database.app_url, options="-c lock_timeout=5s -c statement_timeout=20s")
            ) as app,
            closing(psycopg.connect(self.database.settlement_url, options="-c lock_timeout=5s")) as settlement,
            closing(psycopg.connect(self.database.service_url, options="-c lock_timeout=5s")) as service,
        ):
            while not self.stopping.is_set():
                try:
                    self._settle(app, settlement, service, wallet, len(self.credited))
                except psycopg.Error as error:
                    self.failures.append(f"{error.sqlstate}: {error}")
                    return

    def _settle(self, app: Any, settlement: Any, service: Any, wallet: str, round_: int) -> None:
        attempt = uuid4()
        tx_hash = f"0x{self.number:032x}{round_:032x}"
        with app.transaction():
            user, account = app.execute(
                "SELECT user_id, billing_account_id FROM provision_wallet(%s)", (wallet,)
            ).fetchone()
        with app.transaction():
            self._scope(app, user)
            app.execute(
                "INSERT INTO payment_attempts (id, billing_account_id, from_address, chain_id, token, to_address,"
                " amount_raw, amount_usd_cents, purpose, status, expires_at, created_at) VALUES"
                " (%s, %s, %s, 31337, %s, %s, 1000000, 100, 'self', 'CREATED_INTENT', now() + interval '1 hour',"
                " now())",
                (attempt, account, wallet, "0x" + "70" * 20, "0x" + "71" * 20),
            )
            self._note(app, attempt, "intent_created", None, "CREATED_INTENT")
        with app.transaction():
            self._scope(app, user)
            app.execute("SELECT 1 FROM payment_attempts WHERE id = %s FOR UPDATE", (attempt,))
            app.execute(
                "UPDATE payment_attempts SET status = 'PENDING_UNVERIFIED', tx_hash = %s, submitted_at = now(),"
                " expires_at = NULL, submission_count = submission_count + 1 WHERE id = %s",
                (tx_hash, attempt),
            )
            self._note(app, attempt, "submitted", "CREATED_INTENT", "PENDING_UNVERIFIED", tx_hash=tx_hash)
        with settlement.transaction():
            self._scope(settlement, user)
            settlement.execute("SELECT 1 FROM payment_attempts WHERE id = %s FOR UPDATE", (attempt,))
            settlement.execute(
                "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash,"
                " from_address, value_raw, surplus_raw) VALUES (31337, %s, 0, %s, 7, %s, %s, 1000000, 0)",
                (tx_hash, attempt, "0x" + "7" * 64, wallet),
            )
            settlement.execute("SELECT * FROM post_own_purchase(%s, 10000000::bigint, 'cash:usdc', '{}')", (attempt,))
            settlement.execute(
                "UPDATE payment_attempts SET status = 'CREDITED', revenue_share = 0.75 WHERE id = %s", (attempt,)
            )
            self._note(settlement, attempt, "credited", "PENDING_UNVERIFIED", "CREDITED")
        with service.transaction():
            service.execute(
                "SELECT * FROM post_entry('cogni_system', 7500000::bigint, 'platform_revenue_share', %s,"
                " 'expense:platform_revenue_share', '{}')",
                (str(attempt),),
            )
        self.credited.append(attempt)

    def _scope(self, app: Any, user: str) -> None:
        app.execute("SELECT set_config('settle.user_id', %s, true)", (user,))

    def _note(
        self, role: Any, attempt: UUID, event_type: str, before: str | None, after: str, *, tx_hash: str | None = None
    ) -> None:
        role.execute(
            "INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, metadata)"
            " VALUES (%s, %s, %s, %s, jsonb_build_object('txHash', %s::text))",
            (attempt, event_type, before, after, tx_hash),
        )


@pytest.mark.slow
async def test_the_expanding_migration_fails_no_statement_of_the_landed_version(landed: Database) -> None:
    stopping = threading.Event()
    processes = [OldProcess(landed, number, stopping) for number in range(1, 5)]
    threads = [threading.Thread(target=process.run) for process in processes]
    for thread in threads:
        thread.start()
    try:
        for revision in (None, EXPANDED_REVISION, None):
            if revision is not None:
                await migrate_expanded(landed)
            await settle_more(processes)
    finally:
        stopping.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert [process.failures for process in processes] == [[]] * len(processes)
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == EXPANDED_REVISION
    await migrate_database(landed)
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == SCHEMA_REVISION
    total = sum(len(process.credited) for process in processes)
    assert scalar(landed.superuser_url, "SELECT count(*) FROM payment_attempts WHERE status = 'CREDITED'") == total
    assert await check_books(landed.service_url) == []


async def settle_more(processes: Sequence[OldProcess]) -> None:
    """Wait until each has settled some more payments, or failed."""
    wanted = [len(process.credited) + 5 for process in processes]

    def have() -> bool:
        counts = zip(processes, wanted, strict=True)
        return all(len(process.credited) >= count or process.failures for process, count in counts)

    await wait_until(have, timeout_seconds=PATIENCE_SECONDS, what="payments")


async def migrate_expanded(database: Database) -> None:
    """To the expanding revision, as patiently as `settle migrate` is."""

    def run() -> None:
        with engine_on(database.migration_url) as engine, engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            driver.execute(f"SET lock_timeout = '{locks.LOCK_SECONDS_MAX}s'")
            connection.commit()

            def upgrade() -> None:
                command.upgrade(_alembic(connection), EXPANDED_REVISION)
                connection.commit()

            with locks.LockWatch(database.migration_url, driver.pgconn.backend_pid) as watch:
                locks.patiently(connection, upgrade, watch=watch, on_progress=lambda _: None)

    await asyncio.to_thread(run)


# -- locks


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that do not take a test's time."""
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(locks, "TRIES_MAX", 2)
    monkeypatch.setattr(locks, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr("db.migrate.LOCK_SECONDS_MAX", 1)


@pytest.mark.usefixtures("impatient")
async def test_a_lock_that_is_never_free_ends_the_migration_with_the_name_of_its_holder(landed: Database) -> None:
    with connect(landed.app_url) as holder:
        holder.execute("SELECT count(*) FROM payment_attempts")
        with pytest.raises(DatabaseBusy, match=f"process {holder.info.backend_pid} of settle_app") as caught:
            await migrate_database(landed)
    assert "\n" not in caught.value.message
    await migrate_database(landed)
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == SCHEMA_REVISION


WAITS_FOR: Final = """
    SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE NOT l.granted AND l.relation = %s::regclass AND a.application_name = %s
"""


async def test_a_migration_gives_way_before_a_settlement_that_waits_for_it_is_ended(landed: Database) -> None:
    """They lock in another order. PostgreSQL ends one of two that wait for each other: whose wait is a second old."""

    async def is_waiting(application_name: str, table: str) -> bool:
        return bool(await asyncio.to_thread(scalar, landed.superuser_url, WAITS_FOR, table, application_name))

    with connect(landed.superuser_url) as settlement, connect(landed.superuser_url) as other:
        settlement.execute("SET application_name = 'settlement'")
        settlement.execute("LOCK TABLE journal_lines IN ROW EXCLUSIVE MODE")
        other.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate_database(landed))
        await wait_until(
            lambda: is_waiting("settle migrate", "users"),
            timeout_seconds=PATIENCE_SECONDS,
            what="a waiting migration",
        )
        statement = "LOCK TABLE payment_attempts IN ROW EXCLUSIVE MODE"
        locking = asyncio.create_task(asyncio.to_thread(settlement.execute, statement))

        async def is_waiting_or_has_it() -> bool:
            return locking.done() or await is_waiting("settlement", "payment_attempts")

        await wait_until(is_waiting_or_has_it, timeout_seconds=PATIENCE_SECONDS, what="a waiting settlement")
        # The wait of the migration starts again, so it is the settlement's that gets old.
        await asyncio.wait([locking], timeout=0.5)
        other.rollback()
        await locking
        settlement.rollback()
    await migrating
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == SCHEMA_REVISION


STRONG_LOCKS: Final = """
    SELECT c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
     WHERE l.pid = pg_backend_pid() AND l.granted AND c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
       AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""


FIRST_FILES: Final = ("0006_accounts", "0007_", "0008_deposits", "0009_prices")
"""The first file of each revision after the landed one: its locks are taken before it."""


async def test_a_revision_locks_no_table_that_it_has_not_locked_first(
    landed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {str(name) for (name,) in query(landed.superuser_url, "SELECT tablename FROM pg_tables")}
    run, locked, late = migrations.run_sql_file, set[str](), set[str]()

    def run_and_look(connection: Any, file: str) -> None:
        driver = connection.connection.driver_connection
        if file.startswith(FIRST_FILES):
            locked.clear()
            locked.update(name for (name,) in driver.execute(STRONG_LOCKS))
        run(connection, file)
        if file.startswith("000"):
            late.update({name for (name,) in driver.execute(STRONG_LOCKS)} & there - locked)

    monkeypatch.setattr(migrations, "run_sql_file", run_and_look)
    await migrate_database(landed)
    assert locked
    assert late == set()


@pytest.mark.usefixtures("impatient")
async def test_who_waits_behind_a_migration_waits_no_longer_than_one_of_its_tries(landed: Database) -> None:
    with connect(landed.app_url) as holder:
        holder.execute("SELECT count(*) FROM payment_attempts")
        migrating = asyncio.create_task(migrate_database(landed))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'settle migrate' AND wait_event_type = 'Lock'"
        )

        async def waits() -> bool:
            return bool(await asyncio.to_thread(scalar, landed.superuser_url, waiting))

        await wait_until(waits, timeout_seconds=PATIENCE_SECONDS, what="a migration that waits")

        def read() -> None:
            with closing(psycopg.connect(landed.app_url, options="-c lock_timeout=5s")) as reader:
                reader.execute("SELECT count(*) FROM payment_attempts")

        await asyncio.to_thread(read)
        with pytest.raises(DatabaseBusy):
            await migrating


# -- killed at any moment


FILES: Final = sorted(path.name for path in SQL_FOLDER.glob("000[6-9]_*.sql"))


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("name", [*FILES, "seeds.sql"])
async def test_a_migration_that_is_killed_at_any_file_can_be_run_again(
    landed: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = migrations.run_sql_file

    def run_until_killed(connection: Any, file: str) -> None:
        run(connection, file)
        if file == name:
            pid = connection.connection.driver_connection.pgconn.backend_pid
            query(landed.superuser_url, "SELECT pg_terminate_backend(%s, 5000)", pid)
            connection.connection.driver_connection.execute("SELECT 1")

    monkeypatch.setattr(migrations, "run_sql_file", run_until_killed)
    with pytest.raises(Exception, match="PostgreSQL"):
        await migrate_database(landed)
    monkeypatch.undo()
    await migrate_database(landed)
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == SCHEMA_REVISION
    assert await check_books(landed.service_url) == []


async def test_a_migration_that_is_killed_among_its_functions_can_be_run_again(
    landed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring_up_to_date_until_killed(driver: psycopg.Connection[Any]) -> list[str]:
        driver.execute("DROP FUNCTION prune_expired(integer, interval)")
        query(landed.superuser_url, "SELECT pg_terminate_backend(%s, 5000)", driver.pgconn.backend_pid)
        driver.execute("SELECT 1")
        return []

    monkeypatch.setattr(functions, "bring_up_to_date", bring_up_to_date_until_killed)
    with pytest.raises(Exception, match="PostgreSQL"):
        await migrate_database(landed)
    monkeypatch.undo()
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == EXPANDED_REVISION
    assert scalar(landed.superuser_url, "SELECT count(*) FROM pg_proc WHERE proname = 'prune_expired'") == 1
    await migrate_database(landed)
    assert scalar(landed.superuser_url, "SELECT version_num FROM alembic_version") == SCHEMA_REVISION


# -- indexes


INDEX: Final = {"findings_for_tests": "ON findings (kind)"}
VALID: Final = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('findings_for_tests')"


def build(database: Database) -> None:
    """As a revision does."""
    with engine_on(database.migration_url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with context.begin_transaction(_per_migration=True):
            build_indexes(context, INDEX)


async def test_an_index_is_built_while_others_write(database: Database) -> None:
    with connect(database.service_url) as writer:
        writer.execute("SELECT count(*) FROM users")
        writer.execute("UPDATE findings SET detail = detail")
        building = asyncio.create_task(asyncio.to_thread(build, database))
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND wait_event_type = 'Lock'"
        )

        async def is_waiting() -> bool:
            return bool(await asyncio.to_thread(scalar, database.superuser_url, waits))

        await wait_until(is_waiting, timeout_seconds=PATIENCE_SECONDS, what="an index that waits for the writer")
        with connect(database.service_url) as other:
            other.execute("SET lock_timeout = '1s'")
            other.execute("UPDATE findings SET detail = detail")
    await building
    assert query(database.superuser_url, VALID) == [(True,)]
    await asyncio.to_thread(build, database)


async def test_an_index_that_a_killed_run_left_invalid_is_built_again(database: Database) -> None:
    with connect(database.service_url) as writer:
        writer.execute("UPDATE findings SET detail = detail")
        with closing(psycopg.connect(database.migration_url, autocommit=True)) as builder:
            builder.execute("SET statement_timeout = '500ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                builder.execute("CREATE INDEX CONCURRENTLY findings_for_tests ON findings (kind)")
    assert query(database.superuser_url, VALID) == [(False,)]
    await asyncio.to_thread(build, database)
    assert query(database.superuser_url, VALID) == [(True,)]
