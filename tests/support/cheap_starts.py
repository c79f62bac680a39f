"""What is done once instead of hundreds of times, and what makes a worker cheap to start: workflows validated once,
few pollers, queues of one part.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from typing import Final

import temporalio.worker._worker as sdk
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.worker import PollerBehaviorSimpleMaximum
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import _Definition

import worker
from db.billing import prices
from devstack import temporal
from domain.billing import installed_prices
from domain.billing.price_book import PriceBook
from services.billing import prices as compared_prices

POLLERS: Final = 4
ONE_PARTITION: Final = ("matching.numTaskqueueReadPartitions=1", "matching.numTaskqueueWritePartitions=1")

PRICES: Final = text("SELECT count(*), sum(xmin::text::bigint) FROM model_prices")
"""Differs after every change of a row: each version of a row names its transaction. It is the same in each copy."""

_validated: Final[set[type]] = set()
_books: Final[dict[tuple[int, ...], PriceBook]] = {}
_read_version = prices.read_version
_prepare = SandboxedWorkflowRunner.prepare_workflow


def _prepare_once(runner: SandboxedWorkflowRunner, definition: _Definition) -> None:
    if definition.cls not in _validated:
        _prepare(runner, definition)
        _validated.add(definition.cls)


def validate_workflows_once() -> None:
    """A worker that starts imports each of its workflows again, on each of its queues, to see whether it may run in the
    sandbox. That is a quarter of a second of the processor's, hundreds of times, and the answer is always the same.

    Where a test's own worker has no build id, the SDK makes one of all modules that are imported: with the tests' three
    seconds."""
    SandboxedWorkflowRunner.prepare_workflow = _prepare_once  # type: ignore[assignment, method-assign]
    sdk._default_build_id = "settle tests"


def read_installed_prices_once() -> None:
    """Each database that is migrated from its beginning gets the prices of two thousand models, 0.1 s to convert."""
    once = cache(installed_prices.installed_book)
    for module in (prices, compared_prices):
        module.installed_book = once  # type: ignore[attr-defined]


def read_installed_prices_now() -> None:
    """What is forked from here on has them."""
    prices.installed_book(datetime.now(UTC).date())  # type: ignore[attr-defined]


async def _read_version_once(connection: AsyncConnection, version: int) -> PriceBook:
    [rows] = await connection.execute(PRICES)
    known = (connection.engine.url.port, version, *rows)
    if known not in _books:
        _books[known] = await _read_version(connection, version)
    return _books[known]


def read_stored_prices_once() -> None:
    """Each gateway reads the same two thousand rows when it starts, half of what it costs a test."""
    prices.read_version = _read_version_once


def poll_with_few() -> None:
    """Twenty polls of each kind serve many payments at once. To open and to end them is half of what a worker costs
    that a test starts for one.

    The server keeps each queue in four parts, with rows and polls of their own. In one, and without a collection of
    garbage at each doubling of its small memory, a workflow on a new namespace costs it a third less, and the
    namespaces of before half of each second."""
    for kind in ("workflow_task_poller_behavior", "activity_task_poller_behavior"):
        worker.WORKER_OPTIONS[kind] = PollerBehaviorSimpleMaximum(POLLERS)
    if not {*ONE_PARTITION} <= {*temporal.DYNAMIC_CONFIG}:  # a process that was forked has done so before
        temporal.DYNAMIC_CONFIG += ONE_PARTITION
    os.environ.setdefault("GOGC", "400")
