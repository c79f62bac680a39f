"""`settle migrate`: creates roles, schema, functions and seeds, from any earlier revision or none. Safe to repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from db import functions, migrations, rights
from db.address import parse_address
from db.billing.prices import seed_first_version
from db.engine import ADDRESS_IN_ARGUMENTS, connection_arguments
from db.locks import APPLICATION_NAME, LOCK_SECONDS_MAX, LockWatch, patiently
from db.logins import Login, LoginResult, try_login
from db.outages import as_unavailable
from db.pooler import refuse_pooler
from db.rights import APP_ROLE, OPERATOR_ROLE, OPTIONAL_ROLES, RELAY_ROLE, SERVICE_ROLE, SETTLEMENT_ROLE
from db.schema import EXPANDED_REVISION, LAST_CONTRACT, SCHEMA_REVISION
from domain.errors import ConfigurationError, StartupCheckFailed

_LOCK_KEY: Final = 0x5E771E
"""Advisory lock that serializes concurrent migrations."""

LOCK_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Migrated:
    """State before, and result of, `migrate`."""

    revision_before: str | None
    revision: str
    roles_created: tuple[str, ...]
    passwords_set: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _RoleAddress:
    """A role of the product, and the setting with its address."""

    role: str
    setting: str
    url: str
    bypass_row_level_security: bool = False


def migrate(
    migration_url: str,
    *,
    app_url: str,
    settlement_url: str,
    service_url: str,
    operator_url: str | None = None,
    relay_url: str | None = None,
    expand_only: bool = False,
    set_passwords: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Migrated:
    """Create missing roles, upgrade the schema to the code's revision, bring functions and rights up to date, and seed.

    The roles get the passwords of their addresses; an existing role keeps its password, unless `set_passwords`. The
    roles of operators and of the relay are created only where they have one. With `expand_only` nothing is removed that
    processes of the previous version use: the next migration does that. Raises `DatabaseUnavailable`,
    `ConfigurationError`, and `StartupCheckFailed` where rights are missing or, at the end, where a role is not accepted
    with its address's password.
    """
    addresses = _addresses(app_url, settlement_url, service_url, operator_url=operator_url, relay_url=relay_url)
    engine = create_engine(
        ADDRESS_IN_ARGUMENTS, connect_args=connection_arguments(migration_url, application_name=APPLICATION_NAME)
    )
    try:
        with (
            _errors_of_migration(),
            engine.connect() as connection,
            LockWatch(migration_url, _prepare(connection, on_progress)) as watch,
        ):
            created = tuple(
                address.role for address in addresses if _ensure_role(connection, address, on_progress=on_progress)
            )
            passwords_set = tuple(
                address.role
                for address in addresses
                if set_passwords and _ensure_password(connection, address, on_progress=on_progress)
            )
            before = _revision(connection)
            revision = _target(before, expand_only=expand_only)
            on_progress(f"schema at revision {before or 'none'}, upgrading to {revision}")
            optional = OPTIONAL_ROLES & {address.role for address in addresses}
            for step in _steps(connection, before, revision, optional=optional, on_progress=on_progress):
                patiently(connection, step, watch=watch, on_progress=on_progress)
            on_progress("system tenant and chart of accounts are seeded")
            _check_logins(addresses, on_progress=on_progress)
            return Migrated(before, revision, created, passwords_set)
    finally:
        engine.dispose()


def _addresses(
    app_url: str, settlement_url: str, service_url: str, *, operator_url: str | None, relay_url: str | None
) -> list[_RoleAddress]:
    return [
        _RoleAddress(APP_ROLE, "DATABASE_URL", app_url),
        _RoleAddress(SETTLEMENT_ROLE, "SETTLEMENT_DATABASE_URL", settlement_url),
        _RoleAddress(SERVICE_ROLE, "SERVICE_DATABASE_URL", service_url, bypass_row_level_security=True),
        *([_RoleAddress(OPERATOR_ROLE, "OPERATOR_DATABASE_URL", operator_url)] if operator_url else []),
        *([_RoleAddress(RELAY_ROLE, "RELAY_DATABASE_URL", relay_url)] if relay_url else []),
    ]


@contextmanager
def _errors_of_migration() -> Iterator[None]:
    """Errors of the database and of Alembic as `DatabaseUnavailable` or `StartupCheckFailed`."""
    try:
        yield
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


def _steps(
    connection: Connection,
    before: str | None,
    revision: str,
    *,
    optional: Collection[str],
    on_progress: Callable[[str], None],
) -> tuple[Callable[[], None], ...]:
    """What a migration does, each step safe to repeat."""

    def bring_up_to_date() -> None:
        _bring_up_to_date(connection, optional=optional, on_progress=on_progress)

    return (
        # The functions' present text needs all that was added, and nothing that is still to be taken away.
        lambda: _upgrade(connection, _expanded(before)),
        bring_up_to_date,
        lambda: _upgrade(connection, revision),
        bring_up_to_date,
        lambda: _seed(connection, optional=optional, on_progress=on_progress),
    )


def _prepare(connection: Connection, on_progress: Callable[[str], None]) -> int:
    """Prepare the session and take the migration lock; returns the server process. Raises `ConfigurationError`."""
    driver = _driver(connection)
    refuse_pooler(driver, setting="MIGRATION_DATABASE_URL")
    is_waiting = False
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}).scalar_one():
        if not is_waiting:
            on_progress("another migration of this database is running; waiting for it")
        is_waiting = True
        # Not inside a statement: the other migration may be building an index concurrently, which waits for the end of
        # every transaction, and would wait for one that waits for it.
        connection.rollback()
        time.sleep(LOCK_POLL_SECONDS)
    connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS_MAX}s'"))
    connection.commit()
    return driver.pgconn.backend_pid


def _target(before: str | None, *, expand_only: bool) -> str:
    """The revision to upgrade to: the code's, or the last one that removes nothing."""
    if not expand_only:
        return SCHEMA_REVISION
    if before is not None and before < LAST_CONTRACT:
        raise ConfigurationError(
            f"the schema is at revision {before}, and revision {LAST_CONTRACT} removes what its processes use: upgrade "
            "to the version of that revision first, or stop all processes and run settle migrate without --expand-only"
        )
    return _expanded(before)


def _expanded(before: str | None) -> str:
    return max(before or EXPANDED_REVISION, EXPANDED_REVISION)


def _upgrade(connection: Connection, revision: str) -> None:
    command.upgrade(_alembic(connection), revision)
    connection.commit()  # without an upgrade, Alembic leaves its transaction open


def _bring_up_to_date(connection: Connection, *, optional: Collection[str], on_progress: Callable[[str], None]) -> None:
    """Update functions and rights together: a new function cannot be called before it has its rights."""
    is_contracted = _revision(connection) == SCHEMA_REVISION
    driver = _driver(connection)
    with connection.begin():
        changed = functions.bring_up_to_date(driver)
        rights.bring_up_to_date(driver, functions=functions.load(), optional=optional, is_contracted=is_contracted)
    if changed:
        on_progress(f"functions brought up to date: {', '.join(changed)}")


def _seed(connection: Connection, *, optional: Collection[str], on_progress: Callable[[str], None]) -> None:
    with connection.begin():
        migrations.run_sql_file(connection, "seeds.sql")
        if seed_first_version(connection):
            on_progress("the installed price book is the first version of prices")
        # Not for every existing role: roles belong to the server, and another database of it may have operators.
        if OPERATOR_ROLE in optional:
            migrations.run_sql_file(connection, "operator_role.sql")


def _alembic(connection: Connection) -> Config:
    config = Config()
    # The parser of the options takes a `%` for the start of a name; CI servers have it in folder names.
    config.set_main_option("script_location", migrations.__path__[0].replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    return revision


def _has_role(connection: Connection, role: str) -> bool:
    return connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).first() is not None


def _ensure_role(connection: Connection, address: _RoleAddress, *, on_progress: Callable[[str], None]) -> bool:
    """Create the role if it is missing; True if it was created."""
    role = address.role
    attribute = "BYPASSRLS" if address.bypass_row_level_security else "NOBYPASSRLS"
    if _has_role(connection, role):
        connection.commit()
        return False
    driver = _driver(connection)
    verifier = _verifier(driver, role, address.url)
    statement = sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {} PASSWORD {}").format(
        sql.Identifier(role),
        sql.SQL(attribute),
        sql.Literal(verifier),
    )
    try:
        driver.execute(statement)
        connection.commit()
    except psycopg.errors.InsufficientPrivilege:
        raise StartupCheckFailed(
            f"role {role} is missing and MIGRATION_DATABASE_URL may not create it; as a superuser run: "
            f"CREATE ROLE {role} LOGIN {attribute} PASSWORD '...'"
        ) from None
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        # A concurrent migration of another database of this server created it; the error depends on the timing.
        connection.rollback()
        return False
    on_progress(f"role {role} created")
    return True


def _ensure_password(connection: Connection, address: _RoleAddress, *, on_progress: Callable[[str], None]) -> bool:
    """Set the role's password to its address's where the login is rejected; True if it was set."""
    if try_login(address.url).result is LoginResult.ACCEPTED:
        return False
    driver = _driver(connection)
    verifier = _verifier(driver, address.role, address.url)
    try:
        driver.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(address.role), sql.Literal(verifier)))
        connection.commit()
    except psycopg.errors.InsufficientPrivilege:
        raise StartupCheckFailed(
            f"MIGRATION_DATABASE_URL may not set the password of role {address.role}; as a superuser run: "
            f"ALTER ROLE {address.role} PASSWORD '...'"
        ) from None
    on_progress(f"role {address.role} has the password of {address.setting}")
    return True


def _check_logins(addresses: Sequence[_RoleAddress], *, on_progress: Callable[[str], None]) -> None:
    """Check that each role is accepted with its address, as far as possible from here. Raises `StartupCheckFailed`."""
    refused = []
    for address in addresses:
        login = try_login(address.url)
        if login.result is LoginResult.REFUSED:
            refused.append(address)
        elif login.result is not LoginResult.ACCEPTED:
            on_progress(_untried(address, login))
        elif login.role != address.role:
            raise StartupCheckFailed(f"{address.setting} logs in as role {login.role}: expected {address.role}")
    if refused:
        which = ", ".join(
            f"role {address.role} does not accept the password of {address.setting}" for address in refused
        )
        raise StartupCheckFailed(
            f"{which}; a role that exists keeps its password: correct the setting, or run: "
            "settle migrate --set-passwords"
        )


def _untried(address: _RoleAddress, login: Login) -> str:
    """Message about an address whose password could not be tested; it may be for other machines only."""
    what = "cannot be reached from here" if login.result is LoginResult.UNREACHABLE else "accepts no connections"
    return f"{address.setting}: {what}, the password of role {address.role} was not tested: {login.detail}"


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _verifier(driver: psycopg.Connection[Any], role: str, url: str) -> str:
    """The server's verifier of the address's password: hashed here, so that it never reaches the server's log."""
    password = parse_address(url).get("password")
    if not password:
        raise ConfigurationError(f"the address of role {role} carries no password to create the role with")
    return driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
