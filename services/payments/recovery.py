"""Giving a workflow to payments that lost theirs: one way, for housekeeping and for reconciliation.

What is unfinished, and why, the database says (`db.payments.recovery`). Whether a workflow is at work on it, and
starting one, is the starter's (`services.ports.PaymentResumer`): a new run finds in the database what is done, and does
the rest. Finality needs no workflow: it is decided for all payments that are listed (`services.payments.finality`), so
that a payment which lacks nothing else is listed where it is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from db.clock import read_clock
from db.engine import ServiceDatabase
from db.payments.finality import add_awaiting
from db.payments.recovery import Window, list_unfinished, list_unfinished_of, page_waiting
from domain.errors import Refusal
from domain.payments.recovery import FINALITY_DUE_AFTER, Due, UnfinishedPayment
from services.ports import PaymentResumer
from telemetry.metrics.worker import WORKFLOWS_RESTARTED

ASKED_AT_ONCE_MAX: Final = 8
"""Payments whose workflows are asked after at the same time."""

PAGE: Final = 500

STRANDED_AFTER: Final = timedelta(seconds=15)
"""Time in which a submission that was recorded has its run, unless its process died in between."""

RECENT: Final = timedelta(minutes=10)
"""How far back the first check goes; housekeeping asks about all that wait for longer."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Recovered:
    """What was done. It is filled as it is done: it counts, too, where the rest was not."""

    resumed: list[UnfinishedPayment] = field(default_factory=list)
    """Those that no workflow was at work on, and that have one now; of finality, those that were not listed."""
    refused: list[UnfinishedPayment] = field(default_factory=list)
    """Those that could not be resumed, which does not block the others."""


class PaymentRecovery:
    """One chain's payments. Safe to run twice and at once: a workflow is started once."""

    def __init__(self, database: ServiceDatabase, *, chain_id: int, starter: PaymentResumer) -> None:
        self._database = database
        self._chain_id = chain_id
        self._starter = starter

    async def window(
        self, *, waiting: timedelta, look_back: timedelta, finality_due_after: timedelta = FINALITY_DUE_AFTER
    ) -> Window:
        """Payments that have been unfinished for `waiting`, and of what was credited, those of the `look_back`."""
        async with self._database.autocommit() as connection:
            now = await read_clock(connection.connection)
        return Window(since=now - look_back, before=now - waiting, finality_before=now - finality_due_after)

    async def recover_recent(
        self, window: Window, done: Recovered, *, limit: int, on_answer: Callable[[], object]
    ) -> None:
        """Those of a window, at most `limit` for each thing that may be due."""
        async with self._database.autocommit() as connection:
            unfinished = await list_unfinished(connection, self._chain_id, window, limit=limit)
        await self._recover(unfinished, done, on_answer)

    async def recover_waiting(self, before: datetime, done: Recovered, *, since: datetime | None = None) -> None:
        """All that wait for the chain and were submitted `before`, and not before `since`."""
        after: UUID | None = None
        while True:
            async with self._database.autocommit() as connection:
                page = await page_waiting(
                    connection, self._chain_id, before=before, since=since, after=after, limit=PAGE
                )
            await self._recover(page, done)
            if len(page) < PAGE:
                return
            after = page[-1].attempt_id

    async def recover_these(self, ids: Sequence[UUID], done: Recovered) -> None:
        """Those of these attempts for which something is due now: much may have been finished since they were found."""
        for start in range(0, len(ids), PAGE):
            async with self._database.autocommit() as connection:
                unfinished = await list_unfinished_of(connection, ids[start : start + PAGE])
            await self._recover(unfinished, done)

    async def _recover(
        self, payments: Sequence[UnfinishedPayment], done: Recovered, on_answer: Callable[[], object] = lambda: None
    ) -> None:
        await self._list_for_finality([payment for payment in payments if payment.due == (Due.FINALITY,)], done)
        turns = asyncio.Semaphore(ASKED_AT_ONCE_MAX)

        async def resume(payment: UnfinishedPayment) -> None:
            async with turns:
                try:
                    was_missing = await self._starter.resume_payment(payment.owner_user_id, payment.attempt_id)
                except Refusal as refusal:
                    log.warning("payment not resumed", attempt_id=str(payment.attempt_id), error=refusal.message)
                    done.refused.append(payment)
                    return
                on_answer()
            if was_missing:
                due = [one.value for one in payment.due]
                log.warning("payment resumed: it had no workflow", attempt_id=str(payment.attempt_id), due=due)
                WORKFLOWS_RESTARTED.labels(payment.status.value).inc()
                done.resumed.append(payment)

        try:
            async with asyncio.TaskGroup() as group:
                for payment in payments:
                    if payment.due != (Due.FINALITY,):
                        group.create_task(resume(payment))
        except ExceptionGroup as failed:
            # One outage is one error, and ends the requests.
            raise failed.exceptions[0] from failed

    async def _list_for_finality(self, payments: Sequence[UnfinishedPayment], done: Recovered) -> None:
        if not payments:
            return
        async with self._database.autocommit() as connection:
            added = await add_awaiting(connection, [payment.attempt_id for payment in payments])
        for payment in payments:
            if payment.attempt_id in added:
                log.warning("payment listed: its finality was not awaited", attempt_id=str(payment.attempt_id))
                done.resumed.append(payment)


class RecentSubmissions:
    """Finds submissions that have no run. Each is asked after once, when it is old enough and still waits."""

    def __init__(self, database: ServiceDatabase, recovery: PaymentRecovery) -> None:
        self._database = database
        self._recovery = recovery
        self._since: datetime | None = None

    async def check(self) -> Recovered:
        """Those that have become old enough since the check before; one that raises is repeated by the next."""
        async with self._database.autocommit() as connection:
            before = await read_clock(connection.connection) - STRANDED_AFTER
        done = Recovered()
        await self._recovery.recover_waiting(before, done, since=self._since or before - RECENT)
        self._since = before
        return done
