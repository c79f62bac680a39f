"""The worker process: builds the workers, runs until it is told to stop, then drains."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from math import ceil
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import PollerBehaviorSimpleMaximum, Worker

from activities.interceptors import DomainErrors
from activities.ledger.integrity_scan import BookkeepingActivities
from activities.operations.events import AnnouncementActivities
from activities.operations.governance import GovernanceActivities
from activities.operations.housekeeping import HousekeepingActivities, Resume
from activities.operations.reconciliation import Reconciliation, ReconciliationActivities
from activities.operations.resolutions import RemedyActivities
from activities.own_chain import OwnChain
from activities.payments.finality import FinalityActivities
from activities.payments.payer import PayerActivities
from activities.payments.system_tenant import SystemTenantActivities
from activities.payments.verification import VerificationActivities
from activities.transfers.watch_chain import ScopeWatch, ScopeWatches, WatchingActivities
from chain.preconditions import SettlementPreconditions, State
from chain.reader import ChainReader
from composition import chain_reader, payment_policy, singleton_workflows
from db.clock import estimated_now
from db.engine import ServiceDatabase, SettlementDatabase
from db.operations.housekeeping import UnfinishedPayment
from db.startup import check_service_database, check_settlement_database, check_writes
from db.transfers.destinations import note_destination
from domain.chain import TransferScope
from domain.errors import ConfigurationError
from domain.operations.events import Publish
from domain.transfers.watching import Promise
from services.operations.clocks import EVERY_SECONDS as CLOCKS_EVERY_SECONDS
from services.operations.clocks import clock_watch
from services.operations.gauges import DatabaseGauges, PreconditionGauge, refreshing
from services.transfers.block_scanner import BlockScanner
from services.transfers.matcher import Submit, TransferMatcher
from settings import Settings
from starter.payments import PaymentsClient
from starter.progress import read_workflow
from starter.resolutions import start_remedy
from starter.singletons import start_missing
from starter.temporal import connect, is_serving, register_search_attributes
from telemetry.events import DEFAULT_SOURCE, EventPublisher
from telemetry.health import serve_health, temporal_answers
from telemetry.logs import LogContext
from telemetry.metrics.worker import observe_rpc_request
from workflows import registry
from workflows.naming import PLATFORM_TASK_QUEUE, task_queue

GRACEFUL_SHUTDOWN: Final = timedelta(seconds=10)
"""The time limit of a ledger activity: a worker that is asked to stop finishes running ones."""

DATABASE_CONNECTIONS: Final = 8
"""Per role. More connections make one hot account slower, not faster."""

WORKFLOW_TASK_POLLERS: Final = 20
"""The default leaves one poller on the non-sticky queue, which costs throughput and most of the tail latency."""

WORKER_OPTIONS: Final[dict[str, Any]] = {
    "graceful_shutdown_timeout": GRACEFUL_SHUTDOWN,
    "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(WORKFLOW_TASK_POLLERS),
    "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(WORKFLOW_TASK_POLLERS),
}
"""`settle bench` runs its bare workflow with the same values."""

PLATFORM_OPTIONS: Final[dict[str, Any]] = {
    **WORKER_OPTIONS,
    "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
    "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
}
"""A few jobs an hour, and runs left by an earlier version."""

_D = TypeVar("_D", SettlementDatabase, ServiceDatabase)

log = structlog.get_logger(__name__)


async def run_worker(settings: Settings, variables: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT, then drain. Raises `SettleError` when the start-up checks fail."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    if settings.reconciliation_dir is not None:
        _prepare_folder("RECONCILIATION_DIR", settings.reconciliation_dir)
    async with AsyncExitStack() as stack:
        settlement = _closing(stack, SettlementDatabase(settings.require_settlement_database_url(), **_POOL))
        service = _closing(stack, ServiceDatabase(settings.require_service_database_url(), **_POOL))
        await check_settlement_database(settlement)
        await check_service_database(service)
        chain = await stack.enter_async_context(chain_reader(settings, on_request=observe_rpc_request))
        token = settings.usdc_token_address
        preconditions = SettlementPreconditions(chain.contracts, settings.require_treasury_address())
        asked = await preconditions.require_at_start(token)
        if asked.state is not State.MET:
            log.error("starting without being ready: nothing is credited until this is confirmed", reason=asked.message)
        async with service.autocommit() as connection:
            # Before the first credit: from here on an intent alone does not decide where payments may go.
            await note_destination(connection, _scope_of(settings))
        sdk_metrics_address = f"127.0.0.1:{_free_port()}"
        temporal = await connect(variables, runtime=sdk_runtime(sdk_metrics_address))
        await temporal_answers(lambda: is_serving(temporal))
        added = await register_search_attributes(temporal)
        if added:
            log.info("search attributes registered", names=added)
        events = await stack.enter_async_context(event_publisher(settings))
        worker = build_worker(
            temporal,
            settings,
            chain=chain,
            settlement=settlement,
            service=service,
            publish=events.publish,
            preconditions=preconditions,
        )
        health_port = await stack.enter_async_context(
            serve_health(
                settings.worker_health_host,
                settings.worker_health_port,
                is_alive=lambda: worker.is_running and not stop.is_set(),
                checks={
                    "database": partial(_check_settlement, settlement),
                    "service_database": partial(_check_service, service),
                    "temporal": lambda: temporal_answers(lambda: is_serving(temporal)),
                    "chain": chain.heads.height,
                    "token": lambda: preconditions.require_known(token),
                },
                sdk_metrics_address=sdk_metrics_address,
            )
        )
        await stack.enter_async_context(
            DatabaseGauges(service, chain_id=settings.chain_id, finality=settings.finality_policy).refreshing()
        )
        watched = PreconditionGauge(preconditions, token, chain_id=settings.chain_id)
        await stack.enter_async_context(watched.refreshing())
        clocks = clock_watch(service, chain, settings.block_time)
        await stack.enter_async_context(refreshing(clocks, every_seconds=CLOCKS_EVERY_SECONDS))
        async with worker:
            log.info(
                "worker runs",
                task_queues=worker.task_queues,
                namespace=temporal.namespace,
                chain_id=settings.chain_id,
                min_confirmations=settings.min_confirmations,
                revenue_share=str(settings.system_tenant_revenue_share),
                health=f"http://{settings.worker_health_host}:{health_port}",
            )
            await stop.wait()
            log.info("worker drains", seconds_max=GRACEFUL_SHUTDOWN.total_seconds())
    log.info("worker stopped")


def _prepare_folder(name: str, folder: Path) -> None:
    """Create the folder of the setting `name`. Raises `ConfigurationError` where it is not writable.

    Otherwise the job that writes there would be the first to fail, at night.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{name} is invalid: got {str(folder)!r}, which cannot be written to ({error.strerror}); expected a folder"
        ) from None


async def _check_settlement(database: SettlementDatabase) -> None:
    await check_settlement_database(database)
    await check_writes(database)


async def _check_service(database: ServiceDatabase) -> None:
    await check_service_database(database)
    await check_writes(database)


def _scope_of(settings: Settings) -> TransferScope:
    return TransferScope(
        chain_id=settings.chain_id, token=settings.usdc_token_address, treasury=settings.require_treasury_address()
    )


class Workers:
    """One process's workers, one for each queue; an async context manager."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._running = AsyncExitStack()

    @property
    def task_queues(self) -> list[str]:
        """The queues that they poll."""
        return [worker.task_queue for worker in self._workers]

    @property
    def is_running(self) -> bool:
        """Whether all of them are running."""
        return all(worker.is_running for worker in self._workers)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for worker in self._workers:
                await stack.enter_async_context(worker)
            self._running = stack.pop_all()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Concurrently: each may take its time to drain, and the process has that time once.
        await asyncio.gather(*(worker.shutdown() for worker in self._workers))
        await self._running.__aexit__(error_type, error, traceback)


def build_worker(
    temporal: Client,
    settings: Settings,
    *,
    chain: ChainReader,
    settlement: SettlementDatabase,
    service: ServiceDatabase,
    publish: Publish | None = None,
    preconditions: SettlementPreconditions | None = None,
) -> Workers:
    """The worker with all workflows and activities. It does not own its dependencies.

    It polls its chain's queue and the platform's, and refuses work of another chain from either. Without `publish`
    events go to the log only.
    """
    if preconditions is None:
        preconditions = SettlementPreconditions(chain.contracts, settings.require_treasury_address())
    payer = PayerActivities(
        settlement,
        verification_timeout=settings.verification_timeout,
        revenue_share=settings.system_tenant_revenue_share,
    )
    system_tenant = SystemTenantActivities(service)
    scope = _scope_of(settings)
    verification = VerificationActivities(
        chain,
        service,
        preconditions,
        min_confirmations=settings.min_confirmations,
        block_time=settings.block_time,
        verification_timeout=settings.verification_timeout,
        own_destination=scope,
        from_block=settings.chain_watch_from_block,
    )
    finality = FinalityActivities(chain, service, policy=settings.finality_policy, block_time=settings.block_time)
    payments = PaymentsClient(settlement, temporal, payment_policy(settings))
    governance = GovernanceActivities(settlement, service, chain, worker_version=version("settle"))
    housekeeping = HousekeepingActivities(
        service,
        chain_id=settings.chain_id,
        resume=_resume(temporal, payments),
        ensure_singletons=lambda: start_missing(temporal, singleton_workflows(settings)),
    )
    remedies = RemedyActivities(
        service,
        chain,
        preconditions,
        revenue_share=settings.system_tenant_revenue_share,
        min_confirmations=settings.min_confirmations,
    )
    bookkeeping = BookkeepingActivities(service, pending_max=settings.payment_wait_max)
    publish = publish or EventPublisher().publish
    reconciliation = ReconciliationActivities(
        Reconciliation(
            service,
            chain_id=settings.chain_id,
            block_time=settings.block_time,
            resume_payment=payments.resume_payment,
            start_resolution=lambda request: start_remedy(temporal, request),
            dust_below_raw=settings.dust_below_raw,
        ),
        chain_id=settings.chain_id,
        directory=settings.reconciliation_dir,
    )
    announcements = AnnouncementActivities(publish)
    watching = _watching(settings, scope, chain, service, submit=payments.submit, publish=publish)
    parts: dict[str, Any] = dict(
        workflows=registry.WORKFLOWS,
        activities=[
            payer.record_submission,
            payer.credit_buyer,
            payer.end_without_credits,
            system_tenant.mint_bonus,
            system_tenant.credit_donation,
            verification.await_confirmation,
            finality.await_finality,
            finality.reverse_payment,
            finality.reverse_bonus,
            governance.take_heartbeat,
            governance.low_balance_announced,
            governance.read_income,
            housekeeping.expire_intents,
            housekeeping.prune_expired_rows,
            housekeeping.pick_up_payments,
            housekeeping.ensure_standing_workflows,
            remedies.take_remedy,
            remedies.mint_bonus_of_credit,
            reconciliation.reconcile,
            bookkeeping.check_books,
            bookkeeping.note_books_announced,
            watching.follow_chain,
            watching.rescan_chain,
            announcements.announce,
        ],
        interceptors=[LogContext(), DomainErrors(), OwnChain(service, settings.chain_id)],
    )
    return Workers(
        [
            Worker(temporal, task_queue=task_queue(settings.chain_id), **parts, **WORKER_OPTIONS),
            Worker(temporal, task_queue=PLATFORM_TASK_QUEUE, **parts, **PLATFORM_OPTIONS),
        ]
    )


def event_publisher(settings: Settings) -> EventPublisher:
    """Publishes to the log, and to the event sink of the settings."""
    return EventPublisher(settings.event_sink_url, source=settings.api_url or DEFAULT_SOURCE)


def _watching(
    settings: Settings,
    scope: TransferScope,
    chain: ChainReader,
    service: ServiceDatabase,
    *,
    submit: Submit,
    publish: Publish,
) -> WatchingActivities:
    """Follows the chain for the treasury, and for those that attempts still name; submits on the payers' behalf."""

    def open_scope(scope: TransferScope, promise: Promise | None) -> ScopeWatch:
        age = max(estimated_now() - promise.since, timedelta(0)) if promise is not None else timedelta(0)
        scan = BlockScanner(
            chain,
            service,
            scope,
            from_block=settings.chain_watch_from_block,
            look_back_blocks=ceil((settings.payment_intent_ttl + age) / settings.block_time),
        )
        matcher = TransferMatcher(
            service,
            scope,
            submit,
            publish,
            min_confirmations=settings.min_confirmations,
            dust_below_raw=settings.dust_below_raw,
        )
        return ScopeWatch(scan, matcher)

    return WatchingActivities(ScopeWatches(service, scope, open_scope), block_time=settings.block_time)


def _resume(temporal: Client, payments: PaymentsClient) -> Resume:
    """Submits a payment's own hash again where no workflow has it, on the payer's behalf."""

    async def resume(payment: UnfinishedPayment) -> bool:
        state = await read_workflow(temporal, payment.attempt_id)
        if state is not None and (state.is_running or (payment.is_credited and state.has_completed)):
            return False
        await payments.submit(payment.owner_user_id, payment.attempt_id, payment.tx_hash)
        return True

    return resume


_POOL: Final[dict[str, Any]] = {
    "application_name": "settle worker",
    "pool_size": DATABASE_CONNECTIONS,
    # A lost connection fails one activity attempt, and its retry gets a new one; checking first costs each call.
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
