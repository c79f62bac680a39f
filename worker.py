"""The worker process: builds the workers, runs until it is stopped, then drains."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog
from temporalio.client import Client
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.worker import PollerBehaviorSimpleMaximum, UnsandboxedWorkflowRunner, Worker

from activities.billing import wiring as billing
from activities.deposits import wiring as deposits
from activities.interceptors import DomainErrors
from activities.ledger import wiring as ledger
from activities.operations import wiring as operations
from activities.own_chain import OwnChain
from activities.payments import wiring as payments
from activities.signatures import Activity
from activities.transfers import wiring as transfers
from activities.webhooks import wiring as webhooks
from activities.wiring import Dependencies
from chain.preconditions import SettlementPreconditions, State
from chain.reader import ChainReader
from composition import chain_reader, open_prices, settlement_preconditions, settlement_starter
from db.engine import ServiceDatabase, SettlementDatabase
from db.startup import check_service_database, check_settlement_database, check_writes
from db.transfers.destinations import note_destination
from domain.billing.upstreams import UsageLookup
from domain.errors import ConfigurationError, TemporalUnavailable
from domain.operations.events import Publish
from domain.utxo import is_utxo_chain
from gateway.upstreams_file import admin_keys, load_upstreams, upstream_keys
from services.billing.provider_api import Providers
from services.deposits.pricing import Prices
from services.operations.clocks import EVERY_SECONDS as CLOCKS_EVERY_SECONDS
from services.operations.clocks import clock_watch
from services.operations.gauges import DatabaseGauges, PreconditionGauge, refreshing
from services.payments.finality import FinalityDecider
from services.webhooks.outbox import following_outbox
from settings import Settings
from starter.temporal import connect, is_serving, register_search_attributes
from telemetry.events import DEFAULT_SOURCE, EventPublisher
from telemetry.health import first_line, serve_health, temporal_answers
from telemetry.logs import LogContext
from telemetry.metrics.worker import observe_rpc_request
from workflows import registry
from workflows.naming import PLATFORM_TASK_QUEUE, WEBHOOK_TASK_QUEUE, task_queue

GRACEFUL_SHUTDOWN: Final = timedelta(seconds=10)
"""The time limit of a ledger activity: a worker that is asked to stop finishes running ones."""

STOP_SECONDS_MAX: Final = GRACEFUL_SHUTDOWN.total_seconds() + 3.0
"""How long a worker takes to stop, whatever Temporal does; then its process ends without it."""

START_POLL_SECONDS: Final = 0.01
"""The SDK does not say when Temporal has confirmed a worker's namespace, only whether it has."""

DATABASE_CONNECTIONS: Final = 8
"""Per role. More connections make one hot account slower, not faster."""

WORKFLOW_TASK_POLLERS: Final = 20
"""The default leaves one poller on the non-sticky queue, which costs throughput and most of the tail latency."""

WORKER_OPTIONS: Final[dict[str, Any]] = {
    "graceful_shutdown_timeout": GRACEFUL_SHUTDOWN,
    "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(WORKFLOW_TASK_POLLERS),
    "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(WORKFLOW_TASK_POLLERS),
    # The sandbox imports a workflow's modules again for each run, a quarter of what a settlement costs. What it would
    # find, tests find: docs/decisions/changing-a-workflow.md.
    "workflow_runner": UnsandboxedWorkflowRunner(),
    # By default the SDK reads and hashes every module that is imported, a second of each start.
    "build_id": f"settle {version('settle')}",
}

PLATFORM_OPTIONS: Final[dict[str, Any]] = {
    **WORKER_OPTIONS,
    "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
    "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
}
"""A few jobs an hour, and runs left by an earlier version."""

WEBHOOK_OPTIONS: Final[dict[str, Any]] = {**PLATFORM_OPTIONS, "max_concurrent_activities": 200}
"""They wait for receivers: `activities.webhooks.delivery.PER_ACCOUNT_MAX` of these places are one account's."""

_D = TypeVar("_D", SettlementDatabase, ServiceDatabase)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the process owns, checked."""

    settlement: SettlementDatabase
    service: ServiceDatabase
    chain: ChainReader
    preconditions: SettlementPreconditions
    temporal: Client
    sdk_metrics_address: str
    events: EventPublisher
    prices: Prices


async def run_worker(settings: Settings, variables: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT, then drain. Raises `SettleError` when the start-up checks fail."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    if settings.reconciliation_dir is not None:
        _prepare_folder("RECONCILIATION_DIR", settings.reconciliation_dir)
    providers = providers_of(settings, variables)
    async with AsyncExitStack() as stack:
        opened = await _open(stack, settings, variables)
        worker = build_worker(
            opened.temporal,
            settings,
            chain=opened.chain,
            settlement=opened.settlement,
            service=opened.service,
            publish=opened.events.publish,
            preconditions=opened.preconditions,
            providers=providers,
            prices=opened.prices,
        )
        health_port = await stack.enter_async_context(
            _serve_health(settings, opened, is_alive=lambda: worker.is_running and not stop.is_set())
        )
        await _keep_measuring(stack, settings, opened)
        async with worker:
            await worker.confirmed_or(stop)
            log.info(
                "worker runs",
                task_queues=worker.task_queues,
                namespace=opened.temporal.namespace,
                chain_id=settings.chain_id,
                min_confirmations=settings.min_confirmations,
                revenue_share=str(settings.system_tenant_revenue_share),
                health=f"http://{settings.worker_health_host}:{health_port}",
            )
            await stop.wait()
            log.info("worker drains", seconds_max=GRACEFUL_SHUTDOWN.total_seconds())
    log.info("worker stopped")


async def _open(stack: AsyncExitStack, settings: Settings, variables: Mapping[str, str]) -> _Opened:
    """Open everything, in the order in which it is needed; the stack closes it. Raises `SettleError`."""
    settlement = _closing(stack, SettlementDatabase(settings.require_settlement_database_url(), **_POOL))
    service = _closing(stack, ServiceDatabase(settings.require_service_database_url(), **_POOL))
    await check_settlement_database(settlement)
    await check_service_database(service)
    chain = await stack.enter_async_context(chain_reader(settings, on_request=observe_rpc_request))
    preconditions = settlement_preconditions(settings, chain)
    asked = await preconditions.require_at_start(settings.settled_token)
    if asked.state is not State.MET:
        log.error("starting without being ready: nothing is credited until this is confirmed", reason=asked.message)
    if not is_utxo_chain(settings.chain_id):
        async with service.autocommit() as connection:
            # Before the first credit: from here on an intent alone does not decide where payments may go.
            await note_destination(connection, settings.require_transfer_scope())
    sdk_metrics_address = f"127.0.0.1:{_free_port()}"
    temporal = await connect(variables, runtime=sdk_runtime(sdk_metrics_address))
    await temporal_answers(lambda: is_serving(temporal))
    added = await register_search_attributes(temporal)
    if added:
        log.info("search attributes registered", names=added)
    events = await stack.enter_async_context(event_publisher(settings))
    prices = await stack.enter_async_context(open_prices(settings, chain))
    return _Opened(settlement, service, chain, preconditions, temporal, sdk_metrics_address, events, prices)


def _serve_health(
    settings: Settings, opened: _Opened, *, is_alive: Callable[[], bool]
) -> AbstractAsyncContextManager[int]:
    """The health port: alive while the worker runs and is not stopping, ready while its dependencies answer."""
    return serve_health(
        settings.worker_health_host,
        settings.worker_health_port,
        is_alive=is_alive,
        checks={
            "database": partial(_check_settlement, opened.settlement),
            "service_database": partial(_check_service, opened.service),
            "temporal": lambda: temporal_answers(lambda: is_serving(opened.temporal)),
            "chain": opened.chain.heads.height,
            "token": lambda: opened.preconditions.require_known(settings.settled_token),
        },
        sdk_metrics_address=opened.sdk_metrics_address,
    )


async def _keep_measuring(stack: AsyncExitStack, settings: Settings, opened: _Opened) -> None:
    """What is measured again and again beside the work, until the stack is closed."""
    gauges = DatabaseGauges(opened.service, chain_id=settings.chain_id, finality=settings.finality_policy)
    await stack.enter_async_context(gauges.refreshing())
    token = PreconditionGauge(opened.preconditions, settings.settled_token, chain_id=settings.chain_id)
    await stack.enter_async_context(token.refreshing())
    clocks = clock_watch(opened.service, opened.chain, settings.block_time)
    await stack.enter_async_context(refreshing(clocks, every_seconds=CLOCKS_EVERY_SECONDS))


def _prepare_folder(name: str, folder: Path) -> None:
    """Create the folder of the setting `name`. Raises `ConfigurationError` where it is not writable.

    Otherwise the job that writes there would be the first to fail, at night.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        got = f"{str(folder)!r}, which cannot be written to ({error.strerror})"
        raise ConfigurationError.invalid(name, got, "a folder") from None


async def _check_settlement(database: SettlementDatabase) -> None:
    await check_settlement_database(database)
    await check_writes(database)


async def _check_service(database: ServiceDatabase) -> None:
    await check_service_database(database)
    await check_writes(database)


class Workers:
    """One process's workers, one for each queue; an async context manager. `beside` them runs what brings them work.

    Where one of them fails, the block is cancelled, and leaving it raises `TemporalUnavailable`.
    """

    def __init__(
        self, workers: Sequence[Worker], *, beside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    ) -> None:
        self._workers = workers
        self._beside = beside
        self._running = AsyncExitStack()
        self._runs: list[asyncio.Task[None]] = []
        self._block: asyncio.Task[Any] | None = None
        self._is_stopping = False
        self._failure: Exception | None = None

    @property
    def task_queues(self) -> list[str]:
        """The queues that they poll."""
        return [worker.task_queue for worker in self._workers]

    @property
    def is_running(self) -> bool:
        """Whether all of them are running."""
        return all(worker.is_running for worker in self._workers)

    async def confirmed_or(self, stop: asyncio.Event) -> None:
        """Wait until Temporal has confirmed all of them and they poll, or `stop` is set."""
        while not (self.is_running or stop.is_set()):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), START_POLL_SECONDS)

    async def __aenter__(self) -> Self:
        self._block = asyncio.current_task()
        # Not `async with worker`: by that a worker that fails while the block is left cancels what comes after it.
        self._runs = [asyncio.create_task(self._run(worker)) for worker in self._workers]
        try:
            await self._running.enter_async_context(self._beside())
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = self._failure
        try:
            await self._stop()
        finally:
            await self._running.__aexit__(error_type, error, traceback)
        if failure is None or self._block is None:
            return
        is_cancelled_by_others = self._block.uncancel() > 0
        if error_type in (None, asyncio.CancelledError) and not is_cancelled_by_others:
            raise TemporalUnavailable(f"a worker has failed: {first_line(failure)}") from failure

    async def _run(self, worker: Worker) -> None:
        try:
            await worker.run()
        except Exception as error:
            is_first, self._failure = self._failure is None, self._failure or error
            if is_first and not self._is_stopping and self._block is not None:
                self._block.cancel()

    async def _stop(self) -> None:
        has_failed, self._is_stopping = self._failure is not None, True
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                # Concurrently: each may take its time to drain, and the process has that time once.
                await asyncio.gather(*(worker.shutdown() for worker in self._workers), *self._runs)
        except TimeoutError:
            # Where the server is to end the polls of a worker that stops, the SDK waits for it without end. What was
            # running has been completed or cancelled by now, and Temporal hands it out again.
            log.warning("worker stops without Temporal", reason=f"no answer within {STOP_SECONDS_MAX:g} s")
        else:
            if self._failure is not None and not has_failed:
                # Its start had not been confirmed yet.
                log.warning("worker stops without Temporal", reason=first_line(self._failure))


def build_worker(
    temporal: Client,
    settings: Settings,
    *,
    chain: ChainReader,
    settlement: SettlementDatabase,
    service: ServiceDatabase,
    publish: Publish | None = None,
    preconditions: SettlementPreconditions | None = None,
    providers: Providers | None = None,
    prices: Prices | None = None,
) -> Workers:
    """The worker with all workflows and activities. It does not own its dependencies.

    It polls its chain's queue, the platform's and that of webhooks, and refuses work of another chain from any of them.
    Without `publish` events go to the log only; without `providers` no provider is asked for its record of a call;
    without `prices` price feeds are on the worker's own chain.
    """
    starter = settlement_starter(temporal, settings, settlement)
    deps = Dependencies(
        settings=settings,
        chain=chain,
        settlement=settlement,
        service=service,
        preconditions=preconditions or settlement_preconditions(settings, chain),
        starter=starter,
        publish=publish or EventPublisher().publish,
        finality=FinalityDecider(chain, service, starter, policy=settings.finality_policy),
        providers=providers or Providers(),
        prices=prices or Prices({chain.chain_id: chain.prices}),
    )
    parts: dict[str, Any] = dict(
        workflows=registry.WORKFLOWS,
        activities=_activities(deps),
        interceptors=[LogContext(), DomainErrors(), OwnChain(service, settings.chain_id)],
    )
    return Workers(
        [
            Worker(temporal, task_queue=task_queue(settings.chain_id), **parts, **WORKER_OPTIONS),
            Worker(temporal, task_queue=PLATFORM_TASK_QUEUE, **parts, **PLATFORM_OPTIONS),
            Worker(temporal, task_queue=WEBHOOK_TASK_QUEUE, **parts, **WEBHOOK_OPTIONS),
        ],
        beside=partial(following_outbox, service, starter),
    )


def _activities(deps: Dependencies) -> list[Activity]:
    """Those of all subjects."""
    return [
        *payments.activities(deps),
        *transfers.activities(deps),
        *ledger.activities(deps),
        *operations.activities(deps),
        *billing.activities(deps),
        *deposits.activities(deps),
        *webhooks.activities(deps),
    ]


def providers_of(settings: Settings, variables: Mapping[str, str]) -> Providers:
    """The upstreams that can be asked about calls, with the keys that this needs. Raises `ConfigurationError`."""
    if settings.upstreams_file is None:
        return Providers()
    upstreams = load_upstreams(settings.upstreams_file)
    asked = [upstream for upstream in upstreams.upstreams if upstream.usage_lookup is not UsageLookup.NONE]
    return Providers(upstreams.upstreams, upstream_keys(asked, variables), admin_keys(upstreams.upstreams, variables))


def event_publisher(settings: Settings) -> EventPublisher:
    """Publishes to the log, and to the event sink of the settings."""
    return EventPublisher(settings.event_sink_url, source=settings.api_url or DEFAULT_SOURCE)


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
    """The SDK's runtime, its metrics served at `sdk_metrics_address`, the lines of its core among ours."""
    forwarding = LogForwardingConfig(
        logging.getLogger("temporalio.core"), append_target_to_name=False, prepend_target_on_message=False
    )
    return Runtime(
        telemetry=TelemetryConfig(
            metrics=PrometheusConfig(bind_address=sdk_metrics_address),
            logging=LoggingConfig(
                filter=TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding=forwarding
            ),
        )
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
