"""The worker process: wires everything together, runs until it is told to stop, then drains."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final, TypeVar

import structlog
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import PollerBehaviorSimpleMaximum, Worker

from activities.announcements import AnnouncementActivities
from activities.errors import DomainErrors
from activities.metrics import observe_rpc_request
from activities.payer import PayerActivities
from activities.system_tenant import SystemTenantActivities
from activities.verification import VerificationActivities
from chain.reader import ChainReader
from db.engine import ServiceDatabase, TenantDatabase
from db.startup import check_service_database, check_tenant_database
from settings import Settings
from starter.temporal import connect, register_search_attributes
from telemetry.events import EventPublisher
from telemetry.health import serve_health, temporal_answers
from telemetry.logs import LogContext
from workflows.naming import TASK_QUEUE
from workflows.verify_and_settle import VerifyAndSettle

GRACEFUL_SHUTDOWN: Final = timedelta(seconds=10)
"""As long as a ledger activity may take: a worker that is asked to stop finishes what it has begun."""

DATABASE_CONNECTIONS: Final = 8
"""For each role. More connections make one hot account slower, not faster."""

WORKFLOW_TASK_POLLERS: Final = 20
"""The default leaves one poller on the non-sticky queue, which costs throughput and most of the tail latency."""

WORKER_OPTIONS: Final[dict[str, Any]] = {
    "graceful_shutdown_timeout": GRACEFUL_SHUTDOWN,
    "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(WORKFLOW_TASK_POLLERS),
    "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(WORKFLOW_TASK_POLLERS),
}
"""`settle bench` runs its bare workflow with the same ones."""

_D = TypeVar("_D", TenantDatabase, ServiceDatabase)

log = structlog.get_logger(__name__)


async def run_worker(settings: Settings, variables: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT, then drain. Raises `SettleError` when the start-up checks fail."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    async with AsyncExitStack() as stack:
        tenants = _closing(stack, TenantDatabase(settings.require_database_url(), **_POOL))
        service = _closing(stack, ServiceDatabase(settings.require_service_database_url(), **_POOL))
        await check_tenant_database(tenants)
        await check_service_database(service)
        chain = await stack.enter_async_context(
            ChainReader(
                settings.require_chain_rpc_urls(),
                settings.chain_id,
                timeout_seconds=settings.chain_rpc_timeout_seconds,
                on_request=observe_rpc_request,
            )
        )
        sdk_metrics_address = f"127.0.0.1:{_free_port()}"
        temporal = await connect(variables, runtime=sdk_runtime(sdk_metrics_address))
        added = await register_search_attributes(temporal)
        if added:
            log.info("search attributes registered", names=added)
        worker = build_worker(temporal, settings, chain=chain, tenants=tenants, service=service)
        health_port = await stack.enter_async_context(
            serve_health(
                settings.worker_health_host,
                settings.worker_health_port,
                is_alive=lambda: worker.is_running and not stop.is_set(),
                checks={
                    "database": lambda: check_tenant_database(tenants),
                    "service_database": lambda: check_service_database(service),
                    "temporal": lambda: temporal_answers(temporal.service_client.check_health),
                    "chain": chain.head,
                },
                sdk_metrics_address=sdk_metrics_address,
            )
        )
        async with worker:
            log.info(
                "worker runs",
                task_queue=TASK_QUEUE,
                namespace=temporal.namespace,
                chain_id=settings.chain_id,
                min_confirmations=settings.min_confirmations,
                revenue_share=str(settings.system_tenant_revenue_share),
                health=f"http://{settings.worker_health_host}:{health_port}",
            )
            await stop.wait()
            log.info("worker drains", seconds_max=GRACEFUL_SHUTDOWN.total_seconds())
    log.info("worker stopped")


def build_worker(
    temporal: Client,
    settings: Settings,
    *,
    chain: ChainReader,
    tenants: TenantDatabase,
    service: ServiceDatabase,
    task_queue: str = TASK_QUEUE,
) -> Worker:
    """The worker with all workflows and activities. It owns none of what it is given."""
    payer = PayerActivities(
        tenants,
        verification_timeout=settings.verification_timeout,
        revenue_share=settings.system_tenant_revenue_share,
    )
    system_tenant = SystemTenantActivities(service)
    verification = VerificationActivities(
        chain,
        service,
        min_confirmations=settings.min_confirmations,
        block_time=settings.block_time,
        verification_timeout=settings.verification_timeout,
    )
    announcements = AnnouncementActivities(EventPublisher().publish)
    return Worker(
        temporal,
        task_queue=task_queue,
        workflows=[VerifyAndSettle],
        activities=[
            payer.record_submission,
            payer.credit_buyer,
            payer.end_without_credits,
            system_tenant.mint_bonus,
            system_tenant.credit_donation,
            verification.await_confirmation,
            announcements.announce,
        ],
        interceptors=[LogContext(), DomainErrors()],
        **WORKER_OPTIONS,
    )


_POOL: Final[dict[str, Any]] = {
    "application_name": "settle worker",
    "pool_size": DATABASE_CONNECTIONS,
    # A lost connection fails one activity attempt, and its retry gets a fresh one; asking first costs each call.
    "pre_ping": False,
}


def _closing(stack: AsyncExitStack, database: _D) -> _D:
    stack.push_async_callback(database.dispose)
    return database


def sdk_runtime(sdk_metrics_address: str) -> Runtime:
    """The SDK's runtime, its metrics served at `sdk_metrics_address`."""
    return Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=sdk_metrics_address)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
