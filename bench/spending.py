"""Calls to an AI through one gateway process, against the same calls straight to the upstream."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import aiohttp

from bench import litellm
from bench.litellm import LiteLlmMissing
from bench.parts import Measured, Range
from bench.postings import open_accounts
from bench.rounds import Comparison, Deadline, Side, at_once, compare, measure
from bench.spending_report import HOT_AIM, Added, OtherProxy, Spending
from bench.usage_of_machine import cpu_seconds_of, memory_mb
from commands.local_system import LocalSystem
from db.billing.keys import create_key
from db.engine import ServiceDatabase, TenantDatabase
from db.ledger import entries as ledger
from domain.billing.keys import KeyTerms, make_key
from domain.ledger.entries import Posting, Reason

MODEL: Final = "dev-small"
ANSWER_TOKENS: Final = 50
PROMPT: Final = f'!upstream {{"tokens": {ANSWER_TOKENS}}} ' + "What does a settlement do when its worker dies? " * 4
CREDITS_EACH: Final = 10**12
CONNECTIONS: Final = 100
ACCOUNTS: Final = 50
BLOCK: Final = 20
"""Calls of one kind before the other's turn, where they are made one at a time."""
CALL_SECONDS_MAX: Final = 60.0
SHOWN_FAILURES_MAX: Final = 5
WITHOUT: Final = ("relay", "api", "worker", "temporal", "chain")
SETTINGS: Final = {f"RATE_LIMIT_{kind}_PER_ACCOUNT": "1000000" for kind in ("CHAT", "EMBEDDINGS")}
_BASELINE_OF_CALLS: Final = "the upstream, straight"


@dataclass(slots=True)
class Target:
    """Who is called: an address, and the keys that are used alternately. `failures` says what went wrong."""

    name: str
    url: str
    keys: Sequence[str]
    made: int = 0
    failures: list[str] = field(default_factory=list)


class Clients:
    """So many connections, each making one call after the other."""

    def __init__(self, http: aiohttp.ClientSession, connections: int) -> None:
        self._http = http
        self._connections = connections
        self._whole = json.dumps(_body(stream=False)).encode()
        self._streamed = json.dumps(_body(stream=True)).encode()

    def side(self, target: Target) -> Side:
        """Calls to the target, on all connections at once."""

        async def prepare(_count: int) -> None:
            pass

        async def work(count: int) -> None:
            numbers = iter(range(count))

            async def run() -> None:
                for number in numbers:
                    await self.call(target, number)

            await at_once(run() for _ in range(self._connections))

        return Side(target.name, prepare, work)

    async def call(self, target: Target, number: int) -> float:
        """One call; the seconds until its answer was whole."""
        started = time.perf_counter()
        target.made += 1
        try:
            async with self._post(target, number, self._whole) as response:
                body = await response.read()
                if response.status != 200:
                    target.failures.append(f"{target.name}: {response.status} {body[:200].decode(errors='replace')}")
        except (aiohttp.ClientError, TimeoutError) as error:
            target.failures.append(f"{target.name}: {type(error).__name__} {error}")
        return time.perf_counter() - started

    async def first_token(self, target: Target, number: int) -> float:
        """One stream, read to its end; the seconds until its first event with text."""
        started = time.perf_counter()
        target.made += 1
        found: float | None = None
        async with self._post(target, number, self._streamed) as response:
            async for line in response.content:
                if found is None and b'"content":"' in line and b'"content":""' not in line:
                    found = time.perf_counter() - started
        if found is None:
            target.failures.append(f"{target.name}: a stream without text, HTTP {response.status}")
        return found or time.perf_counter() - started

    def _post(self, target: Target, number: int, body: bytes) -> Any:
        headers = {
            "Authorization": f"Bearer {target.keys[number % len(target.keys)]}",
            "Content-Type": "application/json",
        }
        return self._http.post(f"{target.url}/v1/chat/completions", data=body, headers=headers)


def _body(*, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": ANSWER_TOKENS * 4,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    return body | ({"stream": True} if stream else {})


@dataclass(slots=True)
class SpendingBench:
    """A system that runs a gateway and an upstream, and what is measured on it. `calls`: of each side in a round."""

    system: LocalSystem
    tenants: TenantDatabase
    service: ServiceDatabase
    calls: int
    rounds: int
    deadline: Deadline
    on_progress: Callable[[str], None]

    async def measure(self, *, with_litellm: bool) -> Spending:
        """Everything, one after the other."""
        ready_seconds = await self._time_to_ready()
        self.on_progress(f"gateway ready after {ready_seconds:.1f} s; crediting {ACCOUNTS} accounts")
        keys = await self._funded_keys()
        url = self.system.variables["GATEWAY_URL"]
        spread, hot = Target("the gateway", url, keys), Target("on one account", url, keys[:1])
        straight = Target(_BASELINE_OF_CALLS, self.system.stack.upstream.url, ["sk-upstream"])
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=CALL_SECONDS_MAX)
        ) as http:
            clients = Clients(http, CONNECTIONS)
            self.on_progress("warming up")
            for target in (straight, spread):
                await measure(clients.side(target), max(self.calls // 5, CONNECTIONS))
            self.on_progress("one call at a time")
            latency = await _added(clients.call, spread, straight, count=min(self.calls, 500))
            first_token = await _added(clients.first_token, spread, straight, count=min(self.calls, 200))
            self.on_progress(f"{CONNECTIONS} connections")
            compared = await self._compare("calls", clients.side(spread), clients.side(straight))
            cpu_ms = await self._cpu_of_a_call(clients.side(spread))
            one_account = await self._compare("one account", clients.side(hot), clients.side(spread))
            memory = memory_mb(self.system.stack.processes["gateway"].pid)
            other, missing = await self._measure_litellm(clients, spread) if with_litellm else (None, None)
        failures = [*spread.failures, *hot.failures]
        per_round = {"per_round": self.calls, "concurrency": CONNECTIONS}
        return Spending(
            connections=CONNECTIONS,
            accounts=len(keys),
            calls=Measured.of("calls", _BASELINE_OF_CALLS, compared, aim=0.0, **per_round),
            hot_account=Measured.of("calls on one account", f"over {len(keys)}", one_account, aim=HOT_AIM, **per_round),
            latency=latency,
            first_token=first_token,
            memory_mb=memory,
            ready_seconds=round(ready_seconds, 2),
            charged=spread.made + hot.made - len(failures),
            failed=len(failures),
            first_errors=failures[:SHOWN_FAILURES_MAX],
            litellm=other,
            litellm_missing=missing,
            cpu_ms_per_call=cpu_ms,
        )

    async def _time_to_ready(self) -> float:
        """From the start of the process to its first `/readyz` that says so: the median of three starts."""
        found = []
        for _ in range(3):
            await self.system.stack.remove_process("gateway")
            started = time.perf_counter()
            await self.system.start_gateway()
            found.append(time.perf_counter() - started)
        return sorted(found)[1]

    async def _funded_keys(self) -> list[str]:
        """A service key of each account, which has enough for any number of calls."""
        keys = []
        for payer in (await open_accounts(self.tenants))[:ACCOUNTS]:
            posting = Posting(
                billing_account_id=payer.billing_account_id,
                amount_credits=CREDITS_EACH,
                reason=Reason.CREDITS_PURCHASE,
                reference=f"bench-{uuid4().hex}",
            )
            async with self.service.autocommit() as connection:
                await ledger.post(connection, posting, {})
            secret = make_key()
            async with self.tenants.transaction(payer.user_id) as tenant:
                await create_key(tenant, uuid4(), payer.billing_account_id, secret, KeyTerms(label="Bench"))
            keys.append(secret.key)
        return keys

    async def _compare(self, name: str, product: Side, baseline: Side, *, calls: int | None = None) -> Comparison:
        def report(number: int, ours: float, theirs: float) -> None:
            self.on_progress(f"{name}, round {number}: {ours:,.0f}/s against {theirs:,.0f}/s = {ours / theirs:.2f}")

        return await compare(
            product, baseline, count=calls or self.calls, rounds=self.rounds, deadline=self.deadline, on_round=report
        )

    async def _cpu_of_a_call(self, side: Side) -> dict[str, float]:
        """CPU time of each process in milliseconds a call."""
        stack = self.system.stack
        pids = {
            "gateway": stack.processes["gateway"].pid,
            "upstream": stack.upstream.pid,
            "PostgreSQL": stack.postgres.pid,
            "clients": os.getpid(),
        }
        before = cpu_seconds_of(pids)
        await measure(side, self.calls)
        after = cpu_seconds_of(pids)
        return {name: round((after[name] - before[name]) / self.calls * 1000, 3) for name in pids}

    async def _measure_litellm(self, clients: Clients, spread: Target) -> tuple[OtherProxy | None, str | None]:
        """LiteLLM beside the gateway, alternately; or why it cannot be had here."""
        try:
            program = await litellm.install(self.on_progress)
        except LiteLlmMissing as error:
            return None, str(error)
        self.on_progress(f"starting LiteLLM {litellm.VERSION}")
        started = time.perf_counter()
        async with litellm.running(self.system, program, model=MODEL) as proxy:
            ready_seconds = time.perf_counter() - started
            target = Target("LiteLLM", proxy.url, [proxy.key])
            await measure(clients.side(target), CONNECTIONS)
            # Fewer: it takes many times as long.
            calls = max(self.calls // 4, CONNECTIONS)
            compared = await self._compare("LiteLLM", clients.side(spread), clients.side(target), calls=calls)
            return OtherProxy(
                version=litellm.VERSION,
                calls_per_second=Range.of(compared.baseline_per_second, digits=1),
                ratio=Range.of(compared.ratio, digits=2),
                memory_mb=memory_mb(proxy.process.pid),
                ready_seconds=round(ready_seconds, 1),
                failed=len(target.failures),
                first_errors=target.failures[:SHOWN_FAILURES_MAX],
            ), None


async def _added(
    call: Callable[[Target, int], Awaitable[float]], through: Target, straight: Target, *, count: int
) -> Added:
    """The same call one at a time, through the gateway and straight, alternately."""
    seconds: dict[str, list[float]] = {through.name: [], straight.name: []}
    for start in range(0, count, BLOCK):
        for target in (through, straight) if start // BLOCK % 2 == 0 else (straight, through):
            for number in range(start, min(start + BLOCK, count)):
                seconds[target.name].append(await call(target, number))
    return Added.of(seconds[through.name], seconds[straight.name])
