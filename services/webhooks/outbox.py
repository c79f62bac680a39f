"""Starts a workflow for every delivery that should have one: what was just written, and what has lost its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from db.engine import ServiceDatabase
from db.webhooks import deliveries
from db.webhooks.deliveries import DueDelivery
from domain.errors import SettleError
from services.background import in_background
from services.ports import WebhookDeliveryStarter

PAGE: Final = 200
STARTED_AT_ONCE_MAX: Final = 8

EVERY_SECONDS: Final = 1.0
"""One read of an index that is empty but for what was written in the meantime. A notification would cost each credit a
lock that all commits share."""

AFTER_A_FAILURE_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def following_outbox(database: ServiceDatabase, starter: WebhookDeliveryStarter) -> AsyncIterator[None]:
    """Start workflows for new deliveries while the block runs. Several processes may: a repeated start joins a run."""

    async def follow() -> None:
        while True:
            pause = EVERY_SECONDS
            try:
                if await start_new(database, starter) == PAGE:
                    continue
            except (SettleError, TimeoutError) as error:
                log.warning("webhooks wait to be started: %s", str(error) or "no answer in time")
                pause = AFTER_A_FAILURE_SECONDS
            except Exception:
                log.exception("webhooks wait to be started")
                pause = AFTER_A_FAILURE_SECONDS
            await asyncio.sleep(pause)

    async with in_background(follow()):
        yield


async def start_new(database: ServiceDatabase, starter: WebhookDeliveryStarter) -> int:
    """Start a page of the deliveries that have no workflow; how many. Raises `SettleError`.

    Recorded after the start: what dies in between starts them again, and joins their runs.
    """
    async with database.autocommit() as connection:
        page = await deliveries.list_to_start(connection, limit=PAGE)
        if page:
            await _start_all(page, starter, at_once=True)
            await deliveries.note_started(connection, page)
    return len(page)


async def start_overdue(
    database: ServiceDatabase, starter: WebhookDeliveryStarter, *, by: timedelta, on_progress: Callable[[], object]
) -> int:
    """Start a workflow for each delivery that is overdue `by` that much and has none; how many were started.

    Those that have one are passed over: they wait for a place beside others of their account. Raises `SettleError`.
    """
    started = 0
    last: DueDelivery | None = None
    while True:
        async with database.autocommit() as connection:
            page = await deliveries.page_overdue(connection, by=by, after=last, limit=PAGE)
        if not page:
            return started
        last = page[-1]
        started += await _start_all(page, starter, at_once=False)
        on_progress()


async def _start_all(page: list[DueDelivery], starter: WebhookDeliveryStarter, *, at_once: bool) -> int:
    permits = asyncio.Semaphore(STARTED_AT_ONCE_MAX)

    async def start_one(delivery: DueDelivery) -> bool:
        async with permits:
            return await starter.start_webhook_delivery(delivery, at_once=at_once)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start_one(delivery)) for delivery in page]
    except ExceptionGroup as failed:
        # One outage is one error.
        raise failed.exceptions[0] from failed
    return sum(task.result() for task in tasks)
