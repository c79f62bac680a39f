"""A reconciliation reads its period, not the ledger's age; and holds a few transactions at a time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from bench.reconciliation import Ledger, measure
from db.operations import reconciliation as db
from tests.support.payments import RolePair

TRANSFERS = 2_000
ENTRIES = 10_000
DAYS_BEFORE = 4


@pytest.mark.slow
async def test_what_is_read_does_not_grow_with_what_was_before_the_period(roles: RolePair, tmp_path: Path) -> None:
    to_time = datetime.now(UTC)
    ledger = Ledger(roles.database.superuser_url, to_time=to_time, transfers=TRANSFERS, ledger_rows=ENTRIES)
    asked: list[tuple[str, Any]] = []

    def note(_: object, cursor: object, statement: str, values: Any, *rest: object) -> None:
        if re.search(r"FROM (credit_ledger|transactions|payment_attempts|unexplained_entries)", statement):
            asked.append((statement, values))

    ledger.add_day()
    event.listen(roles.service.engine.sync_engine, "before_cursor_execute", note)
    first, _ = await measure(roles.service, to_time, tmp_path)
    event.remove(roles.service.engine.sync_engine, "before_cursor_execute", note)
    assert len(asked) >= 4
    before = _buffers(roles, asked)
    for _ in range(DAYS_BEFORE):
        ledger.add_day()
    again, _ = await measure(roles.service, to_time, tmp_path)
    ledger.close()
    assert again.totals == first.totals
    assert first.totals.transfers == TRANSFERS
    # Five times as much is there. Ranges of pages at the period's edges, and deeper indexes, are read beside it.
    assert _buffers(roles, asked) < before * 2


def _buffers(roles: RolePair, asked: list[tuple[str, Any]]) -> int:
    """Pages that the statements touch, wherever they were."""
    touched = 0
    with psycopg.connect(roles.database.service_url) as service:
        service.execute("SET jit = off")
        for statement, values in asked:
            plan = service.execute(f"EXPLAIN (ANALYZE, BUFFERS) {statement}".encode(), values).fetchall()
            [line] = [str(row[0]) for row in plan if "Buffers: shared" in str(row[0])][:1]
            touched += sum(int(pages) for pages in re.findall(r"(?:hit|read)=(\d+)", line))
    return touched


async def test_a_batch_of_transactions_is_in_memory_and_not_all(
    roles: RolePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver fetches what is asked for next: as many round trips as there are batches."""
    monkeypatch.setattr(db, "FETCHED_AT_ONCE", 100)
    to_time = datetime.now(UTC)
    ledger = Ledger(roles.database.superuser_url, to_time=to_time, transfers=300, ledger_rows=900)
    ledger.add_day()
    ledger.close()
    sizes: list[int] = []
    span = db.Span(8453, datetime(2000, 1, 1, tzinfo=UTC), to_time)
    async with roles.service.snapshot() as connection:
        await db.prepare(connection)
        held = 0
        async for _ in db.stream_transactions(connection, span):
            held += 1
            if held == 1:
                sizes.append(_fetched(roles))
    assert held == 300
    # One batch, and the cursor is where it stopped: the rest is still the server's.
    assert sizes[0] == 1


def _fetched(roles: RolePair) -> int:
    """How many cursors are open while the first transaction is read."""
    with psycopg.connect(roles.database.superuser_url) as superuser:
        row = superuser.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'FETCH%%'"
            " AND state = 'idle in transaction'"
        ).fetchone()
    assert row is not None
    return int(row[0])
