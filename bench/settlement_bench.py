"""Settlements on a system of their own: beside DBOS and plain code, what one costs at once, and submits under load."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from temporalio.client import Client

from bench.baseline_process import DBOS, INLINE
from bench.baselines import DBOS_MISSING, Baseline, start_baselines
from bench.cost import HistoryCost, RpcCount, SqlCount, counting_node, counting_postgres, read_history
from bench.parts import Latency, Measured
from bench.rounds import Comparison, Deadline, Side, measure, measure_alternately
from bench.settlement_report import (
    BASELINE_WORDS,
    DBOS_AIM,
    INLINE_AIM,
    AtOnce,
    CpuOfSide,
    SubmitUnderLoad,
)
from bench.settlement_report import (
    Settlements as Found,
)
from bench.settlements import IN_FLIGHT_MAX, Settlements, Till
from bench.surroundings import databases, without_servers
from bench.usage_of_machine import cpu_seconds_of
from chain.reader import ChainReader
from commands.local_system import LocalSystem
from composition import payment_policy
from db.address import parse_address
from db.engine import ServiceDatabase, SettlementDatabase, TenantDatabase
from settings import Settings
from starter.payments import PaymentsClient
from starter.temporal import connect
from worker import build_worker
from workflows.naming import workflow_id

FINAL_WHEN_CREDITED: Final = {"FINALITY": "confirmations", "FINALITY_CONFIRMATIONS": "1"}
"""The clock is to show this system, not how long a chain takes to be final."""

WARM_UP: Final = 48
"""Statements are prepared at their fifth use on each connection, code paths are compiled at their first."""

COST_SAMPLE: Final = 10
SUBMITS_EACH: Final = 2
"""Payments of each client under load."""


@dataclass(slots=True)
class SettlementBench:
    """A running system, and what is measured of settlements on it. `settled` counts those of all sides."""

    system: LocalSystem
    settings: Settings
    temporal: Client
    tenants: TenantDatabase
    settlement: SettlementDatabase
    service: ServiceDatabase
    till: Till
    settlements: Settlements
    baselines: Sequence[Baseline]
    on_progress: Callable[[str], None]
    _cpu: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        """Payments with a buyer's credit and a bonus each, on every side."""
        return len(self.settlements.settled) + sum(baseline.settled for baseline in self.baselines)

    async def measure(self, count: int, rounds: int, clients: int, deadline: Deadline) -> Found:
        """Everything, one after the other."""
        rates, per_round = await self._measure_rates(count, rounds, deadline)
        submit = await self._measure_submits(clients)
        self.on_progress(f"counting what a settlement costs, on {COST_SAMPLE} of them")
        cost = await self._measure_cost(min(WARM_UP, count))
        product = rates.pop("settle")

        def over(name: str, aim: float) -> Measured | None:
            return (
                Measured.of(
                    f"settlements over {BASELINE_WORDS[name]}",
                    BASELINE_WORDS[name],
                    Comparison.of(product, rates[name]),
                    per_round=per_round,
                    concurrency=IN_FLIGHT_MAX,
                    aim=aim,
                )
                if name in rates
                else None
            )

        over_inline = over(INLINE, INLINE_AIM)
        assert over_inline is not None, "plain code needs nothing that could be missing"
        over_dbos = over(DBOS, DBOS_AIM)
        return Found(
            over_dbos=over_dbos,
            dbos_missing=None if over_dbos else DBOS_MISSING,
            over_inline=over_inline,
            cpu=[CpuOfSide.of(name, rounds_of_it) for name, rounds_of_it in self._cpu.items()],
            at_once=cost,
            submit=submit,
        )

    # -- rates

    async def _measure_rates(self, wanted: int, rounds: int, deadline: Deadline) -> tuple[dict[str, list[float]], int]:
        """Rates of each side by its name, and how many settlements a round had."""
        sides = [self._metered(side) for side in (self.settlements.side(), *(one.side() for one in self.baselines))]
        self.on_progress("settlements: warming up")
        count = await fitting(sides, wanted, warm_up=min(WARM_UP, wanted), rounds=rounds, seconds=deadline.seconds_left)
        self._cpu.clear()

        def report(number: int, rates: Sequence[float]) -> None:
            words = ", ".join(f"{side.name} {rate:,.1f}/s" for side, rate in zip(sides, rates, strict=True))
            self.on_progress(f"settlements, round {number}: {words}")

        rates = await measure_alternately(sides, count=count, rounds=rounds, deadline=deadline, on_round=report)
        return {side.name: found for side, found in zip(sides, rates, strict=True)}, count

    def _metered(self, side: Side) -> Side:
        """The side, with the processors' time of its work noted."""
        stack = self.system.stack
        others = {baseline.name: baseline.pid for baseline in self.baselines}
        pids = {
            "Temporal": stack.temporal.pid,
            "worker": stack.processes["worker"].pid,
            "PostgreSQL": stack.postgres.pid,
            "chain": stack.chain.pid,
            "client": os.getpid(),
            **others,
        }
        # What a baseline does not use runs beside it, but not for it.
        of_side = {side.name, "PostgreSQL", "chain", "client"} if side.name in others else set(pids) - set(others)

        async def work(count: int) -> None:
            before = cpu_seconds_of(pids)
            await side.work(count)
            after = cpu_seconds_of(pids)
            spent = {name: (after[name] - before[name]) / count * 1000 for name in pids if name in of_side}
            self._cpu.setdefault(side.name, []).append(spent)

        return replace(side, work=work)

    # -- submits under load

    async def _measure_submits(self, clients: int) -> SubmitUnderLoad:
        """Each client submits, waits until the payment is settled, and submits the next: the worker is always busy."""
        count = clients * SUBMITS_EACH
        self.on_progress(f"submit: {clients} clients, {SUBMITS_EACH} payments each, without a pause")
        side = self.settlements.side(clients=clients)
        await side.prepare(count)
        self.settlements.submit_seconds.clear()
        repeated = self.settlements.repeated_submits
        started = time.perf_counter()
        await side.work(count)
        seconds = time.perf_counter() - started
        return SubmitUnderLoad(
            clients=clients,
            payments=count,
            payments_per_second=round(count / seconds, 1),
            submit=Latency.of(self.settlements.submit_seconds),
            repeated=self.settlements.repeated_submits - repeated,
        )

    # -- cost

    async def _measure_cost(self, warm_up: int) -> AtOnce:
        """Settle a few with a worker in this process, where everything that leaves it can be counted."""
        await self.system.stack.remove_process("worker")
        settings, rpc, sql = self.settings, RpcCount(), SqlCount()
        server = parse_address(settings.require_database_url())
        async with (
            counting_node(settings.require_chain_rpc_urls()[0], rpc) as chain_url,
            counting_postgres(server["host"], int(server.get("port", 5432)), sql) as port,
            databases(settings, port=port) as (tenants, settlement, service),
            ChainReader([chain_url], settings.chain_id) as chain,
            build_worker(self.temporal, settings, chain=chain, settlement=settlement, service=service),
        ):
            payments = PaymentsClient(tenants, self.temporal, payment_policy(settings))
            side = self.settlements.side(payments)
            await measure(side, warm_up)
            await side.prepare(COST_SAMPLE)
            rpc.clear()
            sql.clear()
            await side.work(COST_SAMPLE)
            requests, calls, counted = rpc.requests.total(), rpc.calls.total(), replace(sql)
        sampled = [
            await read_history(self.temporal, workflow_id(attempt_id))
            for attempt_id in self.settlements.settled[-COST_SAMPLE:]
        ]
        return mean_cost(sampled, requests, calls, counted)


def mean_cost(histories: Sequence[HistoryCost], requests: int, calls: int, sql: SqlCount) -> AtOnce:
    """What one of them cost."""
    count = len(histories)

    def mean(values: Sequence[int]) -> float:
        return round(sum(values) / count, 1)

    return AtOnce(
        sampled=count,
        history_events=mean([history.events for history in histories]),
        history_bytes=mean([history.bytes for history in histories]),
        workflow_tasks=mean([history.workflow_tasks for history in histories]),
        activities=mean([history.activities for history in histories]),
        local_activities=mean([history.local_activities for history in histories]),
        billed_actions_estimated=mean([history.billed_actions for history in histories]),
        rpc_requests=mean([requests]),
        rpc_calls=mean([calls]),
        sql_statements=mean([sql.statements]),
        sql_transactions=mean([sql.transactions]),
        sql_round_trips=mean([sql.round_trips]),
    )


async def fitting(sides: Sequence[Side], wanted: int, *, warm_up: int, rounds: int, seconds: float) -> int:
    """How much of the requested work each side can do in a round; all sides are warm afterwards.

    A slow or busy machine gets smaller rounds instead of fewer: one round alone is no measurement.
    """
    seconds_each = sum([1 / await measure(side, warm_up) for side in sides])
    return max(min(wanted, int(seconds / rounds / seconds_each)), warm_up)


@asynccontextmanager
async def open_settlement_bench(
    state_dir: Path, variables: Mapping[str, str], on_progress: Callable[[str], None]
) -> AsyncIterator[SettlementBench]:
    """A local system with the product's worker, and the baselines in a process each."""
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(
            LocalSystem(
                state_dir,
                without_servers(variables) | FINAL_WHEN_CREDITED,
                without=("api", "gateway", "upstream", "relay"),
                on_progress=on_progress,
                # Payments are mined by hand, so that all are confirmed before the time runs.
                block_time_seconds=None,
                # The chain watcher would submit them itself, before any side does, and what runs by the clock would
                # meet one side and not the other.
                with_schedules=False,
                with_service_key=False,
            )
        )
        settings = system.settings
        tenants, settlement, service = await stack.enter_async_context(databases(settings))
        temporal = await connect(system.variables)
        payments = PaymentsClient(tenants, temporal, payment_policy(settings))
        till = Till(system.stack.chain, payments, confirmations=settings.min_confirmations)
        await till.open()
        yield SettlementBench(
            system,
            settings,
            temporal,
            tenants,
            settlement,
            service,
            till,
            Settlements(till, payments, temporal),
            await start_baselines(system, till),
            on_progress,
        )
