"""The runbook's statements are ones that the database takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from uuid import uuid4

from domain.operations.findings import DEFAULT_DUST_BELOW_RAW as FLOOR
from tests.support.payments import CHAIN_ID
from tests.support.postgres import Database
from tests.support.sql import query

RUNBOOK: Final = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
STATEMENT: Final = re.compile(r'[`"]((?:SELECT|UPDATE) [^`"]+ (?:FROM|SET) [^`"]+)[`"]')


def test_every_statement_of_the_runbook_can_be_run(database: Database) -> None:
    statements = STATEMENT.findall(RUNBOOK.read_text("utf-8"))
    assert len(statements) == 5
    for written in statements:
        statement = written
        for name, value in {"'ID'": f"'{uuid4()}'", "$CHAIN_ID": CHAIN_ID, "$DUST_BELOW_RAW": FLOOR}.items():
            statement = statement.replace(name, str(value))
        of_the_owner = statement.startswith("UPDATE")
        query(database.superuser_url if of_the_owner else database.service_url, f"EXPLAIN {statement}")
