"""Holds whose gateway has died: found when their lease has lapsed, and charged by the provider's record, or by what was
produced until the last heartbeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from db.billing import holds
from db.billing.lapsed import LapsedHold, StoredHold, find_hold, page_lapsed
from db.driver import driver_of
from db.engine import ServiceConnection, ServiceDatabase
from domain.billing.charges import CallEnd, Charge, Terms, charge
from domain.billing.media import units_of_input
from domain.billing.pricing import ModelRates
from domain.billing.requests import BYTES_PER_TOKEN
from domain.billing.usage import ImplausibleUsage, Usage
from services.ports import HoldResolutionStarter

PAGE: Final = 200
STARTED_AT_ONCE_MAX: Final = 8

RESOLVED_WITHIN: Final = timedelta(minutes=10)
"""Of a lease's end: longer than a provider's record is waited for. A hold that is open for longer needs an operator."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of a hold. `outcome` is that of `capture_hold`."""

    outcome: str
    charged_credits: int | None = None


async def start_lapsed(
    database: ServiceDatabase, starter: HoldResolutionStarter, *, limit: int, on_progress: Callable[[], object]
) -> int:
    """Start a resolution for each lapsed hold that has none, at most `limit`; returns how many were started.

    Holds that are being resolved are passed over, so that many of them do not stand before the others. Raises
    `TemporalUnavailable`.
    """
    started = 0
    last: LapsedHold | None = None
    while started < limit:
        async with database.autocommit() as connection:
            page = await page_lapsed(connection, after=last, limit=min(PAGE, limit - started))
        if not page:
            break
        last = page[-1]
        started += await _start_all(page, starter)
        on_progress()
    return started


async def _start_all(page: list[LapsedHold], starter: HoldResolutionStarter) -> int:
    permits = asyncio.Semaphore(STARTED_AT_ONCE_MAX)

    async def start_one(hold: LapsedHold) -> bool:
        async with permits:
            is_new = await starter.start_hold_resolution(hold)
        if is_new:
            log.warning(
                "a hold's gateway has not renewed it in time: it is resolved",
                hold_id=str(hold.id),
                billing_account_id=hold.billing_account_id,
                lease_until=hold.lease_until.isoformat(),
            )
        return is_new

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start_one(hold)) for hold in page]
    except ExceptionGroup as failed:
        # One outage is one error.
        raise failed.exceptions[0] from failed
    return sum(task.result() for task in tasks)


async def resolve(
    connection: ServiceConnection,
    hold_id: UUID,
    record: Usage | ImplausibleUsage | None,
    *,
    grace_credits: int,
) -> Resolved:
    """Charge a call in the place of its gateway, where its lease is over; of a call charged before, what was charged.

    Safe to run twice, and beside a gateway that was only paused: the database captures once.
    """
    hold = await find_hold(connection, hold_id)
    if hold is None:
        return Resolved("unknown_hold")
    captured = await holds.capture(
        driver_of(await connection.connection.get_raw_connection()),
        hold_id,
        charge_of(hold, record),
        end=CallEnd.GATEWAY_DIED,
        markup_factor=hold.markup_factor,
        provider=hold.upstream,
        upstream_id=hold.upstream_id,
        grace_credits=grace_credits,
        only_lapsed=True,
    )
    return Resolved(captured.outcome, captured.charged)


def charge_of(hold: StoredHold, record: Usage | ImplausibleUsage | None) -> Charge:
    """What a call costs whose gateway died: by the provider's record, else by what was produced (`estimated`)."""
    produced = Usage(
        {
            **units_of_input(hold.dialect, hold.input_tokens_estimate),
            "input_tokens": hold.input_tokens_estimate,
            "output_tokens": -(-hold.output_bytes // BYTES_PER_TOKEN),
        }
    )
    terms = Terms(
        rates=None if hold.rates is None else ModelRates.model_validate({"rates": hold.rates}),
        markup_factor=hold.markup_factor,
        held_credits=hold.amount_credits,
        output_tokens_limit=hold.output_tokens_limit,
    )
    return charge(CallEnd.GATEWAY_DIED, record, produced, terms)
