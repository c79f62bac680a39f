"""Housekeeping in bounded batches: expiry, pruning, and recovery of payments without a workflow."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import structlog
from temporalio import activity

from activities.operations.signatures import (
    Done,
    FinalityToDecide,
    HousekeepingSignatures,
    IntentsToExpire,
    PaymentsToPickUp,
    RowsToPrune,
    SingletonWorkflows,
)
from db.clock import read_clock
from db.engine import ServiceDatabase
from db.operations import housekeeping
from db.payments.recovery import Window
from domain.errors import ChainUnavailable
from domain.payments.attempt import AttemptStatus, ErrorCode
from services.deposits.expiry import expire_charges
from services.payments.finality import FinalityDecider
from services.payments.recovery import PaymentRecovery, Recovered
from services.ports import SingletonStarter
from telemetry.metrics.worker import INTENTS_EXPIRED, OUTCOMES, ROWS_PRUNED

log = structlog.get_logger(__name__)


class HousekeepingActivities(HousekeepingSignatures):
    """Each batch is one transaction, or one for each charge. Safe to repeat, to run at once, to be stopped half-way."""

    def __init__(
        self,
        database: ServiceDatabase,
        *,
        recovery: PaymentRecovery,
        finality: FinalityDecider,
        starter: SingletonStarter,
    ) -> None:
        self._database = database
        self._recovery = recovery
        self._finality = finality
        self._starter = starter

    @activity.defn
    async def expire_intents(self, wanted: IntentsToExpire) -> Done:
        """End every unpaid intent that is due, batch by batch, and every charge whose price has run out unpaid."""
        await self._expire_charges(wanted.batch_size)
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

    async def _expire_charges(self, batch_size: int) -> None:
        while True:
            count = await expire_charges(self._database, limit=batch_size)
            if count:
                log.info("charges expired", count=count)
            if count < batch_size:
                return
            activity.heartbeat()

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
        if wanted.waiting_seconds is None or wanted.look_back_seconds is None:
            window = Window(wanted.credited_since, wanted.submitted_before, wanted.submitted_before)
        else:
            waiting, look_back = timedelta(seconds=wanted.waiting_seconds), timedelta(seconds=wanted.look_back_seconds)
            window = await self._recovery.window(waiting=waiting, look_back=look_back)
        done = Recovered()
        await self._recovery.recover_recent(window, done, limit=wanted.limit, on_answer=activity.heartbeat)
        picked_up = Counter(payment.status.value for payment in done.resumed)
        return Done(counts=picked_up | ({"refused": len(done.refused)} if done.refused else {}))

    @activity.defn
    async def decide_finality(self, wanted: FinalityToDecide) -> Done:
        """Record the credited payments that are final, and start reversals: what the watcher does at each block."""
        try:
            decided = await self._finality.decide_all(activity.heartbeat)
        except ChainUnavailable as error:
            # Credited payments can wait for the nodes; the watcher, which always waits for them, is what reports them.
            log.warning("finality waits for the chain", error=error.message)
            return Done(counts={})
        return Done(counts=decided.counts)

    @activity.defn
    async def ensure_standing_workflows(self) -> SingletonWorkflows:
        """Start the singleton workflows that do not run."""
        started = await self._starter.start_singletons()
        for workflow_id in started:
            log.warning("singleton workflow started: it did not run", started_workflow_id=workflow_id)
        return SingletonWorkflows(started=tuple(started))
