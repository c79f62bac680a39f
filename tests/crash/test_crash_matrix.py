"""The worker process is killed at every commit of every path: what was done is not done twice, the rest is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import pytest

from domain.payments.attempt import AttemptStatus, ErrorCode, Purpose
from starter import submission
from tests.crash.conftest import Systems
from tests.support.faults import Fault, Moment, shortened
from tests.support.oracle import wrong_bonuses
from tests.support.system import Payment, PaymentSystem

CENTS: Final = 10_000
CREDITS: Final = 1_000_000_000
BONUS: Final = 750_000_000
TOO_LITTLE_RAW: Final = 99_999_999

COMMITS_OF_A_CREDITED_PAYMENT: Final = (
    (Purpose.SELF, "credit_buyer"),
    (Purpose.SELF, "mint_bonus"),
    (Purpose.SYSTEM, "credit_donation"),
)


async def _is_over(system: PaymentSystem, payment: Payment) -> bool:
    return (await system.attempt(payment.attempt_id)).is_final


async def _has_bonus(system: PaymentSystem, payment: Payment) -> bool:
    return "platform_revenue_share" in await system.credits(payment.attempt_id)


IS_DONE: Final[dict[str, Callable[[PaymentSystem, Payment], Awaitable[bool]]]] = {
    "credit_buyer": _is_over,
    "credit_donation": _is_over,
    "end_without_credits": _is_over,
    "mint_bonus": _has_bonus,
}
"""What each activity's commit leaves behind."""

MOMENTS: Final = (Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)


@pytest.fixture(autouse=True)
def short_workflow_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies with a ledger step in hand costs the payment two seconds instead of ten."""
    monkeypatch.setattr(submission, "WORKFLOW_TASK_TIMEOUT", timedelta(seconds=2))


async def crash_and_recover(system: PaymentSystem, payment: Payment, fault: Fault) -> None:
    """The faulty worker dies of its fault, at the commit that it names; then the product's own worker takes over."""
    doomed = system.start_worker(fault)
    await system.submit_payment(payment)
    await doomed.killed_itself()
    is_done = IS_DONE[fault.activity]
    assert await is_done(system, payment) is (fault.moment is Moment.AFTER_COMMIT)
    system.start_worker()


async def balances(system: PaymentSystem, payment: Payment) -> tuple[int, int]:
    """Credits of the payer and of the system tenant."""
    return await system.balance(payment.payer.billing_account_id), await system.balance()


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("purpose", "activity"), COMMITS_OF_A_CREDITED_PAYMENT)
async def test_a_worker_killed_at_a_commit_of_a_good_payment_costs_no_credit_and_doubles_none(
    system: PaymentSystem, purpose: Purpose, activity: str, moment: Moment
) -> None:
    payment = await system.purchase(CENTS, purpose)

    await crash_and_recover(system, payment, shortened(activity, moment))

    await system.must_be_settled(payment)
    expected = (CREDITS, BONUS) if purpose is Purpose.SELF else (0, CREDITS)
    assert await balances(system, payment) == expected
    await system.books_are_right()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("purpose", list(Purpose))
async def test_a_worker_killed_while_it_refuses_a_wrong_payment_refuses_it_once(
    system: PaymentSystem, purpose: Purpose, moment: Moment
) -> None:
    payment = await system.purchase(CENTS, purpose, amount_raw=TOO_LITTLE_RAW)

    await crash_and_recover(system, payment, shortened("end_without_credits", moment))

    result = await system.finished(payment.attempt_id)
    assert (result.status, result.error_code) == (AttemptStatus.REJECTED, ErrorCode.INSUFFICIENT_AMOUNT)
    assert [event.event_type for event in await system.events(payment.attempt_id)] == [
        "intent_created",
        "submitted",
        "rejected",
    ]
    assert await system.entries(payment.attempt_id) == []
    assert await balances(system, payment) == (0, 0)
    await system.books_are_right()


@pytest.mark.slow
async def test_with_the_products_own_timeouts_a_crash_between_the_credits_still_pays_the_bonus_once(
    systems: Systems,
) -> None:
    system = await systems()
    payment = await system.purchase(CENTS)
    doomed = system.start_worker(Fault(activity="mint_bonus", moment=Moment.BEFORE_COMMIT))
    await system.submit_payment(payment)
    await doomed.killed_itself()
    # The buyer has the credits while the system tenant's are still to come: two transactions, never one.
    assert await balances(system, payment) == (CREDITS, 0)
    assert await system.books(pending_bonus_ok=True, nothing_stuck=True) == []
    assert await system.books(nothing_stuck=True) == [wrong_bonuses(payment.attempt_id, 0, BONUS)]

    system.start_worker()

    await system.must_be_settled(payment)
    assert await balances(system, payment) == (CREDITS, BONUS)
    await system.books_are_right()
