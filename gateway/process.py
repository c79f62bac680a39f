"""The gateway's process: opened, served until SIGTERM, and drained."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import web

from db.billing.prices import current_prices
from db.engine import TenantDatabase
from db.startup import check_answers, check_schema, check_system_tenant, check_tenant_database, check_writes
from domain.billing.charges import CallEnd
from domain.billing.price_book import PriceBook
from domain.billing.upstreams import Upstreams
from domain.billing.usage import Dialect, read_usage
from gateway.books import CallBooks
from gateway.heartbeat import beating
from gateway.policy import SHUTDOWN_STREAMS_SECONDS, ApiKeys, GatewayPolicy
from gateway.pricing import Prices
from gateway.routes import build_app
from gateway.server import Connections, allow_files, listen
from gateway.state import Gateway
from gateway.upstream_client import upstream_client

DATABASE_CONNECTIONS: Final = 10
"""More make one hot account slower, not faster."""

SHUTDOWN_CHARGES_SECONDS: Final = 10.0
"""For the charges of what was interrupted. What is not charged by then is resolved when its lease has lapsed."""

log = structlog.get_logger(__name__)

MoreRoutes = Callable[[TenantDatabase], Sequence[web.RouteDef]]


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the process is made of."""

    database_url: str = field(repr=False)
    host: str
    port: int
    connections_max: int
    policy: GatewayPolicy
    upstreams: Upstreams
    api_keys: ApiKeys = field(repr=False)
    more_routes: MoreRoutes = lambda _: ()
    """Routes of other parts, such as ingest."""


@asynccontextmanager
async def open_gateway(options: GatewayOptions) -> AsyncIterator[tuple[Gateway, web.Application]]:
    """Open and check everything that calls need. Raises `SettleError`."""
    policy = options.policy
    database = TenantDatabase(options.database_url, application_name="settle gateway", pool_size=DATABASE_CONNECTIONS)
    try:
        await check_tenant_database(database)
        prices = Prices(partial(_load_prices, database), options.upstreams.prices, policy.markup_factor)
        # The price book's extractors are loaded by their first use, which takes longer than a call may.
        read_usage(Dialect.CHAT, {"prompt_tokens": 1, "completion_tokens": 1})
        read_usage(Dialect.MESSAGES, {"input_tokens": 1, "output_tokens": 1})
        async with (
            prices.refreshing(),
            upstream_client(options.api_keys, read_timeout_seconds=policy.read_timeout_seconds) as client,
        ):
            books = CallBooks(
                database,
                owner=f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}",
                lease_seconds=policy.lease_seconds,
                grace_credits=policy.grace_credits,
            )
            gateway = Gateway(policy, options.upstreams, client, prices, books, Connections(options.connections_max))
            checks = {
                "database": partial(_check_database, database),
                "schema": partial(check_schema, database),
                "system_tenant": partial(check_system_tenant, database),
            }
            async with beating(gateway):
                yield gateway, build_app(gateway, checks=checks, more_routes=options.more_routes(database))
                await books.finish_background(timeout_seconds=SHUTDOWN_CHARGES_SECONDS)
    finally:
        await database.dispose()


async def _load_prices(database: TenantDatabase, known: PriceBook | None) -> PriceBook:
    async with database.unscoped() as connection:
        return await current_prices(connection, known)


async def _check_database(database: TenantDatabase) -> None:
    await check_answers(database)
    await check_writes(database)


@asynccontextmanager
async def serving(options: GatewayOptions) -> AsyncIterator[tuple[Gateway, str]]:
    """Serve for the length of the block, then let open calls end; yields the address. Raises `SettleError`."""
    async with open_gateway(options) as (gateway, app):
        runner = web.AppRunner(
            app,
            handle_signals=False,
            # Its call learns at once that a client has hung up.
            handler_cancellation=True,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        try:
            listening = await listen(runner, gateway.connections, host=options.host, port=options.port)
            host, port = listening.sockets[0].getsockname()[:2]
            yield gateway, f"http://{f'[{host}]' if ':' in host else host}:{port}"
            gateway.is_stopping = True
            listening.close()
            await let_calls_end(gateway)
        finally:
            await runner.cleanup()


async def let_calls_end(gateway: Gateway, *, seconds: float = SHUTDOWN_STREAMS_SECONDS) -> None:
    """Wait for open calls; those that take longer are ended, and charged for what was produced."""
    if gateway.tasks:
        log.info("open calls go on", calls=len(gateway.tasks), seconds_max=seconds)
        await asyncio.wait(gateway.tasks, timeout=seconds)
    for call in list(gateway.calls):
        call.interrupt(CallEnd.GATEWAY_DIED)
    if gateway.tasks:
        _, late = await asyncio.wait(gateway.tasks, timeout=SHUTDOWN_CHARGES_SECONDS)
        if late:
            log.error("calls are left to be resolved", calls=len(late))


async def run_gateway(options: GatewayOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises `SettleError` when the start-up checks fail."""
    allow_files(options.connections_max)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    async with serving(options) as (_, address):
        log.info(
            "gateway serves",
            listens_on=address,
            upstreams=[upstream.name for upstream in options.upstreams.upstreams],
            markup_factor=str(options.policy.markup_factor),
        )
        await stop.wait()
        log.info("gateway drains", seconds_max=SHUTDOWN_STREAMS_SECONDS)
    log.info("gateway stopped")
