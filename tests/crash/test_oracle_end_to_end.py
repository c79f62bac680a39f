"""The oracle can fail: without one unique index a race doubles a credit, and it says so."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

import pytest

from db.ledger.entries import PostedEntry, PostedMeanwhile
from services.payments.lifecycle import mint_revenue_share
from tests.support.oracle import wrong_bonuses
from tests.support.sql import connect
from tests.support.system import Payment, PaymentSystem

BONUS_INDEX: Final = "credit_ledger_one_revenue_share_per_reference"
RACERS: Final = 2


async def race_for_the_bonus(system: PaymentSystem) -> tuple[Payment, list[PostedEntry | BaseException | None]]:
    """Two mints of one bonus, both past their check for an entry before either of them can write one."""

    async def mint(attempt_id: UUID) -> PostedEntry | None:
        async with system.service.autocommit() as connection:
            return await mint_revenue_share(connection, attempt_id)

    async with system.bonus_that_waits() as (payment, worker):
        worker.pause()  # its statement goes on waiting on the server, as a dead worker's would not: the first racer
        second = asyncio.create_task(mint(payment.attempt_id))
        await system.lock_waiters(RACERS)

    async def all_done() -> bool:
        return second.done() and not await system.waits_for_locks()

    await system.until(all_done, "end of both mints")
    await worker.kill()
    return payment, list(await asyncio.gather(second, return_exceptions=True))


@pytest.mark.slow
async def test_two_mints_of_one_bonus_at_once_leave_one_bonus(system: PaymentSystem) -> None:
    payment, [outcome] = await race_for_the_bonus(system)
    assert isinstance(outcome, PostedMeanwhile)
    system.start_worker()
    await system.must_be_settled(payment)
    await system.books_are_right()


@pytest.mark.slow
async def test_without_its_unique_index_the_same_race_doubles_the_bonus_and_the_oracle_says_so(
    system: PaymentSystem,
) -> None:
    with connect(system.database.superuser_url) as connection:
        connection.execute(f"DROP INDEX {BONUS_INDEX}")
    payment, [outcome] = await race_for_the_bonus(system)
    assert isinstance(outcome, PostedEntry) and outcome.posted
    assert await system.balance() == 2 * 750_000_000
    assert await system.books(nothing_stuck=True) == [wrong_bonuses(payment.attempt_id, 2, 750_000_000)]


@pytest.mark.slow
async def test_the_oracle_names_a_submitted_payment_without_a_workflow(system: PaymentSystem) -> None:
    payment = await system.purchase()
    await system.record_without_worker(payment)
    assert await system.books() == []
    assert await system.books(nothing_stuck=True) == [f"attempt {payment.attempt_id}: still PENDING_UNVERIFIED"]
    with pytest.raises(AssertionError):
        await system.books_are_right()
