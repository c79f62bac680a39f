"""Housekeeping finishes what lost its workflow after the credit: the finality of a payment, and half a reversal."""

from __future__ import annotations

from uuid import uuid4

from domain.payments.attempt import AttemptStatus, Purpose
from tests.finality.conftest import FINAL_AFTER
from tests.finality.test_after_the_credit import BONUS, CREDITS, _credited, _missed, _on_record
from tests.support.engine import RESULT_TIMEOUT, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect, query
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput

REFUSE_REVERSED_BONUSES = """
    CREATE FUNCTION refuse_for_now() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'not now'; END $$;
    CREATE TRIGGER refuse_for_now BEFORE INSERT ON credit_ledger FOR EACH ROW
        WHEN (NEW.reason = 'payment_reversal' AND NEW.billing_account_id = 'cogni_system')
        EXECUTE FUNCTION refuse_for_now();
"""


async def keep_house(engine: Engine) -> dict[str, int]:
    """One run of the job; how many payments it picked up, by status."""
    done = await engine.namespace.client.execute_workflow(
        Housekeeping.run,
        HousekeepingInput(pick_up_after_seconds=1),
        id=f"house-{uuid4()}",
        task_queue=TASK_QUEUE,
        rpc_timeout=RESULT_TIMEOUT,
    )
    return done.payments_picked_up


def age(engine: Engine, interval: str) -> None:
    """Whatever happened to attempts happened earlier."""
    with connect(engine.database.superuser_url, triggers=False) as owner:
        owner.execute("UPDATE payment_attempts SET updated_at = updated_at - %s::interval", (interval,))


async def test_a_credited_payment_whose_workflow_was_lost_is_tracked_until_it_is_final(engine: Engine) -> None:
    async with engine.worker():
        intent, _ = await _credited(engine, confirmations=2)
        age(engine, "2 hours")
        assert await keep_house(engine) == {}, "its workflow is at work on it"
        await engine.handle(intent.attempt_id).terminate("by mistake")
        assert await keep_house(engine) == {"CREDITED": 1}
        assert await keep_house(engine) == {}
        await engine.chain.mine(FINAL_AFTER)
        await engine.result(intent.attempt_id)
    assert [row[0] for row in _on_record(engine, intent.attempt_id)] == ["final"]
    assert await engine.books() == []


async def test_a_payment_that_may_still_become_final_in_time_is_not_asked_about(engine: Engine) -> None:
    """Nearly all payments of the last hour are not final yet."""
    async with engine.worker():
        intent, _ = await _credited(engine, confirmations=2)
        age(engine, "50 minutes")
        await engine.handle(intent.attempt_id).terminate("by mistake")
        assert await keep_house(engine) == {}


async def test_a_reorged_out_donation_whose_workflow_was_lost_after_the_credit_is_reversed(
    engine: Engine,
) -> None:
    async with engine.worker():
        intent, _ = await _credited(engine, Purpose.SYSTEM, confirmations=4)
        await engine.handle(intent.attempt_id).terminate("by mistake")
        await engine.chain.reorg(4)
        await engine.chain.mine(1)
        age(engine, "2 hours")
        assert await keep_house(engine) == {"CREDITED": 1}
        await _missed(engine, intent.attempt_id)
        await engine.chain.mine(2 * FINAL_AFTER)
        await engine.result(intent.attempt_id)
    assert await engine.credits(intent.attempt_id) == {"system_donation": CREDITS, "payment_reversal": -CREDITS}


async def test_the_second_half_of_a_reversal_is_done_after_its_workflow_was_lost(engine: Engine) -> None:
    async with engine.worker():
        intent, _ = await _credited(engine, confirmations=3)
        with connect(engine.database.superuser_url) as owner:
            owner.execute(REFUSE_REVERSED_BONUSES)
        await engine.chain.reorg(3)
        await engine.chain.mine(1)
        await _missed(engine, intent.attempt_id)
        await engine.chain.mine(2 * FINAL_AFTER)
        await engine.waits(
            intent.attempt_id,
            lambda state: any(one.name == "reverse_bonus" and one.last_failure for one in state.pending),
            what="a bonus that cannot be reversed",
        )
        await engine.handle(intent.attempt_id).terminate("by mistake")
        with connect(engine.database.superuser_url) as owner:
            owner.execute("DROP TRIGGER refuse_for_now ON credit_ledger")
        age(engine, "1 minute")
        assert await keep_house(engine) == {"REVERSED": 1}
        result = await engine.result(intent.attempt_id)
    assert result.status is AttemptStatus.REVERSED
    reversals = query(
        engine.database.service_url,
        "SELECT amount FROM credit_ledger WHERE reference = %s AND reason = 'payment_reversal' ORDER BY amount",
        str(intent.attempt_id),
    )
    assert reversals == [(-CREDITS,), (-BONUS,)]
    assert await engine.books() == []
