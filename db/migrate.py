"""`settle migrate`: roles, schema and seeds, from an empty database or any earlier revision. Safe to repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from db import migrations
from db.address import parse_address
from db.engine import ADDRESS_IN_ARGUMENTS, connection_arguments
from db.locks import APPLICATION_NAME, LOCK_SECONDS_MAX, LockWatch, patiently
from db.outages import as_unavailable
from db.pooler import refuse_pooler
from db.schema import SCHEMA_REVISION
from domain.errors import ConfigurationError, StartupCheckFailed

APP_ROLE: Final = "settle_app"
SETTLEMENT_ROLE: Final = "settle_settlement"
SERVICE_ROLE: Final = "settle_service"
OPERATOR_ROLE: Final = "settle_operator"

_LOCK_KEY: Final = 0x5E771E
"""Advisory lock: two migrations at once take turns."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What `migrate` found and did."""

    revision_before: str | None
    revision: str
    roles_created: tuple[str, ...]


def migrate(
    migration_url: str,
    *,
    app_url: str,
    settlement_url: str,
    service_url: str,
    operator_url: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Migrated:
    """Create missing roles, upgrade the schema to the code's revision, and seed.

    The roles get the passwords of their addresses; a role that exists keeps the one it has. The operators' role is
    made only where it has an address.
    Raises `DatabaseUnavailable`, `ConfigurationError`, and `StartupCheckFailed` where rights are missing.
    """
    engine = create_engine(
        ADDRESS_IN_ARGUMENTS, connect_args=connection_arguments(migration_url, application_name=APPLICATION_NAME)
    )
    try:
        with engine.connect() as connection, LockWatch(migration_url, _prepare(connection, on_progress)) as watch:
            created = tuple(
                role
                for role, url, bypass in (
                    (APP_ROLE, app_url, False),
                    (SETTLEMENT_ROLE, settlement_url, False),
                    (SERVICE_ROLE, service_url, True),
                    *(((OPERATOR_ROLE, operator_url, False),) if operator_url else ()),
                )
                if _ensure_role(connection, role, url, bypass_row_level_security=bypass, on_progress=on_progress)
            )
            before = _revision(connection)
            on_progress(f"schema at revision {before or 'none'}, upgrading to {SCHEMA_REVISION}")
            patiently(connection, lambda: _upgrade(connection), watch=watch, on_progress=on_progress)
            patiently(
                connection,
                lambda: _seed(connection, with_operators=bool(operator_url)),
                watch=watch,
                on_progress=on_progress,
            )
            on_progress("system tenant and chart of accounts are seeded")
            return Migrated(before, SCHEMA_REVISION, created)
    except (DBAPIError, psycopg.Error) as error:
        # The SQL files run on the driver itself.
        unavailable = as_unavailable(error)
        if unavailable is not None:
            raise unavailable from error
        line = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()[0]
        raise StartupCheckFailed(f"migration failed: {line}") from error
    except CommandError as error:
        # Alembic's own errors say that it does not know the revision.
        raise StartupCheckFailed(f"migration failed: {str(error).strip().splitlines()[0]}") from error
    finally:
        engine.dispose()


def _prepare(connection: Connection, on_progress: Callable[[str], None]) -> int:
    """Make the session one that migrates, alone: the number of its server process. Raises `ConfigurationError`."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    refuse_pooler(driver, setting="MIGRATION_DATABASE_URL")
    if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}).scalar_one():
        on_progress("another migration of this database is running; waiting for its end")
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
    connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS_MAX}s'"))
    connection.commit()
    return driver.pgconn.backend_pid


def _upgrade(connection: Connection) -> None:
    command.upgrade(_alembic(connection), SCHEMA_REVISION)
    connection.commit()  # where there was nothing to upgrade, Alembic leaves the transaction of its look open


def _seed(connection: Connection, *, with_operators: bool) -> None:
    with connection.begin():
        migrations.run_sql_file(connection, "seeds.sql")
        # Not wherever the role is: roles are the server's, and another database of it may have operators.
        if with_operators:
            migrations.run_sql_file(connection, "operator_role.sql")


def _alembic(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    return revision


def _has_role(connection: Connection, role: str) -> bool:
    return connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).first() is not None


def _ensure_role(
    connection: Connection,
    role: str,
    url: str,
    *,
    bypass_row_level_security: bool,
    on_progress: Callable[[str], None],
) -> bool:
    """Create the role if it is missing; True if it was created."""
    if _has_role(connection, role):
        connection.commit()
        return False
    password = parse_address(url).get("password")
    if not password:
        raise ConfigurationError(f"the address of role {role} carries no password to create the role with")
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    # Hashed here, so that the password itself never reaches the server's log.
    verifier = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    statement = sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {} PASSWORD {}").format(
        sql.Identifier(role),
        sql.SQL("BYPASSRLS" if bypass_row_level_security else "NOBYPASSRLS"),
        sql.Literal(verifier),
    )
    try:
        driver.execute(statement)
        connection.commit()
    except psycopg.errors.InsufficientPrivilege:
        attribute = "BYPASSRLS" if bypass_row_level_security else "NOBYPASSRLS"
        raise StartupCheckFailed(
            f"role {role} is missing and MIGRATION_DATABASE_URL may not create it; as a superuser run: "
            f"CREATE ROLE {role} LOGIN {attribute} PASSWORD '...'"
        ) from None
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        # Another migration of the same server was quicker, for another database; how it shows depends on the moment.
        connection.rollback()
        return False
    on_progress(f"role {role} created")
    return True
