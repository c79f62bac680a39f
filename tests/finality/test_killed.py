"""The worker is killed at every commit after the credit: one outcome, one reversal, nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from devstack.chain import LocalChain
from domain.payments.attempt import AttemptStatus
from starter.reversals import start_reversal
from tests.finality.conftest import FINAL_AFTER
from tests.finality.test_after_the_credit import BONUS, CREDITS, _balances, _on_record
from tests.finality.test_recovery import _reversals, keep_house
from tests.finality.test_reverse_payment import credited, result_of
from tests.support.engine import MIN_CONFIRMATIONS
from tests.support.faults import Moment, shortened
from tests.support.payments import RolePair
from tests.support.servers import TASK_QUEUE, Namespace
from tests.support.system import PaymentSystem, open_system
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput

MOMENTS: Final = (Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)


@pytest.fixture
async def system(
    namespace: Namespace, roles: RolePair, chain: LocalChain, tmp_path: Path
) -> AsyncIterator[PaymentSystem]:
    """A system on this module's chain, without a worker."""
    changes = {"FINALITY": "confirmations", "FINALITY_CONFIRMATIONS": str(FINAL_AFTER)}
    async with open_system(namespace, roles, chain, tmp_path / "system", changes) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
async def test_killed_between_deciding_and_recording_each_payment_is_recorded_once(
    system: PaymentSystem, moment: Moment
) -> None:
    paid = [(await credited(system))[0].attempt_id for _ in range(2)]
    await system.chain.mine(FINAL_AFTER)
    doomed = system.start_worker(shortened("decide_finality", moment))
    await system.namespace.client.start_workflow(
        Housekeeping.run, HousekeepingInput(), id=f"house-{uuid4()}", task_queue=TASK_QUEUE
    )
    await doomed.killed_itself()
    recorded = [len(_on_record(system, attempt_id)) for attempt_id in paid]
    assert recorded == ([1, 1] if moment is Moment.AFTER_COMMIT else [0, 0])
    system.start_worker()
    await keep_house(system)
    assert [[row[0] for row in _on_record(system, attempt_id)] for attempt_id in paid] == [["final"], ["final"]]
    assert await system.books() == []


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("activity", ["reverse_payment", "reverse_bonus"])
async def test_killed_in_a_reversal_it_is_completed_once(system: PaymentSystem, activity: str, moment: Moment) -> None:
    intent, _ = await credited(system)
    attempt = await system.attempt(intent.attempt_id)
    await system.chain.reorg(MIN_CONFIRMATIONS)
    doomed = system.start_worker(shortened(activity, moment))
    await start_reversal(system.namespace.client, attempt, again=False)
    death = asyncio.create_task(doomed.killed_itself())
    while not death.done():
        await system.chain.mine(1)
        await asyncio.wait([death], timeout=0.1)
    await death
    done = ("reverse_payment", "reverse_bonus").index(activity) + (moment is Moment.AFTER_COMMIT)
    assert len(_reversals(system, attempt.id)) == done
    system.start_worker()
    assert (await result_of(system, attempt.id)).status is AttemptStatus.REVERSED
    assert _reversals(system, attempt.id) == [(-CREDITS,), (-BONUS,)]
    assert set((await _balances(system)).values()) == {0}
    assert await system.books() == []
