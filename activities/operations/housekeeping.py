"""Housekeeping in bounded batches: expiry, pruning, and recovery of payments without a workflow."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Final

import structlog
from temporalio import activity

from activities.operations.signatures import (
    Done,
    HousekeepingSignatures,
    IntentsToExpire,
    PaymentsToPickUp,
    RowsToPrune,
    SingletonWorkflows,
)
from db.clock import read_clock
from db.engine import ServiceDatabase
from db.operations import housekeeping
from db.operations.housekeeping import UnfinishedPayment
from domain.errors import Refusal
from domain.payments.attempt import AttemptStatus, ErrorCode
from services.ports import Resume, StartSingletons
from telemetry.metrics.worker import INTENTS_EXPIRED, OUTCOMES, ROWS_PRUNED, WORKFLOWS_RESTARTED

ASKED_AT_ONCE_MAX: Final = 8

log = structlog.get_logger(__name__)


class HousekeepingActivities(HousekeepingSignatures):
    """Each batch is one transaction; safe to repeat, to run concurrently, and to be stopped half-way."""

    def __init__(
        self, database: ServiceDatabase, *, chain_id: int, resume: Resume, ensure_singletons: StartSingletons
    ) -> None:
        self._database = database
        self._chain_id = chain_id
        self._resume = resume
        self._ensure_singletons = ensure_singletons

    @activity.defn
    async def expire_intents(self, wanted: IntentsToExpire) -> Done:
        """End every unpaid intent that is due, batch by batch."""
        expired: Counter[str] = Counter()
        while True:
            async with self._database.transaction() as connection:
                due_at = wanted.due_at
                if wanted.grace_seconds is not None:
                    due_at = await read_clock(connection.connection) - timedelta(seconds=wanted.grace_seconds)
                batch = await housekeeping.expire_intents(connection, due_at, limit=wanted.batch_size)
            for purpose, count in batch.items():
                INTENTS_EXPIRED.inc(count)
                OUTCOMES.labels(purpose.value, AttemptStatus.FAILED.value, ErrorCode.INTENT_EXPIRED.value).inc(count)
                expired[purpose.value] += count
            activity.heartbeat()
            if sum(batch.values()) < wanted.batch_size:
                return Done(counts=dict(expired))

    @activity.defn
    async def prune_expired_rows(self, wanted: RowsToPrune) -> Done:
        """Delete expired sessions, sign-in challenges, rate limits and idempotency keys, batch by batch."""
        pruned: Counter[str] = Counter()
        while True:
            async with self._database.transaction() as connection:
                batch = await housekeeping.prune_expired(
                    connection,
                    idempotency_keys_older_than=timedelta(hours=wanted.idempotency_keys_hours),
                    limit=wanted.batch_size,
                )
            for table, count in batch.items():
                ROWS_PRUNED.labels(table).inc(count)
                pruned[table] += count
            activity.heartbeat()
            if max(batch.values(), default=0) < wanted.batch_size:
                return Done(counts=dict(pruned))

    @activity.defn
    async def pick_up_payments(self, wanted: PaymentsToPickUp) -> Done:
        """Start a workflow for every payment that should have one and has none."""
        before, since = wanted.submitted_before, wanted.credited_since
        async with self._database.autocommit() as connection:
            if wanted.waiting_seconds is not None and wanted.look_back_seconds is not None:
                now = await read_clock(connection.connection)
                before = now - timedelta(seconds=wanted.waiting_seconds)
                since = now - timedelta(seconds=wanted.look_back_seconds)
            waiting = await housekeeping.list_pending(connection, self._chain_id, before=before, limit=wanted.limit)
            without_bonus = await housekeeping.list_without_bonus(
                connection, self._chain_id, since=since, before=before, limit=wanted.limit
            )
        picked_up: Counter[str] = Counter()
        asking = asyncio.Semaphore(ASKED_AT_ONCE_MAX)

        async def resume_payment(payment: UnfinishedPayment) -> None:
            async with asking:
                try:
                    resumed = await self._resume(payment)
                except Refusal as refusal:
                    # One payment that cannot be resumed does not block the others.
                    log.warning("payment not resumed", attempt_id=str(payment.attempt_id), error=str(refusal))
                    picked_up["refused"] += 1
                    return
                activity.heartbeat()
            if resumed:
                log.warning("payment resumed: it had no workflow", attempt_id=str(payment.attempt_id))
                WORKFLOWS_RESTARTED.labels(payment.status.value).inc()
                picked_up[payment.status.value] += 1

        try:
            async with asyncio.TaskGroup() as group:
                for payment in [*waiting, *without_bonus]:
                    group.create_task(resume_payment(payment))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return Done(counts=dict(picked_up))

    @activity.defn
    async def ensure_standing_workflows(self) -> SingletonWorkflows:
        """Start the singleton workflows that do not run."""
        started = await self._ensure_singletons()
        for workflow_id in started:
            log.warning("singleton workflow started: it did not run", started_workflow_id=workflow_id)
        return SingletonWorkflows(started=tuple(started))
