"""Leases of open calls, extended in time and all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from domain.errors import DatabaseUnavailable
from gateway.state import Gateway
from telemetry.metrics import gateway as metrics

BATCH_MAX: Final = 500
"""Holds in one statement, which locks them all."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def beating(gateway: Gateway) -> AsyncIterator[None]:
    """Extend the leases of open calls at every third of their length, while the block runs."""
    task = asyncio.create_task(_beat(gateway))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _beat(gateway: Gateway) -> None:
    while True:
        await asyncio.sleep(gateway.books.lease_seconds / 3)
        try:
            await renew_all(gateway)
        except DatabaseUnavailable as error:
            log.warning("leases are not extended", reason=error.message)
        except Exception:
            # Or no lease of this process would be extended again, and nothing would say so.
            log.exception("leases are not extended")


async def renew_all(gateway: Gateway) -> None:
    """Extend all leases, and note how far each call is. Raises `DatabaseUnavailable`."""
    open_now = list(gateway.open_holds.values())
    for start in range(0, len(open_now), BATCH_MAX):
        lost = await gateway.books.renew([held.progress for held in open_now[start : start + BATCH_MAX]])
        for hold_id in lost:
            if hold_id in gateway.open_holds:
                metrics.LOST_LEASES.inc()
                log.warning("the hold of an open call was resolved by another process", hold_id=str(hold_id))
