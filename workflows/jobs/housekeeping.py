"""Housekeeping: unpaid intents, expired rows, payments and singleton workflows that do not run."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.steps import run_steps

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.messages import Message
    from activities.operations.signatures import (
        FinalityToDecide,
        HousekeepingSignatures,
        IntentsToExpire,
        PaymentsToPickUp,
        RowsToPrune,
    )
    from workflows.naming import HOUSEKEEPING
    from workflows.policies import (
        BATCHES_HEARTBEAT,
        BATCHES_RETRY,
        BATCHES_START_TO_CLOSE,
        JOB_RETRY,
        JOB_SCHEDULE_TO_CLOSE,
        JOB_START_TO_CLOSE,
    )


DECIDES_FINALITY = "decides-finality"
"""A run that had passed this step before the patch replays unchanged; one that has not yet got there decides."""


class HousekeepingInput(Message):
    """Parameters of housekeeping."""

    expiry_grace_seconds: int = Field(default=10, ge=0, le=3600)
    """How long after its expiry an intent ends, so that submissions of its last second are recorded."""

    batch_size: int = Field(default=500, ge=1, le=10_000)
    """Most rows that one transaction changes."""

    idempotency_keys_hours: int = Field(default=24, ge=1)
    """How long an `Idempotency-Key` returns the same answer."""

    pick_up_after_seconds: int = Field(default=300, ge=1)
    """Age after which a submitted payment must have a workflow."""

    pick_up_limit: int = Field(default=1000, ge=1, le=100_000)
    """Most payments that Temporal is asked about, for each thing that may be due."""

    chain_id: int | None = None
    """The chain whose payments are resumed; None is that of the worker that runs it. Intents end whatever their
    chain.
    """

    look_back_hours: int = Field(default=24, ge=1)
    """How far back it checks for what is due after a credit or a reversal; reconciliation goes further."""


class HousekeepingResult(Message):
    """Number of changes, by kind."""

    intents_expired: dict[str, int] = Field(default_factory=dict)
    rows_pruned: dict[str, int] = Field(default_factory=dict)
    payments_picked_up: dict[str, int] = Field(default_factory=dict)
    finality_decided: dict[str, int] = Field(default_factory=dict)
    standing_started: tuple[str, ...] = ()


@workflow.defn(name=HOUSEKEEPING)
class Housekeeping:
    """Five independent steps: a failing one does not stop the others."""

    @workflow.run
    async def run(self, wanted: HousekeepingInput) -> HousekeepingResult:
        """Lifecycle of one run."""
        steps = (self._expire_intents, self._prune, self._pick_up, self._decide_finality, self._ensure_singletons)
        fields = await run_steps(steps, wanted, incomplete="HOUSEKEEPING_INCOMPLETE")
        return HousekeepingResult.model_validate(fields)

    async def _expire_intents(self, wanted: HousekeepingInput) -> dict[str, object]:
        done = await workflow.execute_activity_method(
            HousekeepingSignatures.expire_intents,
            IntentsToExpire(
                due_at=workflow.now() - timedelta(seconds=wanted.expiry_grace_seconds),
                batch_size=wanted.batch_size,
                grace_seconds=wanted.expiry_grace_seconds,
            ),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="end expired unpaid intents",
        )
        return {"intents_expired": done.counts}

    async def _prune(self, wanted: HousekeepingInput) -> dict[str, object]:
        done = await workflow.execute_activity_method(
            HousekeepingSignatures.prune_expired_rows,
            RowsToPrune(idempotency_keys_hours=wanted.idempotency_keys_hours, batch_size=wanted.batch_size),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="delete expired sessions, challenges, limits and keys",
        )
        return {"rows_pruned": done.counts}

    async def _pick_up(self, wanted: HousekeepingInput) -> dict[str, object]:
        done = await workflow.execute_activity_method(
            HousekeepingSignatures.pick_up_payments,
            PaymentsToPickUp(
                submitted_before=workflow.now() - timedelta(seconds=wanted.pick_up_after_seconds),
                credited_since=workflow.now() - timedelta(hours=wanted.look_back_hours),
                limit=wanted.pick_up_limit,
                waiting_seconds=wanted.pick_up_after_seconds,
                look_back_seconds=wanted.look_back_hours * 3600,
                chain_id=wanted.chain_id,
            ),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="resume payments without a workflow",
        )
        return {"payments_picked_up": done.counts}

    async def _decide_finality(self, wanted: HousekeepingInput) -> dict[str, object]:
        if not workflow.patched(DECIDES_FINALITY):
            return {}
        done = await workflow.execute_activity_method(
            HousekeepingSignatures.decide_finality,
            FinalityToDecide(chain_id=wanted.chain_id),
            start_to_close_timeout=BATCHES_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="decide which credited payments are final",
        )
        return {"finality_decided": done.counts}

    async def _ensure_singletons(self, _: HousekeepingInput) -> dict[str, object]:
        done = await workflow.execute_activity_method(
            HousekeepingSignatures.ensure_standing_workflows,
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary="ensure that the chain watcher runs",
        )
        return {"standing_started": done.started}
