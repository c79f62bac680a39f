"""`settle reconcile`: compares chain, attempts, ledger and workflows of a period."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from commands.framework import parse_moment
from commands.output import grouped, print_json, progress, stdout, table
from composition import payments_client, service_database
from domain.money import raw_for_credits
from domain.operations.reconciliation.report import Difference, Report
from services.operations.reconciliation import Reconciliation
from settings import Settings
from starter.settlement_starter import TemporalStarter
from starter.temporal import connect

SHOWN_MAX: Final = 50
"""Differences that the table lists; `--json` has more."""


async def reconcile(
    settings: Settings,
    variables: Mapping[str, str],
    *,
    from_time: str | None,
    to_time: str | None,
    csv_file: Path | None,
    as_json: bool,
) -> bool:
    """Reconcile a period; False where something is wrong, not where a finding is merely open."""
    temporal = await connect(variables, lazy=True)
    async with service_database(settings) as database, payments_client(settings, variables) as payments:
        reconciliation = Reconciliation(
            database,
            chain_id=settings.chain_id,
            block_time=settings.block_time,
            starter=TemporalStarter(temporal, payments, singletons=()),
            dust_below_raw=settings.dust_below_raw,
        )
        default = await reconciliation.default_period(whole_hours=False)
        end = parse_moment("--to", to_time) or default[1]
        begin = parse_moment("--from", from_time) or (default[0] if to_time is None else end - timedelta(days=1))
        report = await reconciliation.run(begin, end, csv_file=csv_file, on_progress=progress)
    if as_json:
        print_json(report)
    else:
        _print(report)
    return report.is_well


def _print(report: Report) -> None:
    period = report.period
    verdict = "the totals balance" if report.closes else "THE TOTALS DO NOT BALANCE"
    stdout.print(
        f"{period.from_time:%Y-%m-%d %H:%M:%S} to {period.to_time:%Y-%m-%d %H:%M:%S} UTC, chain {report.chain_id}: "
        f"{verdict}",
        style="bold",
        markup=False,
    )
    stdout.print(table("", ("total", "amount", "unit"), _totals(report), right=("amount",)))
    if not report.counts:
        stdout.print("no differences")
    else:
        stdout.print(
            table(
                "Differences",
                ("severity", "kind", "detail", "what to do"),
                [(one.severity.value, one.kind, _detail(one), one.remedy) for one in report.differences[:SHOWN_MAX]],
            )
        )
        number = sum(report.counts.values())
        if number > SHOWN_MAX:
            stdout.print(f"{SHOWN_MAX} of {grouped(number)} shown, largest value first; --json has more", markup=False)
        counted = ", ".join(
            f"{count} {kind}" + (f" ({grouped(worth)} raw)" if (worth := report.values_raw.get(kind)) else "")
            for kind, count in report.counts.items()
        )
        stdout.print(f"in all: {counted}", markup=False)
    if report.csv:
        stdout.print(f"written: {report.csv}", markup=False)
    stdout.print(f"balance assertion {report.assertion_id}, {report.seconds} s", markup=False)


def _detail(difference: Difference) -> str:
    place = f" (transaction {difference.tx_hash})" if difference.tx_hash else ""
    return difference.detail + place


def _totals(report: Report) -> list[tuple[str, str, str]]:
    totals = report.totals
    rows = [
        ("transfers", totals.transfers, ""),
        ("inflow", totals.inflow_raw, "raw"),
        ("= purchases", raw_for_credits(totals.purchases_credits), "raw"),
        ("+ donations", raw_for_credits(totals.donations_credits), "raw"),
        ("+ credited by operators", raw_for_credits(totals.operator_credits), "raw"),
        ("+ unapplied", totals.unapplied_raw, "raw"),
        ("    of which waits for an operator", totals.open_raw, "raw"),
        ("    of which in progress", totals.in_progress_raw, "raw"),
        ("    of which dust, too small for a finding", totals.dust_raw, "raw"),
        ("    of which refunded", totals.refunded_raw, "raw"),
        ("    of which written off", totals.written_off_raw, "raw"),
        ("reversed", raw_for_credits(totals.reversed_credits), "raw"),
        ("posted to cash:usdc, debit", totals.ledger_debit_credits, "credits"),
        ("posted to cash:usdc, credit", totals.ledger_credit_credits, "credits"),
    ]
    if totals.unobserved_raw:
        rows.append(("paid outside the watcher's blocks", totals.unobserved_raw, "raw"))
    return [(name, grouped(value), unit) for name, value, unit in rows]
