"""Many payments that wait at the same time: what they ask of a chain node, and what their histories hold afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import TextClause, text
from temporalio.client import Client

from bench.cost import HistoryCost, RpcCount, RpcKind, counting_node, read_history
from bench.http_path import client_wallet, fund, sign_payments
from bench.settlement_report import BASE_FINALITY_BLOCKS, RealWait, Waiting
from bench.settlements import AMOUNT_CENTS, RECEIPTS_BATCH, in_flight, submit_as_a_client
from bench.surroundings import databases, without_servers
from bench.usage_of_machine import cpu_seconds_of
from commands.local_system import LocalSystem
from composition import payment_policy, singleton_workflows
from db.accounts.wallets import Payer
from db.engine import ServiceDatabase
from devstack.chain import LocalChain
from domain.money import raw_for_usd_cents
from domain.payments.finality import NotFinal, next_poll_delay
from starter.models import Intent
from starter.payments import PaymentsClient
from starter.singletons import start_missing
from starter.temporal import connect
from workflows.naming import VERIFY_AND_SETTLE, workflow_id

BLOCK_TIME_SECONDS: Final = 2
"""As on Base."""

SETTINGS: Final = {"FINALITY": "finalized", "MIN_CONFIRMATIONS": "5"}
"""Finality is the chain's own: the local chain's `finalized` trails by 32 blocks."""

WALLETS: Final = 20
HISTORIES_READ_MAX: Final = 60
ASK_SECONDS: Final = 0.5
SECONDS_BEFORE: Final = 150.0
SECONDS_A_PAYMENT: Final = 0.5
"""Together the longest wait for all to be credited, and again for all to be final."""

FINALITY_ACTIVITY: Final = "await_finality"

_CREDITED: Final = text("SELECT count(*) FROM payment_attempts WHERE id = ANY(:ids) AND status = 'CREDITED'")
_FINAL: Final = text("SELECT count(*) FROM transfer_finality WHERE attempt_id = ANY(:ids)")


@dataclass(frozen=True, slots=True)
class Signed:
    """An intent, and a signed transfer that pays it."""

    payer: Payer
    intent: Intent
    raw: str
    tx_hash: str


@dataclass(slots=True)
class WaitingBench:
    """A system whose worker reaches the chain through a node that counts. `pids` are those of its processes."""

    chain: LocalChain
    payments: PaymentsClient
    temporal: Client
    service: ServiceDatabase
    rpc: RpcCount
    pids: Mapping[str, int]
    on_progress: Callable[[str], None]
    settled: int = 0
    _wallets_used: int = 0

    async def measure(self, count: int) -> Waiting:
        """Submit so many unconfirmed payments at once and wait until all are final."""
        self.on_progress(f"{count} payments at once: making intents, signing transfers")
        signed = await self._sign(count)
        others_before = await self._actions_of_others()
        self.rpc.clear()
        cpu_before = cpu_seconds_of(self.pids)
        started, first_block = time.monotonic(), await self.chain.block_number()
        for start in range(0, count, RECEIPTS_BATCH):
            batch = signed[start : start + RECEIPTS_BATCH]
            await self.chain.rpc_batch([("eth_sendRawTransaction", (one.raw,)) for one in batch])
        await in_flight(self._submit, signed)
        attempt_ids = [one.intent.attempt_id for one in signed]
        self.on_progress(f"{count} payments at once: submitted after {time.monotonic() - started:.0f} s")
        credited = await self._until(_CREDITED, attempt_ids, "credited")
        credited_seconds = time.monotonic() - started
        final = await self._until(_FINAL, attempt_ids, "final")
        blocks = await self.chain.block_number() - first_block
        seconds = time.monotonic() - started
        cpu_after = cpu_seconds_of(self.pids)
        self.settled += credited
        requests, calls = dict(self.rpc.requests), dict(self.rpc.calls)
        own = {kind: requests.get(kind, 0) / count for kind in RpcKind if kind is not RpcKind.WATCHER}
        return Waiting(
            payments=count,
            credited=credited,
            final=final,
            credited_seconds=round(credited_seconds, 1),
            seconds=round(seconds, 1),
            blocks=blocks,
            requests_per_payment=round(sum(own.values()), 2),
            calls_per_payment=round(sum(n for kind, n in calls.items() if kind is not RpcKind.WATCHER) / count, 1),
            requests_by_kind={kind.value: round(found, 2) for kind, found in own.items()},
            watcher_requests_per_block=round(requests.get(RpcKind.WATCHER, 0) / max(blocks, 1), 2),
            cpu_ms_by_process={
                name: round((cpu_after[name] - cpu_before[name]) / count * 1000, 1) for name in self.pids
            },
            history=await self._read_histories(attempt_ids, others_before),
        )

    async def _sign(self, count: int) -> list[Signed]:
        each = -(-count // WALLETS)
        wallets = [client_wallet(self._wallets_used + number) for number in range(WALLETS)]
        self._wallets_used += WALLETS
        await fund(self.chain, wallets, amount_raw=each * raw_for_usd_cents(AMOUNT_CENTS))
        signed: list[Signed] = []
        for wallet in wallets:
            payer = await self.payments.provision(wallet.address)
            own = await asyncio.to_thread(sign_payments, self.chain, wallet, min(each, count - len(signed)))
            for payment in own:
                intent = await self.payments.create_intent(payer, AMOUNT_CENTS)
                signed.append(Signed(payer, intent, payment.raw, payment.tx_hash))
        return signed

    async def _submit(self, signed: Signed) -> None:
        await submit_as_a_client(self.payments.submit, signed.payer.user_id, signed.intent.attempt_id, signed.tx_hash)

    async def _until(self, query: TextClause, attempt_ids: Sequence[UUID], what: str) -> int:
        """How many there are when all are there, or when time is up."""
        ends = time.monotonic() + SECONDS_BEFORE + SECONDS_A_PAYMENT * len(attempt_ids)
        said = time.monotonic()
        while True:
            async with self.service.transaction() as connection:
                found = (await connection.connection.execute(query, {"ids": list(attempt_ids)})).scalar_one()
            if found == len(attempt_ids) or time.monotonic() > ends:
                return int(found)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                self.on_progress(f"{len(attempt_ids)} payments at once: {found} {what}")
            await asyncio.sleep(ASK_SECONDS)

    async def _read_histories(self, attempt_ids: Sequence[UUID], others_before: int) -> RealWait:
        step = -(-len(attempt_ids) // HISTORIES_READ_MAX)
        histories = [await read_history(self.temporal, workflow_id(one)) for one in attempt_ids[::step]]
        others = await self._actions_of_others() - others_before
        return real_wait(histories, others_actions=others / len(attempt_ids))

    async def _actions_of_others(self) -> int:
        """Billed actions of all workflows that are not a payment's own: the chain watcher's, and reversals."""
        found = 0
        async for execution in self.temporal.list_workflows(f"WorkflowType != '{VERIFY_AND_SETTLE}'"):
            found += (await read_history(self.temporal, execution.id, execution.run_id)).billed_actions
        return found


def real_wait(histories: Sequence[HistoryCost], *, others_actions: float) -> RealWait:
    """Means of the histories of payments that had to wait; `others_actions` is a payment's share of other workflows."""

    def mean(values: Sequence[int]) -> float:
        return round(sum(values) / len(values), 1)

    actions = mean([history.billed_actions for history in histories])
    polls = {
        name: mean([history.polls.get(name, 0) for history in histories])
        for name in sorted({name for history in histories for name in history.polls})
    }
    own_finality = polls.get(FINALITY_ACTIVITY, 0.0)
    on_base = actions - own_finality + finality_polls(BASE_FINALITY_BLOCKS) if own_finality else actions
    return RealWait(
        sampled=len(histories),
        history_events=mean([history.events for history in histories]),
        workflow_tasks=mean([history.workflow_tasks for history in histories]),
        activities=mean([history.activities for history in histories]),
        local_activities=mean([history.local_activities for history in histories]),
        billed_actions_estimated=actions,
        billed_actions_on_base=round(on_base, 1),
        billed_actions_of_others=round(others_actions, 2),
        polls=polls,
    )


def finality_polls(blocks: int) -> int:
    """Polls of a run that tracks its own finality, computed: from the credit until so many blocks have passed."""
    block_time, polls, passed = timedelta(seconds=BLOCK_TIME_SECONDS), 1, timedelta(0)
    while (missing := blocks - passed // block_time) > 0:
        passed += next_poll_delay(NotFinal(message="", missing_blocks=missing), block_time=block_time)
        polls += 1
    return polls


@asynccontextmanager
async def open_waiting_bench(
    state_dir: Path, variables: Mapping[str, str], on_progress: Callable[[str], None]
) -> AsyncIterator[WaitingBench]:
    """A local system with a block every two seconds, a worker behind a counting node, and the chain watcher."""
    async with LocalSystem(
        state_dir,
        without_servers(variables) | SETTINGS,
        without=("worker", "api", "gateway", "upstream", "relay"),
        on_progress=on_progress,
        block_time_seconds=BLOCK_TIME_SECONDS,
        # What runs by the clock does nothing for a payment that is under way.
        with_schedules=False,
        with_service_key=False,
    ) as system:
        rpc = RpcCount()
        async with (
            counting_node(system.variables["CHAIN_RPC_URLS"], rpc) as url,
            databases(system.settings) as (tenants, _, service),
        ):
            system.variables["CHAIN_RPC_URLS"] = url
            await system.start_worker()
            try:
                temporal = await connect(system.variables)
                await start_missing(temporal, singleton_workflows(system.settings))
                payments = PaymentsClient(tenants, temporal, payment_policy(system.settings))
                stack = system.stack
                pids = {
                    "Temporal": stack.temporal.pid,
                    "worker": stack.processes["worker"].pid,
                    "PostgreSQL": stack.postgres.pid,
                }
                yield WaitingBench(stack.chain, payments, temporal, service, rpc, pids, on_progress)
            finally:
                await system.stack.remove_process("worker")
