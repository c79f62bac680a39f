"""Housekeeping finishes what lost its workflow after the credit, also one of the version before."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from devstack.processes import wait_until
from tests.finality.conftest import FINAL_AFTER
from tests.finality.test_after_the_credit import BONUS, CREDITS, _credited, _missed, _on_record
from tests.support.engine import PATIENCE_SECONDS, RESULT_TIMEOUT, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect, query
from workflows.jobs.housekeeping import Housekeeping, HousekeepingInput, HousekeepingResult

REFUSE_REVERSED_BONUSES = """
    CREATE FUNCTION refuse_for_now() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'not now'; END $$;
    CREATE TRIGGER refuse_for_now BEFORE INSERT ON credit_ledger FOR EACH ROW
        WHEN (NEW.reason = 'payment_reversal' AND NEW.billing_account_id = 'cogni_system')
        EXECUTE FUNCTION refuse_for_now();
"""


async def keep_house(engine: Engine) -> HousekeepingResult:
    """One run of the job."""
    return await engine.namespace.client.execute_workflow(
        Housekeeping.run,
        HousekeepingInput(pick_up_after_seconds=1),
        id=f"house-{uuid4()}",
        task_queue=TASK_QUEUE,
        rpc_timeout=RESULT_TIMEOUT,
    )


def age(engine: Engine, interval: str) -> None:
    """Whatever happened to attempts happened earlier."""
    with connect(engine.database.superuser_url, triggers=False) as owner:
        owner.execute("UPDATE payment_attempts SET updated_at = updated_at - %s::interval", (interval,))


@pytest.mark.slow
async def test_a_run_of_the_version_before_that_was_lost_after_the_credit_is_not_missed(engine: Engine) -> None:
    """Its payment is on the list, as all are."""
    async with engine.worker():
        intent, _ = await _credited(engine, confirmations=2)
        age(engine, "2 hours")
        await engine.handle(intent.attempt_id).terminate("by mistake")
        assert (await keep_house(engine)).payments_picked_up == {}
        await engine.chain.mine(FINAL_AFTER)
        await keep_house(engine)
    assert [row[0] for row in _on_record(engine, intent.attempt_id)] == ["final"]
    assert await engine.books() == []


@pytest.mark.slow
async def test_half_a_reversal_of_a_lost_run_of_the_version_before_is_completed(engine: Engine) -> None:
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
        age(engine, "1 minute")
        assert (await keep_house(engine)).payments_picked_up == {}, "its workflow is at work on it"
        await engine.handle(intent.attempt_id).terminate("by mistake")
        with connect(engine.database.superuser_url) as owner:
            owner.execute("DROP TRIGGER refuse_for_now ON credit_ledger")
        # The watcher, which the housekeeping before has started, may have been faster: one of the two picks it up.
        assert (await keep_house(engine)).payments_picked_up in ({"REVERSED": 1}, {})
        await wait_until(
            lambda: len(_reversals(engine, intent.attempt_id)) == 2,
            timeout_seconds=PATIENCE_SECONDS,
            what="the second half of the reversal",
        )
    assert _reversals(engine, intent.attempt_id) == [(-CREDITS,), (-BONUS,)]
    assert await engine.books() == []


def _reversals(engine: Engine, attempt_id: UUID) -> list[tuple[object, ...]]:
    return query(
        engine.database.service_url,
        "SELECT amount FROM credit_ledger WHERE reference = %s AND reason = 'payment_reversal' ORDER BY amount",
        str(attempt_id),
    )
