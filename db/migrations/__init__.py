"""The schema's history. Statements are plain SQL files: what runs is what a DBA reads."""

from __future__ import annotations

from pathlib import Path

import psycopg
from sqlalchemy import Connection


def run_sql_file(connection: Connection, name: str) -> None:
    """Run `sql/<name>` in the connection's transaction, as it stands (a `%` is a `%`)."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute((Path(__file__).parent / "sql" / name).read_bytes())
