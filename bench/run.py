"""`settle bench`: starts a local system of its own, measures both sides alternately, checks the ledger, and reports."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.deposits import measure_deposits
from bench.deposits_report import Deposits
from bench.http_path import BLOCK_TIME_SECONDS as HTTP_BLOCK_TIME_SECONDS
from bench.http_path import SETTINGS as HTTP_SETTINGS
from bench.http_path import measure_http_path
from bench.parts import Measured, Range
from bench.postings import CONNECTIONS, SYSTEM_TENANT, BuyerCredits, Postings, open_accounts, raw_connections
from bench.report import POSTINGS_AIM, HttpPath, Report, show
from bench.rounds import Comparison, Deadline, Spread, compare, measure
from bench.settlement_bench import fitting, open_settlement_bench
from bench.settlement_report import Budgets, Waiting
from bench.spending import SETTINGS as SPENDING_SETTINGS
from bench.spending import WITHOUT as SPENDING_WITHOUT
from bench.spending import SpendingBench
from bench.spending_report import Spending
from bench.surroundings import databases, without_servers
from bench.waiting import open_waiting_bench
from bench.webhooks import measure_webhooks
from bench.webhooks_report import Webhooks
from commands.local_system import LocalSystem
from commands.output import print_json, progress, stdout
from db.engine import ServiceDatabase
from db.ledger import entries as ledger
from db.ledger import invariants as books
from devstack.errors import PartFailedError
from devstack.processes import wait_until
from devstack.stack import until_signalled
from domain.ledger.entries import Reason
from telemetry.logs import configure

SECONDS_MAX: Final = 210.0
"""Rounds that would end later are left out; what comes before and after them takes some 20 s."""

SETTLEMENTS_SHARE: Final = 0.7
"""Of the time, for the settlements: a round of them takes ten times as long as a round of postings."""

POSTINGS_SHARE: Final = 0.8
"""Of what is left then, for the postings."""

WARM_UP_POSTINGS: Final = 200
"""Statements are prepared at their fifth use on each connection, code paths are compiled at their first."""

SPENDING_SECONDS_MAX: Final = 120.0
"""Rounds of calls that would end later are left out."""

BONUS_SECONDS_MAX: Final = 30.0

WAITING: Final = 60
"""Payments that wait at the same time, where no other number is asked for: final after a minute and a half."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    settlements: int
    postings: int
    rounds: int
    clients: int
    payments: int
    calls: int
    waiting: Sequence[int]
    deposits: int
    watched: int
    webhooks: int
    with_litellm: bool


async def bench(
    variables: Mapping[str, str],
    *,
    settlements: int = 300,
    postings: int = 4000,
    rounds: int = 3,
    clients: int = 100,
    payments: int = 5,
    calls: int = 2000,
    waiting: Sequence[int] = (WAITING,),
    deposits: int = 200,
    watched: int = 100_000,
    webhooks: int = 300,
    with_litellm: bool = False,
    as_json: bool = False,
    seconds_max: float = SECONDS_MAX,
) -> bool:
    """Measure and print. True when the measurement is valid, whether or not the aims are met; they are data.

    `settlements` and `postings` are what each side does in one round; `clients` submit without a pause, and each makes
    so many `payments` over HTTP; `waiting` are the payments that wait at the same time, measured for each number;
    `calls` are what each side makes through the gateway in one round; `deposits` are made, and `watched` addresses
    read; `webhooks` are delivered at once. Raises `DevstackError` and `SettleError`.
    """
    # Lines of the product's code go to standard error, and only what is wrong; the workers' own are in their logs.
    configure(level="WARNING", log_format="console")
    async with until_signalled():
        with tempfile.TemporaryDirectory(prefix="settle-bench-") as folder:
            sizes = Sizes(
                settlements,
                postings,
                rounds,
                clients,
                payments,
                calls,
                waiting,
                deposits,
                watched,
                webhooks,
                with_litellm,
            )
            report = await _run(Path(folder), variables, sizes, seconds_max)
    if as_json:
        print_json(report)
    else:
        show(report, stdout)
    return report.valid


async def _run(state_dir: Path, variables: Mapping[str, str], sizes: Sizes, seconds_max: float) -> Report:
    started = time.monotonic()
    async with open_settlement_bench(state_dir / "ratios", variables, progress) as running:
        settlements = await running.measure(
            sizes.settlements, sizes.rounds, sizes.clients, Deadline(seconds_max * SETTLEMENTS_SHARE)
        )
        # The buyers' credits and the books come after the two kinds of postings.
        seconds_each = max(seconds_max - (time.monotonic() - started), 0.0) * POSTINGS_SHARE / 2
        accounts = await open_accounts(running.tenants)
        account_ids = [payer.billing_account_id for payer in accounts]
        async with raw_connections(running.settings.require_service_database_url()) as raw:
            work = Postings(running.service, raw)
            spread, one = [
                await _measure_postings(work, name, account_ids=ids, reason=reason, sizes=sizes, seconds=seconds_each)
                for name, ids, reason in (
                    ("postings over many accounts", account_ids, Reason.CREDITS_PURCHASE),
                    ("postings on one account", SYSTEM_TENANT, Reason.SYSTEM_DONATION),
                )
            ]
        buyers = BuyerCredits(running.tenants, running.settlement, accounts, chain_id=running.settings.chain_id)
        progress("buyers' credits")
        side = buyers.side()
        credit_rates = [await measure(side, max(sizes.postings // 8, CONNECTIONS)) for _ in range(max(sizes.rounds, 1))]
        progress("checking the books")
        violations = await find_violations(
            running.service,
            settled=running.settled,
            posted=work.posted,
            credited=buyers.credited,
        )
    systems = await _measure_systems(state_dir, variables, sizes)
    violations += systems.violations
    return Report(
        valid=not violations,
        violations=violations,
        seconds=round(time.monotonic() - started, 1),
        settlement=Budgets(settlements=settlements, waiting=systems.waiting),
        postings_spread=spread,
        postings_one_account=one,
        buyer_credits_per_second=Range.of(Spread.of(credit_rates), digits=1),
        http_path=systems.http_path,
        spending=systems.spending,
        deposits=systems.deposits,
        webhooks=systems.webhooks,
        settled=running.settled,
        posted=work.posted,
    )


@dataclass(frozen=True, slots=True)
class _Systems:
    """What was measured on systems of their own."""

    waiting: list[Waiting]
    http_path: HttpPath
    spending: Spending
    deposits: Deposits
    webhooks: Webhooks
    violations: list[str]


async def _measure_systems(state_dir: Path, variables: Mapping[str, str], sizes: Sizes) -> _Systems:
    """Each on a system of its own: what the others have left behind would be in its way."""
    waiting, of_waiting = await _measure_waiting(state_dir / "waiting", variables, sizes)
    http_path, of_http = await _measure_http_path(state_dir / "http", variables, sizes)
    spending, of_spending = await _measure_spending(state_dir / "spending", variables, sizes)
    deposits = await measure_deposits(
        state_dir / "deposits", variables, deposits=sizes.deposits, watched=sizes.watched, on_progress=progress
    )
    webhooks = await measure_webhooks(
        state_dir / "webhooks", variables, deliveries=sizes.webhooks, on_progress=progress
    )
    wrong = [*of_waiting, *of_http, *of_spending, *deposits.violations, *webhooks.violations]
    return _Systems(waiting, http_path, spending, deposits, webhooks, wrong)


async def _measure_waiting(
    state_dir: Path, variables: Mapping[str, str], sizes: Sizes
) -> tuple[list[Waiting], list[str]]:
    """What payments ask of a chain node that wait at the same time, and what is wrong with the measurement."""
    async with open_waiting_bench(state_dir, variables, progress) as measuring:
        found = [await measuring.measure(count) for count in sizes.waiting]
        progress("checking the books")
        await _until_bonuses_are_there(measuring.service, settled=measuring.settled)
        violations = await find_violations(measuring.service, settled=measuring.settled, posted=0, credited=0)
    return found, violations + [words for wait in found for words in wait.violations]


async def _measure_http_path(state_dir: Path, variables: Mapping[str, str], sizes: Sizes) -> tuple[HttpPath, list[str]]:
    """Timings of the HTTP interface's clients, and what is wrong with them."""
    async with (
        LocalSystem(
            state_dir,
            without_servers(variables) | HTTP_SETTINGS,
            without=("gateway", "upstream", "relay"),
            on_progress=progress,
            block_time_seconds=HTTP_BLOCK_TIME_SECONDS,
            with_service_key=False,
        ) as system,
        databases(system.settings) as (_, _, service),
    ):
        path = await measure_http_path(
            system.stack.chain,
            service,
            system.settings.require_api_url(),
            clients=sizes.clients,
            payments=sizes.payments,
            on_progress=progress,
        )
        progress("checking the books")
        await _until_bonuses_are_there(service, settled=path.credited)
        violations = await find_violations(service, settled=path.credited, posted=0, credited=0)
    return path, violations + http_violations(path)


async def _measure_spending(state_dir: Path, variables: Mapping[str, str], sizes: Sizes) -> tuple[Spending, list[str]]:
    """Timings of calls through the gateway, and what is wrong with them."""
    async with (
        LocalSystem(
            state_dir,
            without_servers(variables) | SPENDING_SETTINGS,
            without=SPENDING_WITHOUT,
            on_progress=progress,
            with_schedules=False,
            with_service_key=False,
        ) as system,
        databases(system.settings) as (tenants, _, service),
    ):
        measuring = SpendingBench(
            system, tenants, service, sizes.calls, sizes.rounds, Deadline(SPENDING_SECONDS_MAX), progress
        )
        spending = await measuring.measure(with_litellm=sizes.with_litellm)
        progress("checking the books")
        # Each account has been given its credits by one entry.
        violations = await find_violations(service, settled=0, posted=spending.accounts + spending.charged, credited=0)
    return spending, violations + [f"calls failed, first: {error}" for error in spending.first_errors[:1]]


async def _until_bonuses_are_there(service: ServiceDatabase, *, settled: int) -> None:
    """A payer sees CREDITED before the bonus is minted. Those that are not there in time, the books' check reports."""

    async def all_there() -> bool:
        async with service.transaction() as connection:
            return await ledger.count_entries(connection) >= 2 * settled

    with suppress(PartFailedError):
        await wait_until(all_there, timeout_seconds=BONUS_SECONDS_MAX, what="bonuses")


def http_violations(path: HttpPath) -> list[str]:
    """Why the measurement of the HTTP path does not count, as text."""
    found = []
    if path.errors:
        found.append(f"{path.errors} calls over HTTP failed, first: {'; '.join(path.first_errors)}")
    if path.credited < path.begun:
        found.append(f"{path.credited} payments over HTTP were credited, and {path.begun} were begun")
    return found


async def _measure_postings(
    work: Postings, name: str, *, account_ids: Sequence[str], reason: Reason, sizes: Sizes, seconds: float
) -> Measured:
    product, baseline = work.sides(account_ids, reason)
    warm_up = min(WARM_UP_POSTINGS, sizes.postings)
    count = await fitting([product, baseline], sizes.postings, warm_up=warm_up, rounds=sizes.rounds, seconds=seconds)
    comparison: Comparison = await compare(
        product,
        baseline,
        count=count,
        rounds=sizes.rounds,
        deadline=Deadline(seconds),
        on_round=_report_round(name),
    )
    return Measured.of(name, baseline.name, comparison, per_round=count, concurrency=CONNECTIONS, aim=POSTINGS_AIM)


def _report_round(name: str) -> Callable[[int, float, float], None]:
    def report(number: int, product: float, baseline: float) -> None:
        progress(f"{name}, round {number}: {product:,.1f}/s against {baseline:,.1f}/s = {product / baseline:.2f}")

    return report


async def find_violations(service: ServiceDatabase, *, settled: int, posted: int, credited: int) -> list[str]:
    """What is wrong with the ledger after the run, as text: an invariant that does not hold, or a missing entry.

    `settled` purchases left two entries each, `posted` postings and `credited` buyers' credits one.
    """
    async with service.transaction() as connection:
        found = await books.find_violations(connection)
        entries = await ledger.count_entries(connection)
    expected = 2 * settled + posted + credited
    if entries != expected:
        found.append(f"the ledger has {entries} entries, and {expected} were to be posted")
    return found
