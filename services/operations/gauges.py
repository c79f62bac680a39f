"""Gauges whose values come from the database, so that they are true across processes and restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import Gauge

from chain.preconditions import LIFETIME_SECONDS, SettlementPreconditions, State
from db.billing.health import count_lapsed
from db.engine import ReadAllConnection, ServiceDatabase
from db.ledger.invariants import CHECK_NAMES
from db.operations.gauges import Readings, read_gauges
from db.payments.finality import find_last_settled, find_oldest_waiting
from domain.errors import SettleError
from domain.operations.findings import FindingKind
from domain.payments.attempt import OPEN_STATUSES, Purpose
from domain.payments.finality import FinalityLevel, FinalityPolicy
from services.background import in_background
from services.billing.resolution import RESOLVED_WITHIN
from telemetry.metrics.worker import PRECONDITIONS_MET, observe_books

EVERY_SECONDS: Final = 15.0
"""Prometheus' default scrape interval."""

READING_SECONDS_MAX: Final = 10.0

OPEN_ATTEMPTS: Final = Gauge("settle_attempts_open", "Payment attempts that have not ended", ["status", "purpose"])
PENDING: Final = Gauge("settle_pending_attempts", "Submitted payments that wait for the chain, by age", ["age"])
PENDING_OLDEST: Final = Gauge("settle_pending_oldest_seconds", "How long the oldest submitted payment has waited")
FINDINGS: Final = Gauge("settle_findings_open", "Open findings", ["kind"])
FINDINGS_VALUE: Final = Gauge(
    "settle_findings_open_value_raw", "Token units in question in the open findings of a kind", ["kind"]
)
FINDINGS_OLDEST: Final = Gauge("settle_findings_oldest_seconds", "Age of the oldest open finding of a kind", ["kind"])
CURSOR_LAG: Final = Gauge(
    "settle_watcher_cursor_lag_blocks", "Blocks between the watcher's cursor and the last head it saw", ["chain"]
)
CURSOR_AGE: Final = Gauge("settle_watcher_cursor_age_seconds", "Seconds since the watcher's cursor moved", ["chain"])
UNREAD_BLOCKS: Final = Gauge(
    "settle_watcher_unread_blocks", "Blocks below the watcher's cursor that no chain node has returned", ["chain"]
)
FINALITY_OLDEST: Final = Gauge(
    "settle_finality_oldest_seconds",
    "How long the oldest credited payment has waited for finality, by the level that it needs",
    ["chain", "level"],
)
HOLDS_LAPSED: Final = Gauge(
    "settle_holds_lapsed", "Open holds whose gateway's lease ended so long ago that they should be resolved"
)
BALANCE: Final = Gauge("settle_system_tenant_balance_credits", "Credit balance of the system tenant")
HEARTBEAT: Final = Gauge("settle_heartbeat_timestamp_seconds", "When the last governance heartbeat was taken")
RECONCILED: Final = Gauge(
    "settle_reconciliation_timestamp_seconds", "When a chain's last reconciliation finished", ["chain"]
)
RECONCILIATION_CLOSES: Final = Gauge(
    "settle_reconciliation_closes", "1 if the totals of a chain's last reconciliation balance, else 0", ["chain"]
)
REFRESHED: Final = Gauge(
    "settle_gauges_refreshed_timestamp_seconds", "When the gauges read from the database were last set"
)

log = logging.getLogger(__name__)


class DatabaseGauges:
    """Reads the database periodically and sets the gauges; each reading is one short transaction."""

    def __init__(
        self,
        database: ServiceDatabase,
        *,
        chain_id: int,
        finality: FinalityPolicy | None = None,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        """With `finality`, the policy of the settings, it also measures how long payments have waited for finality."""
        self._database = database
        self._chain_id = chain_id
        self._sizes = finality.by_size if finality is not None else {}
        self._waiting: dict[FinalityLevel, int] = {}
        self._every_seconds = every_seconds

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Refresh while the block runs."""
        async with refreshing(self.refresh, every_seconds=self._every_seconds):
            yield

    async def refresh(self) -> None:
        """Set every gauge to the database's current value. Raises `SettleError`."""
        async with asyncio.timeout(READING_SECONDS_MAX), self._database.transaction() as connection:
            readings = await read_gauges(connection, chain_id=self._chain_id)
            lapsed = await count_lapsed(connection, since=RESOLVED_WITHIN)
            for level in self._sizes:
                await self._read_finality(connection, level)
        _set(readings, self._chain_id)
        HOLDS_LAPSED.set(lapsed)
        UNREAD_BLOCKS.labels(self._chain_id).set(readings.unread_blocks)
        REFRESHED.set_to_current_time()

    async def _read_finality(self, connection: ReadAllConnection, level: FinalityLevel) -> None:
        from_cents, below_cents = self._sizes[level]
        last = await find_last_settled(connection)
        waiting = await find_oldest_waiting(
            connection,
            self._chain_id,
            from_cents=from_cents,
            below_cents=below_cents,
            not_before=self._waiting.get(level),
        )
        if waiting is not None:
            self._waiting[level] = waiting.id
        elif last is not None:
            self._waiting[level] = last
        FINALITY_OLDEST.labels(self._chain_id, level.value).set(waiting.seconds if waiting is not None else 0.0)


@asynccontextmanager
async def refreshing(refresh: Callable[[], Awaitable[None]], *, every_seconds: float) -> AsyncIterator[None]:
    """Call `refresh` repeatedly while the block runs; an error is logged and the call repeated."""

    async def repeat() -> None:
        while True:
            try:
                await refresh()
            except (SettleError, TimeoutError) as error:
                # The gauges keep their values, and the age gauge shows it.
                log.warning("could not refresh the gauges: %s", str(error) or "no answer in time")
            except Exception:
                log.exception("could not refresh the gauges")
            await asyncio.sleep(every_seconds)

    async with in_background(repeat()):
        yield


class PreconditionGauge:
    """Checks the preconditions of settling against the nodes periodically, also without payments, and sets their
    gauge.
    """

    def __init__(self, preconditions: SettlementPreconditions, token: str, *, chain_id: int) -> None:
        self._preconditions = preconditions
        self._token = token
        self._chain_id = chain_id

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Refresh while the block runs."""
        async with refreshing(self.refresh, every_seconds=LIFETIME_SECONDS / 2):
            yield

    async def refresh(self) -> None:
        """Check, and set the gauge."""
        found = await self._preconditions.check(self._token)
        PRECONDITIONS_MET.labels(self._chain_id).set(found.state is State.MET)


def _set(readings: Readings, chain_id: int) -> None:
    for status in OPEN_STATUSES:
        for purpose in Purpose:
            count = readings.open_attempts.get((status.value, purpose.value), 0)
            OPEN_ATTEMPTS.labels(status.value, purpose.value).set(count)
    for age, attempts in readings.pending_by_age.items():
        PENDING.labels(age).set(attempts)
    PENDING_OLDEST.set(readings.pending_oldest_seconds)
    for kind in FindingKind:
        found = readings.open_findings.get(kind.value)
        FINDINGS.labels(kind.value).set(found.findings if found else 0)
        FINDINGS_VALUE.labels(kind.value).set(found.value_raw if found else 0)
        FINDINGS_OLDEST.labels(kind.value).set(found.oldest_seconds if found else 0.0)
    for followed, cursor in readings.cursors.items():
        CURSOR_LAG.labels(followed).set(cursor.lag_blocks)
        CURSOR_AGE.labels(followed).set(cursor.age_seconds)
    if readings.last_heartbeat_at is not None:
        HEARTBEAT.set(readings.last_heartbeat_at.timestamp())
    # Also without a reading, so that no other chain's value stays.
    reconciled_at = readings.last_reconciled_at
    RECONCILED.labels(chain_id).set(reconciled_at.timestamp() if reconciled_at is not None else 0)
    RECONCILIATION_CLOSES.labels(chain_id).set(bool(readings.reconciliation_closes))
    if readings.system_tenant_balance_credits is not None:
        BALANCE.set(readings.system_tenant_balance_credits)
    observe_books(dict.fromkeys(CHECK_NAMES, 0) | readings.books_violations, readings.books_checked_at)
