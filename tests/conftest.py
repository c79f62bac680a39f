"""Fixtures for every folder: one PostgreSQL for the session, a fresh database for each test that asks for one."""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import settings

from devstack.browser import NO_BROWSER, find_browser
from devstack.chain import LocalChain
from tests.support.cpu_report import CpuReport
from tests.support.engine import Engine, open_engine
from tests.support.payments import RolePair, open_roles
from tests.support.postgres import MIGRATED_TEMPLATE, Cluster, Database, running_cluster, state_folder
from tests.support.sandbox import validate_workflows_once
from tests.support.selection import ByFile, keep_what_is_not_slow, position
from tests.support.servers import Namespace, TemporalServer, running_chain, running_temporal, xdist_number


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Which tests are slow, and which files come first."""
    keep_what_is_not_slow(config, items)
    items.sort(key=position)  # stable: within a file in their own order


PR_SET_PDEATHSIG = 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Files are dealt to the processes of a parallel run, not single tests."""
    return ByFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option to see where the time goes."""
    parser.addoption("--cpu", action="store_true", help="Show each test file's seconds of the processor's.")


def pytest_configure(config: pytest.Config) -> None:
    """Measure on request; and a process of a parallel run ends when the one that began the run has ended."""
    if hasattr(config, "workerinput") and sys.platform == "linux":
        # Its servers and other children are tied to it in the same way.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if config.getoption("--cpu"):
        config.pluginmanager.register(CpuReport(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests of the page that did not run for want of a browser are not to be overlooked."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/browser/" in report.nodeid]
    if skipped and not find_browser():
        terminalreporter.section("browser tests", red=True)
        terminalreporter.write_line(f"{len(skipped)} browser tests did not run: {NO_BROWSER}", red=True)


validate_workflows_once()

# A library under eth-account raises it to 100,000 when it is imported. Then pytest's own report of a failure fails,
# and text that is nested deeply enough ends the process.
importlib.import_module("eth_account")
sys.setrecursionlimit(1_000)

# A shared machine is slow now and then: no example fails for its time. Nothing is kept between runs.
settings.register_profile("settle", deadline=None, database=None, print_blob=True)
settings.load_profile("settle")


@pytest.fixture(scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """This process's PostgreSQL server, with a migrated template database."""
    with state_folder(tmp_path_factory.mktemp("cluster")) as folder:
        async with running_cluster(folder, worker_number=xdist_number()) as running:
            yield running


@pytest.fixture(scope="session")
async def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TemporalServer]:
    """This process's Temporal server."""
    async with running_temporal(tmp_path_factory.mktemp("temporal")) as running:
        yield running


@pytest.fixture(scope="session")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """This process's chain node with the test token; it mines only on request."""
    async with running_chain(tmp_path_factory.mktemp("chain")) as running:
        yield running


@pytest.fixture
async def namespace(temporal_server: TemporalServer) -> Namespace:
    """A Temporal namespace of one's own."""
    return await temporal_server.namespace()


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[Database]:
    """A migrated database of one's own."""
    async with cluster.temporary(template=MIGRATED_TEMPLATE) as fresh:
        yield fresh


@pytest.fixture
async def roles(database: Database) -> AsyncIterator[RolePair]:
    """Both roles on a migrated database of one's own."""
    async with open_roles(database) as opened:
        yield opened


@pytest.fixture
async def engine(namespace: Namespace, database: Database, chain: LocalChain) -> AsyncIterator[Engine]:
    """The whole engine without a worker, on servers of the session and a database and namespace of one's own."""
    async with open_engine(namespace, database, chain) as opened:
        yield opened
