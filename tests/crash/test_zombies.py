"""A worker that was only paused, is taken for dead and goes on: what another one has done stays done once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import pytest

from domain.payments.attempt import Purpose
from starter import submission
from tests.support.faults import GONE_ON, OF_A_TRANSACTION, Action, Fault, Moment, paused
from tests.support.system import PaymentSystem
from workflows import policies

SETTLING_ACTIVITIES: Final = (
    (Purpose.SELF, "credit_buyer"),
    (Purpose.SELF, "mint_bonus"),
    (Purpose.SYSTEM, "credit_donation"),
)


@pytest.fixture
def short_ledger_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused activity is given to another worker after one second; the workflow runs in this process."""
    monkeypatch.setattr(policies, "LEDGER_START_TO_CLOSE", timedelta(seconds=1))


async def pause_take_over_and_go_on(
    system: PaymentSystem, purpose: Purpose, activity: str, moment: Moment, idle_in_transaction_timeout: str | None
) -> None:
    """One worker stops in mid-activity, another one finishes the payment, the first one goes on and settles another."""
    payment = await system.purchase(purpose=purpose)
    async with system.workflows_only():
        zombie = system.start_worker(paused(activity, moment, idle_in_transaction_timeout=idle_in_transaction_timeout))
        await asyncio.gather(system.submit_payment(payment), zombie.paused_itself())
        successor = system.start_worker()
        await system.must_be_settled(payment)

        zombie.go_on()
        await zombie.says(GONE_ON)

        await system.must_be_settled(payment)
        await system.books_are_right()
        # It has lost its transaction, not its mind: the next payment is its own.
        await successor.stop()
        following = await system.purchase(purpose=purpose)
        await system.submit_payment(following)
        await system.must_be_settled(following)
    await system.books_are_right()


@pytest.mark.slow(but=("self-mint_bonus-after_commit",))
@pytest.mark.usefixtures("short_ledger_timeout")
@pytest.mark.parametrize("moment", OF_A_TRANSACTION)
@pytest.mark.parametrize(("purpose", "activity"), SETTLING_ACTIVITIES)
async def test_an_activity_that_goes_on_after_another_worker_did_its_work_doubles_nothing(
    system: PaymentSystem, purpose: Purpose, activity: str, moment: Moment
) -> None:
    await pause_take_over_and_go_on(system, purpose, activity, moment, idle_in_transaction_timeout="3s")


@pytest.mark.slow
@pytest.mark.parametrize("moment", OF_A_TRANSACTION)
@pytest.mark.parametrize(("purpose", "activity"), SETTLING_ACTIVITIES)
async def test_a_ledger_step_that_goes_on_after_its_workflow_task_was_given_away_doubles_nothing(
    system: PaymentSystem, monkeypatch: pytest.MonkeyPatch, purpose: Purpose, activity: str, moment: Moment
) -> None:
    monkeypatch.setattr(submission, "WORKFLOW_TASK_TIMEOUT", timedelta(seconds=2))
    payment = await system.purchase(purpose=purpose)
    polls = system.start_worker(Fault(moment=None, activities_only=True))
    zombie = system.start_worker(
        Fault(
            activity=activity,
            moment=moment,
            action=Action.PAUSE,
            idle_in_transaction_timeout="3s",
            workflow_tasks_only=True,
        )
    )
    await asyncio.gather(system.submit_payment(payment), zombie.paused_itself())
    async with system.worker():
        await polls.stop()
        await system.must_be_settled(payment)

        zombie.go_on()
        await zombie.says(GONE_ON)

        await system.must_be_settled(payment)
        await system.books_are_right()


@pytest.mark.slow
async def test_with_the_products_own_timeouts_a_paused_worker_lets_go_of_what_it_holds_and_doubles_nothing(
    system: PaymentSystem,
) -> None:
    await pause_take_over_and_go_on(
        system, Purpose.SYSTEM, "credit_donation", Moment.BEFORE_COMMIT, idle_in_transaction_timeout=None
    )
