"""Fixtures for every folder, on servers that each process of a run starts once. From cheap to dear (CPU time):

* `roles`, `database`: a migrated database of one's own, with connections of each role. It is used again after the test,
  with its rows put back (5 ms); a test that changes its schema or leaves a transaction open costs a new one (130 ms).
  What is no content of a table, as roles and their passwords, a test undoes itself.
* `shared_api`, `shared_payer`: the HTTP interface, one for the file, with an empty database before each test (10 ms).
  A file whose tests can share one overrides `api` and `payer` by them (`tests/api/test_requests.py`). A test that
  needs settings of its own, kills something or has a stream open at its end uses `running_api`.
* `namespace`: a Temporal namespace (10 ms). `engine`: database, namespace and chain together, without a worker;
  `engine.worker()` is the product's own in this process (10 ms), `Engine.buy` a payment (40 ms).
* `api` of `tests/api`, on an engine of its own: 150 ms with a payer who signs in.
* processes (`tests.support.system`, `service_process`): forked of a warm parent, some 200 ms each.

`DatabasePool` lends copies of any template: a folder whose tests begin with the same rows makes a template of them once
(`tests/database/conftest.py`, `tests/reconciliation/conftest.py`).
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import AsyncIterator

import pytest
import structlog
from hypothesis import settings
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

import worker
from devstack.browser import NO_BROWSER, find_browser
from devstack.chain import LocalChain
from tests.support.api import RunningApi, SharedApi, Visitor, shared_api_on
from tests.support.cheap_starts import (
    poll_with_few,
    read_installed_prices_once,
    read_stored_prices_once,
    validate_workflows_once,
)
from tests.support.cpu_report import CpuReport
from tests.support.database_pool import DatabasePool
from tests.support.engine import Engine, open_engine
from tests.support.parallel import ParallelRun, process_number
from tests.support.payments import RolePair
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database, running_cluster, state_folder
from tests.support.selection import keep_what_is_not_slow
from tests.support.servers import Namespace, Namespaces, TemporalServer, running_chain, running_temporal

gc.disable()  # until all is collected


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Which tests are slow, and which files come first."""
    keep_what_is_not_slow(config, items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported and collected stays to the end: no collection of garbage walks through it, now or later."""
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS_MIN, 20, 50)
    gc.enable()


GARBAGE_OBJECTS_MIN = 50_000


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many processes, and an option to see where the time goes."""
    parser.addoption("--cpu", action="store_true", help="Show each test file's seconds of the processor's.")
    parser.addoption(
        "--processes", type=int, default=1, metavar="N", help="Run the tests of different files in N processes."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Run in several processes, and measure, on request."""
    config.pluginmanager.register(ParallelRun(config.getoption("--processes")))
    if config.getoption("--cpu"):
        config.pluginmanager.register(CpuReport(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests of the page that did not run for want of a browser are not to be overlooked."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/browser/" in report.nodeid]
    if skipped and not find_browser():
        terminalreporter.section("browser tests", red=True)
        terminalreporter.write_line(f"{len(skipped)} browser tests did not run: {NO_BROWSER}", red=True)


validate_workflows_once()
poll_with_few()
read_installed_prices_once()
read_stored_prices_once()

# A library under eth-account raises it to 100,000 when it is imported. Then pytest's own report of a failure fails,
# and text that is nested deeply enough ends the process.
importlib.import_module("eth_account")
sys.setrecursionlimit(1_000)

# What a test logs is read where it fails. A traceback with source and variables, which structlog shows where rich is
# installed, takes up to a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

# A shared machine is slow now and then: no example fails for its time. Nothing is kept between runs.
settings.register_profile("settle", deadline=None, database=None, print_blob=True)
settings.load_profile("settle")


@pytest.fixture(scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """This process's PostgreSQL server, with a migrated template database."""
    with state_folder(tmp_path_factory.mktemp("cluster")) as folder:
        async with running_cluster(folder, worker_number=process_number()) as running:
            yield running


@pytest.fixture(scope="session")
async def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TemporalServer]:
    """A Temporal server for as long as this process runs: for what lasts longer than a test."""
    async with running_temporal(tmp_path_factory.mktemp("temporal")) as running:
        yield running


@pytest.fixture(scope="session")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """This process's chain node with the test token; it mines only on request."""
    async with running_chain(tmp_path_factory.mktemp("chain")) as running:
        yield running


@pytest.fixture(scope="session")
async def namespaces(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Namespaces]:
    """Where `namespace` comes from."""
    made = Namespaces(lambda: tmp_path_factory.mktemp("temporal"))
    yield made
    await made.close()


@pytest.fixture
def sandboxed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows import their modules again for each run, and with them a time-out that the test has changed."""
    for options in (worker.WORKER_OPTIONS, worker.PLATFORM_OPTIONS):
        monkeypatch.setitem(options, "workflow_runner", SandboxedWorkflowRunner())


@pytest.fixture
async def namespace(namespaces: Namespaces) -> AsyncIterator[Namespace]:
    """A Temporal namespace of one's own."""
    async with namespaces.lent() as made:
        yield made


@pytest.fixture
async def scheduling_namespace(temporal_server: TemporalServer) -> Namespace:
    """The same on a server that runs schedules."""
    return await temporal_server.namespace()


@pytest.fixture(scope="session")
async def databases(cluster: Cluster) -> AsyncIterator[DatabasePool]:
    """Where `database` and `roles` come from."""
    pool = DatabasePool(cluster, MIGRATED_TEMPLATE)
    yield pool
    await pool.close()


@pytest.fixture
async def roles(databases: DatabasePool) -> AsyncIterator[RolePair]:
    """All roles on a migrated database of one's own."""
    async with databases.database() as roles:
        yield roles


@pytest.fixture
def database(roles: RolePair) -> Database:
    """A migrated database of one's own."""
    return roles.database


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """The whole engine without a worker, on servers of the session and a database and namespace of one's own."""
    async with open_engine(namespace, roles, chain) as opened:
        yield opened


@pytest.fixture(scope="module")
async def module_api(
    databases: DatabasePool, temporal_server: TemporalServer, chain: LocalChain
) -> AsyncIterator[SharedApi]:
    """The HTTP interface of a module, on a database and namespace of its own."""
    namespace = await temporal_server.namespace()
    async with (
        databases.database() as roles,
        open_engine(namespace, roles, chain) as engine,
        shared_api_on(engine) as shared,
    ):
        yield shared


@pytest.fixture
async def shared_api(module_api: SharedApi, request: pytest.FixtureRequest) -> AsyncIterator[RunningApi]:
    """The module's interface, with an empty database, but for a payer who is signed in where the test asks for one."""
    async with module_api.lent(has_payer="shared_payer" in request.fixturenames) as running:
        yield running


@pytest.fixture
async def shared_payer(module_api: SharedApi, shared_api: RunningApi) -> AsyncIterator[Visitor]:
    """A payer who is signed in at it already."""
    async with module_api.payer() as visitor:
        yield visitor
