"""`settle bench`: starts a local system of its own, measures both sides alternately, checks the ledger, and reports."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client

from bench.bare import bare_workflow_id
from bench.cost import HistoryCost, RpcCount, SqlCount, counting_node, counting_postgres, read_history
from bench.http_path import BLOCK_TIME_SECONDS as HTTP_BLOCK_TIME_SECONDS
from bench.http_path import SETTINGS as HTTP_SETTINGS
from bench.http_path import measure_http_path
from bench.parts import Measured, Range
from bench.postings import CONNECTIONS, SYSTEM_TENANT, BuyerCredits, Postings, open_accounts, raw_connections
from bench.report import POSTINGS_AIM, SETTLEMENTS_AIM, HttpPath, Report, SettlementCost, show
from bench.rounds import Comparison, Deadline, Side, Spread, compare, measure
from bench.settlements import IN_FLIGHT_MAX, BareSettlements, Settlements, Till
from bench.spending import SETTINGS as SPENDING_SETTINGS
from bench.spending import WITHOUT as SPENDING_WITHOUT
from bench.spending import SpendingBench
from bench.spending_report import Spending
from chain.reader import ChainReader
from commands.local_system import LocalSystem
from commands.output import print_json, progress, stdout
from composition import payment_policy
from db.address import format_address, parse_address
from db.engine import ServiceDatabase, SettlementDatabase, TenantDatabase
from db.ledger import entries as ledger
from db.ledger import invariants as books
from devstack.errors import PartFailedError
from devstack.processes import wait_until
from devstack.stack import until_signalled
from domain.ledger.entries import Reason
from settings import Settings
from starter.payments import PaymentsClient
from starter.temporal import connect
from telemetry.logs import configure
from worker import build_worker
from workflows.naming import workflow_id

SECONDS_MAX: Final = 210.0
"""Rounds that would end later are left out; what comes before and after them takes some 20 s."""

SETTLEMENTS_SHARE: Final = 0.7
"""Of the time, for the settlements: a round of them takes ten times as long as a round of postings."""

POSTINGS_SHARE: Final = 0.8
"""Of what is left then, for the postings."""

WARM_UP_SETTLEMENTS: Final = 48
WARM_UP_POSTINGS: Final = 200
"""Statements are prepared at their fifth use on each connection, code paths are compiled at their first."""

COST_SAMPLE: Final = 10

SPENDING_SECONDS_MAX: Final = 120.0
"""Rounds of calls that would end later are left out."""

BONUS_SECONDS_MAX: Final = 30.0

_KEPT_SETTINGS: Final = frozenset({"LOG_LEVEL", "LOG_FORMAT"})


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    settlements: int
    postings: int
    rounds: int
    clients: int
    payments: int
    calls: int
    with_litellm: bool


@dataclass(slots=True)
class Bench:
    """A running system, and everything that is measured on it."""

    system: LocalSystem
    settings: Settings
    temporal: Client
    tenants: TenantDatabase
    settlement: SettlementDatabase
    service: ServiceDatabase
    till: Till
    settlements: Settlements
    bare: BareSettlements


async def bench(
    variables: Mapping[str, str],
    *,
    settlements: int = 300,
    postings: int = 4000,
    rounds: int = 3,
    clients: int = 100,
    payments: int = 5,
    calls: int = 2000,
    with_litellm: bool = False,
    as_json: bool = False,
    seconds_max: float = SECONDS_MAX,
) -> bool:
    """Measure and print. True when the measurement is valid, whether or not the aims are met; they are data.

    `settlements` and `postings` are what each side does in one round; `payments` are what each of the `clients` makes
    over HTTP, `calls` what each side makes through the gateway in one round. Raises `DevstackError` and `SettleError`.
    """
    # Lines of the product's code go to standard error, and only what is wrong; the workers' own are in their logs.
    configure(level="WARNING", log_format="console")
    async with until_signalled():
        with tempfile.TemporaryDirectory(prefix="settle-bench-") as folder:
            sizes = Sizes(settlements, postings, rounds, clients, payments, calls, with_litellm)
            report = await _run(Path(folder), variables, sizes, seconds_max)
    if as_json:
        print_json(report)
    else:
        show(report, stdout)
    return report.valid


async def _run(state_dir: Path, variables: Mapping[str, str], sizes: Sizes, seconds_max: float) -> Report:
    started = time.monotonic()
    async with _open(state_dir / "ratios", variables) as running:
        settlements = await _measure_settlements(running, sizes, Deadline(seconds_max * SETTLEMENTS_SHARE))
        progress(f"counting what a settlement costs, on {COST_SAMPLE} of them")
        cost, different = await _measure_cost(running, sizes)
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
        violations = different + await find_violations(
            running.service,
            settled=len(running.settlements.settled),
            posted=work.posted,
            credited=buyers.credited,
        )
    # A system of its own: what the ratios have left behind would be in its way.
    http_path, wrong = await _measure_http_path(state_dir / "http", variables, sizes)
    violations += wrong
    spending, wrong = await _measure_spending(state_dir / "spending", variables, sizes)
    violations += wrong
    return Report(
        valid=not violations,
        violations=violations,
        seconds=round(time.monotonic() - started, 1),
        settlements=settlements,
        postings_spread=spread,
        postings_one_account=one,
        buyer_credits_per_second=Range.of(Spread.of(credit_rates), digits=1),
        settlement_cost=cost,
        http_path=http_path,
        spending=spending,
        settled=len(running.settlements.settled),
        posted=work.posted,
    )


async def _measure_http_path(state_dir: Path, variables: Mapping[str, str], sizes: Sizes) -> tuple[HttpPath, list[str]]:
    """Timings of the HTTP interface's clients, and what is wrong with them."""
    async with (
        LocalSystem(
            state_dir,
            without_servers(variables) | HTTP_SETTINGS,
            without=("gateway", "upstream"),
            on_progress=progress,
            block_time_seconds=HTTP_BLOCK_TIME_SECONDS,
            with_service_key=False,
        ) as system,
        _databases(system.settings) as (_, _, service),
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
        _databases(system.settings) as (tenants, _, service),
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


FINAL_WHEN_CREDITED: Final = {"FINALITY": "confirmations", "FINALITY_CONFIRMATIONS": "1"}
"""The clock is to show this system, not how long a chain takes to be final."""


@asynccontextmanager
async def _open(state_dir: Path, variables: Mapping[str, str]) -> AsyncIterator[Bench]:
    """A local system of its own, with the product's worker and the bare one in a process each."""
    async with LocalSystem(
        state_dir,
        without_servers(variables) | FINAL_WHEN_CREDITED,
        without=("api", "gateway", "upstream"),
        on_progress=progress,
        # Payments are mined by hand, so that all are confirmed before the time runs.
        block_time_seconds=None,
        # What runs by schedule, and the chain watcher, ask for themselves: what a payment costs is to be counted.
        with_schedules=False,
        with_service_key=False,
    ) as system:
        await system.stack.add_process("bare-worker", [sys.executable, "-m", "bench.bare_worker"], system.variables)
        settings = system.settings
        async with _databases(settings) as (tenants, settlement, service):
            temporal = await connect(system.variables)
            payments = PaymentsClient(tenants, temporal, payment_policy(settings))
            till = Till(system.stack.chain, payments, confirmations=settings.min_confirmations)
            await till.open()
            yield Bench(
                system,
                settings,
                temporal,
                tenants,
                settlement,
                service,
                till,
                Settlements(till, payments, temporal),
                BareSettlements(temporal, chain_id=settings.chain_id),
            )


@asynccontextmanager
async def _databases(
    settings: Settings, *, port: int | None = None
) -> AsyncIterator[tuple[TenantDatabase, SettlementDatabase, ServiceDatabase]]:
    """All roles with a worker's connections, through another port where one is given."""

    def address(url: str) -> str:
        return format_address(parse_address(url) | ({"port": str(port)} if port else {}))

    options: dict[str, Any] = {"application_name": "settle bench", "pool_size": CONNECTIONS, "pre_ping": False}
    tenants = TenantDatabase(address(settings.require_database_url()), **options)
    settlement = SettlementDatabase(address(settings.require_settlement_database_url()), **options)
    service = ServiceDatabase(address(settings.require_service_database_url()), **options)
    try:
        yield tenants, settlement, service
    finally:
        await tenants.dispose()
        await settlement.dispose()
        await service.dispose()


def without_servers(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without what names a server or changes a rule: load never goes to a real system."""
    ours = {str(field.alias) for field in Settings.model_fields.values()} - _KEPT_SETTINGS
    return {
        name: value
        for name, value in variables.items()
        if name not in ours and not name.startswith(("TEMPORAL_", "PG"))
    }


async def _measure_settlements(running: Bench, sizes: Sizes, deadline: Deadline) -> Measured:
    product, baseline = running.settlements.side(), running.bare.side()
    progress("warming up")
    warm_up = min(WARM_UP_SETTLEMENTS, sizes.settlements)
    count = await _fitting(
        product, baseline, sizes.settlements, warm_up=warm_up, rounds=sizes.rounds, seconds=deadline.seconds_left
    )
    comparison = await compare(
        product,
        baseline,
        count=count,
        rounds=sizes.rounds,
        deadline=deadline,
        on_round=_report_round("settlements"),
    )
    return Measured.of(
        "settlements, end to end",
        baseline.name,
        comparison,
        per_round=count,
        concurrency=IN_FLIGHT_MAX,
        aim=SETTLEMENTS_AIM,
    )


async def _measure_postings(
    work: Postings, name: str, *, account_ids: Sequence[str], reason: Reason, sizes: Sizes, seconds: float
) -> Measured:
    product, baseline = work.sides(account_ids, reason)
    warm_up = min(WARM_UP_POSTINGS, sizes.postings)
    count = await _fitting(product, baseline, sizes.postings, warm_up=warm_up, rounds=sizes.rounds, seconds=seconds)
    comparison: Comparison = await compare(
        product,
        baseline,
        count=count,
        rounds=sizes.rounds,
        deadline=Deadline(seconds),
        on_round=_report_round(name),
    )
    return Measured.of(name, baseline.name, comparison, per_round=count, concurrency=CONNECTIONS, aim=POSTINGS_AIM)


async def _fitting(product: Side, baseline: Side, wanted: int, *, warm_up: int, rounds: int, seconds: float) -> int:
    """How much of the requested work each side can do in a round; both sides are warm afterwards.

    A slow or busy machine gets smaller rounds instead of fewer: one round alone is no measurement.
    """
    seconds_each = 1 / await measure(product, warm_up) + 1 / await measure(baseline, warm_up)
    return max(min(wanted, int(seconds / rounds / seconds_each)), warm_up)


def _report_round(name: str) -> Callable[[int, float, float], None]:
    def report(number: int, product: float, baseline: float) -> None:
        progress(f"{name}, round {number}: {product:,.1f}/s against {baseline:,.1f}/s = {product / baseline:.2f}")

    return report


async def _measure_cost(running: Bench, sizes: Sizes) -> tuple[SettlementCost, list[str]]:
    """Settle a few with a worker in this process, where everything that leaves it can be counted."""
    await running.system.stack.remove_process("worker")
    settings, rpc, sql = running.settings, RpcCount(), SqlCount()
    server = parse_address(settings.require_database_url())
    async with (
        counting_node(settings.require_chain_rpc_urls()[0], rpc) as chain_url,
        counting_postgres(server["host"], int(server.get("port", 5432)), sql) as port,
        _databases(settings, port=port) as (tenants, settlement, service),
        ChainReader([chain_url], settings.chain_id) as chain,
        build_worker(running.temporal, settings, chain=chain, settlement=settlement, service=service),
    ):
        payments = PaymentsClient(tenants, running.temporal, payment_policy(settings))
        side = running.settlements.side(payments)
        await measure(side, min(WARM_UP_SETTLEMENTS, sizes.settlements))
        await side.prepare(COST_SAMPLE)
        rpc.requests = rpc.calls = sql.statements = sql.transactions = sql.round_trips = 0
        await side.work(COST_SAMPLE)
        counted_rpc, counted_sql = replace(rpc), replace(sql)
    sampled = [
        await read_history(running.temporal, workflow_id(attempt_id))
        for attempt_id in running.settlements.settled[-COST_SAMPLE:]
    ]
    bare = await read_history(running.temporal, bare_workflow_id(running.bare.completed[-1]))
    return _mean_cost(sampled, counted_rpc, counted_sql), differences(sampled[-1], bare)


def _mean_cost(histories: Sequence[HistoryCost], rpc: RpcCount, sql: SqlCount) -> SettlementCost:
    count = len(histories)

    def mean(values: Sequence[int]) -> float:
        return round(sum(values) / count, 1)

    return SettlementCost(
        sampled=count,
        history_events=mean([history.events for history in histories]),
        history_bytes=mean([history.bytes for history in histories]),
        workflow_tasks=mean([history.workflow_tasks for history in histories]),
        activities=mean([history.activities for history in histories]),
        billed_actions_estimated=mean([history.billed_actions for history in histories]),
        rpc_requests=mean([rpc.requests]),
        rpc_calls=mean([rpc.calls]),
        sql_statements=mean([sql.statements]),
        sql_transactions=mean([sql.transactions]),
        sql_round_trips=mean([sql.round_trips]),
    )


def differences(product: HistoryCost, bare: HistoryCost) -> list[str]:
    """What is wrong with the bare workflow, as text: a comparison with another shape says nothing."""
    if product.same_shape_as(bare):
        return []
    return [
        "the bare workflow is not of the settlement's shape any more (bench/bare.py): "
        f"{', '.join(bare.event_types)} against {', '.join(product.event_types)}"
    ]


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
