"""The product's database in an embedded PostgreSQL: its owner, a role that is no superuser, and itself."""

import psycopg
from psycopg import sql

OWNER_ROLE = "settle_owner"
DATABASE = "settle"


def prepare_database(superuser_url: str, owner_password: str, *, database: str = DATABASE) -> None:
    """Creates the owner role and the database that it owns, where they are missing.

    The owner may create the two roles that migrations need, and is not a superuser. Raises psycopg.Error.
    """
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (OWNER_ROLE,)).fetchone():
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN CREATEROLE BYPASSRLS PASSWORD {}").format(
                    sql.Identifier(OWNER_ROLE), sql.Literal(owner_password)
                )
            )
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone():
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(database), sql.Identifier(OWNER_ROLE))
            )
