"""What the bench found: one model, as a table for people and as one JSON document for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console

from bench.parts import Measured, Part, Range
from bench.spending_report import Spending, show_spending
from commands.output import grouped, table

SETTLEMENTS_AIM: Final = 0.8
POSTINGS_AIM: Final = 0.8


class SettlementCost(Part):
    """One purchase, confirmed at the first poll, from `submit` to the completed run."""

    sampled: int
    history_events: float
    history_bytes: float
    workflow_tasks: float
    activities: float
    billed_actions_estimated: float
    rpc_requests: float
    rpc_calls: float
    sql_statements: float
    sql_transactions: float
    sql_round_trips: float


class Latency(Part):
    """Exact percentiles of all samples; none where there are none."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class CallLatency(Latency):
    """Of one call of the HTTP interface, as its clients saw it. An error is not among the samples."""

    call: str
    errors: int


class HttpPath(Part):
    """Clients at once, without a pause, each from the intent through submit and status to the credits.

    `begun` is less than what was asked for where time was up.
    """

    clients: int
    payments_per_client: int
    begun: int
    credited: int
    seconds: float
    payments_per_second: float
    poll_seconds: float
    sign_in: list[CallLatency]
    calls: list[CallLatency]
    submit_to_credited: Latency
    errors: int
    first_errors: list[str]


class Report(Part):
    """The whole run. `violations` is empty in a run that counts."""

    valid: bool
    violations: list[str]
    seconds: float
    settlements: Measured
    postings_spread: Measured
    postings_one_account: Measured
    buyer_credits_per_second: Range
    settlement_cost: SettlementCost
    http_path: HttpPath
    spending: Spending
    settled: int
    posted: int

    @property
    def comparisons(self) -> tuple[Measured, ...]:
        """Everything that has an aim."""
        return self.settlements, self.postings_spread, self.postings_one_account


def show(report: Report, console: Console) -> None:
    """The report for people."""
    console.print(
        table(
            "settle bench: the product against the least that the same work costs",
            ("what", "per second", "against", "per second ", "ratio", "min–max", "aim", ""),
            map(_ratio_row, report.comparisons),
            right=("per second", "per second ", "ratio", "min–max", "aim"),
        )
    )
    console.print(
        table(
            "What one settlement costs (a purchase, confirmed at the first poll)",
            ("what", "measured"),
            _cost_rows(report),
            right=("measured",),
        )
    )
    console.print(
        table(
            f"The HTTP interface, with {report.http_path.clients} clients at once, in milliseconds",
            ("call", "count", "p50", "p95", "p99", "errors"),
            _http_rows(report.http_path),
            right=("count", "p50", "p95", "p99", "errors"),
        )
    )
    console.print(_http_conditions(report.http_path), markup=False)
    show_spending(report.spending, console)
    console.print(_conditions(report), markup=False)
    for measured in report.comparisons:
        if measured.ratio.median > 1:
            console.print(
                f"{measured.name}: above 1 does not mean faster than its baseline, which does a part of the same work. "
                "Something else was the limit (waiting for one row, a busy machine): measure again on a quiet one.",
                markup=False,
            )
    if report.valid:
        console.print(
            f"The books balance: {grouped(report.settled)} settlements and {grouped(report.posted)} postings are there."
        )
    for violation in report.violations:
        console.print(f"INVALID: {violation}", markup=False, style="bold red")


def _ratio_row(measured: Measured) -> tuple[str, ...]:
    return (
        measured.name,
        f"{measured.product_per_second.median:,.0f}",
        measured.baseline,
        f"{measured.baseline_per_second.median:,.0f}",
        f"{measured.ratio.median:.2f}",
        f"{measured.ratio.min:.2f}–{measured.ratio.max:.2f}",
        f"≥ {measured.aim:.2f}",
        "PASS" if measured.aim_met else "below",
    )


def _conditions(report: Report) -> str:
    whole, postings = report.settlements, report.postings_spread
    return (
        f"Medians of {whole.rounds} interleaved rounds of {grouped(whole.per_round)} settlements, {whole.concurrency} "
        f"in flight, and of {postings.rounds} of {grouped(postings.per_round)} postings over {postings.concurrency} "
        f"connections; {report.seconds:.0f} s in all. Rates belong to the machine, ratios travel."
    )


def _http_rows(path: HttpPath) -> Iterator[tuple[object, ...]]:
    for calls, when in ((path.sign_in, " (beforehand)"), (path.calls, "")):
        for measured in calls:
            yield f"{measured.call}{when}", grouped(measured.count), *_percentiles(measured), measured.errors
    whole = path.submit_to_credited
    yield "from submit to the credit", grouped(whole.count), *_percentiles(whole), None


def _percentiles(measured: Latency) -> Iterator[str | None]:
    for found in (measured.p50_ms, measured.p95_ms, measured.p99_ms):
        yield None if found is None else f"{found:,.1f}"


def _http_conditions(path: HttpPath) -> str:
    return (
        f"{grouped(path.credited)} of {grouped(path.begun)} payments through to credited in {path.seconds:.1f} s, "
        f"{path.payments_per_second:.1f} a second. One API process and one worker; the clients pay without a pause and "
        f"ask for the status every {path.poll_seconds:g} s, so the times are those of a system that is kept busy."
    )


def _cost_rows(report: Report) -> Iterator[tuple[str, str]]:
    cost = report.settlement_cost
    yield "Temporal: events in the history", f"{cost.history_events:g} ({cost.history_bytes:,.0f} bytes)"
    yield "Temporal: workflow tasks", f"{cost.workflow_tasks:g}"
    yield "Temporal: activities", f"{cost.activities:g}"
    yield "Temporal: billed actions (estimated)", f"{cost.billed_actions_estimated:g}"
    yield "Chain node: HTTP requests", f"{cost.rpc_requests:g}"
    yield "Chain node: calls in them", f"{cost.rpc_calls:g}"
    yield "PostgreSQL: statements", f"{cost.sql_statements:g}"
    yield "PostgreSQL: transactions", f"{cost.sql_transactions:g}"
    yield "PostgreSQL: round trips", f"{cost.sql_round_trips:g}"
    rate = report.buyer_credits_per_second
    yield "Buyer's credits per second (one transaction each)", f"{rate.median:,.0f} ({rate.min:,.0f}–{rate.max:,.0f})"
