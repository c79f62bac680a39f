"""What was found of settlements: the parts of the report, each with a line that says what it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pydantic import computed_field
from rich.console import Console

from bench.baseline_process import DBOS, INLINE
from bench.parts import Aim, Latency, Measured, Part, Range
from bench.rounds import Spread
from commands.output import grouped, table

DBOS_AIM: Final = 0.85
INLINE_AIM: Final = 0.20
EVENTS_AIM: Final = 20
ACTIONS_AIM: Final = 5
REQUESTS_AIM: Final = 1.2
SUBMIT_P50_AIM_MS: Final = 350
SUBMIT_P99_AIM_MS: Final = 1400

BASE_FINALITY_BLOCKS: Final = 600
"""Blocks of 2 s until a block of Base is `finalized`, some 20 minutes."""

BASELINE_WORDS: Final = {DBOS: "DBOS", INLINE: "plain code"}

_MEANS_DBOS: Final = (
    "DBOS is another engine for durable workflows. It does the same four steps with the same SQL, verdict, chain and "
    "PostgreSQL, and also goes on after a crash; only finality is the product's alone. 1 would mean that the choice of "
    "Temporal costs no throughput."
)
_MEANS_INLINE: Final = (
    "Plain code does the same four steps and keeps no record of how far it is: a crash leaves a payment half-way. What "
    "is missing to 1 is the price of going on after a crash."
)
_MEANS_CPU: Final = (
    "Processor time of one payment, all processes together: with it a machine's cores give the payments a second that "
    "it can settle. A baseline's own process has the place of worker, Temporal and client."
)


class CpuOfSide(Part):
    """Processor time of one payment, in milliseconds: medians over the rounds."""

    side: str
    milliseconds: Range
    by_process: dict[str, float]

    @classmethod
    def of(cls, side: str, rounds: Sequence[dict[str, float]]) -> CpuOfSide:
        """From each round's time by process."""
        totals = Spread.of([sum(spent.values()) for spent in rounds])
        by_process = {name: Spread.of([spent[name] for spent in rounds]).median for name in rounds[0]}
        return cls(
            side=side,
            milliseconds=Range.of(totals, digits=1),
            by_process={name: round(found, 1) for name, found in by_process.items()},
        )


class AtOnce(Part):
    """What one purchase costs that is confirmed at the first poll, from `submit` to the completed run."""

    sampled: int
    history_events: float
    history_bytes: float
    workflow_tasks: float
    activities: float
    local_activities: float
    billed_actions_estimated: float
    rpc_requests: float
    rpc_calls: float
    sql_statements: float
    sql_transactions: float
    sql_round_trips: float


class RealWait(Part):
    """What one purchase's history holds that had to wait for confirmations and finality: means over the sample.

    `polls` are attempts of each activity, retries included. On Base a block takes two seconds, as here, so that the
    wait for confirmations is the same; the polls of a run that tracks its own finality are computed for 600 blocks.
    """

    sampled: int
    history_events: float
    workflow_tasks: float
    activities: float
    local_activities: float
    billed_actions_estimated: float
    billed_actions_on_base: float
    billed_actions_of_others: float
    """A payment's share of the actions of all other workflows: the chain watcher's, and reversals."""
    polls: dict[str, float]


class Waiting(Part):
    """Payments that all waited at the same time, from the submit until all were final."""

    payments: int
    credited: int
    final: int
    credited_seconds: float
    seconds: float
    blocks: int
    requests_per_payment: float
    calls_per_payment: float
    requests_by_kind: dict[str, float]
    watcher_requests_per_block: float
    cpu_ms_by_process: dict[str, float]
    """Of one payment, from the submit until all were final: the watcher and everything idle in that time included."""
    history: RealWait

    @property
    def violations(self) -> list[str]:
        """Why it does not count, as text."""
        if self.credited == self.final == self.payments:
            return []
        return [f"of {self.payments} payments at once {self.credited} were credited and {self.final} final in time"]


class SubmitUnderLoad(Part):
    """Clients that each submit, wait until the payment is settled, and submit the next; by the typed client."""

    clients: int
    payments: int
    payments_per_second: float
    submit: Latency
    repeated: int
    """Submits that were answered with 503 and made again; their time counts from the first."""


class Settlements(Part):
    """Settlements beside others that do the same work, what one costs, and submits under load."""

    over_dbos: Measured | None
    dbos_missing: str | None
    """Why DBOS was not measured."""
    over_inline: Measured
    cpu: list[CpuOfSide]
    at_once: AtOnce
    submit: SubmitUnderLoad

    @property
    def comparisons(self) -> tuple[Measured, ...]:
        """All that were made."""
        return tuple(one for one in (self.over_dbos, self.over_inline) if one is not None)


class Budgets(Part):
    """What one settlement may cost, and what was found."""

    settlements: Settlements
    waiting: list[Waiting]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def aims(self) -> list[Aim]:
        """Every one."""
        submit = self.settlements.submit
        under = f"{submit.clients} clients"
        found = [
            Aim.at_most("history events", self.settlements.at_once.history_events, EVENTS_AIM),
            Aim.at_most(f"submit p50, {under}", submit.submit.p50_ms or 0, SUBMIT_P50_AIM_MS, unit="ms"),
            Aim.at_most(f"submit p99, {under}", submit.submit.p99_ms or 0, SUBMIT_P99_AIM_MS, unit="ms"),
        ]
        for wait in self.waiting:
            words = f"{wait.payments} waiting"
            found.append(Aim.at_most(f"billed actions, {words}", wait.history.billed_actions_estimated, ACTIONS_AIM))
            found.append(Aim.at_most(f"node requests a payment, {words}", wait.requests_per_payment, REQUESTS_AIM))
        return found


def show_settlements(found: Settlements, console: Console) -> None:
    """The comparison, for people."""
    console.print(
        table(
            f"Settlements, {found.over_inline.concurrency} at once: the product beside others that do the same work",
            ("side", "a second (min–max)", "settle's rate to it", "aim", "", "CPU ms a payment", "of these"),
            _side_rows(found),
            right=("a second (min–max)", "settle's rate to it", "aim", "CPU ms a payment"),
        )
    )
    for words in (_MEANS_DBOS, _MEANS_INLINE, _MEANS_CPU):
        console.print(f"  {words}", markup=False)
    if found.dbos_missing is not None:
        console.print(f"  DBOS was not measured: {found.dbos_missing}", markup=False)


def _side_rows(found: Settlements) -> Iterator[tuple[object, ...]]:
    cpu = {one.side: one for one in found.cpu}
    product = found.over_inline.product_per_second
    yield "settle", _spread(product, 1), None, None, None, *_cpu_cells(cpu["settle"])
    for name, measured in ((DBOS, found.over_dbos), (INLINE, found.over_inline)):
        if measured is not None:
            yield (
                measured.baseline,
                _spread(measured.baseline_per_second, 1),
                _spread(measured.ratio, 2),
                f"≥ {measured.aim:.2f}",
                "PASS" if measured.aim_met else "below",
                *_cpu_cells(cpu[name]),
            )


def _spread(found: Range, digits: int) -> str:
    return f"{found.median:,.{digits}f} ({found.min:,.{digits}f}–{found.max:,.{digits}f})"


def _cpu_cells(cpu: CpuOfSide) -> tuple[str, str]:
    parts = sorted(cpu.by_process.items(), key=lambda part: -part[1])
    return f"{cpu.milliseconds.median:,.1f}", ", ".join(f"{name} {spent:,.1f}" for name, spent in parts)


def show_costs(budgets: Budgets, console: Console) -> None:
    """What one settlement costs, for people."""
    waits = [f"{grouped(wait.payments)} waiting" for wait in budgets.waiting]
    console.print(
        table(
            "What one settlement costs (a purchase)",
            ("what", "at once", *waits, "what it means"),
            _cost_rows(budgets),
            right=("at once", *waits),
        )
    )
    console.print(
        table(
            "Aims of a settlement's cost",
            ("what", "found", "aim", ""),
            [(aim.name, aim.found, aim.wanted, aim.verdict) for aim in budgets.aims],
            right=("found", "aim"),
        )
    )
    for line in _conditions(budgets):
        console.print(f"  {line}", markup=False)


_Rows = tuple[tuple[str, Callable[[AtOnce], float] | None, Callable[[Waiting], float] | None, str], ...]

_COST_ROWS: Final[_Rows] = (
    (
        "Temporal: history events",
        lambda once: once.history_events,
        lambda wait: wait.history.history_events,
        "what Temporal stores and replays; most of its processor time",
    ),
    (
        "Temporal: workflow tasks",
        lambda once: once.workflow_tasks,
        lambda wait: wait.history.workflow_tasks,
        "how often a worker is asked what comes next",
    ),
    (
        "Temporal: activities",
        lambda once: once.activities,
        lambda wait: wait.history.activities,
        "steps by way of the server: a stuck one is shown to operators",
    ),
    (
        "Temporal: local activities",
        lambda once: once.local_activities,
        lambda wait: wait.history.local_activities,
        "steps within a workflow task, recorded when it ends",
    ),
    (
        "Temporal: billed actions",
        lambda once: once.billed_actions_estimated,
        lambda wait: wait.history.billed_actions_estimated,
        "by Temporal Cloud's price list, retries included; an estimate",
    ),
    (
        "  on Base, computed",
        None,
        lambda wait: wait.history.billed_actions_on_base,
        f"with `finalized` after some {BASE_FINALITY_BLOCKS} blocks of 2 s",
    ),
    (
        "  share of other workflows",
        None,
        lambda wait: wait.history.billed_actions_of_others,
        "the chain watcher's in that time, and reversals, divided by the payments",
    ),
    (
        "Chain node: requests",
        lambda once: once.rpc_requests,
        lambda wait: wait.requests_per_payment,
        "finality included, the watcher's own apart; at once: while the watcher is down",
    ),
    (
        "Chain node: calls in them",
        lambda once: once.rpc_calls,
        lambda wait: wait.calls_per_payment,
        "what node providers count and charge",
    ),
    ("PostgreSQL: statements", lambda once: once.sql_statements, None, "without BEGIN and COMMIT"),
    ("PostgreSQL: transactions", lambda once: once.sql_transactions, None, "commits, each written to disk"),
    (
        "PostgreSQL: round trips",
        lambda once: once.sql_round_trips,
        None,
        "waits for the server, BEGIN and COMMIT included",
    ),
)


def _cost_rows(budgets: Budgets) -> Iterator[tuple[object, ...]]:
    for what, at_once, waiting, means in _COST_ROWS:
        yield (
            what,
            None if at_once is None else f"{at_once(budgets.settlements.at_once):g}",
            *(None if waiting is None else f"{waiting(wait):g}" for wait in budgets.waiting),
            means,
        )


def _conditions(budgets: Budgets) -> Iterator[str]:
    submit = budgets.settlements.submit
    p50, p95, p99 = submit.submit.shown()
    yield (
        f"Submit: {submit.clients} clients without a pause, {grouped(submit.payments)} payments, "
        f"{submit.payments_per_second:.1f} settled a second; submit p50 {p50}, p95 {p95}, p99 {p99} ms, "
        f"{submit.repeated} made again after a 503. It is how long a payer's click waits while the system is "
        "overloaded; all clients begin at the same moment: hence its p99."
    )
    for wait in budgets.waiting:
        kinds = ", ".join(f"{name} {found:.2f}" for name, found in wait.requests_by_kind.items())
        polls = ", ".join(f"{name} {found:g}" for name, found in wait.history.polls.items())
        cpu = ", ".join(f"{name} {spent:,.0f}" for name, spent in wait.cpu_ms_by_process.items())
        cpu = f"{sum(wait.cpu_ms_by_process.values()):,.0f} ms ({cpu})"
        yield (
            f"{grouped(wait.payments)} waiting: all credited after {wait.credited_seconds:.0f} s, final after "
            f"{wait.seconds:.0f} s, {wait.blocks} blocks of 2 s, 5 confirmations, `finalized` 32 blocks behind. "
            f"Requests a payment for {kinds}; the watcher's own: {wait.watcher_requests_per_block:.1f} a block, "
            f"however many wait. Attempts of each activity: {polls}. Processor time a payment until all were final, "
            f"the watcher's and that of idle processes included: {cpu}."
        )
