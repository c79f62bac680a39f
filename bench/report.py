"""What the bench found: one model, as a table for people and as one JSON document for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console

from bench.deposits_report import Deposits, show_deposits
from bench.parts import Latency, Measured, Part, Range
from bench.settlement_report import Budgets, show_costs, show_settlements
from bench.spending_report import Spending, show_spending
from bench.webhooks_report import Webhooks, show_webhooks
from commands.output import grouped, table

POSTINGS_AIM: Final = 0.8


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
    settlement: Budgets
    postings_spread: Measured
    postings_one_account: Measured
    buyer_credits_per_second: Range
    http_path: HttpPath
    spending: Spending
    deposits: Deposits
    webhooks: Webhooks
    settled: int
    posted: int

    @property
    def comparisons(self) -> tuple[Measured, ...]:
        """Everything that has an aim."""
        return *self.settlement.settlements.comparisons, self.postings_spread, self.postings_one_account

    @property
    def postings(self) -> tuple[Measured, ...]:
        """Of these, the ledger's."""
        return self.postings_spread, self.postings_one_account


def show(report: Report, console: Console) -> None:
    """The report for people."""
    show_settlements(report.settlement.settlements, console)
    show_costs(report.settlement, console)
    console.print(
        table(
            "Ledger postings: the product against the same statement by the same driver, with nothing around it",
            ("what", "per second", "against", "per second ", "ratio", "min–max", "aim", ""),
            map(_ratio_row, report.postings),
            right=("per second", "per second ", "ratio", "min–max", "aim"),
        )
    )
    rate = report.buyer_credits_per_second
    console.print(
        "  1 would mean that checks, types and transactions cost nothing. A buyer's credit is a posting with all that "
        f"ends an attempt, one transaction: {rate.median:,.0f} a second ({rate.min:,.0f}–{rate.max:,.0f}).",
        markup=False,
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
    show_deposits(report.deposits, console)
    show_webhooks(report.webhooks, console)
    console.print(_conditions(report), markup=False)
    for measured in report.postings:
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
    whole, postings = report.settlement.settlements.over_inline, report.postings_spread
    return (
        f"Medians of {whole.rounds} interleaved rounds of {grouped(whole.per_round)} settlements, {whole.concurrency} "
        f"in flight, and of {postings.rounds} of {grouped(postings.per_round)} postings over {postings.concurrency} "
        f"connections; {report.seconds:.0f} s in all. Rates belong to the machine, ratios travel."
    )


def _http_rows(path: HttpPath) -> Iterator[tuple[object, ...]]:
    for calls, when in ((path.sign_in, " (beforehand)"), (path.calls, "")):
        for measured in calls:
            yield f"{measured.call}{when}", grouped(measured.count), *measured.shown(), measured.errors
    whole = path.submit_to_credited
    yield "from submit to the credit", grouped(whole.count), *whole.shown(), None


def _http_conditions(path: HttpPath) -> str:
    return (
        f"{grouped(path.credited)} of {grouped(path.begun)} payments through to credited in {path.seconds:.1f} s, "
        f"{path.payments_per_second:.1f} a second. One API process and one worker; the clients pay without a pause and "
        f"ask for the status every {path.poll_seconds:g} s, so the times are those of a system that is kept busy."
    )
