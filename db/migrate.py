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
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from db import migrations
from db.engine import CONNECT_TIMEOUT_SECONDS, psycopg_url
from db.schema import SCHEMA_REVISION
from domain.errors import ConfigurationError, DatabaseUnavailable, StartupCheckFailed

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
        psycopg_url(migration_url),
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": "settle migrate"},
    )
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
            connection.commit()
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
            command.upgrade(_alembic(connection), SCHEMA_REVISION)
            connection.commit()  # where there was nothing to upgrade, Alembic leaves the transaction of its look open
            with connection.begin():
                migrations.run_sql_file(connection, "seeds.sql")
                # Not wherever the role is: roles are the server's, and another database of it may have operators.
                if operator_url:
                    migrations.run_sql_file(connection, "operator_role.sql")
            on_progress("system tenant and chart of accounts are seeded")
            return Migrated(before, SCHEMA_REVISION, created)
    except OperationalError as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be reached: {_first_line(error)}") from error
    except DBAPIError as error:
        raise StartupCheckFailed(f"migration failed: {_first_line(error)}") from error
    except (psycopg.Error, CommandError) as error:
        # The SQL files run on the driver itself; Alembic's own errors say that it does not know the revision.
        raise StartupCheckFailed(f"migration failed: {str(error).strip().splitlines()[0]}") from error
    finally:
        engine.dispose()


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
    password = make_url(url).password
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


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]
