"""What a reconciliation costs: `python -m bench.reconciliation --ledger-rows 1000000 --transfers 100000`.

Fills a scratch PostgreSQL with a day's transfers, payments and usage, straight into the tables and with the triggers
off, and reconciles that day, with its CSV; then puts as much again, and again, before it, and reconciles the same day
once more: the ledger's age must not matter. Says rows, seconds, and the most memory that the process has had.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import psycopg

from bench.scratch import INSERT_ACCOUNTS, scratch_database
from commands.output import grouped, progress, stdout, table
from db.engine import ServiceDatabase
from domain.operations.reconciliation.report import Report
from domain.operations.resolutions import RemedyRequest
from services.operations.reconciliation import Reconciliation

CHAIN_ID: Final = 8453
BLOCK_TIME: Final = timedelta(seconds=2)
ACCOUNTS: Final = 10_000
DAY: Final = timedelta(days=1)

# Of a thousand transfers so many are something else than an exact purchase.
DONATIONS, OPERATORS, LEFT, SURPLUSES = 20, 5, 3, 2

_CURSOR: Final = """
    INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, head_number)
    VALUES (%(chain_id)s, %(token)s, %(treasury)s, 0, 1000000000, 1000000000);
"""

# One transfer after the other as the posting functions would write it; balances play no part here.
_TRANSFERS: Final = """
    CREATE TEMP TABLE made AS
    SELECT g, md5('attempt ' || g)::uuid AS attempt_id, md5('finding ' || g)::uuid AS finding_id,
           '0x' || lpad(to_hex(g), 64, '0') AS tx_hash, (g %% 7) AS log_index,
           'account-' || (g %% %(accounts)s) AS account, '0x' || lpad((g %% %(accounts)s + 1)::text, 40, '0') AS sender,
           %(from_time)s::timestamptz + (g - %(first)s) * (%(length)s / %(count)s) AS at,
           CASE WHEN g %% 1000 < %(donations)s THEN 'donation'
                WHEN g %% 1000 < %(donations)s + %(operators)s THEN 'operator'
                WHEN g %% 1000 < %(donations)s + %(operators)s + %(left)s THEN 'left'
                WHEN g %% 1000 < %(donations)s + %(operators)s + %(left)s + %(surpluses)s THEN 'surplus'
                ELSE 'purchase' END AS kind
      FROM generate_series(%(first)s::bigint, %(first)s + %(count)s - 1) g;
    INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,
                                    from_address, to_address, value_raw, observed_at, handled_at)
    SELECT %(chain_id)s, tx_hash, log_index, g, '0x' || repeat('4', 64), at, %(token)s, sender, %(treasury)s,
           CASE kind WHEN 'surplus' THEN 100000077 ELSE 100000000 END, at, at FROM made;
    INSERT INTO payment_attempts (id, billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, purpose, status, tx_hash, submitted_at, submission_count,
                                  revenue_share, created_at, updated_at)
    SELECT attempt_id, account, sender, %(chain_id)s, %(token)s, %(treasury)s, 100000000, 10000,
           CASE kind WHEN 'donation' THEN 'system' ELSE 'self' END, 'CREDITED', tx_hash, at, 1,
           CASE kind WHEN 'donation' THEN NULL ELSE 0.75 END, at, at
      FROM made WHERE kind IN ('purchase', 'surplus', 'donation');
    INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,
                                   value_raw, surplus_raw, created_at)
    SELECT %(chain_id)s, tx_hash, log_index, attempt_id, g, '0x' || repeat('4', 64), sender,
           CASE kind WHEN 'surplus' THEN 100000077 ELSE 100000000 END, CASE kind WHEN 'surplus' THEN 77 ELSE 0 END, at
      FROM made WHERE kind IN ('purchase', 'surplus', 'donation');
    INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)
    SELECT attempt_id, 'final', %(chain_id)s, tx_hash, log_index, g, '0x' || repeat('4', 64), 'finalized'
      FROM made WHERE kind IN ('purchase', 'surplus', 'donation');
    INSERT INTO findings (id, key, kind, chain_id, tx_hash, log_index, detail, created_at, resolved_at, resolution)
    SELECT finding_id, 'transfer:%(chain_id)s:' || tx_hash || ':' || log_index, 'transfer_without_intent', %(chain_id)s,
           tx_hash, log_index, 'x', at, at, CASE kind WHEN 'left' THEN 'write_off' ELSE 'credit' END
      FROM made WHERE kind IN ('operator', 'left');
    INSERT INTO transfer_credits (chain_id, tx_hash, log_index, part, block_number, block_hash, from_address,
                                  finding_id, billing_account_id, value_raw, amount_credits, revenue_share, reference,
                                  created_at)
    SELECT %(chain_id)s, tx_hash, log_index, 'whole', g, '0x' || repeat('4', 64), sender, finding_id, account,
           100000000, 1000000000, 0.75, 'transfer:%(chain_id)s:' || tx_hash || ':' || log_index, at
      FROM made WHERE kind = 'operator';
    CREATE TEMP TABLE posted AS
    SELECT gen_random_uuid() AS id, g, at, rows.account, rows.amount, rows.reason, rows.contra,
           CASE kind WHEN 'operator' THEN 'transfer:%(chain_id)s:' || tx_hash || ':' || log_index
                     ELSE attempt_id::text END AS reference
      FROM made, LATERAL (
           SELECT CASE kind WHEN 'donation' THEN 'cogni_system' ELSE account END, 1000000000::bigint,
                  CASE kind WHEN 'donation' THEN 'system_donation' WHEN 'operator' THEN 'operator_credit'
                            ELSE 'credits_purchase' END, 'cash:usdc' WHERE kind <> 'left'
            UNION ALL
           SELECT 'cogni_system', 750000000, 'platform_revenue_share', 'expense:platform_revenue_share'
            WHERE kind IN ('purchase', 'surplus', 'operator')) rows (account, amount, reason, contra);
    INSERT INTO posted
    SELECT gen_random_uuid(), n, %(from_time)s::timestamptz + n * (%(length)s / %(usage)s),
           'account-' || (n %% %(accounts)s), -1000, 'usage', 'revenue:usage', NULL
      FROM generate_series(0, %(usage)s - (SELECT count(*) FROM posted) - 1) n;
    INSERT INTO credit_ledger (id, billing_account_id, amount, balance_after, reason, reference, created_at)
    SELECT id, account, amount, 0, reason, reference, at FROM posted ORDER BY at;
    INSERT INTO journal_lines (entry_id, account_code, side, amount)
    SELECT id, CASE (side = 'debit') = (amount > 0) WHEN true THEN contra ELSE 'credits:' || account END, side,
           abs(amount)
      FROM posted, (VALUES ('debit'), ('credit')) sides (side) ORDER BY at;
    DROP TABLE made, posted;
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """One reconciliation of the same day, in a ledger of this size."""

    ledger_rows: int
    transfers: int
    seconds: float
    peak_mb: int
    report: Report


class Ledger:
    """A ledger that grows into the past."""

    def __init__(self, superuser_url: str, *, to_time: datetime, transfers: int, ledger_rows: int) -> None:
        self._connection = psycopg.connect(superuser_url, autocommit=True, cursor_factory=psycopg.ClientCursor)
        self._connection.execute("SET session_replication_role = replica")
        self._connection.execute("SET synchronous_commit = off")
        self.days = 0
        self._to_time = to_time
        self._values = {
            "accounts": ACCOUNTS,
            "chain_id": CHAIN_ID,
            "token": "0x" + "70" * 20,
            "treasury": "0x" + "71" * 20,
            "count": transfers,
            "usage": ledger_rows,
            "donations": DONATIONS,
            "operators": OPERATORS,
            "left": LEFT,
            "surpluses": SURPLUSES,
            "length": DAY,
        }
        self._connection.execute(INSERT_ACCOUNTS + _CURSOR, self._values)

    def add_day(self) -> None:
        """Put a day with transfers and entries before those that are there."""
        self.days += 1
        first = self.days * 10_000_000
        values = self._values | {"first": first, "from_time": self._to_time - self.days * DAY}
        self._connection.execute(_TRANSFERS, values)
        self._connection.execute("VACUUM (ANALYZE)")

    def close(self) -> None:
        """Leave it."""
        self._connection.close()


class _NothingToStart:
    """Every payment and every finding that was made is complete."""

    async def resume_payment(self, _: str, attempt_id: UUID) -> bool:
        """Never called."""
        raise AssertionError(f"attempt {attempt_id} lacks nothing")

    async def start_resolution(self, request: RemedyRequest) -> object:
        """Never called."""
        raise AssertionError(f"finding {request.finding_id} lacks nothing")


async def measure(service: ServiceDatabase, to_time: datetime, folder: Path) -> tuple[Report, float]:
    """Reconcile the day before `to_time`, with its CSV; the report and the seconds that it took."""

    reconciliation = Reconciliation(service, chain_id=CHAIN_ID, block_time=BLOCK_TIME, starter=_NothingToStart())
    started = time.perf_counter()
    report = await reconciliation.run(to_time - DAY, to_time, csv_file=folder / "books.csv", on_progress=progress)
    seconds = time.perf_counter() - started
    if not report.is_well:
        raise AssertionError(f"the books that were made are wrong: {report.counts}")
    return report, seconds


def peak_mb() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


async def run(folder: Path, *, ledger_rows: int, transfers: int, days: int) -> list[Cost]:
    """Measure the last day alone, and with all the days before it."""
    costs = []
    to_time = datetime.now(UTC)
    async with scratch_database(folder, {"fsync": "off", "max_wal_size": "4GB"}) as scratch:
        ledger = Ledger(scratch.superuser_url, to_time=to_time, transfers=transfers, ledger_rows=ledger_rows)
        for size in sorted({1, days}):
            while ledger.days < size:
                progress(f"making day {ledger.days + 1} of {size}: {transfers} transfers, {ledger_rows} entries")
                await asyncio.to_thread(ledger.add_day)
            report, seconds = await measure(scratch.service, to_time, folder)
            costs.append(Cost(ledger_rows * size, transfers * size, seconds, peak_mb(), report))
        ledger.close()
    return costs


def _show(costs: list[Cost], before_mb: int) -> None:
    columns = ("ledger rows", "transfers", "of which reconciled", "seconds", "peak memory, MB")
    rows = [
        (
            grouped(cost.ledger_rows),
            grouped(cost.transfers),
            grouped(cost.report.totals.transfers),
            f"{cost.seconds:.1f}",
            cost.peak_mb,
        )
        for cost in costs
    ]
    stdout.print(table("reconciliation of one day", columns, rows, right=columns))
    stdout.print(f"{before_mb} MB of it before anything was read")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.reconciliation", description=__doc__)
    parser.add_argument("--ledger-rows", type=int, default=1_000_000, help="of one day")
    parser.add_argument("--transfers", type=int, default=100_000, help="of one day")
    parser.add_argument("--days", type=int, default=3, help="how many days there are in the end")
    parser.add_argument("--folder", type=Path, help="where there is room; default: the system's folder for such")
    arguments = parser.parse_args()
    before_mb = peak_mb()
    with tempfile.TemporaryDirectory(prefix="settle-bench-reconciliation-", dir=arguments.folder) as folder:
        costs = asyncio.run(
            run(
                Path(folder),
                ledger_rows=arguments.ledger_rows,
                transfers=arguments.transfers,
                days=arguments.days,
            )
        )
    _show(costs, before_mb)


if __name__ == "__main__":
    main()
