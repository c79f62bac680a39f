"""`settle doctor`: checks everything that a settlement needs, and the ledger's invariants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from temporalio.client import Client

from activities.ledger.integrity_scan import check_all_books, check_books
from chain.preconditions import State
from commands.addresses import check_addresses
from commands.chain_checks import check_finality, check_native_coin, check_watcher
from commands.factory_checks import check_factories
from commands.gateway_checks import check_spending, check_upstreams
from commands.methods import check_prices
from commands.output import grouped, print_json, progress, stdout, table
from commands.readiness import check_ready
from commands.relay_checks import check_relay
from composition import (
    CONNECTIONS,
    chain_reader,
    payment_policy,
    service_database,
    settlement_database,
    settlement_preconditions,
    tenant_database,
)
from db.clock import measure_host_offset
from db.engine import OperatorDatabase
from db.ledger import integrity_scan as books_check
from db.ledger.invariants import SHOWN_MAX
from db.payments import attempts
from db.startup import check_operator_database, check_writes
from domain.clocks import ClockOffsets, in_words
from domain.errors import (
    BooksDoNotBalance,
    ChainUnavailable,
    ClocksApart,
    PreconditionNotMet,
    SettleError,
    TemporalUnavailable,
)
from domain.utxo import UTXO_CHAINS, is_utxo_chain
from services.operations.clocks import ChainClock
from settings import Settings
from starter.temporal import (
    connect,
    count_left_behind,
    count_pollers,
    is_serving,
    list_missing_search_attributes,
    refusal_of,
    registration_command,
)
from telemetry.health import CHECK_TIMEOUT_SECONDS, first_line, temporal_answers
from workflows.naming import PLATFORM_TASK_QUEUE, task_queue

PROGRESS_EVERY: Final = 100_000
"""Entries, when the ledger is checked for the first time, or in full."""
FULL_UP_TO_ENTRIES: Final = 50_000
"""A ledger up to this size is checked row by row every time, in a few seconds, which also finds old tampering."""

DATABASE_IS_RIGHT: Final = "schema and rights are correct, the system tenant exists, writes reach the disk"

CHECK_SECONDS_MAX: Final = 60
"""Time limit of each check but the ledger's, whose length grows with it: a check that hangs must not delay the
report.
"""

API_SECONDS_MAX: Final = CHECK_TIMEOUT_SECONDS + 2.0
"""Above the time limit of the API's own checks: its answer names the late one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    name: str
    ok: bool
    detail: str


async def _checked(name: str, ask: Callable[[], Awaitable[str]], *, seconds_max: float | None) -> Finding:
    """What a check has found; whatever it raises is its finding."""
    try:
        async with asyncio.timeout(seconds_max):
            return Finding(name, ok=True, detail=await ask())
    except TimeoutError:
        return Finding(name, ok=False, detail=f"no answer within {CHECK_SECONDS_MAX} s")
    except SettleError as error:
        return Finding(name, ok=False, detail=error.message)
    except Exception as error:  # a fault of the check, reported in its place
        return Finding(name, ok=False, detail=f"{type(error).__name__}: {first_line(error)}")


async def doctor(settings: Settings, variables: Mapping[str, str], *, full: bool, as_json: bool) -> bool:
    """Run every check, whatever the others find. True when all pass. What is not configured is not checked.

    Of the ledger, new entries and recorded violations are checked, and every row with `full`.
    """
    findings: list[Finding] = []

    async def check(name: str, ask: Callable[[], Awaitable[str]], *, is_bounded: bool = True) -> None:
        findings.append(await _checked(name, ask, seconds_max=CHECK_SECONDS_MAX if is_bounded else None))

    await check("settings", lambda: _settings(settings))
    await check("database, role settle_app", lambda: _tenant_database(settings))
    await check("database, role settle_settlement", lambda: _settlement_database(settings))
    await check("database, role settle_service", lambda: _service_database(settings))
    operator_url, api_url = settings.operator_database_url, settings.api_url
    if operator_url is not None:
        await check("database, role settle_operator", lambda: _operator_database(operator_url))
    await check("books", lambda: _books(settings, full=full), is_bounded=False)
    await check("deposit addresses", lambda: check_addresses(settings))
    await check("prices", lambda: check_prices(settings))
    await check("the chain's own coin", lambda: check_native_coin(settings))
    await check("Temporal", lambda: _temporal(variables))
    await check("workers", lambda: _workers(settings, variables))
    if api_url is not None:
        await check("API", lambda: _api(api_url))
    gateway_url, upstreams_file = settings.gateway_url, settings.upstreams_file
    if gateway_url is not None:
        await check("gateway", lambda: _gateway(gateway_url))
    if upstreams_file is not None:
        await check("upstreams", lambda: check_upstreams(settings, variables, upstreams_file))
    await check("spending", lambda: check_spending(settings))
    await check("chain nodes", lambda: _chain_nodes(settings))
    await check("token and treasury", lambda: _preconditions(settings))
    await check("clocks", lambda: _clocks(settings))
    await check("relay", lambda: check_relay(settings))
    if not is_utxo_chain(settings.chain_id) and (settings.smart_wallet_factories or settings.relay_health_port):
        await check("smart wallet factories", lambda: check_factories(settings))
    await check("chain watcher", lambda: check_watcher(settings))
    await check("finality", lambda: check_finality(settings))
    return _report(findings, as_json=as_json)


def _report(findings: list[Finding], *, as_json: bool) -> bool:
    """Print what was found. True when all is well."""
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "checks": [{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings]})
    else:
        rows = [("ok" if f.ok else "NOT OK", f.name, f.detail) for f in findings]
        stdout.print(table("settle doctor", ("", "check", "detail"), rows))
    return ok


async def _settings(settings: Settings) -> str:
    policy = payment_policy(settings)
    return (
        f"chain {policy.chain_id}, {settings.min_confirmations} confirmations, revenue share "
        f"{settings.system_tenant_revenue_share}, payments of {policy.min_usd_cents} to {policy.max_usd_cents} cents"
    )


async def _tenant_database(settings: Settings) -> str:
    async with tenant_database(settings) as database:
        await check_writes(database)
    return DATABASE_IS_RIGHT


async def _settlement_database(settings: Settings) -> str:
    async with settlement_database(settings) as database:
        await check_writes(database)
    return DATABASE_IS_RIGHT


async def _service_database(settings: Settings) -> str:
    async with service_database(settings) as database:
        await check_writes(database)
    return DATABASE_IS_RIGHT


async def _operator_database(url: str) -> str:
    database = OperatorDatabase(url, application_name="settle cli", pool_size=CONNECTIONS)
    try:
        await check_operator_database(database)
    finally:
        await database.dispose()
    return "schema and rights are correct"


async def _books(settings: Settings, *, full: bool) -> str:
    pending_max = settings.payment_wait_max
    told = PROGRESS_EVERY

    def tell(checked: int) -> None:
        nonlocal told
        if checked >= told:
            progress(f"books: {grouped(checked)} entries checked")
            told = checked + PROGRESS_EVERY

    async with service_database(settings) as database:
        await check_books(database, pending_max=pending_max, on_step=tell)
        async with database.transaction() as connection:
            full = full or await books_check.has_at_most(connection, FULL_UP_TO_ENTRIES)
        if full:
            told = PROGRESS_EVERY
            await check_all_books(database, pending_max=pending_max, on_step=lambda round_: tell(round_.entries))
        async with database.transaction() as connection:
            violations = await books_check.list_open_violations(connection, shown_max=SHOWN_MAX)
            number = sum((await books_check.count_open_violations(connection)).values())
            standing = await books_check.find_standing(connection)
    scheduled = _scheduled(standing.checked_ago)
    if violations:
        cut = [f"{len(violations)} of {number} violations are listed"] if number > len(violations) else []
        raise BooksDoNotBalance("; ".join([*(violation.detail for violation in violations), *cut, scheduled]))
    return (
        f"debits = credits = {grouped(standing.debits)}, every balance is the sum of its entries"
        f"{', every row was checked' if full else ''}; {scheduled}"
    )


def _scheduled(ago: timedelta | None) -> str:
    if ago is None:
        return "no scheduled check has run yet"
    minutes = int(ago.total_seconds()) // 60
    return f"the last scheduled check was {minutes} min ago"


async def _temporal(variables: Mapping[str, str]) -> str:
    client = await connect(variables)
    await temporal_answers(lambda: is_serving(client))
    missing = await list_missing_search_attributes(client)
    if missing:
        raise TemporalUnavailable(
            f"search attributes are missing: {', '.join(missing)}; a worker that may registers them, else run: "
            f"{registration_command(client, missing)}"
        )
    return f"namespace {client.namespace}, search attributes are registered"


async def _workers(settings: Settings, variables: Mapping[str, str]) -> str:
    client = await connect(variables)
    try:
        return await _count_workers(client, settings)
    except SettleError as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        return f"their number is unknown: Temporal does not show it to these credentials ({refusal})"


async def _count_workers(client: Client, settings: Settings) -> str:
    queue = task_queue(settings.chain_id)
    pollers = await count_pollers(client, settings.chain_id)
    if pollers == 0:
        raise TemporalUnavailable(f"no worker polls task queue {queue}: nothing is settled; run: settle worker")
    async with service_database(settings) as database, database.transaction() as connection:
        unfinished = await attempts.count_unfinished_by_chain(connection)
    left_alone = [
        f"{count} of chain {chain_id}, for which no worker polls {task_queue(chain_id)}"
        for chain_id, count in sorted(unfinished.items())
        if chain_id != settings.chain_id and await count_pollers(client, chain_id) == 0
    ]
    if left_alone:
        raise TemporalUnavailable(f"payments without a worker: {'; '.join(left_alone)}; run a worker of that chain")
    left_behind = await count_left_behind(client)
    on_old_queue = f"; {left_behind} runs on {PLATFORM_TASK_QUEUE}, where an earlier version left them"
    return f"{pollers} on task queue {queue}{on_old_queue if left_behind else ''}"


async def _api(url: str) -> str:
    return await check_ready(url, what="the API", command="settle api", seconds_max=API_SECONDS_MAX)


async def _gateway(url: str) -> str:
    return await check_ready(url, what="the gateway", command="settle gateway", seconds_max=API_SECONDS_MAX)


async def _chain_nodes(settings: Settings) -> str:
    async with chain_reader(settings) as chain:
        nodes = await chain.health()
    words = "; ".join(
        f"{node.label}: {node.error or f'chain {node.chain_id}, head {node.head_number}'}" for node in nodes
    )
    is_of_another_chain = any(node.chain_id not in {None, settings.chain_id} for node in nodes)
    if is_of_another_chain or not any(node.reachable and node.error is None for node in nodes):
        raise ChainUnavailable(words)
    return words


async def _clocks(settings: Settings) -> str:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(service_database(settings))
        chain = await stack.enter_async_context(chain_reader(settings))
        connection = await stack.enter_async_context(database.autocommit())
        host = await measure_host_offset(connection.connection)
        words = f"this host is {in_words(host)} the database"
        ahead = None
        if is_utxo_chain(settings.chain_id):
            _require_together(host, None)
            return f"{words}; the chain was not compared: a miner's clock may be two hours from the others'"
        try:
            ahead, newest = await ChainClock(chain, settings.block_time).wait_and_compare(connection)
        except ChainUnavailable:
            words += "; the chain was not compared, no node answers"
        else:
            words += (
                f"; no new block of the chain was seen, the newest is of {newest.mined_at:%F %T} UTC: not compared"
                if ahead is None
                else f"; the chain is {in_words(ahead)} it"
            )
    _require_together(host, ahead)
    return words


def _require_together(host: timedelta, chain: timedelta | None) -> None:
    problems = ClockOffsets(host=host, chain=chain).problems
    if problems:
        raise ClocksApart("; ".join(problems))


async def _preconditions(settings: Settings) -> str:
    """The same check that a worker makes at its start, and before it credits a payment."""
    async with chain_reader(settings) as chain:
        preconditions = settlement_preconditions(settings, chain)
        found = await preconditions.check(settings.settled_token)
    words = "; ".join([found.message, *(f"contradicted by {dissenter}" for dissenter in found.dissenters)])
    answer = found.answer
    if is_utxo_chain(settings.chain_id):
        return f"{UTXO_CHAINS[settings.chain_id].name}: {words}"
    if found.state is not State.MET or found.dissenters or answer is None:
        raise PreconditionNotMet(words, is_broken=found.state is State.BROKEN)
    return f"{answer.symbol or 'token'} with {words}, treasury holds {grouped(answer.treasury_balance_raw or 0)} raw"
