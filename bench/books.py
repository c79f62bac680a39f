"""What a books check costs in a small, a larger and a large ledger: `python -m bench.books --entries 10000000`.

Fills a scratch PostgreSQL with payments and usage, straight into the tables and with the triggers off, and measures the
check of a thousand new entries at each size. It needs some 800 bytes of disk for each entry, which it gives back, and
about three minutes for each million.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from activities.ledger.integrity_scan import OLD_STEPS, check_all_books, check_books
from bench.scratch import INSERT_ACCOUNTS, scratch_database
from commands.output import grouped, progress, stdout, table
from db.engine import ServiceDatabase
from db.ledger import integrity_scan as books_check
from db.ledger.invariants import SHOWN_MAX, find_violations

PENDING_MAX: Final = timedelta(days=1)

SIZES: Final = (100_000, 1_000_000)
"""Measured on the way to what is asked for."""

NEW_ENTRIES: Final = 1_000
REPEATS: Final = 5

GROUP: Final = 10
"""Entries of one payment and what is used of it: a purchase, its bonus and eight charges."""

ACCOUNTS: Final = 20_000

BATCH_GROUPS: Final = 100_000
"""Groups that one statement makes."""

SERVER_SETTINGS: Final = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "256MB",
    "work_mem": "128MB",
    # Nothing here outlives the measurement.
    "fsync": "off",
}

# One group after the other, as the posting functions would write it; only the balances need the previous ones.
_GROUPS: Final = """
    CREATE TEMP TABLE made ON COMMIT DROP AS
    SELECT rows.*, balance_credits + sum(amount) OVER (PARTITION BY account ORDER BY place) AS balance_after FROM (
        SELECT g * 10 + k AS place, g, k, gen_random_uuid() AS id, md5('attempt ' || g)::uuid AS attempt_id,
               CASE k WHEN 1 THEN 'cogni_system' ELSE 'account-' || ((g * 7919 + k / 2 * 31) %% %(accounts)s) END
                 AS account,
               CASE k WHEN 0 THEN 1000000000 WHEN 1 THEN 750000000 ELSE -1000 END::bigint AS amount,
               CASE k WHEN 0 THEN 'credits_purchase' WHEN 1 THEN 'platform_revenue_share' ELSE 'usage' END AS reason
          FROM generate_series(%(first)s::bigint, %(last)s::bigint) g, generate_series(0, 9) k) rows
      JOIN billing_accounts b ON b.id = account;
    INSERT INTO credit_ledger (id, billing_account_id, amount, balance_after, reason, reference, created_at)
    SELECT id, account, amount, balance_after, reason,
           CASE WHEN k < 2 THEN attempt_id::text ELSE 'call ' || place END, now() - interval '1 hour'
      FROM made ORDER BY place;
    INSERT INTO journal_lines (entry_id, account_code, side, amount)
    SELECT id, CASE (side = 'debit') = (amount > 0) WHEN true
                    THEN CASE k WHEN 0 THEN 'cash:usdc' WHEN 1 THEN 'expense:platform_revenue_share'
                                ELSE 'revenue:usage' END
                    ELSE 'credits:' || account END, side, abs(amount)
      FROM made, (VALUES (0, 'debit'), (1, 'credit')) sides (n, side) ORDER BY place, n;
    UPDATE billing_accounts b SET balance_credits = b.balance_credits + m.total
      FROM (SELECT account, sum(amount) AS total FROM made GROUP BY account) m WHERE b.id = m.account;
    INSERT INTO payment_attempts (id, billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, status, tx_hash, submitted_at, submission_count, revenue_share,
                                  created_at, updated_at)
    SELECT attempt_id, account, '0x' || lpad(replace(account, 'account-', ''), 40, '0'), 1, '0x' || repeat('2', 40),
           '0x' || repeat('3', 40), 100000000, 10000, 'CREDITED', '0x' || lpad(to_hex(g), 64, '0'),
           now() - interval '1 hour', 1, 0.75, now() - interval '1 hour', now() - interval '1 hour'
      FROM made WHERE k = 0 ORDER BY place;
    INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,
                                   value_raw, surplus_raw)
    SELECT 1, '0x' || lpad(to_hex(g), 64, '0'), 0, attempt_id, g, '0x' || repeat('4', 64), '0x' || repeat('1', 40),
           100000000, 0 FROM made WHERE k = 0 ORDER BY place;
    INSERT INTO payment_events (attempt_id, event_type, to_status, created_at)
    SELECT attempt_id, event_type, status, now() - interval '1 hour' FROM made,
           (VALUES (0, 'intent_created', 'CREATED_INTENT'), (1, 'submitted', 'PENDING_UNVERIFIED'),
                   (2, 'credited', 'CREDITED')) events (n, event_type, status)
     WHERE k = 0 ORDER BY place, n;
"""

_INDEXES: Final = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
     WHERE indrelid = ANY ('{credit_ledger, journal_lines, payment_attempts, payment_events}'::regclass[])
       AND NOT indisprimary AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured at one size, in seconds."""

    entries: int
    first: float
    new: float
    scheduled: float
    everything: float
    whole_ledger: float


class Ledger:
    """A ledger that grows."""

    def __init__(self, superuser_url: str) -> None:
        self._connection = psycopg.connect(superuser_url, autocommit=True, cursor_factory=psycopg.ClientCursor)
        self._connection.execute("SET session_replication_role = replica")
        self._connection.execute("SET synchronous_commit = off")
        self._groups = 0
        self._connection.execute(INSERT_ACCOUNTS, {"accounts": ACCOUNTS})

    @property
    def entries(self) -> int:
        """How many entries it has."""
        return self._groups * GROUP

    def grow_to(self, entries: int) -> None:
        """Grow to that size, fast: its indexes are rebuilt afterwards."""
        indexes = self._connection.execute(_INDEXES).fetchall()
        for name, _ in indexes:
            self._connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        while self.entries < entries:
            self.add(min(entries - self.entries, BATCH_GROUPS * GROUP))
            progress(f"{grouped(self.entries)} entries")
        for _, definition in indexes:
            self._connection.execute(definition)
        self._connection.execute("VACUUM (ANALYZE)")
        self._connection.execute("CHECKPOINT")

    def add(self, entries: int) -> None:
        """Add so many entries, a multiple of ten."""
        last = self._groups + entries // GROUP
        with self._connection.transaction():
            self._connection.execute(_GROUPS, {"first": self._groups, "last": last - 1, "accounts": ACCOUNTS})
        self._groups = last

    def size_bytes(self) -> int:
        """What it takes on disk."""
        row = self._connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        """Leave it."""
        self._connection.close()


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def _measure(ledger: Ledger, service: ServiceDatabase) -> Cost:
    async def check_new() -> None:
        await check_books(service, pending_max=PENDING_MAX)

    async def check_as_scheduled() -> None:
        await check_new()
        for _ in range(OLD_STEPS):
            async with service.transaction() as connection:
                await books_check.check_old(connection, pending_max=PENDING_MAX)

    async def check_everything() -> None:
        await check_all_books(service, pending_max=PENDING_MAX)

    async def check_at_once() -> None:
        async with service.transaction() as connection:
            await connection.connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            assert await find_violations(connection) == []

    progress("first check")
    first = await _timed(check_new)
    new: list[float] = []
    scheduled: list[float] = []
    for times, work in ((new, check_new), (scheduled, check_as_scheduled)):
        for _ in range(REPEATS):
            ledger.add(NEW_ENTRIES)
            times.append(await _timed(work))
    progress("everything, in steps and at once")
    cost = Cost(
        entries=ledger.entries,
        first=first,
        new=statistics.median(new),
        scheduled=statistics.median(scheduled),
        everything=await _timed(check_everything),
        whole_ledger=await _timed(check_at_once),
    )
    async with service.transaction() as connection:
        found = await books_check.list_open_violations(connection, shown_max=SHOWN_MAX)
    if found:
        raise AssertionError(f"the books that were made are wrong: {found[0].detail}")
    return cost


async def run(entries: int, folder: Path) -> None:
    """Measure on the way to so many entries, and print."""
    async with scratch_database(folder, SERVER_SETTINGS) as scratch:
        ledger = Ledger(scratch.superuser_url)
        costs = []
        for size in sorted({*(size for size in SIZES if size < entries), entries}):
            await asyncio.to_thread(ledger.grow_to, size)
            costs.append(await _measure(ledger, scratch.service))
            _show(costs)
        progress(f"{ledger.size_bytes() / 1e9:.1f} GB on disk")
        ledger.close()


def _show(costs: list[Cost]) -> None:
    columns = (
        "entries", f"{NEW_ENTRIES} new, ms", "as scheduled, ms", "first check, s", "everything in steps, s",
        "whole ledger at once, s",
    )  # fmt: skip
    rows = [
        (
            grouped(cost.entries),
            f"{cost.new * 1000:.0f}",
            f"{cost.scheduled * 1000:.0f}",
            f"{cost.first:.1f}",
            f"{cost.everything:.1f}",
            f"{cost.whole_ledger:.1f}",
        )
        for cost in costs
    ]
    stdout.print(table("books check", columns, rows, right=columns))


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.books", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000, help="size of the largest ledger")
    parser.add_argument("--folder", type=Path, help="where there is room; default: the system's folder for such")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="settle-bench-books-", dir=arguments.folder) as folder:
        asyncio.run(run(arguments.entries, Path(folder)))


if __name__ == "__main__":
    main()
