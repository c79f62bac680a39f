"""What a worker counts of the payments that it settles."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from db.accounts.wallets import Payer
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from telemetry.metrics.worker import observe_outcome
from tests.support.engine import Engine
from tests.support.payments import TREASURY, new_attempt


def sample(name: str, **labels: str) -> float:
    """A metric's value, 0 where nothing was counted."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


CREDITED = "settle_confirmed_to_credited_seconds"


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("purpose", Purpose)
async def test_a_credited_payment_is_counted_with_the_time_since_its_confirmation(
    engine: Engine, purpose: Purpose
) -> None:
    def counted() -> tuple[float, float, float]:
        return (
            sample("settle_attempts_submitted_total", purpose=purpose.value),
            sample("settle_attempts_ended_total", purpose=purpose.value, status="CREDITED", error_code=""),
            sample(f"{CREDITED}_count", purpose=purpose.value),
        )

    before = counted()
    async with engine.worker():
        payer, intent, sent = await engine.buy(purpose=purpose)
        await engine.submit(payer, intent, sent)
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    assert counted() == tuple(value + 1 for value in before)


def pending(submitted_at: datetime) -> PaymentAttempt:
    """An attempt as a settling step finds it."""
    return new_attempt(Payer("user", "account", TREASURY)).model_copy(
        update={
            "status": AttemptStatus.CREDITED,
            "purpose": Purpose.SELF,
            "submitted_at": submitted_at,
            "tx_hash": f"0x{1:064x}",
        }
    )


@pytest.mark.parametrize(
    ("confirmed_ago", "submitted_ago", "seconds"),
    [
        (30, 60, 30),
        # It was confirmed before it was submitted.
        (600, 60, 60),
        # A node's clock may be ahead of ours.
        (-30, 60, 0),
    ],
)
def test_the_time_counts_from_when_the_platform_could_have_credited_it(
    confirmed_ago: int, submitted_ago: int, seconds: int
) -> None:
    now = datetime.now(UTC)
    before = sample(f"{CREDITED}_sum", purpose="self")
    observe_outcome(
        pending(now - timedelta(seconds=submitted_ago)), now=now, confirmed_at=now - timedelta(seconds=confirmed_ago)
    )
    assert sample(f"{CREDITED}_sum", purpose="self") - before == pytest.approx(seconds)


def test_without_a_block_s_time_nothing_is_invented() -> None:
    before = sample(f"{CREDITED}_count", purpose="self")
    observe_outcome(pending(datetime.now(UTC)), now=datetime.now(UTC), confirmed_at=None)
    assert sample(f"{CREDITED}_count", purpose="self") == before
