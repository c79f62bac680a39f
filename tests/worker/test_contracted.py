"""A worker of the version before, under a schema that has taken settle_app's right to credit: nothing is lost."""

from __future__ import annotations

from db.engine import SettlementDatabase
from domain.payments.attempt import AttemptStatus
from tests.support.engine import Engine
from worker import build_worker


async def test_a_credit_that_an_old_worker_may_not_write_waits_for_a_new_one(engine: Engine) -> None:
    """It credited as settle_app. What it may not do any more is a fault that is retried, and no verdict."""
    payer, intent, sent = await engine.buy()
    as_before = SettlementDatabase(engine.database.app_url, application_name="settle tests")
    try:
        async with build_worker(
            engine.namespace.client,
            engine.settings,
            chain=engine.reader,
            settlement=as_before,
            service=engine.service,
        ):
            await engine.submit(payer, intent, sent)
            await engine.waits(
                intent.attempt_id,
                lambda state: any(pending.name == "credit_buyer" and pending.attempt > 2 for pending in state.pending),
                what="a credit that is refused and tried again",
            )
    finally:
        await as_before.dispose()
    assert (await engine.attempt(intent.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
    assert await engine.credits(intent.attempt_id) == {}
    async with engine.worker():
        result = await engine.result(intent.attempt_id)
    assert result.status is AttemptStatus.CREDITED
    assert await engine.credits(intent.attempt_id) == {
        "credits_purchase": 1_000_000_000,
        "platform_revenue_share": 750_000_000,
    }
    assert await engine.books(nothing_stuck=True) == []
