"""Reversals take their steps in order, and replay notices one that takes others."""

from __future__ import annotations

import pytest
from temporalio import workflow
from temporalio.workflow import NondeterminismError

from activities.messages import ReversalResult, TrackedPayment
from domain.payments.attempt import AttemptStatus, Purpose
from tests.finality.record_histories import PATHS, RECORDED, walk
from tests.support.histories import replay
from tests.support.servers import Namespace
from workflows import finality
from workflows.naming import REVERSE_PAYMENT
from workflows.reverse_payment import ReversePayment

EVENTS_MAX = 40


@pytest.mark.parametrize("name", PATHS)
def test_a_recorded_history_is_short(name: str) -> None:
    assert len(RECORDED.read(name).events) < EVENTS_MAX


@pytest.mark.parametrize("name", PATHS)
async def test_a_path_takes_its_steps_in_order(namespace: Namespace, name: str) -> None:
    purpose, status = PATHS[name]
    _, script = await walk(namespace.client, name)
    steps = [called for called, _ in script.calls if called != "await_finality"]
    if status is AttemptStatus.CREDITED:
        assert steps == []
    else:
        bonus = ["reverse_bonus"] if purpose is Purpose.SELF else []
        assert steps == ["reverse_payment", *bonus, "announce"]


@workflow.defn(name=REVERSE_PAYMENT)
class _Unchanged(ReversePayment):
    @workflow.init
    def __init__(self, payment: TrackedPayment) -> None:
        super().__init__(payment)

    @workflow.run
    async def run(self, payment: TrackedPayment) -> ReversalResult:
        return await ReversePayment.run(self, payment)


@pytest.mark.parametrize("is_changed", [False, True])
async def test_replay_notices_a_bonus_that_is_not_reversed(is_changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep_the_bonus(_: TrackedPayment) -> int:
        return 0

    if is_changed:
        monkeypatch.setattr(finality, "_reverse_bonus", keep_the_bonus)
    history = RECORDED.read("purchase_reversed")
    if is_changed:
        with pytest.raises(NondeterminismError):
            await replay(history, _Unchanged, in_sandbox=False)
    else:
        await replay(history, _Unchanged, in_sandbox=False)
